"""That a cost stays the same while something grows a thousandfold.

Called by the tests. Says by how much it grew instead, and in which function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.cost.counter import Cost
from tests.cost.kept import by_function
from tests.cost.load import Load

FLAT = 1.20
GROWING = {
    "partitions": [Load(4000, partitions=number) for number in (1, 8, 64)],
    "keys": [Load(2000, keys=number, before=number) for number in (1, 1_000, 100_000)],
    "the gap": [Load(2000, partitions=1, before=gap, is_stuck=True) for gap in (0, 1_000, 100_000)],
}
MANY_PARTITIONS = [Load(20_000, partitions=number) for number in (1, 256)]
"""So many records that what the last commit costs, which is of all partitions, is of no account."""


def assert_flat(cost_of: Callable[[Load], Cost], what: str, loads: Sequence[Load]) -> None:
    """None of `loads`, in which `what` grows, costs over 1.2 times as much per record as a smaller one."""
    costs = [cost_of(load) for load in loads]
    for kind in ("instructions", "c_calls"):
        spent: list[dict[str, float]] = [getattr(cost, kind) for cost in costs]
        sums = [sum(one.values()) for one in spent]
        for at, larger in enumerate(sums):
            least = min(range(at + 1), key=sums.__getitem__)
            assert larger <= FLAT * sums[least], "\n".join(
                [
                    f"{kind} per record grow by {larger / sums[least] - 1:.0%} with {what}:",
                    f"  from {sums[least]:.1f} with {loads[least]}",
                    f"  to {larger:.1f} with {loads[at]}",
                    *by_function(spent[at], spent[least]),
                ]
            )
