"""What a record costs in the core: counted in instructions and in calls of C functions, not in seconds.

The cost is kept (`tests/cost/kept.json`), and it does not grow with what there is much of.
"""

from __future__ import annotations

import pytest

from tests.cost.core_workload import core_cost
from tests.cost.flat import GROWING, MANY_PARTITIONS, assert_flat
from tests.cost.kept import PYTHON, complaint, kept
from tests.cost.load import Load


def test_a_record_costs_the_core_what_is_kept() -> None:
    """Within 15 %, more or less; else it says in which function, and how to keep another cost."""
    before = kept("core")
    if before is None:
        pytest.skip(f"no cost is kept for Python {PYTHON}: python -m tests.cost keep")
    if (said := complaint("core", core_cost(Load()), before)) is not None:
        pytest.fail(said, pytrace=False)


@pytest.mark.parametrize("what", GROWING)
def test_the_cost_in_the_core_is_flat(what: str) -> None:
    """Many partitions, keys or offsets done above the commit cost a record no more than few do."""
    assert_flat(core_cost, what, GROWING[what])


def test_the_cost_in_the_core_is_flat_up_to_256_partitions() -> None:
    """Where each of them may hold 64 records only, and each fetch and each commit looks at all of them."""
    assert_flat(core_cost, "partitions", MANY_PARTITIONS)
