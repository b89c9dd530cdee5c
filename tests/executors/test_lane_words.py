"""The shared words: what the parent reads of what the child writes, and the other way round."""

from __future__ import annotations

from asyncpar.executors.lane_port import Progress
from asyncpar.executors.lane_words import ALL_NUMBERS, LaneWords, first_place, new_words


def test_nothing_runs_and_nothing_may_start_at_first() -> None:
    """Fresh words say that the child is idle, and let nothing start."""
    words = LaneWords(new_words())
    assert words.progress() is None
    assert not words.begin(first_place(1), 1)


def test_a_job_is_announced_whether_or_not_it_may_start() -> None:
    """Number, index and start are read as they were written; rest clears them."""
    array = new_words()
    child, parent = LaneWords(array), LaneWords(array)
    parent.renew_lease(100)
    assert child.begin(first_place(7) + 5, 100)
    assert parent.progress() == Progress(7, 5, 100, 0)
    assert not child.begin(first_place(ALL_NUMBERS - 1) + 2**23, 101)
    assert parent.progress() == Progress(ALL_NUMBERS - 1, 2**23, 101, 0)
    child.rest()
    assert parent.progress() is None


def test_an_extension_belongs_to_one_job_and_only_grows() -> None:
    """A shorter request changes nothing; the next job begins without one."""
    words = LaneWords(new_words())
    words.begin(first_place(1), 1)
    words.extend(500)
    words.extend(300)
    progress = words.progress()
    assert progress is not None
    assert progress.extended_ns == 500
    words.begin(first_place(1) + 1, 2)
    progress = words.progress()
    assert progress is not None
    assert progress.extended_ns == 0


def test_a_stop_word_is_never_taken_back() -> None:
    """A lower number later does not let earlier batches start."""
    words = LaneWords(new_words())
    words.renew_lease(100)
    words.stop_before(3)
    words.stop_before(2)
    assert [words.begin(first_place(number) + 9, 1) for number in (1, 2, 3)] == [False, False, True]
    words.stop_before(ALL_NUMBERS)
    assert not words.begin(first_place(ALL_NUMBERS - 1), 1)


def test_moments_out_of_range_are_the_nearest_ones() -> None:
    """A lease before the clock's begin closes it, one after its end never ends; so with requests for time."""
    words = LaneWords(new_words())
    words.renew_lease(-5)
    assert not words.begin(first_place(1), 1)
    words.renew_lease(2**70)
    assert words.begin(first_place(1), 2**62)
    words.extend(2**70)
    progress = words.progress()
    assert progress is not None
    assert progress.extended_ns == 2**63 - 1
