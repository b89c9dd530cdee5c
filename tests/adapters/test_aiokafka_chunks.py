"""Chunks read directly, beside the client's own way: every kind of batch, in any size of bite."""

from __future__ import annotations

import gc
import random
import struct
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition as ClientPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from asyncpar.adapters.aiokafka_chunks import KNOWN_VERSIONS, ChunkReader, Chunks, is_known_client

TP = ClientPartition("t", 0)
ATTRIBUTES_AT, CRC_AT, LAST_DELTA_AT = 21, 17, 23
CONTROL = 0x20
ABORT = struct.pack(">hh", 0, 0)
UNCOMMITTED, COMMITTED = fetcher.READ_UNCOMMITTED, fetcher.READ_COMMITTED


def changed(batch: bytes, change: Callable[[bytearray], None]) -> bytes:
    """`batch` with something in its head changed, and a checksum that agrees."""
    made = bytearray(batch)
    change(made)
    struct.pack_into(">I", made, CRC_AT, calc_crc32c(bytes(made[ATTRIBUTES_AT:])))
    return bytes(made)


def batch_of(base: int, deltas: list[int], *, codec: int = 0, producer: int = -1, last: int = 0) -> bytes:
    """Records at `base` + `deltas`; `last`: the offset delta of a record that was compacted away since."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=producer >= 0,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for delta in deltas:
        key = None if delta % 3 == 0 else b"k%d" % delta
        value = None if delta % 5 == 4 else b"v" * (delta % 7)
        headers = [("h", b"1"), ("h", None)] if delta % 4 == 1 else []
        assert builder.append(delta, 1_000 + delta, key, value, headers) is not None

    def place(made: bytearray) -> None:
        struct.pack_into(">q", made, 0, base)
        struct.pack_into(">i", made, LAST_DELTA_AT, max(last, deltas[-1] if deltas else 0))

    return changed(bytes(builder.build()), place)


def marker(base: int, producer: int, what: bytes = ABORT) -> bytes:
    """The control batch that ends a transaction."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=True,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=-1,
        batch_size=1_000,
    )
    assert builder.append(0, 1_000, what, b"", []) is not None

    def place(made: bytearray) -> None:
        struct.pack_into(">q", made, 0, base)
        (attributes,) = struct.unpack_from(">h", made, ATTRIBUTES_AT)
        struct.pack_into(">h", made, ATTRIBUTES_AT, attributes | CONTROL)

    return changed(bytes(builder.build()), place)


class Reader:
    """One chunk, and the position of the client that reads it."""

    def __init__(
        self, log: bytes, start: int, isolation: int, aborted: list[tuple[int, int]], *, direct: bool
    ) -> None:
        self.position = start
        self.paused = False
        assignment = SimpleNamespace(active=True, state_value=lambda _tp: self)
        parts = fetcher.PartitionRecords(TP, MemoryRecords(log), aborted, start, None, None, True, isolation)
        chunk = fetcher.FetchResult(TP, assignment=assignment, partition_records=parts, backoff=0.1)
        self.table: Any = Chunks() if direct else {}
        self.table[TP] = self.chunk = chunk

    def consumed_to(self, position: int) -> None:
        self.position = position

    def bite(self, size: int | None) -> list[Any]:
        """The next records, as plain tuples."""
        return [
            (one.offset, one.timestamp, one.timestamp_type, one.key, one.value, tuple(one.headers))
            for one in self.chunk.getall(size)
        ]


def both(log: bytes, start: int = 0, isolation: int = COMMITTED, aborted: Any = ()) -> list[Reader]:
    """The same chunk read directly and by the client."""
    return [Reader(log, start, isolation, list(aborted), direct=direct) for direct in (True, False)]


def read_alike(log: bytes, sizes: list[int | None], **kind: Any) -> list[int]:
    """Take bites of `sizes`, again and again to the end: all is the same both ways. Returns the offsets."""
    direct, client = both(log, **kind)
    assert isinstance(direct.chunk.getall.__self__, ChunkReader), "not read directly at all"
    offsets: list[int] = []
    for turn in range(1_000):
        size = sizes[turn % len(sizes)]
        records = direct.bite(size)
        assert records == client.bite(size)
        assert direct.position == client.position
        assert direct.chunk.has_more() == client.chunk.has_more()
        offsets += [record[0] for record in records]
        if not direct.chunk.has_more():
            return offsets
    raise AssertionError("no end after 1,000 bites")


def test_the_installed_client_is_a_known_one() -> None:
    """Else everything here would be for nothing: a new version is to be read, and added."""
    assert is_known_client()
    assert KNOWN_VERSIONS


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [[None], [1], [3, 7, 1], [10], [1_000]])
def test_records_and_positions_are_the_clients(codec: int, sizes: list[int | None]) -> None:
    """Several batches with holes between and behind their records, from the middle of the first one."""
    tail = batch_of(20, [5], codec=codec, last=9) + batch_of(40, list(range(5)), codec=codec)
    log = batch_of(0, list(range(10)), codec=codec) + batch_of(10, [0, 2, 3, 9], codec=codec) + tail
    assert read_alike(log, sizes, start=4) == [*range(4, 10), 10, 12, 13, 19, 25, *range(40, 45)]
    assert read_alike(log, sizes, start=9)[0] == 9
    assert read_alike(tail, sizes, start=27) == [*range(40, 45)], "all of the first batch was read before"


@pytest.mark.parametrize("sizes", [[None], [1], [2, 5]])
@pytest.mark.parametrize("isolation", [COMMITTED, UNCOMMITTED])
def test_aborted_records_and_markers_are_left_out(sizes: list[int | None], isolation: int) -> None:
    """The position passes them; what another producer wrote between them is delivered."""
    log = b"".join(
        [
            batch_of(0, [0, 1], producer=7),
            batch_of(2, [0, 1], producer=8),
            marker(4, 7),
            batch_of(5, [0], producer=7),
            marker(6, 7, struct.pack(">hh", 0, 1)),
            batch_of(7, [0]),
            marker(8, 8, struct.pack(">hh", 0, 1)),
        ]
    )
    aborted = [(7, 0)]
    expected = [2, 3, 5, 7] if isolation == COMMITTED else [0, 1, 2, 3, 5, 7]
    assert read_alike(log, sizes, isolation=isolation, aborted=aborted) == expected


def test_batches_of_older_formats_are_read() -> None:
    """As a topic holds them that an old broker has written."""
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    for offset in range(6):
        assert builder.append(offset, timestamp=1_000 + offset, key=b"k", value=b"v") is not None
    assert read_alike(bytes(builder.build()), [2, None], start=1) == [1, 2, 3, 4, 5]


def test_a_chunk_without_records_moves_the_position() -> None:
    """Markers only, or a batch that was compacted to nothing: else the same fetch would come again."""
    assert read_alike(marker(0, 7) + batch_of(1, [], last=3), [5]) == []
    (direct, _) = both(marker(0, 7))
    assert direct.bite(5) == []
    assert direct.position == 1


def test_a_bad_checksum_is_told_and_what_is_left_is_fetched_again() -> None:
    """The position stays where the last answered bite ended, and the chunk is no more to be used."""
    bad = bytearray(batch_of(5, list(range(5))))
    bad[-1] ^= 0xFF
    for reader in both(batch_of(0, list(range(5))) + bytes(bad)):
        assert [record[0] for record in reader.bite(3)] == [0, 1, 2]
        with pytest.raises(CorruptRecordException):
            reader.bite(None)
        assert reader.position == 3
        assert reader.bite(1) == []
        assert not reader.chunk.has_more()
        assert reader.position == 3


def test_a_chunk_of_another_position_is_dropped() -> None:
    """The partition was sought elsewhere, paused or taken away since the fetch."""

    def sought(reader: Reader) -> None:
        reader.position = 7

    def paused(reader: Reader) -> None:
        reader.paused = True

    def taken_away(reader: Reader) -> None:
        reader.chunk._assignment.active = False

    for change in (sought, paused, taken_away):
        for reader in both(batch_of(0, list(range(5)))):
            assert len(reader.bite(2)) == 2
            change(reader)
            assert reader.bite(2) == []
            assert not reader.chunk.has_more()


@pytest.mark.parametrize("size", [None, 2, 0], ids=["read to its end", "given up halfway", "never read"])
def test_a_chunk_is_gone_as_soon_as_nobody_needs_it(size: int | None) -> None:
    """Without the garbage collector, which hardly runs where records are few and large."""
    gc.collect()
    gc.disable()
    try:
        reader = Reader(batch_of(0, list(range(5))), 0, COMMITTED, [], direct=True)
        parts = weakref.ref(reader.chunk._partition_records)
        if size != 0:
            reader.bite(size)
        del reader.table[TP], reader.chunk
        assert parts() is None
    finally:
        gc.enable()


def test_errors_of_a_fetch_are_kept_as_they_are() -> None:
    """What is no chunk stands in the table untouched."""
    table, error = Chunks(), fetcher.FetchError(error=KeyError(), backoff=0.1)
    table[TP] = error
    assert table[TP] is error


@pytest.mark.parametrize("seed", range(20))
def test_random_logs_are_read_alike(seed: int) -> None:
    """Batches of any size with any holes, transactions and codecs, bites of any size."""
    draw = random.Random(seed)
    log, offset, aborted, running = batch_of(0, list(range(21))), 21, [], dict[int, int]()
    for _ in range(30):
        if running and draw.random() < 0.3:
            producer, first = running.popitem()
            is_abort = draw.random() < 0.5
            if is_abort:
                aborted.append((producer, first))
            log += marker(offset, producer, struct.pack(">hh", 0, 0 if is_abort else 1))
            offset += 1
            continue
        producer = draw.choice((-1, -1, 7, 8, 9))
        if producer >= 0:
            running.setdefault(producer, offset)
        deltas = sorted(draw.sample(range(40), draw.randint(1, 30)))
        last = draw.randint(deltas[-1], 45)
        log += batch_of(offset, deltas, codec=draw.randrange(5), producer=producer, last=last)
        offset += last + 1
    sizes = [draw.choice((1, 2, 5, 17, 100, None)) for _ in range(draw.randint(1, 6))]
    isolation = draw.choice((COMMITTED, UNCOMMITTED))
    read_alike(log, sizes, start=draw.randint(0, 20), isolation=isolation, aborted=aborted)
