"""The recording consumer: what it notes, that it changes nothing, and what is said of a real engine on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from asyncpar.ports import Consumer, Subscription
from asyncpar.records import CommitAnswer, Committed, GroupToken, RawRecord, TopicPartition
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.testing.checkers import Final, Rules, check
from asyncpar.testing.history import Event, History, handling
from asyncpar.testing.recording import RecordingConsumer, recording
from tests.runtime.fakes import FakeConsumer, FakeRecord, config, handler, until

TP = TopicPartition("orders", 0)
OTHER = TopicPartition("orders", 1)
TOKEN = GroupToken(1, "member")


class SilentListener:
    """Takes everything; `during_revoke` runs while a revoke waits."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.revoking = asyncio.Event()
        self.go_on = asyncio.Event()

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        self.told.append("assigned")

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.told.append("revoked")
        self.revoking.set()
        await self.go_on.wait()

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        self.told.append("lost")


async def started(*tps: TopicPartition) -> tuple[RecordingConsumer, FakeConsumer, SilentListener, History]:
    """A recorded member that holds `tps`, each with records 0, 1 and 5."""
    inner = FakeConsumer({tp: [FakeRecord(offset) for offset in (0, 1, 5)] for tp in tps})
    history, listener = History(), SilentListener()
    consumer = RecordingConsumer(inner, history, "m")
    await consumer.start(Subscription(frozenset({"orders"})), listener)
    return consumer, inner, listener, history


def told(events: Sequence[Event]) -> list[str]:
    """Events as short texts, without their times."""
    return [
        " ".join(
            str(part)
            for part in (event.kind, event.tp.partition, event.offset, event.detail)
            if part not in (-1, "")
        )
        for event in events
    ]


async def test_records_and_positions_are_noted() -> None:
    """A chunk up to its next position, and later a position that moved over markers without records."""
    consumer, inner, _, history = await started(TP)
    inner.ends[TP] = 8
    consumer.seek(TP, 1)
    assert [record.offset for record in (await consumer.fetch([TP], 10, 1))[0].records] == [1, 5]
    assert await consumer.fetch([TP], 10, 1) == []
    assert await consumer.fetch([TP], 10, 1) == []
    assert consumer.position(TP) == 8
    assert told(history.events) == ["join", "assign 0", "seek 0 1", "poll 0 1 6", "poll 0 6 8"]
    assert {event.member for event in history.events} == {"m"}


async def test_a_revoke_is_noted_from_its_begin_to_its_return() -> None:
    """With the deadline in ns; what is not held is not noted."""
    consumer, inner, listener, history = await started(TP)
    revoke = asyncio.create_task(inner.revoke([TP, OTHER]))
    await asyncio.wait_for(listener.revoking.wait(), 5)
    assert history.events[-1].kind == "revoke"
    assert abs(int(history.events[-1].detail) - consumer.drain_deadline() * 1e9) < 1e9
    listener.go_on.set()
    await asyncio.wait_for(revoke, 5)
    assert told(history.events)[-1] == "released 0"
    consumer.seek(TP, 3)
    assert told(history.events)[-1] == "released 0"


async def test_a_revoke_without_a_bound_has_no_deadline() -> None:
    """The detail is empty."""
    _, inner, listener, history = await started(TP)
    inner.seconds_to_drain = float("inf")
    listener.go_on.set()
    await inner.revoke()
    assert [event.detail for event in history.events if event.kind == "revoke"] == [""]


async def test_an_assignment_keeps_what_it_leaves_out_and_loses_what_it_names_again() -> None:
    """As the port says: what is held and named again was not revoked."""
    _, inner, listener, history = await started(TP, OTHER)
    inner.assign([TP])
    assert told(history.events) == ["join", "assign 0", "assign 1", "lost 0", "assign 0"]
    inner.lose()
    assert sorted(told(history.events)[-2:]) == ["lost 0", "lost 1"]
    assert listener.told == ["assigned", "assigned", "lost"]


async def test_a_chunk_of_an_older_assignment_is_not_noted() -> None:
    """The fetch was under way while the partition went and came back."""
    consumer, inner, _, history = await started(TP)
    consumer.seek(TP, 0)

    async def swap() -> None:
        inner.lose()
        inner.assign([TP])

    inner.before_fetch_returns = swap
    assert await consumer.fetch([TP], 10, 1)
    assert told(history.events)[-2:] == ["lost 0", "assign 0"]


async def test_commits_and_answers_are_noted() -> None:
    """Each partition's own; a commit that was cancelled counts as answered `retry`."""
    consumer, inner, _, history = await started(TP)
    inner.answers.append(CommitAnswer.METADATA_TOO_LARGE)
    await consumer.commit(TOKEN, {TP: Committed(2, "text")}, 1.0)
    assert told(history.events)[-2:] == ["commit 0 2 text", "answer 0 metadata_too_large"]
    inner.hold_commits = asyncio.Event()
    stuck = asyncio.create_task(consumer.commit(TOKEN, {TP: Committed(3, "")}, 1.0))
    await until(lambda: told(history.events)[-1] == "commit 0 3")
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert told(history.events)[-1] == "answer 0 retry"


async def test_a_commit_with_an_older_assignments_token_is_noted() -> None:
    """Before the commit itself; the token of the latest assignment is the right one."""
    consumer, _, _engine, history = await started(TP)
    later = TOKEN._replace(generation=2)
    consumer.note_assigned(frozenset(), later)
    await consumer.commit(TOKEN, {TP: Committed(2, "")}, 1.0)
    assert told(history.events)[-3:-1] == ["outdated 0 2", "commit 0 2"]
    await consumer.commit(later, {TP: Committed(2, "")}, 1.0)
    assert told(history.events)[-3:-1] == ["answer 0 acknowledged", "commit 0 2"]


async def test_a_stop_is_noted_once_and_a_dead_consumer_has_lost_what_it_held() -> None:
    """A second stop does nothing; one that never started left nothing."""
    consumer, _, _, history = await started(TP)
    await consumer.stop(1.0)
    await consumer.stop(1.0)
    assert told(history.events)[2:] == ["leave"]
    dead, inner, _, history = await started(TP)
    inner.dead = RuntimeError("gone")
    await dead.stop(1.0)
    assert told(history.events)[2:] == ["lost 0", "leave"]
    history = History()
    await RecordingConsumer(FakeConsumer({}), history, "m").stop(1.0)
    assert not history.events
    replaced = RecordingConsumer(FakeConsumer({TP: [FakeRecord(0)]}), history, "m", lambda: True)
    await replaced.start(Subscription(frozenset({"orders"})), SilentListener())
    await replaced.stop(1.0)
    assert told(history.events)[2:] == ["lost 0", "leave"]


async def test_what_is_asked_passes_through() -> None:
    """Bounds, offsets, lease and failure are the inner consumer's."""
    consumer, inner, _, _ = await started(TP)
    inner.stored[TP] = Committed(1, "x")
    inner.begins[TP], inner.ends[TP] = 1, 9
    assert await consumer.committed([TP]) == {TP: Committed(1, "x")}
    assert await consumer.has_commits() is True
    assert await consumer.beginning([TP]) == {TP: 1}
    assert await consumer.end([TP]) == await inner.end([TP])
    assert consumer.end_seen(TP) == inner.end_seen(TP)
    assert consumer.failure() is None
    inner.lease_stops_at = 5.0
    assert consumer.lease_from() == 5.0


async def test_the_factory_records_each_consumer_and_knows_the_latest_lease() -> None:
    """-inf before there is one."""
    history = History()
    made: list[FakeConsumer] = []

    def factory(group: str) -> Consumer:
        made.append(FakeConsumer({TP: []}, lease_stops_at=float(len(made))))
        return made[-1]

    consumers = recording(factory, history, "m")
    assert consumers.lease_from() == float("-inf")
    assert consumers("group") is not consumers("group")
    assert consumers.lease_from() == 1.0


async def test_a_real_engine_on_a_recorded_consumer_keeps_every_law() -> None:
    """Records, failures, a revoke in the middle and a clean stop: all is judged, nothing is at fault."""
    log = {tp: [FakeRecord(n, b"k%d" % (n % 7)) for n in range(200)] for tp in (TP, OTHER)}
    history, inner = History(), FakeConsumer(log)
    for tp, records in log.items():
        for record in records:
            history.note("send", tp=tp, offset=record.offset, key=record.key)
    consumers = recording(lambda group: inner, history, "m")
    failing = {3, 50}

    async def run(topic: str, partition: int, record: RawRecord, attempt: int, generation: int) -> None:
        tp = TopicPartition(topic, partition)
        with handling(history, "m", tp, record.offset, record.key, consumers.lease_from):
            await asyncio.sleep(0)
            if record.offset in failing and attempt == 1:
                raise RuntimeError("by plan")

    made = replace(handler(lambda record: asyncio.sleep(0), "orders"), invoke=run)
    runtime = GroupRuntime(
        "g", [made], Subscription(frozenset({"orders"})), config(commit_every=20), consumers
    )
    running = asyncio.create_task(runtime.run())
    await until(lambda: sum(event.kind == "end" for event in history.events) > 100)
    await inner.revoke()
    inner.assign(log)
    await until(lambda: all(inner.stored.get(tp, Committed(0, "")).offset == 200 for tp in log))
    runtime.stop()
    await asyncio.wait_for(running, 10)
    rules = Rules(
        session_timeout_ms=10_000,
        max_revoke_grace_ms=200,
        shutdown_drain_timeout_ms=2_000,
        max_in_flight=5_000,
        finals={tp: Final(200, 200) for tp in log},
    )
    report = check(history.events, rules)
    assert report.is_ok, report.explain()
    assert (report.counts["handled"], report.counts["duplicates"]) == (400, 0)
    assert report.counts["acknowledged commits"] >= 2
