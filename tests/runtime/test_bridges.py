"""A group whose handler runs in child processes: order, commits, rebalances, stops, leases, no child at all.

On virtual time and modelled lanes; how a bridge itself works is in `tests/executors`.
"""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.core.assignment import State
from asyncpar.errors import DrainIncompleteError
from asyncpar.executors.process_bridge import BridgeRules
from asyncpar.records import Committed
from asyncpar.runtime import health
from tests.executors.bridge_world import failed
from tests.runtime.bridge_group import PARENT, T0, T1, BridgeGroup
from tests.runtime.fakes import log
from tests.testing.virtually import loop, now, until, virtually

KEYS = "abcdefghijklmnop"


def in_a_batch(*offsets: int, **settings: int) -> BridgeGroup:
    """A group of one child: record 0 runs alone, those behind it go out together, the last ones wait.

    Each has a key of its own; those at `offsets` end when their gate opens.
    """
    group = BridgeGroup(
        log("t", *KEYS[:12]), values={"concurrency": 12}, config={"max_revoke_grace_ms": 3000, **settings}
    )
    group.gates = {offset: asyncio.Event() for offset in offsets}
    return group


# -- order and commits ---------------------------------------------------------------------------


@virtually
async def test_keys_stay_in_order_and_everything_is_committed() -> None:
    """Three children, five keys, records of very different length: one of a key at a time, in their order."""
    logs = {**log("t", *(KEYS[at % 5] for at in range(150))), **log("t", *"ab" * 30, partition=1, start=1000)}
    group = BridgeGroup(logs, BridgeRules(3, 8, 100, 2))
    for offset in [*range(0, 150, 7), *range(1000, 1060, 11)]:
        group.seconds[offset] = 0.3
    async with group:
        await until(lambda: (group.committed(T0), group.committed(T1)) == (150, 1060))
        await group.stop()
    assert sorted(group.started) == [*range(150), *range(1000, 1060)]
    group.check_keys()


@virtually
async def test_the_commit_waits_for_a_record_that_others_overtook() -> None:
    """Other keys go on in the other child; the commit stays below the slow record and names the rest."""
    group = BridgeGroup(log("t", *KEYS[:10]), BridgeRules(2, 1, 100, 0))
    group.gates[3] = asyncio.Event()
    async with group:
        await until(lambda: len(group.spans) == 9)
        await until(lambda: group.committed() == 3)
        await asyncio.sleep(1)
        assert group.consumer.stored[T0].metadata, "what is done above it"
        group.gates[3].set()
        await until(lambda: group.consumer.stored[T0] == Committed(10, ""))
        await group.stop()


# -- revoked and lost ----------------------------------------------------------------------------


@virtually
async def test_a_revoke_takes_back_what_waits_at_once_and_lets_end_what_runs() -> None:
    """Of a batch and of the queue nothing more starts; what runs ends within the grace, and counts."""
    group = in_a_batch(2)
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        assert len(group.pool.busy()) > 9
        revoking, began = group.revoke(), now()
        await until(lambda: len(group.pool.busy()) <= 2, 0.2)  # 1 has ended, which its batch has yet to say
        assert not revoking.done()
        group.gates[2].set()
        await revoking
        assert now() - began < 1
        assert group.started == [0, 1, 2]
        assert group.consumer.stored == {T0: Committed(3, "")}
        assert group.bridge.statistics.kills == {"timeout": 0, "cancelled": 0, "stuck": 0, "close": 0}
        group.consumer.assign(group.consumer.logs)
        await until(lambda: group.committed() == 12)
        await group.stop()
    assert sorted(group.started) == list(range(12))
    assert {number for numbers in group.attempts.values() for number in numbers} == {1}


@virtually
async def test_what_outlives_the_grace_has_its_child_killed_and_nobody_is_blamed() -> None:
    """It runs again as its first attempt, in a new child; nothing of its batch started meanwhile."""
    group = in_a_batch(2)
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        began = now()
        await group.revoke()
        assert 2.9 < now() - began < 3.6
        assert group.started == [0, 1, 2]
        assert [span.offset for span in group.spans if span.end is None] == [2], "it runs no more"
        assert group.committed() == 2
        found = group.bridge.statistics
        assert (found.kills["cancelled"], sum(found.blamed.values())) == (1, 0)
        group.gates[2].set()
        group.consumer.assign(group.consumer.logs)
        await until(lambda: group.committed() == 12)
        await group.stop()
    assert group.attempts[2] == [1, 1]
    assert sum(len(numbers) for numbers in group.attempts.values()) == 13


@virtually
async def test_what_has_ended_counts_although_its_reply_is_late() -> None:
    """The grace ends before the child has replied: what its progress shows to be over is committed."""
    group = BridgeGroup(log("t", *KEYS[:4]), BridgeRules(1, 4, 100, 0), config={"max_revoke_grace_ms": 200})
    group.faults.replies[1] = 8.0
    async with group:
        await until(lambda: len(group.spans) == 4)
        await group.revoke()
        assert group.committed() == 4
        assert sum(group.bridge.statistics.kills.values()) == 0
        group.consumer.assign(group.consumer.logs)
        await asyncio.sleep(20)
        await group.stop()
    assert group.started == [0, 1, 2, 3]


@virtually
async def test_a_revoke_of_one_partition_costs_another_one_nothing() -> None:
    """Records of both are in one batch: those of the kept one run on, all of them, as first attempts."""
    logs = {**log("t", *KEYS[:6]), **log("t", *KEYS[:6], partition=1, start=100)}
    group = BridgeGroup(logs, BridgeRules(1, 6, 100, 0), config={"max_revoke_grace_ms": 3000})
    group.gates = {offset: asyncio.Event() for offset in (*range(1, 6), *range(100, 106))}
    async with group:
        await until(lambda: len(group.started) == 2)
        running = group.started[-1]
        kept, taken = (T0, T1) if running < 100 else (T1, T0)
        await asyncio.wait_for(group.revoke(taken), 1)
        for gate in group.gates.values():
            gate.set()
        end = 6 if kept is T0 else 106
        await until(lambda: group.committed(kept) == end)
        await group.stop()
    assert len(group.started) == len(set(group.started))
    assert {job.attempt for job in group.jobs} == {1}


@virtually
async def test_a_lost_partition_has_its_child_killed_at_once() -> None:
    """No grace and no commit; when it comes back all of it runs as a first attempt."""
    group = in_a_batch(2)
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        stored = dict(group.consumer.stored)
        group.consumer.lose()
        await until(lambda: not group.pool.busy(), 0.5)
        assert group.started == [0, 1, 2]
        assert group.consumer.stored == stored
        assert group.bridge.statistics.kills["cancelled"] == 1
        group.gates[2].set()
        group.consumer.assign(group.consumer.logs)
        await until(lambda: group.committed() == 12)
        await group.stop()
    assert group.attempts[2] == [1, 1]


@virtually
async def test_a_record_that_may_outlive_its_partition_is_a_straggler_in_its_child() -> None:
    """`on_revoke="keep"`: the key is locked while its child runs it, and its success counts then."""
    group = BridgeGroup(
        log("t", *"abccde"),
        BridgeRules(2, 1, 100, 0),
        values={"cancel_on_revoke": False},
        config={"max_revoke_grace_ms": 200},
    )
    group.gates = {2: asyncio.Event(), 5: asyncio.Event()}
    async with group:
        await until(lambda: {2, 5} <= set(group.started))
        await group.revoke()
        assert group.bridge.statistics.kills["cancelled"] == 0
        group.consumer.assign(group.consumer.logs)
        group.gates[5].set()
        await until(lambda: 5 in [span.offset for span in group.spans])
        await asyncio.sleep(1)
        assert 3 not in group.started, "its key still runs"
        group.gates[2].set()
        await until(lambda: group.committed() == 6)
        await group.stop()
    group.check_keys()
    assert group.attempts == {offset: [1] for offset in range(6)}


# -- stop and halt -------------------------------------------------------------------------------


@virtually
async def test_a_stop_lets_end_what_runs_and_starts_nothing_more() -> None:
    """A full drain: the running record is committed, what was sent or waited is left for the next start."""
    group = in_a_batch(2)
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        stopping = asyncio.create_task(group.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        group.gates[2].set()
        await stopping
    assert group.started == [0, 1, 2]
    assert group.committed() == 3


@virtually
async def test_a_stop_that_is_cut_off_kills_what_runs_and_says_so() -> None:
    """What outlives the drain is killed, blamed on nobody, and not committed."""
    group = in_a_batch(2, shutdown_drain_timeout_ms=1000)
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        began = now()
        with pytest.raises(DrainIncompleteError, match="running handlers were cancelled"):
            await group.stop()
        assert 0.9 < now() - began < 3
        assert group.runtime.unfinished() == []
        assert group.bridge.statistics.blamed == {"crash": 0, "timeout": 0}
    assert group.started == [0, 1, 2]
    assert group.committed() == 2


@virtually
async def test_a_halt_starts_nothing_more_and_counts_what_still_runs() -> None:
    """A record fails for good while another one runs: that one is done; the rest waits for `retry_halted`."""
    group = BridgeGroup(log("t", *KEYS[:10]), BridgeRules(2, 4, 100, 0), values={"attempts": 1})
    group.gates = {2: asyncio.Event(), 3: asyncio.Event()}
    group.failures[2] = failed()
    async with group:
        await until(lambda: {2, 3} <= set(group.started))
        before = set(group.started)
        group.gates[2].set()
        await until(lambda: group.state is State.HALTED)
        await asyncio.sleep(1)
        assert set(group.started) == before, "nothing starts in a halted partition"
        group.gates[3].set()
        await asyncio.sleep(1)
        del group.failures[2]
        group.runtime.retry_halted(T0)
        await until(lambda: group.committed() == 10)
        await group.stop()
    assert group.attempts[3] == [1], "it was done"
    assert group.attempts[2] == [1, 1], "it was told to run again, as if for the first time"


# -- the lease -----------------------------------------------------------------------------------


@virtually
async def test_nothing_starts_in_a_child_past_the_lease() -> None:
    """Heartbeats are not answered: the batch that was sent stops where it is, and goes on after an answer."""
    group = BridgeGroup(log("t", *KEYS[:8]), BridgeRules(1, 8, 100, 0), config={"session_timeout_ms": 3000})
    group.gates[2] = asyncio.Event()
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        group.consumer.lease_stops_at = now()
        await asyncio.sleep(4)
        group.gates[2].set()
        await asyncio.sleep(4)
        assert group.started == [0, 1, 2]
        assert any("heartbeats are not answered" in why for why in health.not_ready(group.runtime))
        group.consumer.lease_stops_at = None
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert {job.attempt for job in group.jobs} == {1}
    assert len(group.jobs) == 8


@virtually
async def test_a_frozen_parent_has_nothing_started_past_its_lease() -> None:
    """The child runs on alone, to the end of the lease and no further; all goes on when the parent does."""
    group = BridgeGroup(log("t", *KEYS[:8]), BridgeRules(1, 8, 100, 0), config={"session_timeout_ms": 3000})
    for offset in range(2, 8):
        group.seconds[offset] = 1.0
    async with group:
        await until(lambda: group.started == [0, 1, 2])
        loop().freeze(PARENT)
        frozen = now()
        await asyncio.sleep(20)
        late = [span for span in group.spans if span.start > frozen + 2.6]
        assert late == []
        assert len(group.started) < 8
        loop().thaw(PARENT)
        await until(lambda: group.committed() == 8)
        await group.stop()
    assert len(group.started) == 8


# -- no child can be started ---------------------------------------------------------------------


@virtually
async def test_without_children_partitions_are_held_until_there_are_some() -> None:
    """Not fetched, not ready with the reason, a member all the same; those assigned meanwhile too."""
    logs = {**log("t", *KEYS[:4]), **log("t", *KEYS[:4], partition=1, start=100)}
    group = BridgeGroup(logs, BridgeRules(2, 4, 100, 0))
    consumer, assigned = group.consumer, {T0: logs[T0]}
    consumer.logs = assigned
    async with group:
        await until(lambda: group.committed() == 4)
        group.faults.no_start = "no memory"
        for lane in group.children.lanes:
            lane.die("killed by SIGKILL")
        await until(lambda: group.bridge.refusal is not None)
        [why] = health.not_ready(group.runtime)
        assert "handler handle" in why and "no memory" in why
        assert group.runtime.state.holds[T0]
        logs[T0] += log("t", *"xyz", start=4)[T0]
        consumer.logs = logs
        consumer.assign(logs)
        await until(lambda: len(group.runtime.state.holds) == 2)
        consumer.asked.clear()
        await asyncio.sleep(60)
        assert set().union(*consumer.asked) == set(), "nothing is asked for"
        assert group.runtime.state.phase == "joined"
        assert len(group.jobs) == 4
        group.faults.no_start = None
        await until(lambda: (group.committed(T0), group.committed(T1)) == (7, 104))
        assert health.not_ready(group.runtime) == []
        await group.stop()


@virtually
async def test_records_that_were_taken_before_children_failed_wait_and_are_not_blamed() -> None:
    """Also for longer than anything may block: they did not run, so no attempt of theirs has failed."""
    group = BridgeGroup(
        log("t", *KEYS[:6]),
        BridgeRules(1, 4, 100, 0, timeout_ms=500),
        values={"attempts": 2},
        config={"max_blocking_duration_ms": 2000, "on_blocked": "cancel"},
    )
    group.gates[1] = asyncio.Event()
    async with group:
        await until(lambda: group.started == [0, 1])
        group.faults.no_start = "no memory"
        group.children.lanes[-1].kill()
        await until(lambda: group.bridge.refusal is not None)
        await asyncio.sleep(30)
        group.faults.no_start = None
        group.gates[1].set()
        await until(lambda: group.committed() == 6)
        await group.stop()
    assert group.attempts == {0: [1], 1: [1, 2], 2: [1], 3: [1], 4: [1], 5: [1]}


@virtually
async def test_a_revoke_and_a_stop_do_not_wait_for_children_that_cannot_start() -> None:
    """What waits in the bridge is given back at once."""
    group = BridgeGroup(log("t", *KEYS[:6]), config={"max_revoke_grace_ms": 5000})
    async with group:
        group.faults.no_start = "no memory"
        group.children.lanes[-1].kill()
        await until(lambda: group.bridge.refusal is not None)
        await asyncio.wait_for(group.revoke(), 1)
        group.consumer.assign(group.consumer.logs)
        await until(lambda: T0 in group.runtime.state.holds)
        began = now()
        await group.stop()
        assert now() - began < 1
    assert group.committed() == 0
