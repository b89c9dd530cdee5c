"""The plots of the results page: what is drawn where, and that everybody can read it."""

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import p5
from benchmarks.page_plots import plots
from benchmarks.page_svg import COLOURS, HEIGHT, PAPER, WIDTH, Axis, Line, Plot, logarithmic, named, svg

NAMES = {"svg": "http://www.w3.org/2000/svg"}


def rate_row(**rates: float) -> dict[str, Any]:
    """A row as the harness writes it, with one run of each contender."""
    return {
        "settings": {"records": 1000},
        "runs": {name: [{"rate": rate, "faults": []}] for name, rate in rates.items()},
        "result": {
            "median_records_per_second": rates,
            "spread": {name: [rate, rate] for name, rate in rates.items()},
        },
    }


def drawn(plot: Plot) -> ET.Element:
    return ET.fromstring(svg(plot))


def points(root: ET.Element) -> list[list[tuple[float, float]]]:
    """Of each line, in pixels."""
    return [
        [tuple(map(float, one.split(","))) for one in line.attrib["points"].split()]
        for line in root.findall(".//svg:polyline", NAMES)
    ]


def test_throughput_is_drawn_against_handler_time():
    """A line for each contender, by the sleeps of the rows; one that was stopped is an outline, and said."""
    rows = {"10ms": rate_row(floor=1000.0, rival=10.0), "100ms": rate_row(floor=100.0, rival=1.0)}
    rows["100ms"]["runs"]["rival"][0]["is_stopped"] = True
    plot = plots({"p2": {"rows": rows}})["p2"]
    assert [(line.name, line.points) for line in plot.lines] == [
        ("floor", [(10.0, 1000.0), (100.0, 100.0)]),
        ("rival", [(10.0, 10.0), (100.0, 1.0)]),
    ]
    assert [line.hollow for line in plot.lines] == [frozenset(), frozenset({100.0})]
    assert "stopped after 20 s" in plot.key
    assert "rival: 10 at 10, 1 at 100" in plot.description


def test_uvloop_is_its_twin_in_dashes_and_wrong_is_said():
    """The same colour and marker; who lost or reordered records is shown as such."""
    row = rate_row(**{"floor": 9.0, "rival": 8.0, "floor uvloop": 7.0})
    row["runs"]["rival"][0]["faults"] = ["1 records are missing"]
    floor, rival, twin = plots({"p2": {"rows": {"10ms": row}}})["p2"].lines
    assert (twin.style, twin.is_dashed) == (floor.style, True)
    assert (rival.name, rival.is_dashed) == ("rival (wrong)", False)
    assert rival.style != floor.style


def test_time_is_drawn_against_keys():
    """The seconds that all records take at the measured rate."""
    rows = {"1keys": rate_row(floor=100.0), "1000keys": rate_row(floor=500.0)}
    (line,) = plots({"p3": {"rows": rows}})["p3"].lines
    assert line.points == [(1.0, 10.0), (1000.0, 2.0)]


def test_latency_is_drawn_against_load():
    """Median and p99 of each contender, from what P5 itself sums up; not the producer's own lateness."""
    runs: dict[str, list[Any]] = {p5.CLOSED: [p5.Closed(rate=1000.0)]}
    for share in p5.SHARES:
        for name in p5.CONTENDERS:
            ms = {"p50": 6.0, "p99": 10 * share}
            runs[f"{p5.label(share)} {name}"] = [p5.Opened(asked_rate=1.0, latency_ms=ms, sent_late_ms=ms)]
    result = {**p5.result(runs), "faults": dict.fromkeys(runs, 0) | {"50% bare loop": 1}}
    plot = plots({"p5": {"settings": {}, "runs": {}, "result": result}})["p5"]
    of = {line.name: line for line in plot.lines}
    assert of["p99 asyncpar"].points == [(50.0, 5.0), (70.0, 7.0), (90.0, 9.0)]
    assert of["p50 asyncpar"].is_dashed and of["p50 asyncpar"].style == of["p99 asyncpar"].style
    assert "p99 bare loop (wrong)" in of
    assert len(of) == 2 * len(p5.CONTENDERS)


def test_without_figures_there_is_no_plot():
    """A row whose name says no number has no place on an axis, and a rate of nothing none on a log scale."""
    alone = rate_row(floor=1.0)
    assert plots({"p2": alone}) == {}
    assert plots({"p2": {"rows": {"10ms": rate_row(floor=0.0)}}}) == {}
    assert plots({"p3": {"rows": {"1keys": rate_row(floor=0.0)}}}) == {}
    assert plots({"p1": alone}) == {}


def test_a_plot_shows_its_points_where_they_belong():
    """More is further right and up, all of it inside, with a marker at each point and in the legend."""
    x, y = named("x", [1, 10, 100], is_log=True), logarithmic("y", [3.0, 4000.0])
    rising, flat = Line("a & b", [(1, 3.0), (10, 40.0), (100, 4000.0)], 0), Line("c", [(1, 50.0)], 1)
    root = drawn(Plot("A < B", "what is to see", "", x, y, [rising, flat]))
    up, level = points(root)
    assert all(one[0] < other[0] and one[1] > other[1] for one, other in pairwise(up))
    assert all(0 < at < WIDTH and 0 < height < HEIGHT for at, height in (*up, *level))
    assert len(root.findall(".//svg:path", NAMES)) == 4 + 2
    said = [text.text for text in root.findall(".//svg:text", NAMES)]
    assert {"A < B", "a & b", "c", "x", "y", "10", "100", "1,000"} <= set(said)


def test_a_plot_can_be_heard():
    """It has a title and a description, and says that it is an image."""
    root = drawn(Plot("A title", "A & B", "", Axis("x", [1], 0, 2, False), logarithmic("y", [1.0]), []))
    named_by = root.attrib["aria-labelledby"].split()
    texts = {one.attrib["id"]: one.text for one in root if "id" in one.attrib}
    assert [texts[name] for name in named_by] == ["A title", "A & B"]
    assert root.attrib["role"] == "img"


@pytest.mark.parametrize(
    "values", [[1.0], [10.0], [0.0123], [0.3, 0.4], [9.0, 59_524.0], [2.0, 2.0], [1e-3, 1e6]]
)
def test_a_logarithmic_axis_holds_all_values_and_has_ticks(values):
    """Between two and about ten of them, both ends among them or beyond what is drawn."""
    axis = logarithmic("y", values)
    assert axis.low <= min(values) and axis.high >= max(values) and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 10
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_stands_out(scheme):
    """At least 3 to 1 against the ground, as WCAG 2.1 asks of graphics; and no two are the same."""

    def luminance(colour: str) -> float:
        parts = [int(part, 16) / 255 for part in re.findall("..", colour[1:])]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance(PAPER[scheme])
    for colour in COLOURS[scheme]:
        low, high = sorted((ground, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    assert len(set(COLOURS[scheme])) == len(COLOURS[scheme])


def test_no_two_lines_look_alike():
    """Of as many contenders as any plot has, dashes apart: marker and colour together tell them."""
    axis = named("x", [1, 2], is_log=False)
    lines = [Line(str(style), [(1, 1.0)], style) for style in range(12)]
    root = drawn(Plot("", "", "", axis, logarithmic("y", [1.0]), lines))
    groups = [one for one in root.findall("svg:g", NAMES) if one.find("svg:polyline", NAMES) is not None]
    looks = {(one.attrib["class"], one.find("svg:path", NAMES).attrib["d"]) for one in groups}  # type: ignore[union-attr]
    assert len(looks) == 12
