"""What commits list as done: the metadata read back, and what an assignment could restore from it.

Lives here: the only place where checkers read asyncpar's own format. Never here: a judgement.
"""

from __future__ import annotations

from asyncpar.core.offset_codec import Ignored, decode
from asyncpar.core.offsets import is_within, merge_runs
from asyncpar.testing.checker_model import Commit, Partition, Tenure


def runs_of(commit: Commit) -> list[tuple[int, int]]:
    """The runs above a commit's offset that its metadata lists as done; none when it cannot be read."""
    if commit.runs is None:
        runs = decode(commit.event.tp, commit.event.offset, commit.event.detail)
        commit.runs = [] if isinstance(runs, Ignored) else runs
    return commit.runs


def covers(commit: Commit, offset: int) -> bool:
    """`commit` says that `offset` is done."""
    return offset < commit.event.offset or is_within(runs_of(commit), offset)


def restored_runs(part: Partition, tenure: Tenure) -> list[tuple[int, int]]:
    """Ascending runs without overlaps that `tenure` may have found listed as done where it began.

    Of every commit of that offset before it sought its place, since nobody knows which of the unanswered ones
    was stored; back to where a lower one was. Later than its assignment, perhaps: a member that the group has
    replaced finds what its successor has committed.
    """
    if tenure.restored is None:
        found: list[tuple[int, int]] = []
        since, start = tenure.seeks[0] if tenure.seeks else (tenure.index, -1)
        for commit in reversed(part.commits):
            if commit.index < since:
                if commit.event.offset < start and commit.is_acknowledged:
                    break
                if commit.event.offset == start:
                    found += runs_of(commit)
        tenure.restored = merge_runs(found)
    return tenure.restored
