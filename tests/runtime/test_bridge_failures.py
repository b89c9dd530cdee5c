"""What failures in child processes cost a group's records: crashes, time-outs, gates, middlewares.

On virtual time and modelled lanes; which record is to blame for a death is in `tests/executors`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from asyncpar import headers
from asyncpar.core.assignment import State
from asyncpar.core.breaker import BreakerRules
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.deduplication import Deduplicate
from asyncpar.errors import WorkerDiedError
from asyncpar.executors.process_bridge import BridgeRules
from asyncpar.middleware import Call, CallNext
from asyncpar.records import Committed, Outcome
from asyncpar.runtime.handlers import Admissions
from tests.executors.bridge_world import failed
from tests.runtime.bridge_group import T0, BridgeGroup
from tests.runtime.fakes import log
from tests.testing.virtually import now, until, virtually

KEYS = "abcdefgh"
ONE_BATCH = BridgeRules(1, 8, 100, 0)
"""Record 0 runs alone, the others of `KEYS` go out together."""


# -- crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["crash_before", "crash_after"])
@pytest.mark.parametrize("offset", [0, 1, 4, 7])
def test_a_crash_costs_the_record_at_fault_one_attempt_and_the_others_none(offset: int, when: str) -> None:
    """Its second run is its second attempt; every other record runs once, as its first."""

    @virtually
    async def test() -> None:
        group = BridgeGroup(log("t", *KEYS), ONE_BATCH)
        group.faults.jobs[offset].append(when)  # type: ignore[arg-type]
        async with group:
            await until(lambda: group.committed() == 8)
            assert group.bridge.statistics.blamed == {"crash": 1, "timeout": 0}
            assert group.pool.tally("t").failed == 1
            assert group.runtime.state.counters.stale_completions == 0
            await group.stop()
        ran = {at: numbers for at, numbers in group.attempts.items() if at != offset}
        assert ran == {at: [1] for at in range(8) if at != offset}
        assert group.attempts[offset] == ([2] if when == "crash_before" else [1, 2])

    test()


@virtually
async def test_a_child_that_dies_idle_costs_nobody_anything() -> None:
    """Nothing ran: nothing has failed."""
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH)
    async with group:
        await until(lambda: group.committed() == 8)
        group.children.lanes[-1].kill()
        await until(lambda: group.bridge.statistics.restarts == 1)
        group.consumer.logs[T0] += log("t", "i", start=8)[T0]
        await until(lambda: group.committed() == 9)
        assert group.pool.tally("t").failed == 0
        await group.stop()


@virtually
async def test_a_torn_reply_costs_no_attempt() -> None:
    """The child died between its last record and its reply: all had run, and count."""
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH)
    group.faults.replies[1] = "torn"
    async with group:
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert group.attempts == {offset: [1] for offset in range(8)}


@virtually
async def test_a_second_crash_halts_the_partition_although_attempts_are_left() -> None:
    """The reason says how its child died, both times; other keys had their turn in between."""
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH, values={"attempts": None})
    group.faults.jobs[3].extend(["crash_before"] * 3)
    async with group:
        await until(lambda: group.state is State.HALTED)
        why = group.runtime.state.partitions[T0].halt_reason
        assert why is not None
        assert "offset 3: failed 2 times" in why and "for the second time: killed by SIGSEGV" in why
        await until(lambda: group.committed() == 3)
        assert set(group.started) == {0, 1, 2, 4, 5, 6, 7}
        group.faults.jobs[3].clear()
        group.runtime.retry_halted(T0)
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert len(group.started) == 8


@virtually
async def test_a_second_crash_is_a_dead_letter_where_there_are_some() -> None:
    """It leaves as a permanent failure after two attempts, its key goes on, and all is committed."""
    group = BridgeGroup(log("t", *"abcabc"), ONE_BATCH, values={"attempts": 10, "dead_letter": "t.dlq"})
    group.faults.jobs[1].extend(["crash_after", "crash_before"])
    async with group:
        await until(lambda: group.consumer.stored.get(T0) == Committed(6, ""))
        await group.stop()
    [letter] = group.producer.sent
    found = dict(letter.headers)
    assert found[headers.REASON] == b"permanent"
    assert found[headers.ATTEMPTS] == b"2"
    assert found[headers.ERROR_TYPE] == b"asyncpar.errors.WorkerDiedError"
    assert b"for the second time: killed by SIGSEGV" in found[headers.ERROR_MESSAGE]
    assert group.started.count(4) == 1


@virtually
async def test_a_rule_for_crashes_is_heeded_the_first_time() -> None:
    """`on_error={WorkerDiedError: ...}` decides for the first crash, as for any other exception."""
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH)
    pool = group.pool
    pool.handler = replace(
        pool.handler, rules=replace(pool.handler.rules, on_error={WorkerDiedError: "skip"})
    )
    group.faults.jobs[3].append("crash_before")
    async with group:
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert 3 not in group.started


# -- time ----------------------------------------------------------------------------------------


@virtually
async def test_a_record_over_its_time_has_failed_and_runs_again() -> None:
    """Its child is killed; it costs an attempt of its own and none of the others', and is counted."""
    group = BridgeGroup(log("t", *KEYS), BridgeRules(1, 8, 100, 0, timeout_ms=300))
    group.faults.jobs[3].append("hang")
    async with group:
        await until(lambda: group.committed() == 8)
        assert group.pool.timeouts == 1
        found = group.bridge.statistics
        assert (found.kills["timeout"], found.blamed) == (1, {"crash": 0, "timeout": 1})
        await group.stop()
    assert group.attempts == {offset: [2] if offset == 3 else [1] for offset in range(8)}


@virtually
async def test_time_that_a_record_waits_for_its_turn_is_not_its_own() -> None:
    """The time-out begins in the child: long records behind each other all succeed."""
    group = BridgeGroup(log("t", *KEYS), BridgeRules(1, 8, 100, 0, timeout_ms=300))
    for offset in range(8):
        group.seconds[offset] = 0.25
    async with group:
        await until(lambda: group.committed() == 8)
        assert group.pool.timeouts == 0
        await group.stop()
    assert len(group.started) == 8


@virtually
async def test_a_heartbeat_in_a_child_begins_its_time_anew() -> None:
    """A record that says that it is alive may take as long as it likes."""
    group = BridgeGroup(log("t", *KEYS[:2]), BridgeRules(1, 8, 100, 0, timeout_ms=300))
    group.seconds[1], group.beating[1] = 3.0, 0.2
    async with group:
        await until(lambda: group.committed() == 2)
        await group.stop()
    assert group.attempts == {0: [1], 1: [1]}


@virtually
async def test_on_blocked_cancel_ends_what_runs_in_a_child() -> None:
    """The record that blocks the commit has its child killed, has failed once, and succeeds the next time."""
    group = BridgeGroup(
        log("t", *KEYS),
        ONE_BATCH,
        config={"max_blocking_duration_ms": 2000, "on_blocked": "cancel"},
    )
    group.faults.jobs[3].append("hang")
    async with group:
        await until(lambda: group.committed() == 8)
        found = group.bridge.statistics
        assert (found.kills["cancelled"], sum(found.blamed.values())) == (1, 0)
        assert group.pool.timeouts == 1
        await group.stop()
    assert group.attempts == {offset: [2] if offset == 3 else [1] for offset in range(8)}


@virtually
async def test_what_ran_before_a_long_record_of_its_batch_is_settled_while_that_runs() -> None:
    """Their successes are committed, their failures are tried again, the next of their keys run."""
    group = BridgeGroup(log("t", *"abcd", *"abcd"), BridgeRules(2, 4, 100, 0))
    group.gates[3] = asyncio.Event()
    group.failures[2] = failed()
    async with group:
        await until(lambda: 3 in group.started)
        await until(lambda: {4, 5} <= {span.offset for span in group.spans}, 5)
        await until(lambda: group.attempts[2][:2] == [1, 2], 5)
        del group.failures[2]
        await until(lambda: group.committed() == 3, 5)
        assert [span for span in group.spans if span.offset == 3] == []
        group.gates[3].set()
        await until(lambda: group.committed() == 8)
        await group.stop()
    group.failures.clear()
    assert {at: len(runs) for at, runs in group.attempts.items() if at != 2} == dict.fromkeys(
        (0, 1, 3, 4, 5, 6, 7), 1
    )


@virtually
async def test_a_crash_is_remembered_over_the_late_reply_of_the_run_before() -> None:
    """A record failed in a batch that still runs, then crashed another child: its next crash is final."""
    group = BridgeGroup(log("t", *"abcd"), BridgeRules(2, 4, 100, 0), values={"attempts": None})
    group.gates[3] = asyncio.Event()
    group.failures[2] = failed()
    async with group:
        await until(lambda: 3 in group.started and len(group.attempts.get(2, ())) >= 2, 5)
        group.faults.jobs[2].append("crash_before")
        await until(lambda: group.bridge.statistics.blamed["crash"] == 1)
        group.faults.jobs[2].append("crash_before")
        group.gates[3].set()
        await until(lambda: group.state is State.HALTED)
        assert group.bridge.statistics.blamed["crash"] == 2


@virtually
async def test_on_blocked_cancel_spares_what_has_not_begun() -> None:
    """A record at the blocking offset that waits for its turn in a child has not failed."""
    group = BridgeGroup(
        log("t", *KEYS, "a"),
        BridgeRules(1, 1, 100, 0),
        values={"attempts": 1},
        config={"max_blocking_duration_ms": 1500, "on_blocked": "cancel"},
    )
    for offset in range(9):
        group.seconds[offset] = 1.0
    async with group:
        await until(lambda: group.committed() == 9)
        assert group.pool.timeouts == 0
        await group.stop()
    assert len(group.started) == 9


@virtually
async def test_on_blocked_cancel_heeds_a_heartbeat_in_a_child() -> None:
    """A child that says that it is alive is not taken for one that hangs, as on the loop and in threads."""
    group = BridgeGroup(
        log("t", *KEYS[:2]),
        BridgeRules(1, 8, 100, 0, timeout_ms=1000),
        config={"max_blocking_duration_ms": 2000, "on_blocked": "cancel"},
    )
    group.seconds[1], group.beating[1] = 10.0, 0.5
    async with group:
        await until(lambda: group.committed() == 2)
        await group.stop()
    assert group.attempts == {0: [1], 1: [1]}


# -- gates ---------------------------------------------------------------------------------------


@virtually
async def test_a_breaker_opens_at_failures_in_children_and_closes_again() -> None:
    """Most fail: nothing starts, partitions are held, attempts are free; a probe closes it."""
    rules = Admissions(breaker=BreakerRules(min_calls=4, open_ms=5000))
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH, values={"admissions": rules, "attempts": 2})
    for offset in range(8):
        group.failures[offset] = failed()
    async with group:
        await until(lambda: T0 in group.runtime.state.holds)
        gate = group.pool.gate
        assert gate is not None and gate.openings == 1
        await until(lambda: not group.pool.busy())
        before = len(group.started)
        await asyncio.sleep(4)
        assert len(group.started) == before
        group.failures.clear()
        await until(lambda: group.committed() == 8)
        assert not group.runtime.state.holds
        await group.stop()


@virtually
async def test_a_probe_that_was_not_run_is_another_ones_turn() -> None:
    """It came back from the children without a run: the breaker lets another one try."""
    rules = Admissions(breaker=BreakerRules(min_calls=2, open_ms=1000))
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH, values={"admissions": rules})
    group.failures = {offset: failed() for offset in range(8)}
    async with group:
        await until(lambda: T0 in group.runtime.state.holds)
        await until(lambda: not group.pool.busy())
        group.failures.clear()
        group.faults.no_start = "not now"
        group.children.lanes[-1].kill()
        await until(lambda: len(group.pool.busy()) == 1)
        group.bridge.withdraw(T0)
        await asyncio.sleep(0)
        group.faults.no_start = None
        await until(lambda: group.committed() == 8)
        await group.stop()


@virtually
async def test_a_crash_speaks_against_what_the_handler_depends_on() -> None:
    """Children that die one after the other open the breaker, as other failures do."""
    rules = Admissions(breaker=BreakerRules(min_calls=4, open_ms=5000))
    group = BridgeGroup(log("t", *KEYS), BridgeRules(1, 1, 100, 0), values={"admissions": rules})
    for offset in range(4):
        group.faults.jobs[offset].append("crash_before")
    async with group:
        await until(lambda: group.committed() == 8)
        gate = group.pool.gate
        assert gate is not None and gate.openings == 1
        await group.stop()


@virtually
async def test_a_rate_limit_holds_in_children() -> None:
    """20 a second, 40 records: no second sees more than it may, and it takes about as long as it has to."""
    rules = Admissions(rate=RateRules(per_second=20, burst=1))
    group = BridgeGroup(
        log("t", *(f"k{at}" for at in range(40))), BridgeRules(2, 8, 100, 0), values={"admissions": rules}
    )
    async with group:
        await until(lambda: group.committed() == 40)
        await group.stop()
    starts = sorted(span.start for span in group.spans)
    assert 1.9 < starts[-1] - starts[0] < 2.5
    assert all(later - one > 0.9 for one, later in zip(starts, starts[20:], strict=False))


@virtually
async def test_a_key_is_poisoned_by_crashes_too() -> None:
    """Two crashes in a row of one key: its next records are dead letters without a run."""
    group = BridgeGroup(
        log("t", *"abaca"),
        ONE_BATCH,
        values={
            "attempts": 1,
            "dead_letter": "t.dlq",
            "admissions": Admissions(poison=PoisonRules(failures=2)),
        },
    )
    group.faults.jobs[0].append("crash_before")
    group.faults.jobs[2].append("crash_before")
    async with group:
        await until(lambda: group.committed() == 5)
        await group.stop()
    assert sorted(group.started) == [1, 3]
    assert sorted(dict(one.headers)[headers.OFFSET] for one in group.producer.sent) == [b"0", b"2", b"4"]


# -- middlewares ---------------------------------------------------------------------------------


@virtually
async def test_middlewares_get_no_outcome_for_what_was_not_run() -> None:
    """A crash in a batch: one failed outcome, and one success for each; the others were called once more."""
    outcomes: list[tuple[int, str]] = []
    calls: list[int] = []

    async def watching(call: Call, call_next: CallNext) -> Outcome:
        calls.append(call.records[0].offset)
        outcome = await call_next(call)
        outcomes.append((call.records[0].offset, outcome.verdict.value))
        return outcome

    group = BridgeGroup(log("t", *KEYS), ONE_BATCH, middlewares=(watching,))
    group.faults.jobs[3].append("crash_before")
    async with group:
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert sorted(outcomes) == sorted([(at, "success") for at in range(8)] + [(3, "failed")])
    assert len(calls) > len(outcomes), "some were called and came back without an outcome"


@virtually
async def test_deduplication_gives_back_its_claim_on_what_was_not_run() -> None:
    """The rest of a batch whose child died is claimed again at once, not after the lease."""
    unique = Deduplicate(key=lambda record: record.key, ttl_ms=60_000, lease_ms=60_000)
    group = BridgeGroup(log("t", *KEYS), ONE_BATCH, middlewares=(unique,))
    group.faults.jobs[3].append("crash_before")
    async with group:
        began = now()
        await until(lambda: group.committed() == 8)
        assert now() - began < 5
        await group.stop()
    assert group.attempts == {offset: [2] if offset == 3 else [1] for offset in range(8)}
