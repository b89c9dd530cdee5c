"""What the demo shows: a live table in a terminal, plain lines elsewhere, and the summary at the end.

What lives here: pictures of a `Moment`, and the two ways to put them out. What never does: deciding
anything. Called by `demo.py`. Always: the pictures are built on the event loop and written in a thread,
because a terminal may take its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asyncpar.cli.demo_ledger import Counts, Proof
from asyncpar.status import GroupStatus, HandlerStatus, PartitionStatus

_PLAIN_LINE_EVERY_SECONDS = 1.0
_LONG_BLOCK_SECONDS = 0.5
"""From here on a blocking offset is marked."""
_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Moment:
    """The demo at one moment. `seconds` since it began; `rate` in records handled per second."""

    phase: str
    seconds: float
    counts: Counts
    rate: float
    is_held_back: bool
    group: GroupStatus | None


@dataclass(slots=True)
class Peaks:
    """The highest figures of the run, for the summary."""

    rate: float = 0.0
    in_flight: int = 0
    done_above_hwm: int = 0
    children: int = 0
    busy_children: int = 0
    longest_block_seconds: float = 0.0
    longest_block: str = ""

    def note(self, moment: Moment) -> None:
        """Take `moment` in."""
        self.rate = max(self.rate, moment.rate)
        if moment.group is None:
            return
        self.in_flight = max(self.in_flight, moment.group.in_flight)
        children, busy = _children(moment.group.handlers)
        self.children, self.busy_children = max(self.children, children), max(self.busy_children, busy)
        for partition in moment.group.partitions:
            self.done_above_hwm = max(self.done_above_hwm, partition.done_above_hwm)
            if partition.blocking_duration_seconds > self.longest_block_seconds:
                self.longest_block_seconds = partition.blocking_duration_seconds
                self.longest_block = f"by {_who(partition)} in partition {partition.partition}"


@dataclass(slots=True)
class View:
    """Shows moments on `console`: in place when it is a terminal, else as a line each second."""

    console: Console
    title: str = ""
    peaks: Peaks = field(default_factory=Peaks)
    _live: Live | None = None
    _phase: str = ""
    _next_line: float = 0.0

    @property
    def is_live(self) -> bool:
        """Whether moments are drawn over each other."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    @contextmanager
    def open(self, title: str) -> Iterator[None]:
        """While moments are shown; the last one stays on the screen."""
        self.title = title
        if not self.is_live:
            self._print(title)
            yield
            return
        with Live(console=self.console, auto_refresh=False) as self._live:
            yield
        self._live = None

    async def show(self, moment: Moment) -> None:
        """Put `moment` out. Lines come at most once a second and on a change of phase."""
        self.peaks.note(moment)
        if self._live is not None:
            await asyncio.to_thread(self._live.update, picture(self.title, moment), refresh=True)
        elif moment.seconds >= self._next_line or moment.phase != self._phase:
            self._next_line, self._phase = moment.seconds + _PLAIN_LINE_EVERY_SECONDS, moment.phase
            await asyncio.to_thread(self._print, line(moment))

    async def say(self, text: str) -> None:
        """Print text above the live table, or below what is there."""
        await asyncio.to_thread(self._print, text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


# -- pictures ------------------------------------------------------------------------------------


def line(moment: Moment) -> str:
    """`moment` on one line."""
    counts, group = moment.counts, moment.group
    parts = [
        f"{moment.seconds:5.1f} s",
        moment.phase,
        f"produced {counts.sent}",
        f"handled {counts.handled}",
        f"{moment.rate:.0f}/s",
    ]
    if group is not None and group.partitions:
        parts += [
            f"in flight {group.in_flight}",
            f"gaps {sum(partition.gap_count for partition in group.partitions)}",
            _longest(group.partitions),
        ]
        children, busy = _children(group.handlers)
        if children:
            parts.append(f"children {children}, {busy} busy")
    if moment.is_held_back:
        parts.append("load held back")
    return "  ".join(parts)


def _children(handlers: tuple[HandlerStatus, ...]) -> tuple[int, int]:
    """Child processes of all handlers, and how many of them are busy."""
    return sum(one.children or 0 for one in handlers), sum(one.busy_children for one in handlers)


def _longest(partitions: tuple[PartitionStatus, ...]) -> str:
    blocked = [one for one in partitions if one.blocking_offset is not None]
    if not blocked:
        return "nothing blocks a commit"
    worst = max(blocked, key=lambda one: one.blocking_duration_seconds)
    return (
        f"partition {worst.partition} blocked at {worst.blocking_offset} for "
        f"{worst.blocking_duration_seconds:.1f} s by {_who(worst)}"
    )


def picture(title: str, moment: Moment) -> RenderableType:
    """`moment` as a table for a terminal."""
    group = moment.group
    parts: list[RenderableType] = [Text(title, style="bold"), _figures(moment)]
    if group is not None and group.partitions:
        parts += [_partitions(group.partitions), _handlers(group.handlers)]
    return Group(*parts)


def _figures(moment: Moment) -> Text:
    counts = moment.counts
    in_flight = 0 if moment.group is None else moment.group.in_flight
    text = Text()
    text.append(f"{moment.seconds:5.1f} s  {moment.phase}", style="cyan")
    text.append(f"   produced {counts.sent:,}   handled {counts.handled:,}   ")
    text.append(f"{moment.rate:,.0f} records/s", style="bold green")
    text.append(f"   in flight {in_flight:,}   running {counts.running}   failed and retried {counts.failed}")
    if moment.is_held_back:
        text.append("   load held back", style="yellow")
    return text


def _partitions(partitions: tuple[PartitionStatus, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("partition", "read to", "HWM", "committed", "lag", "in flight", "gaps", "done above HWM"):
        table.add_column(name, justify="right")
    table.add_column("blocking offset", justify="right")
    table.add_column("for", justify="right")
    table.add_column("because of")
    for one in partitions:
        seconds = one.blocking_duration_seconds
        is_blocked = one.blocking_offset is not None
        table.add_row(
            str(one.partition),
            _number(one.position),
            _number(one.hwm),
            _number(one.committed),
            _number(one.true_lag),
            str(one.in_flight),
            str(one.gap_count),
            str(one.done_above_hwm),
            _number(one.blocking_offset),
            Text(
                f"{seconds:.1f} s" if is_blocked else _NOTHING,
                style="bold yellow" if seconds >= _LONG_BLOCK_SECONDS else "",
            ),
            _who(one) if is_blocked else "",
        )
    return table


def _handlers(handlers: tuple[HandlerStatus, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("handler")
    table.add_column("runs in")
    for name in ("slots", "running", "ready", "waiting for a retry", "done", "failed"):
        table.add_column(name, justify="right")
    for one in handlers:
        figures = (one.concurrency, one.running, one.ready, one.parked, one.succeeded, one.failed)
        table.add_row(one.name, _runs_in(one), *map(str, figures))
    return table


def _runs_in(handler: HandlerStatus) -> str:
    if handler.children is not None:
        return f"{handler.children} child processes, {handler.busy_children} busy"
    return "threads" if handler.executor == "thread" else "event loop"


def _number(value: int | None) -> str:
    return _NOTHING if value is None else str(value)


def _who(partition: PartitionStatus) -> str:
    """Handler and reason of what blocks the partition."""
    known = (partition.blocking_handler, partition.blocking_reason)
    return ", ".join(word for word in known if word) or "nobody known"


# -- the end -------------------------------------------------------------------------------------


def summary(title: str, proof: Proof, counts: Counts, peaks: Peaks, *, undrained: str) -> str:
    """The proof in words. `undrained` says why not everything could be handled, and is empty otherwise."""
    rows = [
        ("produced", f"{proof.acknowledged} records acknowledged by the broker{_refused(proof)}"),
        ("handled", f"{proof.handled} records, {peaks.rate:.0f}/s at best"),
        ("complete", _complete(proof, undrained)),
        ("in order", _in_order(proof)),
        ("duplicates", f"{proof.duplicates} records handled more than once"),
        ("failures", f"{counts.failed} calls failed; each was retried before the next record of its key"),
    ]
    in_flight = f"{peaks.in_flight} records in flight"
    if peaks.children:
        rows.append(("side by side", f"up to {counts.most_running} records with the children, {in_flight}"))
        rows.append(("child processes", f"{peaks.children}, up to {peaks.busy_children} busy at a time"))
    else:
        rows.append(("side by side", f"up to {counts.most_running} calls at a time, {in_flight}"))
    if peaks.longest_block:
        text = f"{peaks.longest_block_seconds:.1f} s {peaks.longest_block}; meanwhile others went on: "
        rows.append(("longest block", f"{text}up to {peaks.done_above_hwm} records of a partition above it"))
    width = max(len(name) for name, _ in rows)
    lines = ["", f"asyncpar demo: {title}", *(f"  {name:<{width}}  {text}" for name, text in rows), ""]
    return "\n".join([*lines, _verdict(proof, undrained)])


def _refused(proof: Proof) -> str:
    return f" ({proof.refused} more were refused by it)" if proof.refused else ""


def _complete(proof: Proof, undrained: str) -> str:
    if proof.unanswered:
        return f"NOT PROVED: the broker did not answer for {proof.unanswered} records"
    if proof.lost:
        what = "NOT PROVED" if undrained else "NO"
        return f"{what}: {len(proof.lost)} acknowledged records were not handled: {_some(proof.lost)}"
    return "yes: every acknowledged record was handled"


def _in_order(proof: Proof) -> str:
    faults = (
        ("started before an earlier one of their key was done", proof.reordered),
        ("ran while another one of their key did", proof.overlapping),
        ("lie in the log in another order than they were produced in", proof.stored_out_of_order),
    )
    found = [f"{len(places)} {what}: {_some(places)}" for what, places in faults if places]
    if found:
        return f"NO: {'; '.join(found)}"
    return "yes: each key's records ran one after the other, in the order they were produced"


def _some(places: tuple[str, ...]) -> str:
    more = ", ..." if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


def _verdict(proof: Proof, undrained: str) -> str:
    if not proof.is_in_order:
        return "FAILED: the order of keys does not hold"
    if undrained:
        return f"NOT PROVED: {undrained}"
    if not proof.is_complete:
        return "FAILED: records are missing" if proof.lost else "NOT PROVED: the broker's answers are missing"
    if not proof.acknowledged:
        return "NOTHING TO PROVE: no record was produced"
    return "PROVED: nothing lost, every key in order"
