"""A lane with a real child: records run, failures are told in words, stop word and lease are honoured."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from asyncpar.executors.lane_port import Batch
from tests.executors.lane_rig import batch, has_started, job, let_go, rig, until, work

STARTS = ["forkserver", "spawn"]


@pytest.mark.parametrize("start_method", STARTS)
async def test_batches_run_in_order_and_are_replied_in_order(start_method: str) -> None:
    """Two batches at once: a reply each: how many ran, which failed, the time it took; then nothing runs."""
    async with rig(start_method=start_method) as one:
        one.lane.send(batch(1, "ok", "fail", "ok"))
        one.lane.send(batch(2, "ok"))
        first, second = await one.reply(), await one.reply()
        assert (first.number, first.run, list(first.failures)) == (1, 3, [1])
        assert (second.number, second.run, second.failures) == (2, 1, {})
        assert first.seconds > 0
        await one.at_rest()


@pytest.mark.parametrize(
    ("deed", "kind", "ancestor", "message"),
    [
        ("fail", "failed", "builtins.ValueError", "no"),
        ("unpicklable", "failed", "tests.executors.child_handlers.UnpicklableError", "7 at here"),
        ("silent", "failed", "tests.executors.child_handlers.SilentError", "str() raised RuntimeError"),
        ("surrogate", "failed", "builtins.ValueError", r"\udcff"),
        ("exit", "failed", "asyncpar.errors.HandlerFailedError", "called exit: SystemExit(4)"),
        ("no exception", "failed", "asyncpar.errors.HandlerFailedError", "no Exception: KeyboardInterrupt"),
        ("skip", "skipped", "asyncpar.errors.Skip", "not mine"),
        ("permanent", "permanent", "asyncpar.errors.Permanent", "never"),
        ("retryable", "retryable", "asyncpar.errors.Retryable", "later"),
        ("retry after", "retry_after", "asyncpar.errors.RetryAfter", "soon"),
        (
            "coroutine",
            "undecodable",
            "asyncpar.executors.plain_calls.ReturnedAwaitableError",
            "nothing awaits",
        ),
    ],
)
async def test_a_failure_is_told_in_words(deed: str, kind: str, ancestor: str, message: str) -> None:
    """Kind, class, message and traceback; whatever the exception is like, the child goes on."""
    async with rig() as one:
        one.lane.send(batch(1, deed, "ok"))
        reply = await one.reply()
        assert (reply.run, list(reply.failures)) == (2, [0])
        failure = reply.failures[0]
        assert (failure.kind, failure.ancestors[0]) == (kind, ancestor)
        assert failure.ancestors[-1] == "builtins.BaseException"
        assert message in failure.message
        assert "child_handlers.py" in failure.traceback or deed == "coroutine"
        assert "lane_child.py" not in failure.traceback
        assert (failure.delay_ms, failure.is_free) == ((250, True) if deed == "retry after" else (0, False))


async def test_huge_messages_are_cut() -> None:
    """An exception with 50 MB of text crosses as a few thousand characters, in message and traceback."""
    async with rig() as one:
        one.lane.send(batch(1, "huge message"))
        failure = (await one.reply()).failures[0]
        assert len(failure.message) < 11_000
        assert "50000000 characters" in failure.message
        assert len(failure.traceback) < 120_000
        assert "_huge_message" in failure.traceback


@pytest.mark.parametrize("deed", ["lock as result", "50 MB as result"])
async def test_a_result_costs_nothing(deed: str) -> None:
    """What a handler returns stays in the child: that it does not pickle, or is large, does not matter."""
    async with rig() as one:
        one.lane.send(batch(1, deed))
        assert (await one.reply()).failures == {}


async def test_a_record_that_needs_too_much_memory_fails_alone() -> None:
    """Under a limit that process_lifespan sets, a MemoryError is a failure like others."""
    child = work(lifespan="tests.executors.child_handlers:little_memory")
    async with rig(child) as one:
        one.lane.send(batch(1, "too much memory", "ok"))
        reply = await one.reply()
        assert reply.run == 2
        assert reply.failures[0].ancestors[0] == "builtins.MemoryError"


async def test_typed_arguments_are_made_in_the_child() -> None:
    """JSON, header, Context; what cannot be decoded is told as that."""
    child = work("typed", lifespan="tests.executors.child_handlers:lifespan")
    good = job(b'{"a": 1}', 4, headers=(("trace", b"x1"),), partition=2, attempt=3)
    async with rig(child) as one:
        one.lane.send(Batch(1, [good, job(b"{", 5), job(b'{"a": 1}', 6)]))
        failures = (await one.reply()).failures
        context = "'g', 3, '<Context of typed, t[2] offset 4, attempt 3>'"
        assert failures[0].message == f"({{'a': 1}}, 'x1', 'state of {one.lane.pid}', {context})"
        assert [failures[index].kind for index in (1, 2)] == ["undecodable", "undecodable"]
        assert "no header 'trace'" in failures[2].message


@pytest.mark.parametrize(("tombstones", "kind"), [("error", "undecodable"), ("skip", "skipped")])
async def test_tombstones_are_as_the_settings_say(tombstones: str, kind: str) -> None:
    """What a settings table changed in the handler's declaration holds in the child too."""
    async with rig(work("raw", tombstones=tombstones)) as one:
        one.lane.send(batch(1, b"x", None))
        reply = await one.reply()
        assert {index: failure.kind for index, failure in reply.failures.items()} == {1: kind}


async def test_a_returned_coroutine_is_not_skipped_as_undecodable() -> None:
    """on_decode_error="skip" of the settings reaches the child: such a handler has failed then."""
    async with rig(work(on_decode_error="skip")) as one:
        one.lane.send(batch(1, "coroutine"))
        assert (await one.reply()).failures[0].kind == "failed"


async def test_context_variables_do_not_leak_from_record_to_record() -> None:
    """What one record's handler sets, the next one's does not see."""
    async with rig() as one:
        one.lane.send(batch(1, "context", "context"))
        assert (await one.reply()).failures == {}


async def test_a_large_batch_crosses_in_pieces(tmp_path: Path) -> None:
    """More than a socket holds, while the child is busy: the loop goes on, all of it arrives."""
    name = str(tmp_path / "a")
    async with rig(work("gated")) as one, rig(work("raw")) as other:
        one.lane.send(batch(1, name))
        await one.running()
        let_go(name)
        one.lane.send(Batch(2, [job(name, headers=(("h", bytes(1_000_000)),)) for _ in range(8)]))
        one.lane.send(batch(3, name))
        other.lane.send(batch(1, *[bytes(1_000_000)] * 8))
        assert [(await one.reply()).run for _ in range(3)] == [1, 8, 1]
        assert (await other.reply()).run == 8


# --- what must not start ---


async def test_nothing_starts_before_the_first_lease(tmp_path: Path) -> None:
    """A lane that was told nothing runs nothing, and says so."""
    async with rig(lease_seconds=-1) as one:
        one.lane.send(batch(1, "ok", "ok"))
        reply = await one.reply()
        assert (reply.run, reply.failures) == (0, {})


async def test_nothing_of_a_batch_starts_past_the_lease(tmp_path: Path) -> None:
    """What runs, runs on; the rest comes back as not run; with a new lease the next batch runs."""
    names = [str(tmp_path / name) for name in "abc"]
    async with rig(work("gated")) as one:
        one.lane.send(batch(1, *names))
        await one.running()
        one.lane.renew_lease(time.monotonic_ns())
        let_go(names[0])
        assert (await one.reply()).run == 1
        assert not has_started(names[1])
        one.lane.renew_lease(time.monotonic_ns() + 10**12)
        let_go(names[1])
        one.lane.send(batch(2, names[1]))
        assert (await one.reply()).run == 1


async def test_nothing_below_the_stop_word_starts(tmp_path: Path) -> None:
    """The rest of the running batch and the one behind it come back as not run, the next one runs."""
    names = [str(tmp_path / name) for name in "abcd"]
    async with rig(work("gated")) as one:
        one.lane.send(batch(1, *names[:2]))
        one.lane.send(batch(2, names[2]))
        await one.running()
        one.lane.stop_before(3)
        for name in names:
            let_go(name)
        one.lane.send(batch(3, names[3]))
        assert [(await one.reply()).run for _ in range(3)] == [1, 0, 1]
        assert [has_started(name) for name in names] == [True, False, False, True]


async def test_heartbeat_and_extend_move_the_deadline_of_what_runs(tmp_path: Path) -> None:
    """The longest request counts; the next record begins without one."""
    names = [str(tmp_path / name) for name in "ab"]
    async with rig(work("patient", timeout_ms=5_000)) as one:
        one.lane.send(batch(1, *names))
        await until(lambda: has_started(names[0]), "the first record")
        progress = one.lane.progress()
        assert progress is not None
        asked_ms = (progress.extended_ns - progress.started_ns) / 1e6
        assert 600_000 <= asked_ms < 700_000
        let_go(names[0])
        let_go(names[1])
        await one.reply()


async def test_a_request_for_time_without_a_time_out_is_nothing(tmp_path: Path) -> None:
    """No deadline is armed by asking for more time."""
    name = str(tmp_path / "a")
    async with rig(work("patient")) as one:
        one.lane.send(batch(1, name))
        await until(lambda: has_started(name), "the record")
        progress = one.lane.progress()
        assert progress is not None
        assert progress.extended_ns == 0
        assert progress.started_ns <= time.monotonic_ns()
        let_go(name)
        await one.reply()


async def test_two_lanes_run_side_by_side(tmp_path: Path) -> None:
    """Started at once, two processes; the death of one is nothing to the other."""
    names = [str(tmp_path / name) for name in "ab"]
    starts = [rig(work("gated")) for _ in names]
    first, second = await asyncio.gather(*(one.__aenter__() for one in starts))
    try:
        assert first.lane.pid != second.lane.pid
        for one, name in zip((first, second), names, strict=True):
            one.lane.send(batch(1, name))
            await until(lambda name=name: has_started(name), "both run")
        first.lane.kill()
        assert (await first.death()).how == "killed by SIGKILL"
        let_go(names[1])
        assert (await second.reply()).run == 1
    finally:
        for one in starts:
            await one.__aexit__(None, None, None)
