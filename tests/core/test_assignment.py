"""Tests of a partition's life: the table, and the generations that outlive it."""

from __future__ import annotations

import itertools

import pytest

from asyncpar.core.assignment import TRANSITIONS, Event, Generations, Partition, State
from asyncpar.records import TopicPartition
from tests.core.models import TP, opened, records, tracker_of


def _in_state(state: State) -> Partition:
    partition = Partition(TP, 1)
    partition.state = state
    return partition


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(State, Event)), ids=lambda part: part.value
)
def test_a_step_is_in_the_table_or_an_error(state: State, event: Event) -> None:
    """Every pair either moves along the table or is refused in one line that names all three."""
    partition = _in_state(state)
    if (state, event) in TRANSITIONS:
        partition.apply(event)
        assert partition.state is TRANSITIONS[state, event]
        return
    with pytest.raises(ValueError, match=rf"orders\[3\]: {event.value} is not possible while {state.value}"):
        partition.apply(event)
    assert partition.state is state


def test_every_life_can_end_and_nothing_comes_after() -> None:
    """A loss ends a partition from anywhere, a revoke from anywhere but a drain; gone is gone."""
    alive = [state for state in State if state is not State.GONE]
    assert all(TRANSITIONS[state, Event.LOSE] is State.GONE for state in alive)
    revocable = [state for state in alive if state is not State.DRAINING]
    assert all(TRANSITIONS[state, Event.REVOKE] is State.DRAINING for state in revocable)
    assert TRANSITIONS[State.DRAINING, Event.RELEASE] is State.GONE
    assert not any(state is State.GONE for state, _ in TRANSITIONS)


def test_a_halt_leads_back_through_opening() -> None:
    """A halted partition is opened anew; one that drains meanwhile stays so."""
    partition = opened()
    for event, state in (
        (Event.HALT, State.HALTED),
        (Event.HALT, State.HALTED),
        (Event.RESUME, State.OPENING),
        (Event.OPENED, State.OPEN),
        (Event.REOPEN, State.OPENING),
        (Event.HALT, State.HALTED),
        (Event.REVOKE, State.DRAINING),
        (Event.HALT, State.DRAINING),
        (Event.RELEASE, State.GONE),
    ):
        partition.apply(event)
        assert partition.state is state


def test_only_an_open_partition_may_be_fetched() -> None:
    """Neither one that is being opened, nor one that halted or drains."""
    assert [state for state in State if _in_state(state).is_open] == [State.OPEN]


def test_in_flight_counts_what_the_tracker_holds() -> None:
    """Nothing before it is opened; then queued, running and parked alike."""
    assert Partition(TP, 1).in_flight == 0
    partition = opened()
    tracker_of(partition).admit(records(3, 9, 12))
    assert partition.in_flight == 3
    tracker_of(partition).complete(9)
    assert partition.in_flight == 2


def test_generations_grow_per_partition_and_never_repeat() -> None:
    """An older life's completions can be told from the present one's, however often it comes back."""
    generations = Generations()
    other = TopicPartition("orders", 4)
    assert [generations.next(TP) for _ in range(3)] == [1, 2, 3]
    assert generations.next(other) == 1
    assert generations.next(TP) == 4
