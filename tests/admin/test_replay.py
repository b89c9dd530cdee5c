"""A replay in memory: what is written, passed over, remembered, and when it ends."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import Literal

import pytest

from asyncpar import headers
from asyncpar.admin.filters import LetterFilter
from asyncpar.admin.replay import default_group, replayed_record
from asyncpar.core import offset_codec
from asyncpar.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    EngineError,
    UnknownTopicError,
)
from asyncpar.records import Committed, TopicPartition
from tests.admin.letters import DLQ, SOURCE, Cluster, KilledError, letter, read_back, stray

TP = TopicPartition(DLQ, 0)


def values(*numbers: int) -> list[bytes]:
    return [b"value-%d" % number for number in numbers]


class WatchedEvent(asyncio.Event):
    """Says when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.is_waited_for.set()
        return await super().wait()


# -- the record ----------------------------------------------------------------------------------


def test_a_replayed_record_is_the_letter_with_its_history() -> None:
    """Key, value and all headers stay but the time before which it is not to run; replays count up."""
    dead = letter(7)
    dead = dead._replace(headers=headers.with_values(dead.headers, [(headers.NOT_BEFORE, 99)]))
    once = replayed_record(read_back(dead), SOURCE)
    assert (once.topic, once.key, once.value) == (SOURCE, dead.key, dead.value)
    assert (once.partition, once.timestamp) == (None, None)
    kept = [pair for pair in dead.headers if pair[0] != headers.NOT_BEFORE]
    assert list(once.headers) == [*kept, (headers.REPLAYED, b"1")]
    twice = replayed_record(read_back(once), SOURCE)
    assert headers.number(twice.headers, headers.REPLAYED) == 2


# -- what is written -----------------------------------------------------------------------------


async def test_each_letter_goes_back_to_its_own_topic_in_order() -> None:
    """In the order in which they lie; `to` names one topic for all."""
    cluster = Cluster()
    cluster.broker.create_topic("returns")
    cluster.put(letter(1), letter(2, source="returns"), letter(3))
    report = await cluster.replay()
    assert report.replayed == {SOURCE: 2, "returns": 1}
    assert cluster.values() == values(1, 3)
    assert cluster.values("returns") == values(2)
    assert cluster.announced == [(f"{DLQ}[0]@0", SOURCE), (f"{DLQ}[0]@1", "returns"), (f"{DLQ}[0]@2", SOURCE)]
    assert cluster.advanced == 3
    await cluster.replay(group="others", to="returns")
    assert cluster.values("returns") == values(2, 1, 2, 3)


async def test_what_was_replayed_is_not_replayed_again() -> None:
    """The same group writes each letter once; --again writes all; another group knows nothing."""
    cluster = Cluster(partitions=2)
    cluster.put(letter(1), letter(2), partition=0)
    cluster.put(letter(3), partition=1)
    assert (await cluster.replay()).replayed.total() == 3
    assert cluster.broker.committed("replays")[TP] == Committed(2, "")
    cluster.put(letter(4), partition=0)
    assert (await cluster.replay()).replayed.total() == 1
    assert (await cluster.replay(again=True)).replayed.total() == 4
    assert (await cluster.replay()).replayed.total() == 0
    assert (await cluster.replay(group="others")).replayed.total() == 4


async def test_letters_that_a_filter_left_are_found_later() -> None:
    """Whatever the order of the filters, each letter is written once."""
    cluster = Cluster()
    cluster.put(*(letter(number, handler="bill" if number % 3 else "mail") for number in range(12)))
    first = await cluster.replay(wanted=LetterFilter(handler="mail"))
    assert (first.replayed.total(), first.filtered) == (4, 8)
    second = await cluster.replay()
    assert (second.replayed.total(), second.remembered) == (8, 3)
    assert sorted(cluster.values()) == sorted(values(*range(12)))  # type: ignore[type-var]
    assert cluster.broker.committed("replays")[TP] == Committed(12, "")


async def test_again_does_not_forget_what_else_was_replayed() -> None:
    """A filtered --again adds to what is remembered."""
    cluster = Cluster()
    cluster.put(*map(letter, range(4)))
    await cluster.replay()
    assert (await cluster.replay(again=True, limit=1)).replayed.total() == 1
    assert (await cluster.replay()).replayed.total() == 0


async def test_markers_between_letters_cost_no_memory() -> None:
    """Letters written in transactions that a filter passes over leave nothing in the metadata."""
    cluster = Cluster()
    for number in range(50):
        cluster.put(letter(number, handler="bill" if number else "mail"))
        cluster.broker.log(TP).skip(1)
    await cluster.replay(wanted=LetterFilter(handler="mail"))
    assert cluster.broker.committed("replays")[TP] == Committed(2, "")
    assert (await cluster.replay()).replayed.total() == 49
    assert cluster.broker.committed("replays")[TP] == Committed(100, "")


async def test_a_limit_ends_it_and_the_next_one_goes_on() -> None:
    """Letters that are passed over do not count."""
    cluster = Cluster()
    cluster.put(*(letter(number, handler="bill" if number % 2 else "mail") for number in range(8)))
    one = await cluster.replay(limit=2, wanted=LetterFilter(handler="bill"))
    assert (one.replayed.total(), one.limited) == (2, True)
    assert cluster.advanced == 5, "it read on"
    other = await cluster.replay(limit=2, wanted=LetterFilter(handler="bill"))
    assert (other.replayed.total(), other.limited) == (2, False)
    assert cluster.values() == values(1, 3, 5, 7)


async def test_a_dry_run_writes_and_commits_nothing() -> None:
    """It announces what a replay would write."""
    cluster = Cluster()
    cluster.put(letter(1), letter(2, handler="mail"), letter(3, handler="mail"))
    async with asyncio.timeout(10):
        # The rate is that of writing: it does not hold a dry run back.
        report = await cluster.replay(dry_run=True, wanted=LetterFilter(handler="mail"), per_second=0.01)
    assert report.replayed == {SOURCE: 2}
    assert cluster.announced == [(f"{DLQ}[0]@1", SOURCE), (f"{DLQ}[0]@2", SOURCE)]
    assert (cluster.values(), cluster.log.commits) == ([], 0)


# -- what is left --------------------------------------------------------------------------------


async def test_without_a_value_there_is_nothing_to_replay() -> None:
    """Such letters are counted, and stay to be found."""
    cluster = Cluster()
    cluster.put(letter(1, metadata_only=True), letter(2))
    report = await cluster.replay()
    assert (report.metadata_only, report.replayed.total(), report.is_complete) == (1, 1, True)
    assert (await cluster.replay()).metadata_only == 1


async def test_a_letter_that_does_not_say_whence_needs_a_topic() -> None:
    """It is left and named; with `to` it is replayed."""
    cluster = Cluster()
    cluster.put(stray(), letter(2))
    report = await cluster.replay()
    assert (report.without_origin, report.left, report.is_complete) == (1, [f"{DLQ}[0]@0"], False)
    assert (await cluster.replay(to=SOURCE)).replayed.total() == 1
    assert cluster.values() == [b"value-2", b"foreign"]


async def test_a_topic_is_not_replayed_into_itself() -> None:
    """Replayed records say that they came from the topic in which they lie: they are left and named."""
    cluster = Cluster()
    cluster.put(letter(1, source=DLQ), letter(2))
    report = await cluster.replay()
    assert (report.own_topic, report.left, report.is_complete) == (1, [f"{DLQ}[0]@0"], False)
    assert cluster.values() == values(2)


async def test_a_letter_too_large_for_its_topic_is_left() -> None:
    """The others go on; it stays to be found."""
    cluster = Cluster()
    cluster.broker.create_topic("small", max_message_bytes=1_000)
    cluster.put(letter(1, source="small", value=b"x" * 2_000), letter(2))
    report = await cluster.replay()
    assert (report.too_large, report.left, report.replayed) == (1, [f"{DLQ}[0]@0"], {SOURCE: 1})
    assert not report.is_complete
    assert (await cluster.replay(to=SOURCE)).replayed.total() == 1


async def test_a_double_is_written_once() -> None:
    """Two letters of one record: the second counts as replayed too, now and later."""
    cluster = Cluster()
    cluster.put(letter(1), letter(1), letter(2))
    report = await cluster.replay()
    assert (report.doubles, report.replayed.total()) == (1, 2)
    assert cluster.values() == values(1, 2)
    assert cluster.broker.committed("replays")[TP] == Committed(3, "")


async def test_a_double_of_a_letter_that_was_left_is_written() -> None:
    """Only what was replayed makes another one superfluous."""
    cluster = Cluster()
    cluster.put(letter(1, failed_ms=1_000), letter(1, failed_ms=9_000))
    report = await cluster.replay(wanted=LetterFilter(since_ms=5_000))
    assert (report.doubles, report.replayed.total(), report.filtered) == (0, 1, 1)


async def test_a_double_of_a_letter_that_was_replayed_before_is_not_written() -> None:
    """Wherever it lies: below all that is remembered, above it, in a partition that is read later."""
    cluster = Cluster(partitions=2)
    cluster.put(letter(1), letter(2), letter(1), partition=0)
    cluster.put(letter(4, key=None, handler="mail"), partition=1)
    await cluster.replay(limit=1)
    await cluster.replay(wanted=LetterFilter(handler="mail"))
    cluster.put(letter(4, key=None, handler="mail"), partition=0)
    report = await cluster.replay()
    assert (report.doubles, report.replayed.total()) == (2, 1)
    assert cluster.values() == values(1, 4, 2)


async def test_a_double_in_a_partition_that_is_not_meant_is_not_written() -> None:
    """Without a key a letter and its double may lie in two partitions, replayed one at a time."""
    cluster = Cluster(partitions=2)
    cluster.put(letter(4, key=None), partition=0)
    cluster.put(letter(4, key=None), letter(5, key=None), partition=1)
    await cluster.replay(partitions=(0,))
    report = await cluster.replay(partitions=(1,))
    assert (report.doubles, report.replayed.total()) == (1, 1)
    assert cluster.values() == values(4, 5)


async def test_it_ends_before_a_letter_that_could_not_be_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written that the metadata has no room for, so nothing is doubled later."""
    monkeypatch.setattr(offset_codec, "encode", partial(offset_codec.encode, max_chars=64))
    cluster, chance = Cluster(), random.Random(1)
    handlers = [chance.choice(("bill", "mail")) for _ in range(900)]
    cluster.put(*(letter(number, handler=name) for number, name in enumerate(handlers)))
    report = await cluster.replay(wanted=LetterFilter(handler="bill"))
    assert report.memory_full
    assert not report.is_complete
    written = report.replayed.total()
    assert 50 < written < handlers.count("bill")
    again = await cluster.replay(wanted=LetterFilter(handler="bill"))
    assert again.replayed.total() == 0
    assert len(cluster.values()) == written


# -- when it ends early --------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, 8))
async def test_killed_at_any_commit_one_letter_is_doubled_at_most(at: int) -> None:
    """Killed between acknowledgement and commit, the repeated replay loses none."""
    cluster = Cluster(partitions=2)
    cluster.put(letter(1), letter(2), letter(3), partition=0)
    cluster.put(letter(4), letter(5), letter(6), partition=1)
    cluster.log.fails_at_commit = at
    with pytest.raises(KilledError):
        await cluster.replay()
    await cluster.replay()
    written = cluster.values()
    assert set(written) == set(values(1, 2, 3, 4, 5, 6))
    assert len(written) == 6 + (at > 1)


async def test_with_commits_in_batches_as_many_are_doubled_at_most() -> None:
    """`commit_every` letters share a commit; what is left at the end is committed."""
    cluster = Cluster()
    cluster.put(*map(letter, range(10)))
    assert (await cluster.replay(commit_every=4)).replayed.total() == 10
    assert cluster.log.commits == 1 + 3
    assert cluster.broker.committed("replays")[TP] == Committed(10, "")


async def test_stopped_it_ends_after_the_letter_under_way() -> None:
    """What was written is committed, and the next replay goes on behind it."""
    cluster = Cluster()
    cluster.put(*map(letter, range(6)))
    announce = cluster._announce

    def stop_at_third(found: object, topic: str) -> None:
        announce(found, topic)  # type: ignore[arg-type]
        if len(cluster.announced) == 3:
            cluster.stop.set()

    cluster._announce = stop_at_third  # type: ignore[method-assign]
    report = await cluster.replay()
    assert report.interrupted
    assert cluster.values() == values(0, 1, 2)
    cluster.stop.clear()
    await cluster.replay()
    assert cluster.values() == values(*range(6))


async def test_stopped_while_it_waits_for_the_rate_it_ends_at_once() -> None:
    """The wait is not slept to its end."""
    cluster = Cluster()
    cluster.stop = stop = WatchedEvent()
    cluster.put(letter(1), letter(2))
    running = asyncio.create_task(cluster.replay(per_second=0.001))
    async with asyncio.timeout(10):
        await stop.is_waited_for.wait()
        stop.set()
        assert (await running).interrupted
    assert cluster.values() == values(1)


async def test_stopped_it_ends_also_where_nothing_is_written() -> None:
    """A filter that passes over a million letters does not keep it."""
    cluster = Cluster()
    cluster.put(*map(letter, range(9)))
    cluster.stop.set()
    report = await cluster.replay(wanted=LetterFilter(handler="nobody"))
    assert report.interrupted
    assert report.filtered < 9


async def test_a_rate_holds_it_back() -> None:
    """Twenty letters at 100 per second take a tenth of a second, which may pile up, less than 0.2."""
    cluster = Cluster()
    cluster.put(*map(letter, range(20)))
    began = time.monotonic()
    await cluster.replay(per_second=100.0)
    assert time.monotonic() - began >= 0.1


async def test_a_topic_that_is_gone_ends_it_with_its_name() -> None:
    """What came before is written and remembered."""
    cluster = Cluster()
    cluster.put(letter(1), letter(2, source="gone"))
    with pytest.raises(
        UnknownTopicError, match=r"'gone', where letter orders.dlq\[0\]@1 comes from, does not"
    ):
        await cluster.replay(commit_every=100)
    assert cluster.broker.committed("replays")[TP] == Committed(1, "")
    with pytest.raises(UnknownTopicError, match=r"topic 'away', does not exist"):
        await cluster.replay(to="away")


async def test_a_write_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit code of its reason; the letter does not count as replayed."""
    monkeypatch.setattr("asyncpar.admin.replay.SEND_SECONDS", 0.1)
    cluster = Cluster()
    cluster.put(letter(1))
    for _ in range(10):
        cluster.broker.fail("Produce", "DISCONNECT")
    with pytest.raises(BrokerUnreachableError, match=r"letter orders.dlq\[0\]@0: .* not counted as replayed"):
        await cluster.replay()
    assert cluster.broker.committed("replays")[TP] == Committed(0, "")


@pytest.mark.parametrize("other", [0, 1])
async def test_a_second_replay_of_the_group_is_noticed(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time would write letters twice, also of two partitions: who sees the other's commit ends."""
    monkeypatch.setattr("asyncpar.admin.replay.COMMIT_SECONDS", 0.0)
    cluster = Cluster(partitions=2)
    cluster.put(*map(letter, range(6)), partition=0)
    announce, at = cluster._announce, TopicPartition(DLQ, other)

    def disturb(found: object, topic: str) -> None:
        announce(found, topic)  # type: ignore[arg-type]
        if len(cluster.announced) == 3:
            cluster.broker.store_offsets("replays", {at: Committed(5, "")})

    cluster._announce = disturb  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=rf"another replay of orders\.dlq\[{other}\]"):
        await cluster.replay(partitions=(0,))
    assert cluster.broker.committed("replays")[at] == Committed(5, "")


async def test_again_asks_for_nothing_of_partitions_that_are_not_meant() -> None:
    """What the group remembers of them does not matter then, nor whether it can be read."""
    cluster = Cluster(partitions=2)
    cluster.put(letter(1), partition=0)
    cluster.broker.store_offsets("replays", {TopicPartition(DLQ, 1): Committed(99, "")})
    with pytest.raises(ConfigurationError, match=r"orders\.dlq\[1\]"):
        await cluster.replay(partitions=(0,))
    assert (await cluster.replay(partitions=(0,), again=True)).replayed.total() == 1


async def test_a_topic_that_was_made_anew_is_not_taken_for_replayed() -> None:
    """The group remembers more than there is: it is refused, and --again begins at the beginning."""
    cluster = Cluster()
    cluster.put(letter(1))
    for remembered in (Committed(9, ""), Committed(0, offset_codec.encode(TP, 0, [(1, 2)]).text)):
        cluster.broker.store_offsets("replays", {TP: remembered})
        with pytest.raises(ConfigurationError, match="the topic was made anew"):
            await cluster.replay()
    assert (await cluster.replay(again=True)).replayed.total() == 1
    assert cluster.broker.committed("replays")[TP] == Committed(1, "")


async def test_what_was_purged_before_it_was_replayed_counts_as_done() -> None:
    """The group's offset lies before the beginning of the log."""
    cluster = Cluster()
    cluster.put(*map(letter, range(4)))
    await cluster.replay(limit=1)
    cluster.broker.log(TP).delete_before(3)
    assert (await cluster.replay()).replayed.total() == 1
    assert cluster.values() == values(0, 3)
    assert cluster.broker.committed("replays")[TP] == Committed(4, "")


def test_the_group_is_named_after_the_topic() -> None:
    """Unless another one is named."""
    assert default_group(DLQ) == "asyncpar-dlq-replay-orders.dlq"
