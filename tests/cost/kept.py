"""The costs that are kept, by Python version, and what to say when a count is too far from them.

`kept.json` holds the cost of each workload for each minor version of Python, since each compiles to other
instructions. `python -m tests.cost keep` writes what is counted now for the Python that runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.cost.counter import Cost

FILE = Path(__file__).with_name("kept.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
TOLERANCE = 0.15
_SMALLEST_NAMED = 0.5
_OTHERS = "(others)"
"""What functions of less than that take together."""
_MOST_NAMED = 8


def kept(workload: str, file: Path = FILE, python: str = PYTHON) -> Cost | None:
    """What is kept of `workload`; None where nothing is for this Python."""
    found = json.loads(file.read_text(encoding="utf-8")).get(python, {}).get(workload)
    return None if found is None else Cost(found["instructions"], found["c_calls"])


def keep(costs: dict[str, Cost], file: Path = FILE, python: str = PYTHON) -> None:
    """Write `costs`, by workload, in place of what was kept for this Python."""
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    document[python] = {
        workload: {"instructions": _named(cost.instructions), "c_calls": _named(cost.c_calls)}
        for workload, cost in costs.items()
    }
    file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _named(spent: dict[str, float]) -> dict[str, float]:
    named = {name: round(amount, 2) for name, amount in spent.items() if amount >= _SMALLEST_NAMED}
    return {**named, _OTHERS: round(sum(spent.values()) - sum(named.values()), 2)}


def complaint(workload: str, counted: Cost, before: Cost) -> str | None:
    """What is wrong with `counted` beside what is kept, function by function; None: it is near enough.

    Too little is wrong as well: what was gained could be lost again unnoticed.
    """
    kinds = {
        "instructions": (counted.instructions, before.instructions),
        "calls of C functions": (counted.c_calls, before.c_calls),
    }
    growth = {kind: sum(now.values()) / sum(then.values()) - 1 for kind, (now, then) in kinds.items()}
    if all(abs(grown) <= TOLERANCE for grown in growth.values()):
        return None
    costs_more = any(grown > TOLERANCE for grown in growth.values())
    how = "more" if costs_more else "less"
    lines = [
        f"A record of '{workload}' costs over {TOLERANCE:.0%} {how} than what is kept for Python {PYTHON}:"
    ]
    for kind, (now, then) in kinds.items():
        lines.append(f"  {kind}: {sum(then.values()):.1f} -> {sum(now.values()):.1f} ({growth[kind]:+.0%})")
        lines += by_function(now, then)
    lines.append("Make it cheaper. If it has to cost that:" if costs_more else "So that it stays so:")
    lines.append(f"run `python -m tests.cost keep`, and commit {FILE.name} with the reason.")
    return "\n".join(lines)


def by_function(now: dict[str, float], then: dict[str, float]) -> list[str]:
    """Where it changed, a line each, the largest changes first. Of what is small only the sum is compared."""
    now, then = (one if _OTHERS in one else _named(one) for one in (now, then))
    changes = {name: now.get(name, 0.0) - then.get(name, 0.0) for name in now.keys() | then.keys()}
    most = sorted(changes, key=lambda name: (-abs(changes[name]), name))[:_MOST_NAMED]
    return [
        f"    {changes[name]:+8.2f}  {name}: {then.get(name, 0.0):.2f} -> {now.get(name, 0.0):.2f}"
        for name in most
        if abs(changes[name]) >= 0.05
    ]
