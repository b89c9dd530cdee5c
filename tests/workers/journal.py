"""What children wrote of their runs, and what must be true of it.

What lives here: `Journal`, which reads on as it grows, and judgements of runs. What never does: processes and
Kafka. Called by `killing.py` and the tests of the process pool. Always: nothing is taken from the engine.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asyncpar.records import TopicPartition
from asyncpar.testing.history import Event


@dataclass
class Run:
    """A record in a child. `end_ns` None: the child did not get there (yet)."""

    member: str
    pid: int
    partition: int
    offset: int
    key: str
    attempt: int
    start_ns: int
    end_ns: int | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset."""
        return self.partition, self.offset

    def __str__(self) -> str:
        where = f"[{self.partition}] offset {self.offset} key {self.key}"
        return f"{where} in child {self.pid}, attempt {self.attempt}"


class Journal:
    """All runs so far, as they started."""

    def __init__(self, path: Path) -> None:
        self.runs: list[Run] = []
        self.ended = 0
        """How many have ended."""
        self._path = path
        self._read = 0
        self._of: dict[int, Run] = {}
        """The last run of each child."""

    def look(self) -> int:
        """Read on; how many runs have ended in all. Half a line is left for later."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            self._take(line.split("\t"))
        return self.ended

    def _take(self, fields: list[str]) -> None:
        what, at_ns, member, pid, partition, offset, key, attempt = fields
        if what == "start":
            run = Run(member, int(pid), int(partition), int(offset), key, int(attempt), int(at_ns))
            self.runs.append(run)
            self._of[run.pid] = run
            return
        run = self._of[int(pid)]
        assert run.place == (int(partition), int(offset)), (
            f"a child runs one record at a time: {fields}, {run}"
        )
        run.end_ns = int(at_ns)
        self.ended += 1

    def running(self) -> list[Run]:
        """The runs that have not ended, killed ones included."""
        return [run for run in self._of.values() if run.end_ns is None]

    def last_of(self, pid: int) -> Run | None:
        """The last run of child `pid`."""
        return self._of.get(pid)


def overlaps(runs: Iterable[Run], killed_ns: Mapping[int, int]) -> list[str]:
    """Records of one key that ran at the same time. A run without an end lasts until its child was killed."""
    lanes: dict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda one: one.start_ns):
        lanes[run.partition, run.key].append(run)
    found = []
    for lane in lanes.values():
        for one, after in itertools.pairwise(lane):
            ends = one.end_ns or killed_ns.get(one.pid)
            if ends is None:
                found.append(f"{one} never ended, and {after} ran")
            elif after.start_ns < ends:
                found.append(f"{one} still ran when {after} began")
    return found


def reordered(runs: Iterable[Run]) -> list[str]:
    """Runs that began after one of a later record of their key had; for members that lost no partition."""
    highest: dict[tuple[int, str], Run] = {}
    found = []
    for run in sorted(runs, key=lambda one: one.start_ns):
        before = highest.get((run.partition, run.key))
        if before is not None and before.offset > run.offset:
            found.append(f"{run} began after {before}")
        else:
            highest[run.partition, run.key] = run
    return found


def miscounted(runs: Iterable[Run], killed_ns: Mapping[int, int]) -> list[str]:
    """Attempts that were counted although no child had died of them, and records that ran again for nothing.

    A child that is killed was at one record at most: the last one in the journal, or the one after it, which
    it had yet to write down. So each run after the first needs a killed child whose last run was this record,
    and the number of a run may be higher than that by what killed children did not get to write down.
    """
    last_runs = {run.pid: run for run in sorted(runs, key=lambda one: one.start_ns)}
    by_place: dict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda one: one.start_ns):
        by_place[run.place].append(run)
    found, unwritten = [], 0
    for again in by_place.values():
        for number, run in enumerate(again, 1):
            unwritten += number == len(again) and run.attempt - number
            if run.attempt < number:
                found.append(f"{run} is run {number} of it")
        found += [
            f"{run} ran again although its child lived"
            for run in again[:-1]
            if last_runs[run.pid] is not run or run.pid not in killed_ns
        ]
    most = sum(1 for pid in killed_ns if pid not in last_runs or last_runs[pid].end_ns is not None)
    if unwritten > most:
        found.append(
            f"{unwritten} attempts were counted of records that did not run, at most {most} could be"
        )
    return found


def events(topic: str, runs: Iterable[Run], killed_ns: Mapping[int, int]) -> list[Event]:
    """The runs for the checkers. What a killed child was at has been cut off, not done."""
    ordered = sorted(runs, key=lambda one: one.start_ns)
    last_runs = {run.pid: run for run in ordered}
    later = {run.place: run for run in ordered}
    found = []
    for run in ordered:
        tp, key = TopicPartition(topic, run.partition), run.key.encode()
        found.append(Event("start", run.start_ns, run.member, tp, run.offset, key))
        killed = killed_ns.get(run.pid)
        if run.end_ns is not None:
            # Killed between its last line and its next record: nobody but the journal knows that it was done.
            is_unheard = killed is not None and last_runs[run.pid] is run and later[run.place] is not run
            detail = "cancelled" if is_unheard else "ok"
            found.append(Event("end", run.end_ns, run.member, tp, run.offset, key, detail))
        elif killed is not None:
            found.append(
                Event("end", max(killed, run.start_ns), run.member, tp, run.offset, key, "cancelled")
            )
    return found
