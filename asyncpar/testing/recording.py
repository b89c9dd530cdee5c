"""A consumer that takes down what it is given, told and asked to commit: the witness of a history.

Lives here: a decorator for any `ports.Consumer`, the real client's or the in-memory one. Never here: a
change of what passes through, or a judgement (that is `checkers`). Called by whoever builds an engine to be
watched: put `recording(factory, recorder, member)` where the factory goes.

What a member's handlers do is noted by themselves, with `history.handling(..., factory.lease_from)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from asyncpar.ports import AssignmentListener, Consumer, ConsumerFactory, Subscription
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, TopicPartition
from asyncpar.testing.history import Kind, Recorder


class RecordingConsumer:
    """`consumer`, with what it does noted in `recorder` under the name `member`.

    Notes: join, leave; assign, seek, poll, revoke with its deadline, released, lost; commit with what was
    heard of it. A commit that was cancelled counts as answered `retry`: nobody knows. A consumer that is
    stopped because it died, or (`is_replaced` says so) because the engine takes another one, has lost what it
    held.
    """

    def __init__(
        self,
        consumer: Consumer,
        recorder: Recorder,
        member: str,
        is_replaced: Callable[[], bool] = lambda: False,
    ) -> None:
        self.member = member
        self._is_replaced = is_replaced
        self._consumer = consumer
        self._recorder = recorder
        self._held: dict[TopicPartition, int] = {}
        """With the number of the assignment that gave it."""
        self._assignments = 0
        self._token: GroupToken | None = None
        """Of the latest assignment."""
        self._delivered: dict[TopicPartition, int] = {}
        self._joined = False

    # -- membership --------------------------------------------------------------------------

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:
        """See the port."""
        self._joined = True
        self._recorder.note("join", self.member)
        await self._consumer.start(subscription, _Listener(self, listener))

    async def stop(self, timeout_s: float) -> None:
        """See the port."""
        if self._joined:
            self._joined = False
            if self._consumer.failure() is not None or self._is_replaced():
                self._note("lost", list(self._held))
            self._held.clear()
            self._recorder.note("leave", self.member)
        await self._consumer.stop(timeout_s)

    def lease_from(self) -> float:
        """See the port."""
        return self._consumer.lease_from()

    def drain_deadline(self) -> float:
        """See the port."""
        return self._consumer.drain_deadline()

    def failure(self) -> BaseException | None:
        """See the port."""
        return self._consumer.failure()

    def _note(self, kind: Kind, partitions: Iterable[TopicPartition], detail: str = "") -> None:
        for tp in sorted(partitions):
            self._recorder.note(kind, self.member, tp, detail=detail)

    def note_assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        """These were given; those that are held already were not revoked, so they were lost first."""
        self._assignments += 1
        self._token = token
        self.note_lost(frozenset(self._held) & partitions)
        self._held.update(dict.fromkeys(partitions, self._assignments))
        self._note("assign", sorted(partitions))

    def note_revoked(self, partitions: frozenset[TopicPartition]) -> frozenset[TopicPartition]:
        """A revoke begins; returns those of `partitions` that were held."""
        held = frozenset(tp for tp in partitions if tp in self._held)
        deadline = self._consumer.drain_deadline()
        self._note("revoke", held, "" if abs(deadline) == float("inf") else str(int(deadline * 1e9)))
        return held

    def note_released(self, partitions: frozenset[TopicPartition]) -> None:
        """A revoke returned."""
        self._drop("released", partitions)

    def note_lost(self, partitions: frozenset[TopicPartition]) -> None:
        """They belong to others."""
        self._drop("lost", partitions)

    def _drop(self, kind: Kind, partitions: frozenset[TopicPartition]) -> None:
        gone = [tp for tp in partitions if self._held.pop(tp, None) is not None]
        for tp in gone:
            self._delivered.pop(tp, None)
        self._note(kind, gone)

    # -- records -----------------------------------------------------------------------------

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """See the port."""
        asked = {tp: self._held.get(tp) for tp in wanted}
        chunks = await self._consumer.fetch(wanted, max_records, timeout_ms, max_per_partition)
        firsts = {TopicPartition(chunk.topic, chunk.partition): chunk.records for chunk in chunks}
        for tp, assignment in asked.items():
            # What comes over a rebalance is of an older assignment: the engine must drop it.
            if assignment is not None and self._held.get(tp) == assignment:
                self._note_delivered(tp, [record.offset for record in firsts.get(tp, ())])
        return chunks

    def _note_delivered(self, tp: TopicPartition, offsets: Sequence[int]) -> None:
        before = self._delivered.get(tp, -1)
        position = self._consumer.position(tp)
        after = max(offsets[-1] + 1 if offsets else before, -1 if position is None else position)
        if not offsets and after <= before:
            return
        self._delivered[tp] = after
        self._recorder.note("poll", self.member, tp, offsets[0] if offsets else before, detail=str(after))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port."""
        if partition in self._held:
            self._delivered[partition] = offset
            self._recorder.note("seek", self.member, partition, offset)
        self._consumer.seek(partition, offset)

    def position(self, partition: TopicPartition) -> int | None:
        """See the port."""
        return self._consumer.position(partition)

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port."""
        return await self._consumer.beginning(partitions)

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port."""
        return await self._consumer.end(partitions)

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """See the port."""
        return self._consumer.end_seen(partition)

    # -- offsets -----------------------------------------------------------------------------

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """See the port."""
        return await self._consumer.committed(partitions)

    async def has_commits(self) -> bool:
        """See the port."""
        return await self._consumer.has_commits()

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """See the port."""
        for tp, committed in offsets.items():
            if token != self._token:
                self._recorder.note("outdated", self.member, tp, committed.offset)
            self._recorder.note("commit", self.member, tp, committed.offset, detail=committed.metadata)
        answers: dict[TopicPartition, CommitAnswer] = {}
        try:
            answers = await self._consumer.commit(token, offsets, timeout_s)
        finally:
            for tp in offsets:
                answer = answers.get(tp, CommitAnswer.RETRY)
                self._recorder.note("answer", self.member, tp, detail=answer.value)
        return answers


class _Listener:
    """The engine's listener, with what it is told noted."""

    def __init__(self, consumer: RecordingConsumer, listener: AssignmentListener) -> None:
        self._consumer = consumer
        self._listener = listener

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        self._consumer.note_assigned(partitions, token)
        self._listener.assigned(partitions, token)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        held = self._consumer.note_revoked(partitions)
        await self._listener.revoked(partitions)
        self._consumer.note_released(held)

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        self._consumer.note_lost(partitions)
        self._listener.lost(partitions)


class Recording:
    """A `ConsumerFactory` whose consumers are recorded as one member's."""

    def __init__(
        self,
        factory: ConsumerFactory,
        recorder: Recorder,
        member: str,
        is_replaced: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recorder = recorder
        self.member = member
        self._is_replaced = is_replaced
        self._factory = factory
        self._latest: RecordingConsumer | None = None

    def __call__(self, group: str) -> RecordingConsumer:
        """A fresh consumer; see `ports.ConsumerFactory`."""
        self._latest = RecordingConsumer(self._factory(group), self.recorder, self.member, self._is_replaced)
        return self._latest

    def lease_from(self) -> float:
        """Of the latest consumer; -inf before there is one. For `history.handling`."""
        return float("-inf") if self._latest is None else self._latest.lease_from()


def recording(
    factory: ConsumerFactory,
    recorder: Recorder,
    member: str,
    is_replaced: Callable[[], bool] = lambda: False,
) -> Recording:
    """`factory`, with what its consumers do noted in `recorder` as `member` (a name that nobody else has).

    `is_replaced` is asked when a consumer is stopped: whether its engine goes on with another one.
    """
    return Recording(factory, recorder, member, is_replaced)
