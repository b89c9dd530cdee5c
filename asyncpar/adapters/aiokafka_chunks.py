"""Records straight out of fetched batches, without the object that the client makes for each of them.

Lives here: taking records out of one fetched chunk, as the client's generator does it, and putting that in
the generator's place. Never here: what to fetch. Called by `aiokafka_private` for a client of a version in
`KNOWN_VERSIONS`; for any other, and with `client_records`, the client's own way stays. Always: the same
records in the same order, the same positions and the same errors on both ways.

The client makes an object of eleven fields and a dictionary per record, which costs half of its time. What
its parser makes before that has all that a `RawRecord` needs.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import aiokafka
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException

KNOWN_VERSIONS = frozenset({"0.14.0"})
"""The versions of aiokafka whose generator (`PartitionRecords._unpack_records`) this file repeats."""


def is_known_client() -> bool:
    """Whether the installed client is one whose chunks this file can read."""
    return aiokafka.__version__ in KNOWN_VERSIONS


class Chunks(OrderedDict[Any, Any]):
    """The client's table of fetched chunks; each is read directly from the moment it arrives."""

    def __setitem__(self, partition: Any, chunk: Any) -> None:
        if type(chunk) is fetcher.FetchResult:
            # Its generator holds what holds it; the client undoes that when the generator has ended.
            chunk._partition_records._records_iterator = None
            chunk.getall = ChunkReader(weakref.proxy(chunk)).take
        super().__setitem__(partition, chunk)


class ChunkReader:
    """What stands in the place of one chunk's `getall`; whoever calls it holds the chunk.

    No circle of references: a chunk is as large as a fetch, and must not wait for the garbage collector.
    """

    __slots__ = ("_batch", "_chunk", "_is_over", "_left", "_parts")

    def __init__(self, chunk: Any) -> None:
        self._chunk = chunk
        self._parts = chunk._partition_records
        self._batch: Any = None
        """The one that `_left` is of; None: the next one is yet to be read."""
        self._left: Iterator[Any] = iter(())
        self._is_over = False

    def take(self, max_records: int | None = None) -> list[Any]:
        """The next records. Raises CorruptRecordException and what a codec raises; then it is over."""
        chunk = self._chunk
        if self._is_over or not chunk.check_assignment(chunk._topic_partition):
            chunk._partition_records = None
            return []
        try:
            taken, self._is_over = self._take(sys.maxsize if max_records is None else max_records)
        except BaseException:
            self._is_over = True  # what is left is fetched again
            raise
        chunk._update_position()
        if self._is_over:
            chunk._partition_records = None
        return taken

    def _take(self, room: int) -> tuple[list[Any], bool]:
        """Up to `room` records, and whether there are no more."""
        parts, taken = self._parts, list[Any]()
        while room > 0:
            if self._batch is None and not self._open_next():
                return taken, True
            records, start = list(islice(self._left, room)), parts.next_fetch_offset
            if len(records) < room:
                # After compaction the last record of a batch may lie below its last offset.
                after, self._batch = self._batch.next_offset, None
            else:
                after = records[-1].offset + 1
            if records and records[0].offset < start:
                # A batch is sent whole, also what lies below the offset that was asked for.
                records = [record for record in records if record.offset >= start]
            parts.next_fetch_offset = max(start, after)
            room -= len(records)
            taken += records
        return taken, False

    def _open_next(self) -> bool:
        """Go on to the next batch with records for us; False: there is none."""
        parts = self._parts
        while parts._records.has_next():
            batch = parts._records.next_batch()
            if parts._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {parts._tp}")
            if self._is_aborted(batch) or batch.is_control_batch:
                parts.next_fetch_offset = batch.next_offset
                continue
            # A batch lets itself be asked for an iterator once only, and each slice asks anew.
            self._batch, self._left = batch, islice(batch, None)
            return True
        return False

    def _is_aborted(self, batch: Any) -> bool:
        """Whether `batch` belongs to a transaction that was aborted; keeps account of which were."""
        parts = self._parts
        if parts._isolation_level != fetcher.READ_COMMITTED or batch.producer_id is None:
            return False
        parts._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and parts._contains_abort_marker(batch):
            parts._aborted_producers.discard(batch.producer_id)
        return bool(batch.is_transactional and batch.producer_id in parts._aborted_producers)
