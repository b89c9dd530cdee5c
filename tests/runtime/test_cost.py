"""What a record costs a group, from the fetch to the commit: counted, as much as is kept, and flat."""

from __future__ import annotations

import pytest

from tests.cost.flat import GROWING, MANY_PARTITIONS, assert_flat
from tests.cost.group_workload import group_cost, group_seconds
from tests.cost.kept import PYTHON, complaint, kept
from tests.cost.load import Load


def test_a_record_costs_a_group_what_is_kept() -> None:
    """Within 15 %, more or less; else it says in which function, and how to keep another cost."""
    before = kept("group")
    if before is None:
        pytest.skip(f"no cost is kept for Python {PYTHON}: python -m tests.cost keep")
    if (said := complaint("group", group_cost(Load()), before)) is not None:
        pytest.fail(said, pytrace=False)


@pytest.mark.parametrize("what", GROWING)
def test_the_cost_in_a_group_is_flat(what: str) -> None:
    """Many partitions, keys or offsets done above the commit cost a record no more than few do."""
    assert_flat(group_cost, what, GROWING[what])


def test_the_cost_in_a_group_is_flat_up_to_256_partitions() -> None:
    """Where each of them may hold 64 records only, and each fetch and each commit looks at all of them."""
    assert_flat(group_cost, "partitions", MANY_PARTITIONS)


def test_no_c_function_walks_over_all_that_was_done() -> None:
    """The count takes a call of C for one, however long it takes: here the last records cost as the first.

    By the clock, so coarsely: a walk over 100,000 offsets takes a hundred times as long as a record.
    """
    load = Load(records=100_000, partitions=1, keys=100_000, before=0, is_stuck=True)
    seconds = group_seconds(load, slices=20)
    assert min(seconds[-5:]) <= 3 * min(seconds[:5])
