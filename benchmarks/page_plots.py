"""The plots of the results page: which figures are drawn, and how they are called.

What lives here: throughput against handler time (P2), time against keys (P3), latency against load (P5).
What never does: drawing (`page_svg.py`), reading files. Called by `page.py`. Always: a plot is there only
when there are figures for it, a contender that was wrong is marked as such, and one that was stopped is
drawn hollow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from benchmarks.page_results import Contender, Found, Part, contenders, parts
from benchmarks.page_svg import Axis, Line, Plot, logarithmic, named

_UVLOOP = " uvloop"
_PERCENTILES = {"p99": False, "p50": True}
"""Those that are drawn, and whether their lines are dashed."""
THROUGHPUT = "Records per second against the time of a handler"
TIME = "Seconds for all records against the number of keys"
LATENCY = "Latency against load"
_ON_UVLOOP = "Dashed: on uvloop."
_DASHED = {THROUGHPUT: _ON_UVLOOP, TIME: _ON_UVLOOP, LATENCY: "Dashed: the median; drawn through: p99."}
_OUTLINE = "An outline: stopped after 20 s, and reckoned from its rate until then."


def plots(found: Mapping[str, Found]) -> dict[str, Plot]:
    """By workload: the plots that there are figures for."""
    makers: Mapping[str, Callable[[Sequence[Part]], Plot | None]] = {
        "p2": _throughput,
        "p3": _time_against_keys,
        "p5": _latency,
    }
    made = {name: make(parts(found[name])) for name, make in makers.items() if name in found}
    return {name: plot for name, plot in made.items() if plot is not None}


def _throughput(rows: Sequence[Part]) -> Plot | None:
    by_sleep = _numbered(rows, "ms")
    lines = _lines(
        {ms: {one.name: (one.rate, one) for one in contenders(row)} for ms, row in by_sleep.items()}
    )
    return _plot(
        THROUGHPUT,
        "handler: sleeps for so many ms",
        "records per second, median",
        list(by_sleep),
        lines,
    )


def _time_against_keys(rows: Sequence[Part]) -> Plot | None:
    by_keys = _numbered(rows, "keys")
    figures = {
        keys: {one.name: (row.settings["records"] / one.rate, one) for one in contenders(row) if one.rate}
        for keys, row in by_keys.items()
    }
    return _plot(
        TIME,
        "keys, in one partition",
        "seconds, median",
        list(by_keys),
        _lines(figures),
    )


def _latency(rows: Sequence[Part]) -> Plot | None:
    loads = rows[0].result.get("loads", {})
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for load, of_load in loads.items():
        for name in _of_contenders(of_load):
            for percentile in _PERCENTILES.keys() & of_load[name].keys():
                ms = of_load[name][percentile]
                if ms > 0:  # a run that lost everything has no latency
                    points.setdefault((name, percentile), []).append((float(load.rstrip("%")), ms))
    styles = {name: style for style, name in enumerate(dict.fromkeys(name for name, _ in points))}
    wrong = {run.partition(" ")[2] for run, count in rows[0].result["faults"].items() if count}
    lines = [
        Line(f"{percentile} {name}{' (wrong)' * (name in wrong)}", points[name, percentile], style, is_dashed)
        for name, style in styles.items()
        for percentile, is_dashed in _PERCENTILES.items()
        if (name, percentile) in points
    ]
    x = named(
        "% of the rate of a closed loop", [float(load.rstrip("%")) for load in loads] or [0], is_log=False
    )
    return _drawn(LATENCY, x, "ms from when it was to be sent to done", lines)


def _of_contenders(of_load: Found) -> list[str]:
    """The names of the contenders among the figures of a load."""
    return [
        name
        for name, value in of_load.items()
        if isinstance(value, dict) and "p99" in value and name != "sent_late_ms"
    ]


def _numbered(rows: Sequence[Part], unit: str) -> dict[float, Part]:
    """The rows whose name is a number and this unit, by that number."""
    found = [(re.fullmatch(rf"(\d+){unit}", row.name), row) for row in rows]
    return {float(match[1]): row for match, row in found if match}


def _lines(figures: Mapping[float, Mapping[str, tuple[float, Contender]]]) -> list[Line]:
    """One for each contender over all x; a contender on uvloop looks as its twin, but dashed."""
    names = dict.fromkeys(name for of_x in figures.values() for name in of_x)
    styles = {name: style for style, name in enumerate(dict.fromkeys(map(_twin, names)))}
    lines = []
    for name in names:
        seen = [(x, *of_x[name]) for x, of_x in figures.items() if name in of_x and of_x[name][0] > 0]
        is_wrong = any(one.is_wrong for _, _, one in seen)
        lines.append(
            Line(
                name=f"{name} (wrong)" if is_wrong else name,
                points=[(x, y) for x, y, _ in seen],
                style=styles[_twin(name)],
                is_dashed=name.endswith(_UVLOOP),
                hollow=frozenset(x for x, _, one in seen if one.is_stopped),
            )
        )
    return [line for line in lines if line.points]


def _twin(name: str) -> str:
    return name.removesuffix(_UVLOOP)


def _plot(title: str, x_label: str, y_label: str, xs: Sequence[float], lines: Sequence[Line]) -> Plot | None:
    return _drawn(title, named(x_label, xs or [1], is_log=True), y_label, lines)


def _drawn(title: str, x: Axis, y_label: str, lines: Sequence[Line]) -> Plot | None:
    """A plot over the lines' own heights; None without any line."""
    heights = [y for line in lines for _, y in line.points]
    if not heights:
        return None
    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{y:,.6g} at {at:g}" for at, y in line.points) for line in lines
    )
    is_stopped = any(line.hollow for line in lines)
    key = f"{_DASHED[title]} {_OUTLINE if is_stopped else ''}".rstrip()
    return Plot(title, f"{y_label}, by {x.label}. {told}.", key, x, logarithmic(y_label, heights), lines)
