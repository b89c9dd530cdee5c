"""The processes of a member: looked up in /proc, because who dies must not depend on what asyncpar says.

Linux only. Called by `killing.py` and the tests of the process pool.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One that runs, or waits to be reaped (`is_zombie`)."""

    pid: int
    parent: int
    session: int
    is_zombie: bool


def of_session(session: int) -> list[Process]:
    """All that were started below the leader of a session, zombies left out."""
    return [one for one in _all() if one.session == session and not one.is_zombie]


def children_of(member: int) -> list[int]:
    """The workers of a member that leads its session: what its fork server has made."""
    return [one.pid for one in of_session(member) if member not in (one.pid, one.parent)]


def _all() -> list[Process]:
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        found.append(Process(int(path.name), int(fields[1]), int(fields[3]), fields[0] in "ZX"))
    return found
