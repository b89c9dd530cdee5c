"""`python -m tests.cost`: what a record costs, beside what is kept; `python -m tests.cost keep` keeps it.

Exit code 1: a cost is too far from what is kept. Once with each Python that has figures in `kept.json`.
"""

from __future__ import annotations

import argparse
import sys

from tests.cost.core_workload import core_cost
from tests.cost.counter import Cost
from tests.cost.group_workload import group_cost
from tests.cost.kept import FILE, PYTHON, complaint, keep, kept
from tests.cost.load import Load

_MOST_SHOWN = 15


def main() -> int:
    """Count, show, and keep or compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.cost", description="What a record costs.")
    parser.add_argument("keep", nargs="?", choices=("keep",), help="keep what is counted now for this Python")
    wants_to_keep = parser.parse_args().keep is not None
    costs = {"core": core_cost(Load()), "group": group_cost(Load())}
    for workload, cost in costs.items():
        _show(workload, cost)
    if wants_to_keep:
        keep(costs)
        _say(f"Kept for Python {PYTHON} in {FILE.name}.")
        return 0
    complaints = [_judged(workload, cost) for workload, cost in costs.items()]
    for text in complaints:
        _say(text or "")
    return int(any(complaints))


def _judged(workload: str, cost: Cost) -> str | None:
    before = kept(workload)
    return f"Nothing is kept for Python {PYTHON}." if before is None else complaint(workload, cost, before)


def _show(workload: str, cost: Cost) -> None:
    instructions, c_calls = sum(cost.instructions.values()), sum(cost.c_calls.values())
    _say(f"{workload}: {instructions:.1f} instructions and {c_calls:.1f} calls of C functions per record")
    most = sorted(cost.instructions, key=lambda name: -cost.instructions[name])[:_MOST_SHOWN]
    for name in most:
        _say(f"  {cost.instructions[name]:8.2f} {cost.c_calls.get(name, 0.0):7.2f}  {name}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
