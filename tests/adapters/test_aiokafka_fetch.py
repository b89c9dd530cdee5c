"""`FairFetch` over a client made by hand, whose getmany behaves as aiokafka's does."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition as ClientPartition
from aiokafka.errors import CorruptRecordException, GroupAuthorizationFailedError, KafkaError
from aiokafka.errors import OffsetOutOfRangeError as ClientOutOfRange

from asyncpar.adapters.aiokafka_fetch import (
    ALONE_AFTER_SECONDS,
    BUSY_WAIT_MS,
    MOST_SHARES,
    NOBODY,
    FairFetch,
)
from asyncpar.errors import AuthorizationError, FetchError, OffsetOutOfRangeError
from asyncpar.records import Chunk, TopicPartition

A, B, C = (TopicPartition("t", number) for number in range(3))


class Raw(NamedTuple):
    offset: int


class Client:
    """A consumer and its inside in one: buffers by partition, drained in order, with aiokafka's faults."""

    def __init__(self, **logs: list[Any]) -> None:
        self.logs = {ClientPartition("t", "abc".index(name)): items for name, items in logs.items()}
        self.positions = dict.fromkeys(self.logs, 0)
        self.buffers: OrderedDict[Any, int] = OrderedDict.fromkeys(self.logs, 0)
        self.asked: list[tuple[Any, ...]] = []
        self.running = 0
        self.group_error: Exception | None = None
        self.waits: list[int] = []
        self.shares = 1
        self.sought: list[tuple[Any, int]] = []

    async def getmany(self, *partitions: Any, max_records: int, timeout_ms: int) -> dict[Any, list[Any]]:
        self.asked.append(partitions)
        self.running += 1
        drained: dict[Any, list[Any]] = {}
        for tp in [tp for tp in self.buffers if tp in partitions]:
            taken = self._take(tp, max_records)
            if taken:
                drained[tp] = taken
                max_records -= len(taken)
            if max_records == 0:
                break
        if not drained:
            await asyncio.sleep(timeout_ms / 1000)
        self.running -= 1  # no finally: a raising call is never counted down
        return drained

    def _take(self, tp: Any, limit: int) -> list[Any]:
        taken: list[Any] = []
        items = self.logs[tp]
        while self.positions[tp] + len(taken) < len(items) and len(taken) < limit:
            item = items[self.positions[tp] + len(taken)]
            if isinstance(item, Exception):
                raise item  # what was taken of this partition is forgotten, its position stays
            taken.append(Raw(item))
        self.positions[tp] += len(taken)
        if self.positions[tp] == len(items):
            del self.buffers[tp]
        return taken

    def seek(self, tp: Any, offset: int) -> None:
        self.sought.append((tp, offset))
        self.positions[tp] = offset

    def check_errors(self) -> None:
        if self.group_error is not None:
            raise self.group_error

    def buffered(self, wanted: Any) -> list[Any]:
        return [tp for tp in self.buffers if tp in set(wanted)]

    def has_buffer(self, tp: Any) -> bool:
        return tp in self.buffers

    def rotate(self, tp: Any) -> None:
        if tp in self.buffers:
            self.buffers.move_to_end(tp)

    def position(self, tp: Any) -> int:
        return self.positions[tp]

    def is_assigned(self, tp: Any) -> bool:
        return tp in self.logs

    def fetch_count(self) -> int:
        return self.running

    def restore_fetch_count(self, count: int) -> None:
        self.running = count

    def wait_at_broker(self, wait_ms: int) -> None:
        self.waits.append(wait_ms)

    def arrives(self, tp: TopicPartition) -> None:
        """One record of a partition that had none."""
        key = ClientPartition(*tp)
        self.logs[key], self.positions[key], self.buffers[key] = [0], 0, 0

    def take_shares(self, shares: int) -> None:
        self.shares = shares


def fair(client: Client) -> FairFetch:
    return FairFetch(client, client, "g", 500)  # type: ignore[arg-type]


def offsets(chunks: list[Chunk]) -> dict[int, list[int]]:
    return {chunk.partition: [record.offset for record in chunk.records] for chunk in chunks}


async def test_partitions_take_turns() -> None:
    """A partition with much buffered does not starve the others."""
    client = Client(a=list(range(1000)), b=list(range(1000)), c=list(range(1000)))
    fetch = fair(client)
    served = [chunk.partition for _ in range(6) for chunk in await fetch.fetch([A, B, C], 100, 10)]
    assert served == [0, 1, 2, 0, 1, 2]


async def test_one_fetch_takes_from_several() -> None:
    """The limit counts all partitions together, and each chunk is in order."""
    client = Client(a=[0, 1], b=[0, 1, 2, 3])
    assert offsets(await fair(client).fetch([A, B], 5, 10)) == {0: [0, 1], 1: [0, 1, 2]}


async def test_records_are_handed_over_as_they_are() -> None:
    """The client's own record objects are returned, not copies."""
    record = Raw(0)
    client = Client(a=[0])
    client._take = lambda tp, limit: [record]  # type: ignore[method-assign]
    chunks = await fair(client).fetch([A], 5, 10)
    assert chunks[0].records[0] is record


async def test_only_wanted_partitions_are_asked_for() -> None:
    """What is not wanted keeps its buffer; with nothing wanted a partition that nobody has is asked for."""
    client = Client(a=[0], b=[0])
    fetch = fair(client)
    assert offsets(await fetch.fetch([B], 5, 10)) == {1: [0]}
    assert await fetch.fetch([], 5, 10) == []
    assert client.asked[-1] == (NOBODY,)
    assert client.has_buffer(A)


async def test_what_arrives_while_waiting_comes_whole() -> None:
    """A fetch that had to wait returns all that is there, not the one record it waited with."""
    client = Client(a=[0, 1, 2], b=[0, 1])
    client.buffered = lambda wanted: (
        [] if not client.asked else [tp for tp in client.buffers if tp in set(wanted)]
    )  # type: ignore[method-assign]
    assert offsets(await fair(client).fetch([A, B], 10, 10)) == {0: [0, 1, 2], 1: [0, 1]}


async def test_a_raise_loses_nothing() -> None:
    """What one partition yielded comes out before another one's error, and the error comes after."""
    corrupt = CorruptRecordException("Invalid CRC")
    client = Client(a=[0, 1], b=[0, 1, corrupt])
    fetch = fair(client)
    assert offsets(await fetch.fetch([A, B], 10, 10)) == {0: [0, 1]}
    with pytest.raises(FetchError, match=r"t\[1\] at offset 0") as caught:
        await fetch.fetch([A, B], 10, 10)
    assert (caught.value.partition, caught.value.offset, caught.value.unreadable) == (B, 0, True)
    assert client.positions[B] == 0


async def test_an_unreadable_record_that_comes_while_waiting_is_named() -> None:
    """Also a fetch that had to wait says which partition and offset it cannot read, and seeks back there."""
    client = Client(a=[], b=[0, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")])
    client.positions[B] = 1
    del client.buffers[A]
    buffered = client.buffered
    client.buffered = lambda wanted: buffered(wanted) if client.asked else []  # type: ignore[method-assign]
    with pytest.raises(FetchError, match=r"t\[1\] at offset 1 failed: UnicodeDecodeError") as caught:
        await fair(client).fetch([A, B], 10, 10)
    assert (caught.value.partition, caught.value.offset, caught.value.unreadable) == (B, 1, True)
    assert client.sought == [(B, 1)]


async def test_good_records_before_a_corrupt_one_come_out() -> None:
    """After an error its chunk is taken record by record, and the error then names the very offset."""
    client = Client(b=[0, 1, CorruptRecordException("Invalid CRC")])
    fetch = fair(client)
    with pytest.raises(FetchError):
        await fetch.fetch([B], 10, 10)
    assert offsets(await fetch.fetch([B], 10, 10)) == {1: [0]}
    assert offsets(await fetch.fetch([B], 10, 10)) == {1: [1]}
    with pytest.raises(FetchError, match="at offset 2"):
        await fetch.fetch([B], 10, 10)


async def test_a_chunk_that_ends_well_is_taken_at_full_speed_again() -> None:
    """A partition is taken record by record only while the chunk that raised lasts."""
    client = Client(b=[0, CorruptRecordException("bit flip")])
    fetch = fair(client)
    with pytest.raises(FetchError):
        await fetch.fetch([B], 10, 10)
    client.logs[B] = [0, 1]
    assert offsets(await fetch.fetch([B], 10, 10)) == {1: [0]}
    assert offsets(await fetch.fetch([B], 10, 10)) == {1: [1]}
    client.logs[B] = [0, 1, 2, 3]
    client.buffers[B] = 0  # type: ignore[index]
    assert offsets(await fetch.fetch([B], 10, 10)) == {1: [2, 3]}


async def test_raising_calls_are_counted_down() -> None:
    """A raise does not leave a running fetch behind in the client's counter."""
    client = Client(a=[ClientOutOfRange({ClientPartition("t", 0): 9})])
    fetch = fair(client)
    for _ in range(3):
        with pytest.raises(OffsetOutOfRangeError) as caught:
            await fetch.fetch([A], 10, 10)
        assert caught.value.offsets == {A: 9}
    assert client.running == 0


async def test_what_the_group_has_to_say_is_no_fault_of_the_partition_it_comes_out_of() -> None:
    """An error that the coordinator raised while a partition was drained concerns all of them."""
    client = Client(a=[KafkaError("the coordination task was cancelled")])
    with pytest.raises(FetchError, match="coordination task") as caught:
        await fair(client).fetch([A], 10, 10)
    assert (caught.value.partition, caught.value.unreadable) == (None, False)


async def test_rights_on_the_group_are_final() -> None:
    """The coordinator's refusal comes out of the next fetch at once."""
    client = Client(a=[0])
    client.group_error = GroupAuthorizationFailedError("g")
    with pytest.raises(AuthorizationError, match="group 'g'"):
        await fair(client).fetch([A], 10, 60_000)


async def test_a_dead_coordinator_does_not_make_the_poller_spin() -> None:
    """A coordinator that raises at every call costs each fetch its time-out."""
    client = Client(a=[0])
    client.group_error = RuntimeError("dead")
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(FetchError):
        await fair(client).fetch([A], 10, 50)
    assert loop.time() - begin >= 0.045


async def test_brokers_wait_short_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetches wait 50 ms at the broker while there is work and long after 2 s without any."""
    client = Client(a=[0])
    fetch = fair(client)
    await fetch.fetch([A], 10, 1)
    assert client.waits == [BUSY_WAIT_MS]
    fetch._last_work -= 2.5
    await fetch.fetch([A], 10, 1)
    assert client.waits == [BUSY_WAIT_MS, 500]


async def test_a_partition_that_alone_has_records_gets_the_bytes_of_the_others() -> None:
    """After a fifth of a second of it, for as long as it lasts; of as many as are asked for, 8 at most."""
    client = Client(a=list(range(100)))
    fetch = fair(client)
    others = [TopicPartition("t", number) for number in range(20)]
    await fetch.fetch([A, *others], 10, 1)
    assert client.shares == 1
    fetch._alone_since -= ALONE_AFTER_SECONDS + 0.1
    await fetch.fetch([A, B], 10, 1)
    assert client.shares == 2
    await fetch.fetch([A, *others], 10, 1)
    assert client.shares == MOST_SHARES
    client.arrives(B)
    await fetch.fetch([A, B], 10, 1)
    assert client.shares == 1


@pytest.mark.parametrize("between", ["another", "a pause", "both at once"])
async def test_a_partition_that_is_alone_for_a_moment_gets_no_more(between: str) -> None:
    """Nor does one with a record now and then: nobody waits for its answers."""
    client = Client(a=list(range(100)))
    fetch = fair(client)
    await fetch.fetch([A, B], 10, 1)
    fetch._alone_since -= ALONE_AFTER_SECONDS + 0.1
    if between == "a pause":
        fetch._last_work -= ALONE_AFTER_SECONDS + 0.1
    else:
        client.arrives(B)
    asked = [B] if between == "another" else [A, B]
    await fetch.fetch(asked, 200 if between == "both at once" else 10, 1)
    assert client.shares == 1
