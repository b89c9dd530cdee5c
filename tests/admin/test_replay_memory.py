"""What a replay group remembers survives a commit, and is believed only where it was written."""

from __future__ import annotations

import random
from functools import partial

import pytest

from asyncpar.admin.replay_memory import ReplayMemory, recalled
from asyncpar.core import offset_codec
from asyncpar.errors import ConfigurationError
from asyncpar.records import Committed, TopicPartition

TP = TopicPartition("orders.dlq", 0)


def test_what_is_done_in_a_row_is_one_offset() -> None:
    """Without metadata."""
    memory = ReplayMemory(TP, 3, [])
    for offset in range(3, 10):
        memory.add(offset, offset + 1)
    assert memory.commit() == Committed(10, "")
    assert memory.above == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_memory_is_recalled_as_it_was(seed: int) -> None:
    """Whatever was done in whatever order, a commit brings back the same answers."""
    chance = random.Random(seed)
    done = chance.sample(range(200), chance.randrange(1, 150))
    memory = ReplayMemory(TP, 0, [])
    for offset in done:
        assert memory.has_room_for(offset)
        memory.add(offset, offset + 1)
    again = recalled(TP, memory.commit(), "g")
    for known in (memory, again):
        assert [offset for offset in range(210) if known.is_done(offset)] == sorted(done)
    lowest = next(offset for offset in range(210) if offset not in done)
    assert again.hwm == lowest
    assert again.above == sum(offset > lowest for offset in done)


def test_a_hole_makes_no_run_of_its_own() -> None:
    """Behind a letter that was done it goes with it, behind one that was not it is not noted."""
    memory = ReplayMemory(TP, 2, [])
    memory.add_hole(2, 4)
    assert memory.hwm == 4
    memory.add_hole(5, 7)
    assert not memory.is_done(5)
    memory.add(8, 9)
    memory.add_hole(9, 11)
    assert memory.is_done(10)


def test_there_is_no_room_for_any_number_of_scattered_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so before one is written that could not be remembered, and all before is recalled."""
    monkeypatch.setattr(offset_codec, "encode", partial(offset_codec.encode, max_chars=256))
    memory, offset = ReplayMemory(TP, 0, []), 1
    chance = random.Random(1)
    while memory.has_room_for(offset):
        memory.add(offset, offset + 1)
        last, offset = offset, offset + chance.randrange(2, 9)
        assert offset < 50_000, "the metadata cannot hold so many runs"
    again = recalled(TP, memory.commit(), "g")
    assert [at for at in range(offset) if again.is_done(at)] == [
        at for at in range(offset) if memory.is_done(at)
    ]
    assert again.is_done(last)


@pytest.mark.parametrize(
    "committed",
    [
        Committed(5, "somebody else's"),
        Committed(5, "ap1:zzzzzzzz:!!"),
        ReplayMemory(TP, 5, [(7, 9)]).commit()._replace(offset=6),
    ],
)
def test_what_cannot_be_believed_is_refused(committed: Committed) -> None:
    """Foreign, damaged or moved metadata: the line says what to do."""
    with pytest.raises(ConfigurationError, match=r"of orders.dlq\[0\] cannot be used \(\w+\): name another"):
        recalled(TP, committed, "g")


def test_nothing_committed_is_nothing_remembered() -> None:
    """A new group."""
    assert recalled(TP, None, "g").commit() == Committed(0, "")
