"""The words of the results page, as Markdown: what was asked, found, missed, with what, and how to repeat it.

What lives here: sentences and tables. What never does: reading files, reckoning, drawing. Called by
`page.py`. Always: a workload without results is named and said to have none, and figures that are not to be
quoted are marked where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.page_reasons import WHY_MISSED
from benchmarks.page_results import FEWEST_ROUNDS, Contender, Found, Part, contenders, doubts, parts, targets
from benchmarks.page_svg import Plot

_INTRODUCTION = f"""\
# Benchmarks

<!-- Written by `make pages` from benchmarks/results/*.json. Do not edit. -->

What asyncpar costs and reaches, measured beside what people would take instead: on one machine, one broker
and the same records, in turn. Every run is checked, record by record: each once, in order per key, everything
committed. A figure holds for its machine and its day, and for comparing contenders with each other there. In
the repository `benchmarks/README.md` says how each workload is measured and read, and what its figures are.
To measure your own handlers on your own cluster there is [`asyncpar bench`](bench.md).

Figures of fewer than {FEWEST_ROUNDS} rounds, or of a machine whose load average was above its number of cores
before they began, are marked: they show what a run gives, and are **not to be quoted**.
"""
_REPEAT = """\
## To repeat

    make test                                       # makes .venv and fetches a Kafka, if that is not done yet
    make bench WORKLOAD=all                         # hours: all of it, with JSON in build/benchmarks
    .venv/bin/python benchmarks/all.py --only p3    # or some of it
    make results                                    # keeps what is in build/benchmarks, and writes this page

Java 17 and Maven are needed for the broker, which each workload starts for itself; with
`--bootstrap-servers host:port` a script takes another one. Rivals whose tools are missing are left out, and
that is said.
"""
_NO_RESULTS = "There are no results yet."
_TOLD_APART = frozenset(
    {
        "median_records_per_second",
        "spread",
        "ratio_of",
        "ratio",
        "ratio_spread",
        "target_ratio",
        "times_rivals",
        "targets",
        "faults",
    }
)
"""Figures that have tables of their own, or columns."""


@dataclass(frozen=True)
class Workload:
    """As the table in `benchmarks/README.md` has it."""

    name: str
    question: str
    against: str
    target: str


def page(workloads: Sequence[Workload], found: Mapping[str, Found], plots: Mapping[str, Plot]) -> str:
    """All of it; `plots` by workload."""
    sections = [
        _INTRODUCTION,
        _overview(workloads, found),
        *(_workload(one, found.get(one.name), plots.get(one.name)) for one in workloads),
        _around(found),
        _REPEAT,
    ]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines) + "\n"


# -- all in one table ----------------------------------------------------------------------------


def _overview(workloads: Sequence[Workload], found: Mapping[str, Found]) -> str:
    rows = []
    for one in workloads:
        verdict, quotable = "no results yet", "-"
        if one.name in found:
            verdict = _verdict(found[one.name])
            quotable = "no" if doubts(found[one.name]) else "yes"
        rows.append((_link(one), one.question, one.against, one.target, verdict, quotable))
    heads = ("workload", "question", "measured against", "target", "verdict", "to be quoted")
    return "## At a glance\n\n" + _table(heads, rows)


def _link(one: Workload) -> str:
    return f"[{_title(one.name)}](#{_title(one.name).lower().replace(' ', '-')})"


def _title(name: str) -> str:
    """P1, or "busy partition"."""
    return name.upper() if name[1:].isdigit() else name.replace("_", " ").capitalize()


def _verdict(found: Found) -> str:
    wanted = [target for part in parts(found) for target in targets(part)]
    if not wanted:
        return "no target"
    missed = [target for target in wanted if not target.is_met]
    return f"missed: {len(missed)} of {len(wanted)}" if missed else f"met, all {len(wanted)}"


# -- one workload --------------------------------------------------------------------------------


def _workload(one: Workload, found: Found | None, plot: Plot | None) -> str:
    measured = f"Measured against {one.against}; target: {one.target}."
    head = f"## {_title(one.name)}\n\n{_sentence(one.question)} {measured}\n"
    if found is None:
        return f"{head}\n{_NO_RESULTS}\n"
    why_not = doubts(found)
    pieces = [head]
    if why_not:
        pieces.append(f"**Not to be quoted**: {'; '.join(why_not)}.\n")
    if plot is not None:
        pieces.append(f"![{plot.title}](benchmarks/{one.name}.svg)\n\n{plot.key}\n")
    several = parts(found)
    common = [
        item for item in several[0].settings.items() if all(item in part.settings.items() for part in several)
    ]
    pieces.append(_settings(common))
    for part in several:
        own = [item for item in part.settings.items() if item not in common]
        pieces += [f"### {_title(one.name)}, {_spaced(part.name)}\n"] if part.name else []
        pieces += [_settings(own)] if own else []
        pieces.append(_part(part))
    missed = any(target.is_met is False for part in several for target in targets(part))
    if missed and one.name in WHY_MISSED:
        pieces.append(f"**Why not all is met**: {WHY_MISSED[one.name]}\n")
    return "\n".join(pieces)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _spaced(name: str) -> str:
    """The name of a row, with its unit apart: "10 ms"."""
    return re.sub(r"(?<=\d)(?=[a-z])", " ", name)


def _settings(items: Iterable[tuple[str, Any]]) -> str:
    return " · ".join(f"{_name(key)}: {_value(value)}" for key, value in items) + "\n"


def _part(part: Part) -> str:
    pieces = []
    if part.has_rates:
        heads = ("contender", "records/s", "spread", "of its baseline", "spread", "checked")
        pieces.append(_table(heads, map(_row, contenders(part))))
    wanted = targets(part)
    if wanted:
        rows = [(one.what, one.wanted, one.measured, one.verdict) for one in wanted]
        pieces.append(_table(("target", "wanted", "measured", "verdict"), rows))
    others = {key: value for key, value in part.result.items() if key not in _TOLD_APART}
    if others:
        pieces.append(_table(("figure", "value"), _figures(others)))
    return "\n".join(pieces)


def _row(one: Contender) -> tuple[str, ...]:
    ratio = "-" if one.ratio is None else f"{one.ratio:.3g} of {one.of}"
    spread = "-" if one.ratio_spread is None else " to ".join(f"{value:.3g}" for value in one.ratio_spread)
    checked = "; ".join(["wrong" if one.is_wrong else "right", *one.remarks])
    return (
        one.name,
        f"{one.rate:,.0f}",
        " to ".join(f"{value:,.0f}" for value in one.spread),
        ratio,
        spread,
        checked,
    )


def _figures(fields: Found, before: str = "") -> list[tuple[str, str]]:
    """A line for each figure; those in mappings of mappings have the outer names before theirs."""
    rows: list[tuple[str, str]] = []
    for key, value in fields.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            rows += _figures(value, f"{before}{_name(key)}, ")
        else:
            rows.append((before + _name(key), _value(value)))
    return rows


def _name(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{_name(key)} {_value(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return " to ".join(map(_value, value)) or "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}"


# -- with what -----------------------------------------------------------------------------------


def _around(found: Mapping[str, Found]) -> str:
    """The machine, the versions and the broker of each workload, and what could not be measured."""
    if not found:
        return f"## Machine and versions\n\n{_NO_RESULTS}\n"
    heads = ("workload", "date", "machine", "load average before", "Python", "asyncpar", "aiokafka", "broker")
    known = ("date", "machine", "load_average", "python", "asyncpar", "aiokafka", "broker")
    rows = [
        (_title(name), *(str(one["environment"].get(key, "-")) for key in known))
        for name, one in found.items()
    ]
    pieces = ["## Machine and versions\n", _table(heads, rows)]
    for title, key in ("versions of the others", "versions"), ("left out, because", "left_out"):
        said = {
            (who, str(what)): None
            for one in found.values()
            for who, what in one["environment"].get(key, {}).items()
        }
        if said:
            pieces.append(_table(("contender", title), said))
    return "\n".join(pieces)
