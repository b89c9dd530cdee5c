"""`python -m tests.planted`: which check catches which planted bug, and in how many lives.

Exit code 0 when each was caught by a check that has to catch it; 1 when one was not within `--lives`, or only
by others, or when a life fails without any bug; 2 when a patch does not fit the source any more; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence

from tests.planted.bug import Bug, RottenPatchError
from tests.planted.bugs import BUGS
from tests.planted.hunt import Hunt, Hunters

EXIT_NOT_CAUGHT = 1
EXIT_ROTTEN = 2
EXIT_INTERRUPTED = 130
_NAME, _CHECKS = 38, 26
"""Widths of columns."""


def _at_least_one(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted", description="Plant bugs in the engine, and see who catches them."
    )
    parser.add_argument(
        "--lives", type=_at_least_one, default=500, help="give a bug up after so many lives (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the first life (%(default)s)")
    parser.add_argument("--bug", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument(
        "--workers", type=_at_least_one, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="say what the bugs are, and end")
    arguments = parser.parse_args(given)
    unknown = set(arguments.bug or ()) - {bug.name for bug in BUGS}
    if unknown:
        parser.error(f"no such bug: {', '.join(sorted(unknown))}; --list names them all")
    return arguments


def _say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def row(found: Hunt) -> str:
    """One line of the table."""
    if found.seed is None:
        return f"{found.bug.name:<{_NAME}}{'NOT CAUGHT':<{_CHECKS}}{found.lives:>5}"
    by = ", ".join(sorted(found.caught_by)) or f"ONLY {', '.join(sorted(found.found))}"
    return f"{found.bug.name:<{_NAME}}{by:<{_CHECKS}}{found.lives:>5}{found.seed:>12}"


def verdict(hunts: Iterable[Hunt]) -> list[str]:
    """What is wrong, one line each; empty when every bug was caught as it has to be."""
    wrong = []
    for found in hunts:
        name = found.bug.name
        if found.seed is None:
            lives = _counted(found.lives, "life", "lives")
            wrong.append(f"{name}: not caught in {lives}: {found.bug.wrong}")
        elif not found.caught_by:
            wanted = ", ".join(sorted(found.bug.checks))
            wrong.append(f"{name}: caught in life {found.seed}, but not by {wanted}: {found.problem}")
    return wrong


def main(given: Sequence[str] | None = None) -> int:
    """The exit code."""
    arguments = _arguments(given)
    bugs = [bug for bug in BUGS if not arguments.bug or bug.name in arguments.bug]
    if arguments.list:
        for bug in bugs:
            _say(f"{bug.name} ({bug.module}): {bug.wrong}")
        return 0
    try:
        for bug in bugs:
            bug.planted_in(bug.path.read_text(encoding="utf-8"))
    except RottenPatchError as error:
        _say(str(error))
        return EXIT_ROTTEN
    hunts: dict[str, Hunt] = {}
    try:
        return _hunt(bugs, arguments, hunts)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped after {len(hunts)} of {_counted(len(bugs), 'bug', 'bugs')}\n")
        return EXIT_INTERRUPTED


def _hunt(bugs: Sequence[Bug], arguments: argparse.Namespace, hunts: dict[str, Hunt]) -> int:
    """Hunt `bugs` and tell of it; fills `hunts`, by name. The exit code."""
    begin = time.monotonic()
    lives = _counted(arguments.lives, "life", "lives")
    _say(f"{_counted(len(bugs), 'bug', 'bugs')}, up to {lives} each from seed {arguments.seed}")
    with Hunters(arguments.workers) as hunters:
        for found in hunters.hunt_all(bugs, range(arguments.seed, arguments.seed + arguments.lives)):
            hunts[found.bug.name] = found
            sys.stderr.write(f"{len(hunts)}/{len(bugs)} {row(found)}\n")
    _say(f"\n{'bug':<{_NAME}}{'caught by':<{_CHECKS}}{'lives':>5}{'seed':>12}")
    for bug in bugs:
        _say(row(hunts[bug.name]))
    wrong = verdict(hunts[bug.name] for bug in bugs)
    caught = f"{len(bugs) - len(wrong)} of {_counted(len(bugs), 'bug', 'bugs')} caught"
    _say(f"\n{caught}; {time.monotonic() - begin:.0f} s")
    if hunters.unsound:
        seeds = ", ".join(map(str, sorted(hunters.unsound)))
        wrong.append(f"passed over, for these lives fail without a bug of ours: {seeds}")
    for line in wrong:
        _say(line)
    return EXIT_NOT_CAUGHT if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
