"""Which rows and contenders of a workload run: those that were asked for and have what they need.

What lives here: the choice by name, and looking after what contenders need before they can run (a package, an
environment). What never does: measuring. Called by `harness.conduct`. Always: what is left out is said with
the reason, and an unknown name ends the command before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Row


class LeftOut(Exception):  # noqa: N818 - a state of the machine, not a fault
    """A contender cannot run here; the message says what is missing."""


@dataclass
class Prepared:
    """The rows that can run. By contender: the versions of what it needs, or why it is left out."""

    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def chosen(rows: Sequence[Row], names: str | None, contenders: str | None) -> list[Row]:
    """The rows of these names with the contenders of these names (joined by commas; None: all).

    SystemExit when there is no row or no contender of a name.
    """
    wanted = _parts(names, [row.name for row in rows], "row")
    kept = [row for row in rows if row.name in wanted]
    known = list(dict.fromkeys(name for row in kept for name in row.contenders))
    asked = _parts(contenders, known, "contender")
    return [_only(row, asked) for row in kept if asked & row.contenders.keys()]


def unasked(rows: Sequence[Row], contenders: str | None) -> dict[str, str]:
    """Why contenders of `rows` did not run that were not named, where some were."""
    known = dict.fromkeys(name for row in rows for name in row.contenders)
    asked = _parts(contenders, list(known), "contender")
    return {name: "not asked for (--contenders)" for name in known if name not in asked}


def _parts(given: str | None, known: Sequence[str], what: str) -> set[str]:
    asked = set(known) if given is None else {part.strip() for part in given.split(",")}
    if unknown := sorted(asked - set(known)):
        raise SystemExit(f"no {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return asked


def _only(row: Row, names: set[str]) -> Row:
    return replace(row, contenders={name: run for name, run in row.contenders.items() if name in names})


def prepared(rows: Sequence[Row]) -> Prepared:
    """Have everything made that the contenders need; leave out those that cannot have it, and say so.

    SystemExit when nothing is left.
    """
    found, tried = Prepared(), dict[Callable[[], str], str | LeftOut]()
    for name, prepare in _preparations(rows).items():
        outcome = tried[prepare] = tried.get(prepare) or _outcome(prepare)
        if isinstance(outcome, LeftOut):
            found.left_out[name] = str(outcome)
            print(f"{name} is left out: {outcome}", flush=True)
        else:
            found.versions[name] = outcome
    kept = [_only(row, row.contenders.keys() - found.left_out.keys()) for row in rows]
    found.rows = [row for row in kept if row.contenders]
    if not found.rows:
        raise SystemExit("nothing is left to measure")
    return found


def _outcome(prepare: Callable[[], str]) -> str | LeftOut:
    try:
        return prepare()
    except LeftOut as why:
        return why


def _preparations(rows: Sequence[Row]) -> Mapping[str, Callable[[], str]]:
    return {
        name: row.preparations[name] for row in rows for name in row.contenders if name in row.preparations
    }
