"""What the kept JSON of the benchmarks says, in the terms of the page: parts, contenders, targets, doubts.

What lives here: reading what `harness.py` and `course.py` write, and what of it is kept in the repository.
What never does: words around it (`page_text.py`), drawing, measuring. Called by `page.py` and its other
files. Always: figures are taken as they were measured; the only ones that are made here are ratios to the
baseline for contenders that have none of their own, round by round as `report.py` makes them.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.report import ratios_of

Found: TypeAlias = Mapping[str, Any]
"""The JSON of a workload, or a part of it."""

FEWEST_ROUNDS = 3
"""Of a figure that may be quoted."""
_LONG_LIST = 20
_MOST_FAULTS = 5
_UVLOOP = " uvloop"


@dataclass(frozen=True)
class Target:
    """What was wanted and what was measured, in words; `is_met` is None when a fault made it worthless."""

    what: str
    wanted: str
    measured: str
    is_met: bool | None

    @property
    def verdict(self) -> str:
        """In one word."""
        return "not valid" if self.is_met is None else "met" if self.is_met else "missed"


@dataclass(frozen=True)
class Contender:
    """One contender of a row: records per second, and how its runs were.

    `ratio` is the median of its rates over its baseline's, and `ratio_spread` the least and the greatest of
    these; None for a baseline, and where nothing is compared. Of a contender that ran less often than its
    baseline there is one ratio, of the medians, and no spread.
    """

    name: str
    rate: float
    spread: tuple[float, float]
    of: str | None
    ratio: float | None
    ratio_spread: tuple[float, float] | None
    is_wrong: bool
    remarks: tuple[str, ...]
    is_stopped: bool


@dataclass(frozen=True)
class Part:
    """A row of a workload; `name` is "" where there is only one."""

    name: str
    settings: Found
    runs: Mapping[str, Sequence[Found]]
    result: Found

    @property
    def rounds(self) -> int:
        """Of the contender with the fewest; one may run more often than once in each."""
        fewest = min((len(found) for found in self.runs.values()), default=0)
        return min(fewest, int(self.settings.get("rounds", fewest)))

    @property
    def has_rates(self) -> bool:
        """Whether contenders were compared by records per second."""
        return "median_records_per_second" in self.result


def parts(found: Found) -> list[Part]:
    """The rows of a workload's JSON."""
    sections = found.get("rows", {"": found})
    return [Part(name, one["settings"], one["runs"], one["result"]) for name, one in sections.items()]


# -- contenders ----------------------------------------------------------------------------------


def contenders(part: Part) -> list[Contender]:
    """Those of a part with rates, in the order of the runs."""
    return [_contender(part, name) for name in part.result["median_records_per_second"]]


def _contender(part: Part, name: str) -> Contender:
    rates, of = _rates(part, name), _baseline(part, name)
    ratios = [] if of is None else _ratios(rates, _rates(part, of))
    low, high = part.result["spread"][name]
    faults = [fault for run in part.runs[name] for fault in run["faults"]]
    notes = [note for run in part.runs[name] for note in run.get("notes", ())]
    return Contender(
        name=name,
        rate=part.result["median_records_per_second"][name],
        spread=(low, high),
        of=of,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_spread=(min(ratios), max(ratios)) if len(ratios) > 1 else None,
        is_wrong=bool(faults),
        remarks=tuple(dict.fromkeys([*faults, *notes])),
        is_stopped=any(run.get("is_stopped") for run in part.runs[name]),
    )


def _rates(part: Part, name: str) -> list[float]:
    return [float(run["rate"]) for run in part.runs[name]]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return ratios_of(ours, theirs) if all(theirs) else []


def _baseline(part: Part, name: str) -> str | None:
    """What a contender is compared with: on uvloop with the baseline on uvloop, where that ran."""
    if "ratio_of" not in part.result:
        return None
    baseline = str(part.result["ratio_of"][1])
    if name.endswith(_UVLOOP) and baseline + _UVLOOP in part.runs:
        baseline += _UVLOOP
    return None if name == baseline else baseline


# -- targets -------------------------------------------------------------------------------------


def targets(part: Part) -> list[Target]:
    """All that a part was to reach: against its baseline, against rivals, and its own bounds."""
    return [*_ratio_targets(part), *_rival_targets(part), *_bounds(part)]


def _ratio_targets(part: Part) -> list[Target]:
    """Of the subject, and of the same on uvloop."""
    if "target_ratio" not in part.result or "ratio_of" not in part.result:
        return []
    subject, wanted = part.result["ratio_of"][0], part.result["target_ratio"]
    return [
        Target(
            what=f"{one.name} of {one.of}",
            wanted=f"at least {wanted:g}",
            measured=f"{one.ratio:.3f}",
            is_met=None if one.is_wrong else round(one.ratio, 3) >= wanted,
        )
        for one in contenders(part)
        if one.name in (subject, subject + _UVLOOP) and one.ratio is not None
    ]


def _rival_targets(part: Part) -> list[Target]:
    """How many times faster than each rival; said beside it when nobody could be."""
    if "ratio_of" not in part.result:
        return []
    subject, found = part.result["ratio_of"][0], []
    for rival, one in part.result.get("times_rivals", {}).items():
        if "wanted" in one:
            possible = one.get("possible")
            is_out_of_reach = possible is not None and possible < one["wanted"]
            beside = f" (nobody can pass {possible:g})" if is_out_of_reach else ""
            is_met = None if part.result["faults"][subject] else one["times"] >= one["wanted"]
            wanted = f"at least {one['wanted']:g} times"
            found.append(Target(f"{subject} of {rival}", wanted, f"{one['times']:g} times{beside}", is_met))
    return found


def _bounds(part: Part) -> list[Target]:
    found = []
    for name, one in part.result.get("targets", {}).items():
        wanted = f"at least {one['at_least']:g}" if "at_least" in one else f"at most {one['at_most']:g}"
        found.append(Target(name, wanted, f"{one['measured']:g}", one["is_met"]))
    return found


# -- doubts --------------------------------------------------------------------------------------


def doubts(found: Found) -> list[str]:
    """Why figures of this run are not to be quoted; empty when they may be."""
    rounds = min((part.rounds for part in parts(found)), default=0)
    few = f"only {rounds} round{'s' * (rounds != 1)}, where {FEWEST_ROUNDS} are the least"
    load, cores = found["environment"]["load_average"], cores_of(found["environment"])
    busy = (
        f"a load average of {load:g} on {cores} cores before it began, of other work or of the benchmark "
        "before it"
    )
    return [*([few] if rounds < FEWEST_ROUNDS else []), *([busy] if load > cores else [])]


def cores_of(environment: Found) -> int:
    """How many the machine had, from what is said of it."""
    said = re.search(r"(\d+) cores", str(environment["machine"]))
    return int(said[1]) if said else 1


# -- keeping -------------------------------------------------------------------------------------


def read(path: Path) -> Found:
    """The JSON of a workload. ValueError says what is wrong with the file and what to do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not parts(found):
            raise ValueError("it has no rows")
        doubts(found)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `make bench WORKLOAD=all` writes them") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not the JSON of a benchmark ({error!r}); measure it again") from None
    return found


def kept(found: Found) -> Found:
    """Without what is bulky: lists of samples in runs, digits that mean nothing, all faults but a few."""
    sections = found.get("rows", {"": found})
    slim = {
        name: {**one, "runs": {who: [_slim(run) for run in runs] for who, runs in one["runs"].items()}}
        for name, one in sections.items()
    }
    return {**found, "rows": slim} if "rows" in found else {**found, **slim[""]}


def _slim(run: Found) -> Found:
    short = {key: value[:_MOST_FAULTS] if key == "faults" else value for key, value in run.items()}
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in short.items()
        if not (isinstance(value, list) and len(value) > _LONG_LIST)
    }
