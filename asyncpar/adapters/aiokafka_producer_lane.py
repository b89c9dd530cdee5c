"""The records for one partition on their way: one batch at a time, numbered so that none is written twice.

Pure but for the futures that callers wait on: no clock, nothing here connects or waits. Called by
`aiokafka_producer_batching`. Kafka tells a repeated batch by (producer id, epoch, sequence), which it keeps
for each partition by itself. Hence, always:

- a batch that may have arrived is repeated as it is until an answer comes: written once, and before all
  that was sent later;
- a sequence number never stands for two batches: one that is given up takes its epoch with it. The next
  batch begins a new epoch at 0, from which on the broker refuses a late copy of the old one;
- both are the lane's own: what befalls one partition is nothing to the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asyncpar.errors import PublishError, PublishReason
from asyncpar.records import OutgoingRecord, TopicPartition

# What one batch holds. A batch travels alone through its partition: this per round trip is its throughput.
BATCH_BYTES = 256 * 1024
# Kafka's overhead of a batch, beside its records.
BATCH_HEADER_BYTES = 61
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
_LAST_EPOCH = 2**15 - 1
_LAST_SEQUENCE = 2**31 - 1


class Trouble(NamedTuple):
    """Why the last attempt did not succeed."""

    reason: PublishReason
    why: str


class Numbers(NamedTuple):
    """What the broker tells batches of one partition by."""

    producer_id: int
    epoch: int
    sequence: int


class Batch(NamedTuple):
    """Records to be written as one, and their numbers."""

    numbers: Numbers
    records: Sequence[OutgoingRecord]


@dataclass(slots=True, eq=False)
class Entry:
    """A record and who waits for it: `offset` is done once it is written, or its caller has gone."""

    record: OutgoingRecord
    size_bytes: int
    offset: asyncio.Future[int]
    is_in_batch: bool = False
    """Whether it is in the lane's open batch."""
    may_be_there: bool = False
    """Whether it was sent: it may be written although nobody was told."""


class Lane:
    """What waits for partition `tp`. `trouble` is why nothing moves, None when all is well."""

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.numbers: Numbers | None = None
        """Those of the next batch; None: a producer id has to be asked for."""
        self.trouble: Trouble | None = None
        self.is_busy = False
        """Whether a request with its batch is under way."""
        self.pause_seconds = 0.0
        """How long to wait before the next attempt; whoever waited sets it back to 0."""
        self._queue: dict[Entry, None] = {}
        self._open: list[Entry] = []
        self._attempts = 0
        # A topic may take less than a batch of ours holds: `most` is what is known not to be too much.
        self._limit_bytes = self._most_bytes = BATCH_BYTES

    # -- what waits --------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Behind all the others."""
        self._queue[entry] = None

    def drop(self, entry: Entry) -> None:
        """Its caller has gone: it is not sent any more if it was not already."""
        self._queue.pop(entry, None)
        if not self.is_busy:
            self._give_up_forsaken()

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits for a record."""
        return bool(self._queue) or any(not entry.offset.done() for entry in self._open)

    def may_have_sent(self, entry: Entry) -> bool:
        """Whether `entry` may be written without anybody being told."""
        return entry.may_be_there or (self.is_busy and entry.is_in_batch)

    def waiting(self) -> list[Entry]:
        """All that is waited for, in order."""
        return [entry for entry in (*self._open, *self._queue) if not entry.offset.done()]

    # -- out ---------------------------------------------------------------------------------

    def batch(self) -> Batch | None:
        """The one to be sent now: again if its outcome is not known. None without records or numbers."""
        self._give_up_forsaken()
        if self.numbers is None:
            return None
        if not self._open:
            room = self._limit_bytes - BATCH_HEADER_BYTES
            for entry in self._queue:
                room -= entry.size_bytes
                if room < 0 and self._open:
                    break
                self._open.append(entry)
                entry.is_in_batch = True
            for entry in self._open:
                del self._queue[entry]
        if not self._open:
            return None
        return Batch(self.numbers, [entry.record for entry in self._open])

    def size_bytes(self) -> int:
        """About how many bytes the batch has that was given out."""
        return BATCH_HEADER_BYTES + sum(entry.size_bytes for entry in self._open)

    # -- how it went -------------------------------------------------------------------------

    def was_written(self, base_offset: int) -> None:
        """The broker has it; -1: it has had it for so long that it has forgotten where."""
        assert self.numbers is not None
        for at, entry in enumerate(self._open):
            if not entry.offset.done():
                entry.offset.set_result(base_offset + at if base_offset >= 0 else -1)
        producer_id, epoch, sequence = self.numbers
        # Java's producers begin again at 0, too.
        self.numbers = Numbers(producer_id, epoch, (sequence + len(self._open)) & _LAST_SEQUENCE)
        self._open = []
        self._attempts, self.trouble = 0, None
        self._limit_bytes = min(self._limit_bytes * 2, self._most_bytes)

    def was_not_sent(self, trouble: Trouble) -> None:
        """It never left: nothing of it can be there."""
        self._pause(trouble)
        if not any(entry.may_be_there for entry in self._open):
            self._requeue()
        self._give_up_forsaken()

    def may_be_written(self, trouble: Trouble) -> None:
        """Nobody knows, or the broker wants it again: it is repeated as it is."""
        self._pause(trouble)
        for entry in self._open:
            entry.may_be_there = True
        self._give_up_forsaken()

    def was_misnumbered(self, trouble: Trouble, *, needs_new_id: bool) -> None:
        """The broker has not written it because of its numbers: again, with others."""
        self._pause(trouble)
        self._renumber()
        if needs_new_id:
            self.numbers = None
        self._requeue()

    def was_refused(self, error: PublishError) -> None:
        """The broker takes none of its records now.

        An earlier copy may be written all the same, before the right to write was taken away: it is repeated
        as it is for as long as anybody waits, since under other numbers it would be another record.
        """
        if any(entry.may_be_there for entry in self._open):
            self.may_be_written(Trouble(error.reason, str(error)))
            return
        self._refuse(error)

    def _refuse(self, error: PublishError) -> None:
        """Nothing of the batch is there, or ever will be."""
        self._renumber()
        self._fail(self._open, error)
        self._open = []

    def was_found_wrong(self, error: PublishError, *, is_size: bool) -> None:
        """The broker found the batch too large, or something wrong with one of its records.

        Whose fault it is shows when they are sent in smaller batches, in the same order.
        """
        if len(self._open) == 1:
            self._refuse(error)
            return
        # Never below half of what the topic takes: that much had passed.
        self._limit_bytes = self.size_bytes() // 2
        if is_size:
            self._most_bytes = self._limit_bytes
        self._renumber()
        self._requeue()

    def fail(self, error: PublishError) -> None:
        """All that waits fails."""
        self._fail([*self._open, *self._queue], error)
        self._queue.clear()
        self._give_up_forsaken()

    # -- inside ------------------------------------------------------------------------------

    @staticmethod
    def _fail(entries: Sequence[Entry], error: PublishError) -> None:
        for entry in entries:
            if not entry.offset.done():
                entry.offset.set_exception(PublishError(str(error), error.reason))

    def _pause(self, trouble: Trouble) -> None:
        self.pause_seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(self._attempts, 10), LONGEST_PAUSE_SECONDS)
        self._attempts += 1
        self.trouble = trouble

    def _requeue(self) -> None:
        for entry in self._open:
            entry.is_in_batch = False
        waiting = [entry for entry in self._open if not entry.offset.done()]
        self._queue = dict.fromkeys(waiting) | self._queue
        self._open = []

    def _give_up_forsaken(self) -> None:
        """A batch that nobody waits for any more must not come later than what is sent next."""
        if self._open and all(entry.offset.done() for entry in self._open):
            self._open = []
            self._renumber()

    def _renumber(self) -> None:
        if self.numbers is not None and self.numbers.epoch < _LAST_EPOCH:
            self.numbers = Numbers(self.numbers.producer_id, self.numbers.epoch + 1, 0)
        else:
            self.numbers = None
