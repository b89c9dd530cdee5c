"""A line plot as SVG, by hand: axes with ticks and labels, lines with markers, a legend.

What lives here: drawing. What never does: what is drawn, or a figure of a benchmark. Called by
`page_plots.py`. Always: the same plot gives the same text; a title and a description for those who hear it;
no line is told from another by its colour alone; colours of its own for light and for dark, on a ground of
its own, as a page that shows it as an image cannot lend it any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 800, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 548, 48, 364
_LEGEND = 568
_LIGHT = ("#24292f", "#b84a00", "#0072b2", "#007d5a", "#a04080", "#8a6d00", "#717171")
_DARK = ("#f5f6f8", "#f08a45", "#4fa8e8", "#2fc49a", "#e39cc4", "#e8c547", "#a0a4ab")
COLOURS = {"light": _LIGHT, "dark": _DARK}
"""After Okabe and Ito, who chose them for the colour-blind; darker on white, lighter on dark."""
PAPER = {"light": "#ffffff", "dark": "#1e2129"}
_INK = {"light": ("#24292f", "#d5d9de"), "dark": ("#e3e6eb", "#414754")}
"""Of words, and of the lines of the grid."""
_MARKERS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",  # circle
    "M-3.6 -3.6H3.6V3.6H-3.6Z",  # square
    "M0 -4.6L4.4 3.4H-4.4Z",  # triangle
    "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",  # diamond
    "M0 4.6L4.4 -3.4H-4.4Z",  # triangle on its head
)
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Axis:
    """`ticks` are where it has a line and a number; from `low` to `high`."""

    label: str
    ticks: Sequence[float]
    low: float
    high: float
    is_log: bool

    def share(self, value: float) -> float:
        """How far along the axis a value is: 0.0 at `low`, 1.0 at `high`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """`style` chooses colour and marker. The points at the x of `hollow` are drawn as outlines."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    is_dashed: bool = False
    hollow: frozenset[float] = frozenset()


@dataclass(frozen=True)
class Plot:
    """`description` says in words what there is to see, `key` what dashes and outlines mean."""

    title: str
    description: str
    key: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


# -- axes ----------------------------------------------------------------------------------------


def named(label: str, values: Sequence[float], *, is_log: bool) -> Axis:
    """An axis with a tick at each of the values, and a little room at both ends."""
    ticks = sorted(set(values))
    low, high = ticks[0], ticks[-1]
    if is_log:
        room = (high / low) ** 0.05 if high > low else 2.0
        return Axis(label, ticks, low / room, high * room, is_log)
    room = (high - low) * 0.05 or 1.0
    return Axis(label, ticks, low - room, high + room, is_log)


def logarithmic(label: str, values: Sequence[float]) -> Axis:
    """An axis around the values, which are above 0, with ticks at 1, 2 and 5, or at powers of ten if wide."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [step * 10.0**power for power in powers for step in _STEPS]
    below = max(one for one in candidates if one <= low)
    above = min(one for one in candidates if one >= high and one > below)
    ticks = [one for one in candidates if below <= one <= above]
    if len(ticks) > 3 * len(_STEPS):
        ticks = [10.0**power for power in powers if below <= 10.0**power <= above]
    return Axis(label, ticks, below, above, is_log=True)


def number(value: float) -> str:
    """Of a tick: 10000 is "10,000", and 0.5 is "0.5"."""
    return f"{value:,.0f}" if value >= 1 and float(value).is_integer() else f"{value:g}"


# -- drawing -------------------------------------------------------------------------------------


def svg(plot: Plot) -> str:
    """The plot as a document of its own."""
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(plot.title)}</title>',
        f'<desc id="desc">{escape(plot.description)}</desc>',
        f"<style>{_style('light')}@media (prefers-color-scheme: dark) {{{_style('dark')}}}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        _text(_LEFT, 26, plot.title, size=15),
        *_grid(plot),
        *(part for line in plot.lines for part in _line(line, plot)),
        *(part for place, line in enumerate(plot.lines) for part in _entry(line, _TOP + 8 + 21 * place)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _style(scheme: str) -> str:
    ink, rule = _INK[scheme]
    colours = "".join(f".c{place}{{color:{colour}}}" for place, colour in enumerate(COLOURS[scheme]))
    return f".paper{{fill:{PAPER[scheme]}}}.ink{{fill:{ink}}}.rule{{stroke:{rule}}}{colours}"


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13) -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="ink" {attributes}>{escape(words)}</text>'


def _grid(plot: Plot) -> list[str]:
    parts = []
    for tick in plot.x.ticks:
        x = _x(plot, tick)
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}"/>')
        parts.append(_text(x, _BOTTOM + 18, number(tick), anchor="middle"))
    for tick in plot.y.ticks:
        y = _y(plot, tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4.5, number(tick), anchor="end"))
    middle = (_LEFT + _RIGHT) / 2
    parts.append(_text(middle, _BOTTOM + 40, plot.x.label, anchor="middle"))
    height = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<g transform="rotate(-90 16 {height})">{_text(16, height, plot.y.label, anchor="middle")}</g>'
    )
    return parts


def _x(plot: Plot, value: float) -> float:
    return _LEFT + plot.x.share(value) * (_RIGHT - _LEFT)


def _y(plot: Plot, value: float) -> float:
    return _BOTTOM - plot.y.share(value) * (_BOTTOM - _TOP)


def _line(line: Line, plot: Plot) -> list[str]:
    places = [(_x(plot, x), _y(plot, y)) for x, y in line.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    markers = [
        _marker(line, x, y, is_hollow=point[0] in line.hollow)
        for (x, y), point in zip(places, line.points, strict=True)
    ]
    return [
        f'<g class="{_colour(line)}">',
        f'<polyline points="{joined}" fill="none" stroke="currentColor" stroke-width="2"{_dashes(line)}/>',
        *markers,
        "</g>",
    ]


def _entry(line: Line, y: float) -> list[str]:
    """A line's place in the legend."""
    stroke = f'stroke="currentColor" stroke-width="2"{_dashes(line)}'
    return [
        f'<g class="{_colour(line)}">',
        f'<line x1="{_LEGEND}" y1="{y:.1f}" x2="{_LEGEND + 26}" y2="{y:.1f}" {stroke}/>',
        _marker(line, _LEGEND + 13, y, is_hollow=False),
        "</g>",
        _text(_LEGEND + 34, y + 4.5, line.name),
    ]


def _marker(line: Line, x: float, y: float, *, is_hollow: bool) -> str:
    shape = _MARKERS[line.style % len(_MARKERS)]
    filled = 'class="paper"' if is_hollow else 'fill="currentColor"'
    return f'<path d="{shape}" transform="translate({x:.1f} {y:.1f})" {filled} stroke="currentColor"/>'


def _colour(line: Line) -> str:
    return f"c{line.style % len(_LIGHT)}"


def _dashes(line: Line) -> str:
    return ' stroke-dasharray="6 4"' if line.is_dashed else ""
