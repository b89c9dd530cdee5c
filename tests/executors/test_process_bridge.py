"""The process bridge: results, cancellation, withdrawal, the lease, and its end; on modelled lanes."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from asyncpar.errors import (
    DecodeError,
    NotStartedError,
    Permanent,
    RemoteHandlerError,
    Retryable,
    RetryAfter,
    Skip,
)
from asyncpar.executors.lane_port import Job, JobFailure
from asyncpar.executors.process_bridge import BridgeRules
from asyncpar.records import TopicPartition
from tests.executors.bridge_world import TOPIC, Raw, World, ends, failed
from tests.testing.virtually import loop, now, until, virtually

TP = TopicPartition(TOPIC, 0)


# -- results -------------------------------------------------------------------------------------


@virtually
async def test_a_record_crosses_as_plain_values_and_its_success_comes_back() -> None:
    """All that a handler may ask for is in the job; nothing is returned."""
    async with World() as world:
        raw = Raw(3, b"k", b"v", [("h", b"1")])
        assert await world.bridge.run(TOPIC, 2, raw, 4, 9) is None
        assert world.jobs == [Job(TOPIC, 2, 3, b"k", b"v", (("h", b"1"),), 5, 1, 4, 9)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("failed", RemoteHandlerError),
        ("undecodable", DecodeError),
        ("skipped", Skip),
        ("retryable", Retryable),
        ("retry_after", RetryAfter),
        ("permanent", Permanent),
    ],
)
def test_each_kind_of_failure_is_raised_as_what_it_means(kind: str, expected: type[Exception]) -> None:
    """With the message, and with the child's traceback as its cause."""

    @virtually
    async def test() -> None:
        async with World() as world:
            world.failures[1] = JobFailure(kind, ("app.Odd",), "no", "Traceback: there", 70, is_free=True)  # type: ignore[arg-type]
            with pytest.raises(expected, match="no") as caught:
                await asyncio.gather(*world.run(1))
            assert type(caught.value) is expected
            assert "Traceback: there" in "".join(traceback.format_exception(caught.value))
            if isinstance(caught.value, RetryAfter):
                assert (caught.value.delay_ms, caught.value.is_free) == (70, True)

    test()


def test_a_remote_failure_says_what_it_was() -> None:
    """By the name of its class, as a traceback would; `ancestors` is what rules match by."""
    error = RemoteHandlerError("no", ("builtins.KeyError", "builtins.LookupError"), "Traceback")
    assert str(error) == "KeyError: no"
    assert (error.ancestors[1], error.traceback_text) == ("builtins.LookupError", "Traceback")
    assert str(RemoteHandlerError("", ("app.Odd",))) == "app.Odd"


@virtually
async def test_failures_and_successes_of_one_batch_are_told_apart() -> None:
    """Each record gets its own end."""
    async with World() as world:
        await world.warm()
        world.failures[2] = failed()
        assert await ends(*world.run(1, 2, 3)) == ["ok", "RemoteHandlerError", "ok"]
        assert world.bridge.statistics.batch_sizes == {1: 1, 3: 1}


def test_slots_are_two_batches_a_child_and_bounded_by_the_queue() -> None:
    """One runs, one waits; `process_queue_size` is the bound."""
    assert BridgeRules(3, 64, 2048, 5).slots == 384
    assert BridgeRules(3, 64, 100, 5).slots == 100


# -- cancellation --------------------------------------------------------------------------------


@virtually
async def test_a_cancelled_record_that_waits_is_dropped() -> None:
    """It was sent nowhere: its worker is free at once, and no child is killed."""
    async with World(batch_size=1) as world:
        running, waiting = world.run(1, 2)
        await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.sleep(0.001)
        assert waiting.cancelled()
        assert await ends(running) == ["ok"]
        assert world.started == [1]


@virtually
async def test_a_cancelled_record_that_runs_has_its_child_killed() -> None:
    """Its worker is told when the child is certainly gone; the rest runs again, nobody is blamed."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 1e9
        first, second = world.run(1, 2)
        await asyncio.sleep(0.02)
        began = now()
        first.cancel()
        assert await ends(first, second) == ["CancelledError", "NotStartedError"]
        assert now() - began == pytest.approx(world.children.death_seconds, abs=0.001)
        assert world.children.lanes[0].is_dead
        statistics = world.bridge.statistics
        assert (statistics.kills["cancelled"], sum(statistics.blamed.values())) == (1, 0)
        assert await ends(*world.run(2)) == ["ok"]


@virtually
async def test_a_cancelled_record_that_was_sent_and_does_not_run_is_called_back() -> None:
    """What runs before it runs on, and need not be waited for; no child is killed."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 60
        first, second, third = world.run(1, 2, 3)
        await asyncio.sleep(0.02)
        began = now()
        third.cancel()
        assert await ends(third, second) == ["CancelledError", "NotStartedError"]
        assert now() - began < 0.2
        assert await ends(first) == ["ok"]
        assert world.started == [1]
        assert world.bridge.statistics.kills["cancelled"] == 0


@virtually
async def test_a_success_that_came_before_the_cancellation_counts() -> None:
    """Whether its reply was there, or is still to come because others of the batch run."""
    async with World() as world:
        await world.warm()
        world.seconds[2] = 5
        first, second = world.run(1, 2)
        await until(lambda: world.ended == [1])
        first.cancel()
        assert await ends(first, second) == ["ok", "ok"]
        last = world.run(3)[0]
        lane = world.lane
        told = lane._on_reply
        # Its future is done then, and the task has not taken it yet.
        lane._on_reply = lambda reply: (told(reply), last.cancel())  # type: ignore[func-returns-value]
        assert await ends(last) == ["ok"]
        assert world.bridge.statistics.restarts == 0


@virtually
async def test_a_reply_between_the_cancellation_and_its_arrival_counts() -> None:
    """The task is cancelled, its future with it; the reply comes before the task hears of it."""
    async with World() as world:
        [call] = world.run(1)
        lane = world.lane
        told = lane._on_reply
        lane._on_reply = lambda reply: (call.cancel(), told(reply))  # type: ignore[func-returns-value]
        assert await ends(call) == ["ok"]


@virtually
async def test_a_record_that_starts_as_it_is_cancelled_is_found_and_killed() -> None:
    """The stop word came too late for it: the watch sees it run."""
    async with World() as world:
        await world.warm()
        world.seconds[2] = 1e9
        first, second = world.run(1, 2)
        world.lane.stop_before = lambda number: None  # type: ignore[method-assign]
        await asyncio.sleep(0.005)
        second.cancel()
        assert await ends(first, second) == ["ok", "CancelledError"]
        assert world.bridge.statistics.kills["cancelled"] == 1


@virtually
async def test_a_second_cancellation_gives_up_waiting_and_kills() -> None:
    """A host that ends its loop is not held up, and nothing runs on for it."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 1e9
        first, second = world.run(1, 2)
        await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert second.cancelled()
        assert world.lane.is_dead
        assert await ends(first) == ["NotStartedError"]


@virtually
async def test_a_second_cancellation_after_the_end_changes_nothing() -> None:
    """The record had ended well: that is what its worker hears."""
    async with World() as world:
        await world.warm()
        world.seconds[2] = 5
        first, second = world.run(1, 2)
        await until(lambda: world.ended == [1])
        first.cancel()
        await asyncio.sleep(0)
        lane = world.lane
        told = lane._on_reply
        lane._on_reply = lambda reply: (told(reply), first.cancel())  # type: ignore[func-returns-value]
        assert await ends(first, second) == ["ok", "ok"]
        assert not lane.is_dead


@virtually
async def test_a_lane_that_is_being_killed_gets_nothing_more() -> None:
    """What comes until its death is known waits for its successor."""
    async with World(max_batch_wait_ms=0) as world:
        await world.warm()
        world.children.death_seconds = 1.0
        world.seconds[1] = 1e9
        [first] = world.run(1)
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.sleep(0.1)
        assert await ends(first, *world.run(2)) == ["CancelledError", "ok"]
        world.children.death_seconds = 0.002


@virtually
async def test_a_child_that_dies_while_a_cancellation_waits_settles_it() -> None:
    """The one that ran is blamed, the cancelled one is not."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 0.04
        world.faults.jobs[1].append("crash_after")
        first, second = world.run(1, 2)
        await asyncio.sleep(0.02)
        second.cancel()
        assert await ends(first, second) == ["WorkerDiedError", "CancelledError"]


# -- withdrawal ----------------------------------------------------------------------------------


@virtually
async def test_withdrawn_records_that_wait_come_back_at_once() -> None:
    """Those of the partition; others keep their place."""
    async with World(batch_size=1) as world:
        [running] = world.run(1)
        await asyncio.sleep(0)
        mine, other = world.run(2)[0], world.run(3, partition=1)[0]
        await asyncio.sleep(0.001)
        world.bridge.withdraw(TP)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert isinstance(mine.exception(), NotStartedError)
        assert await ends(running, other) == ["ok", "ok"]


@virtually
async def test_withdrawn_records_that_were_sent_start_no_more() -> None:
    """What runs runs on; what was sent beside them comes back too, and can be sent again."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 60
        [running] = world.run(1)
        mine, [other] = world.run(2), world.run(3, partition=1)
        await asyncio.sleep(0.02)
        began = now()
        world.bridge.withdraw(TP)
        assert await ends(*mine, other) == ["NotStartedError", "NotStartedError"]
        assert now() - began < 0.2
        assert world.started == [1]
        assert await ends(running) == ["ok"]


@virtually
async def test_a_withdrawal_leaves_lanes_alone_that_only_run_of_it() -> None:
    """Nothing of the partition is there that could start: the others of the batch run on."""
    async with World() as world:
        await world.warm()
        [running], [other] = world.run(1), world.run(3, partition=1)
        await asyncio.sleep(0.005)
        world.bridge.withdraw(TP)
        assert await ends(running, other) == ["ok", "ok"]


@virtually
async def test_a_withdrawal_while_a_cancellation_waits_changes_nothing_for_it() -> None:
    """It ends once, as cancelled."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 60
        first, second, third = world.run(1, 2, 3)
        await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.sleep(0)
        world.bridge.withdraw(TP)
        assert await ends(second, third) == ["CancelledError", "NotStartedError"]
        first.cancel()
        assert await ends(first) == ["CancelledError"]


@virtually
async def test_a_lane_that_was_told_to_stop_works_again_when_it_is_empty() -> None:
    """Later batches are not meant by an old stop word, and get nothing while it holds."""
    async with World() as world:
        await world.warm()
        world.seconds[1] = 0.3
        calls = world.run(1, 2)
        await asyncio.sleep(0.02)
        world.bridge.withdraw(TP)
        later = world.run(4)
        assert await ends(*calls, *later) == ["ok", "NotStartedError", "ok"]
        assert world.started == [1, 4]


# -- the lease -----------------------------------------------------------------------------------


@virtually
async def test_nothing_starts_past_the_lease() -> None:
    """Also when the parent is frozen: the child reads the word itself."""
    async with World() as world:
        await world.warm()
        end = now() + 0.005
        world.bridge.open(lambda: end, lambda _: None)
        assert await ends(*world.run(1, 2, 3)) == ["ok", "NotStartedError", "NotStartedError"]
        assert world.started == [1]


@virtually
async def test_the_lease_is_renewed_while_a_batch_runs() -> None:
    """A batch that takes longer than the lease goes on as long as the parent lives."""
    async with World(seconds=0.012) as world:
        await world.warm()
        world.bridge.open(lambda: now() + 0.08, lambda _: None)
        world.seconds[1] = 0.07
        world.seconds[2] = 0.07
        assert await ends(*world.run(1, 2, 3, 4)) == ["ok"] * 4


@virtually
async def test_a_lease_may_be_over_for_ever_or_never() -> None:
    """Infinite, or before the beginning of time: the word holds both."""
    async with World() as world:
        world.bridge.open(lambda: float("-inf"), lambda _: None)
        assert await ends(*world.run(1)) == ["NotStartedError"]
        world.bridge.open(lambda: float("inf"), lambda _: None)
        assert await ends(*world.run(1)) == ["ok"]


# -- the end -------------------------------------------------------------------------------------


@virtually
async def test_closing_lets_what_runs_end_and_starts_nothing_more() -> None:
    """What waits comes back free of charge; after it nothing is taken."""
    world = World(batch_size=2)
    async with world:
        await world.warm()
        calls = world.run(1, 2, 3, 4, 5, 6)
        await asyncio.sleep(0.005)
        await world.bridge.close(1.0)
        assert await ends(*calls) == ["ok"] + ["NotStartedError"] * 5
        with pytest.raises(RuntimeError, match="h are closed"):
            await world.bridge.run(TOPIC, 0, Raw(9), 1, 1)
        assert world.bridge.statistics.kills["close"] == 0


@virtually
async def test_closing_ends_in_time_although_a_record_does_not() -> None:
    """Its child is killed, and its worker hears that it may run again."""
    async with World() as world:
        await world.warm()
        world.faults.jobs[1].append("hang")
        calls = world.run(1, 2)
        await asyncio.sleep(0.02)
        began = now()
        await world.bridge.close(2.0)
        assert now() - began < 2.5
        assert await ends(*calls) == ["NotStartedError", "NotStartedError"]
        statistics = world.bridge.statistics
        assert (statistics.kills["close"], sum(statistics.blamed.values())) == (1, 0)
        timers = [timer for _, _, timer in loop()._timers if not timer.cancelled()]
        assert not [timer for timer in timers if timer._callback == world.bridge._tick]  # type: ignore[attr-defined]


@virtually
async def test_closing_while_a_cancellation_waits_ends_that() -> None:
    """The killed child's death is not told any more: closing settles it."""
    async with World() as world:
        await world.warm()
        world.children.death_seconds = 1e6
        world.seconds[1] = 1e9
        [call] = world.run(1)
        await asyncio.sleep(0.02)
        call.cancel()
        await asyncio.sleep(0)
        await world.bridge.close(0.5)
        assert await ends(call) == ["CancelledError"]
        loop()._timers.clear()


@virtually
async def test_closing_twice_and_before_a_start_is_nothing() -> None:
    """No error, no second end."""
    world = World()
    await world.bridge.close(1.0)
    async with World() as other:
        await other.bridge.close(1.0)
        await other.bridge.close(1.0)


@virtually
async def test_a_close_that_is_cancelled_leaves_no_child_and_no_waiting_call() -> None:
    """A host in a hurry: children are killed, calls end."""
    async with World() as world:
        await world.warm()
        world.faults.jobs[1].append("hang")
        calls = world.run(1, 2)
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(world.bridge.close(1e9))
        await asyncio.sleep(0.1)
        closing.cancel()
        assert await ends(closing, *calls) == ["CancelledError", "NotStartedError", "NotStartedError"]


@virtually
async def test_closing_while_lanes_start_ends_those_too() -> None:
    """A start that is under way is given up."""
    async with World() as world:
        world.children.start_seconds = 50
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(1)
        assert len(world.children.lanes) == 2
        began = now()
        await world.bridge.close(1.0)
        assert now() - began < 0.1
