"""The commit coordinator: when it commits, and what each answer leads to."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.records import CommitAnswer, Committed, RawRecord, TopicPartition
from tests.runtime.fakes import FakeConsumer, Running, handler, log, until

T0 = TopicPartition("t", 0)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


async def test_a_commit_that_is_not_acknowledged_is_made_again() -> None:
    """RETRY leaves the partition uncommitted; the next attempt stores it."""
    consumer = FakeConsumer(log("t", *"abc"), answers=[CommitAnswer.RETRY, CommitAnswer.RETRY])
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert run.runtime.state.counters.commits["retry"] == 2
        assert run.runtime.state.partitions[T0].acknowledged == Committed(3, "")
        await run.stop()


async def test_metadata_that_is_too_large_is_left_out_and_the_limit_is_learned() -> None:
    """The offset is committed all the same, with less metadata, and the limit holds for the next ones."""
    consumer = FakeConsumer(log("t", "first", "stuck", "a", "b"), answers=[CommitAnswer.METADATA_TOO_LARGE])
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"stuck":
            await release.wait()

    async with Running(consumer, handler(handle), commit_interval_ms=200) as run:
        await until(lambda: T0 in consumer.stored)
        assert consumer.stored[T0] == Committed(1, "")
        assert run.runtime.state.metadata_budget.max_chars < 4096
        release.set()
        await until(lambda: consumer.stored[T0] == Committed(4, ""))
        await run.stop()


async def test_a_stale_token_is_not_used_again_until_the_next_assignment() -> None:
    """One refusal, then silence: no flood of refused commits."""
    consumer = FakeConsumer(log("t", *"abc"), answers=[CommitAnswer.STALE])
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: run.runtime.state.counters.commits.get("stale") == 1)
        assert run.runtime.state.token is None
        await consumer.revoke()
        assert len(consumer.commits) == 1
        consumer.assign(consumer.logs)
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()


async def test_a_revoke_waits_out_the_commit_in_flight() -> None:
    """A commit under way when the revoke begins is answered before the revoke returns."""
    consumer = FakeConsumer(log("t", *"abc"), hold_commits=asyncio.Event())
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: run.runtime.state.pools[0].completed() == 3)
        committer = run.runtime.session.committer  # type: ignore[union-attr]
        await until(committer._lock.locked)
        revoking = asyncio.create_task(consumer.revoke())
        await asyncio.sleep(0)
        assert not revoking.done()
        assert consumer.hold_commits is not None
        consumer.hold_commits.set()
        await asyncio.wait_for(revoking, 5)
        assert consumer.stored[T0] == Committed(3, "")
        await run.stop()


async def test_a_commit_that_is_never_answered_does_not_hold_a_revoke_for_ever() -> None:
    """The revoke returns by its deadline; the records run again elsewhere."""
    consumer = FakeConsumer(log("t", *"abc"), hold_commits=asyncio.Event(), seconds_to_drain=1.6)
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: run.runtime.state.pools[0].completed() == 3)
        await asyncio.wait_for(consumer.revoke(), 5)
        assert T0 not in consumer.stored
        await run.stop()


@pytest.mark.parametrize(("interval_ms", "longest"), [(1_000, 0.2), (100, 0.1)])
async def test_the_committer_looks_less_often_while_nothing_ends(interval_ms: int, longest: float) -> None:
    """Never less often than it may have to commit; the first record that ends makes it quick again."""
    consumer = FakeConsumer(log("t", "stuck", "slow", "quick"))
    release = {0: asyncio.Event(), 1: asyncio.Event()}

    async def handle(record: RawRecord) -> None:
        if record.offset in release:
            await release[record.offset].wait()

    async with Running(consumer, handler(handle), commit_interval_ms=interval_ms) as run:
        await until(lambda: run.runtime.session is not None)
        committer = run.runtime.session.committer  # type: ignore[union-attr]
        await until(lambda: committer._ticked == (1, longest))
        release[1].set()
        await until(lambda: committer._ticked == (2, 0.05))
        release[0].set()
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()


async def test_commits_are_batched_not_made_per_record() -> None:
    """A thousand quick records are a handful of commits."""
    consumer = FakeConsumer(log("t", *(f"k{at % 50}" for at in range(1000))))
    async with Running(consumer, handler(nothing), commit_interval_ms=1000) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1000, ""))
        await run.stop()
    assert len(consumer.commits) <= 10


@pytest.mark.parametrize(("knob", "value"), [("commit_every", 5), ("commit_interval_ms", 60)])
async def test_either_knob_commits_while_records_are_in_flight(knob: str, value: int) -> None:
    """With the other one out of reach, `commit_every` or `commit_interval_ms` alone makes the commit."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(20))))
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.offset == 19:
            await release.wait()

    knobs = {"commit_every": 1_000_000, "commit_interval_ms": 600_000, knob: value}
    async with Running(consumer, handler(handle), **knobs) as run:
        await until(lambda: consumer.stored.get(T0, Committed(0, "")).offset == 19)
        release.set()
        await run.stop()


async def test_no_commit_is_made_while_nothing_changes() -> None:
    """An idle group commits nothing again and again."""
    consumer = FakeConsumer(log("t", *"abc"))
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        made = len(consumer.commits)
        asked = len(consumer.asked)
        await until(lambda: len(consumer.asked) > asked + 40)
        assert len(consumer.commits) == made
        await run.stop()
