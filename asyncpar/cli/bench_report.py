"""What a bench found, as facts and as words: rates, percentiles, floors, what limits it and what to change.

Lives here: `Findings`, which computes each figure once, and what is printed of it. Never here: counting, and
what a look means (`bench_limits.py`). Called by `bench_run.py` and `bench.py`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from asyncpar.cli.bench_advice import Setting, advised
from asyncpar.cli.bench_figures import Durations, rate, windows
from asyncpar.cli.bench_limits import Looks, Verdict
from asyncpar.cli.bench_loop import LoopFigures
from asyncpar.cli.bench_meter import HandlerMeter, Meter
from asyncpar.cli.bench_setup import BenchRequest
from asyncpar.cli.dlq_output import words
from asyncpar.records import TopicPartition
from asyncpar.status import AppStatus

ENOUGH_LOOKS = 5
"""Fewer say nothing about what limits a bench."""
_BEYOND_ALL = 1e6
"""Records a second that one process does not reach."""
_CROWDED = 0.5
_FAR = 0.2
"""By so much, as a share, the mean differs from the median where it is worth saying."""
_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0))


class InChildren(NamedTuple):
    """What a handler took in child processes: seconds in all, for so many calls, in so many children."""

    seconds: float
    calls: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Durations in seconds."""

    number: int
    mean: float
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class Busiest:
    """The busiest key of a handler: what it takes one after another bounds the whole bench."""

    partition: str
    key: str
    records: int
    share: float
    """Of the handler's records."""
    seconds: float
    """Its records times the mean of a call."""
    rate_bound: float
    """Records a second that the handler cannot exceed because of it."""


@dataclass(frozen=True, slots=True)
class HandlerFindings:
    """One handler."""

    group: str
    handler: str
    executor: str
    slots: int
    """Calls at a time; of a handler in child processes how many there are."""
    slots_used: float
    """Calls at a time, in the mean of all looks."""
    records: int
    failed_calls: int
    rate: float
    handler_seconds: Percentiles
    child_seconds: float | None
    """The mean of a call within its child process, which is what bounds it; None: it runs in none."""
    latency: Percentiles | None
    """From intended send to done; None: no record said when it was to be sent, and was sent meanwhile."""
    age: Percentiles | None
    """From a record's timestamp to done, of those that did not say."""
    busiest: Busiest | None
    slots_rate_bound: float
    left: dict[str, int]


@dataclass(frozen=True, slots=True)
class GroupFindings:
    """What limits one group."""

    group: str
    read_as: str
    looks: int
    verdict: Verdict | None
    """None: too few looks."""
    because: str
    change: str


class Findings:
    """All that a bench found."""

    def __init__(
        self,
        request: BenchRequest,
        names: Mapping[str, str],
        ended_by: str,
        meter: Meter,
        loop: LoopFigures,
        looks: Mapping[str, Looks],
        children: Mapping[tuple[str, str], InChildren],
        event_loop: str,
    ) -> None:
        first, last = meter.first or 0.0, meter.last
        self.request = request
        self.ended_by = ended_by
        self.records = meter.done
        self.seconds = meter.elapsed_seconds
        self.rate = rate(meter.bins, first, last)
        self.windows = windows(meter.bins, first, last)
        self.loop = loop
        self.handlers = [
            _handler(one, looks.get(one.group, Looks()), self.seconds, children.get((one.group, one.name)))
            for one in meter.handlers
        ]
        self.groups = []
        setting = Setting(request.start == "latest", event_loop)
        for group, name in names.items():
            seen = looks.get(group, Looks())
            own = [one for one in self.handlers if one.group == group]
            verdict = None
            if seen.number >= ENOUGH_LOOKS:
                verdict = seen.verdict(loop, has_threads=any(one.executor == "thread" for one in own))
            because, change = advised(verdict, own, loop, setting)
            self.groups.append(GroupFindings(group, name, seen.number, verdict, because, change))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs. Durations in seconds, rates per second, shares from 0 to 1."""
        return {
            "target": self.request.target,
            "ended_by": self.ended_by,
            "records": self.records,
            "seconds": self.seconds,
            "rate": self.rate,
            "windows": self.windows,
            "loop": self.loop._asdict(),
            "handlers": [asdict(one) for one in self.handlers],
            "groups": [asdict(one) for one in self.groups],
        }

    def as_lines(self) -> list[str]:
        """The same for people."""
        spread = ""
        if len(self.windows) >= 3:
            least, most = min(self.windows), max(self.windows)
            mean = self.records / self.seconds if self.seconds else 0.0
            beside = f"; {mean:,.0f} in the mean" if abs(mean - self.rate) > _FAR * self.rate else ""
            spread = f" (median of {len(self.windows)} windows, {least:,.0f} to {most:,.0f}{beside})"
        took = f"{counted(self.records, 'record')} in {duration(self.seconds)}, first to last"
        lines = [
            f"{took}, ended by {self.ended_by}",
            f"rate: {self.rate:,.0f} records a second{spread}",
        ]
        for one in self.handlers:
            lines += ["", *_handler_lines(one)]
        for group in self.groups:
            of = f" group {group.group}" if len(self.groups) > 1 else ""
            lines += ["", f"what limits{of or ' it'}: {group.because}"]
            lines += [f"what to change: {group.change}"] if group.change else []
        if self.loop.machine_late_share >= _CROWDED and any(one.verdict for one in self.groups):
            lines.append(
                "the machine is crowded: a thread that does nothing came late in "
                f"{self.loop.machine_late_share:.0%} of the looks; figures are better with a core to spare"
            )
        return lines


def _handler(
    meter: HandlerMeter, looks: Looks, seconds: float, children: InChildren | None
) -> HandlerFindings:
    mean, slots, in_child = meter.seconds.mean, meter.concurrency, None
    if children is not None and children.calls and children.seconds:
        mean = in_child = children.seconds / children.calls
        slots = children.lanes
    return HandlerFindings(
        group=meter.group,
        handler=meter.name,
        executor=meter.executor,
        slots=slots,
        slots_used=looks.running(meter.name),
        records=meter.done,
        failed_calls=meter.failed,
        rate=meter.done / seconds if seconds else 0.0,
        handler_seconds=_percentiles(meter.seconds) or Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0),
        child_seconds=in_child,
        latency=_percentiles(meter.latency),
        age=_percentiles(meter.age),
        busiest=_busiest(meter, mean),
        slots_rate_bound=slots / mean if mean else 0.0,
        left=dict(meter.left),
    )


def _percentiles(durations: Durations) -> Percentiles | None:
    if not durations.number:
        return None
    return Percentiles(durations.number, durations.mean, *(durations.at(share) for _, share in _PERCENTILES))


def _busiest(meter: HandlerMeter, mean: float) -> Busiest | None:
    found = meter.keys.busiest
    if found is None:
        return None
    (topic, partition, key), records = found
    seconds = records * mean
    bound = meter.done / seconds if seconds else 0.0
    return Busiest(
        str(TopicPartition(topic, partition)), _shown(key), records, records / meter.done, seconds, bound
    )


def _shown(key: object) -> str:
    """An ordering key for people: a word stands for all records of a partition, or all without a key."""
    return words(key) if isinstance(key, bytes) else f"({key})"


# -- words ---------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`850 us`, `10.2 ms`, `1.24 s`: three digits and a unit."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.4g} s"


def counted(number: int, what: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def _bound(records_a_second: float) -> str:
    if records_a_second >= _BEYOND_ALL:
        return "which is no bound"
    return f"which bounds it to {records_a_second:,.0f} a second"


def _spread(found: Percentiles) -> str:
    shown = ", ".join(f"{name} {duration(getattr(found, name))}" for name, _ in _PERCENTILES)
    return f"mean {duration(found.mean)}, {shown}"


def _handler_lines(one: HandlerFindings) -> list[str]:
    failed = f", {counted(one.failed_calls, 'call')} failed" if one.failed_calls else ""
    done = f"{counted(one.records, 'record')}, {one.rate:,.0f} a second{failed}"
    lines = [f"handler {one.handler} ({one.executor}): {done}"]
    way, at_a_time = "", "calls at a time"
    if one.executor == "process":
        within = (
            "" if one.child_seconds is None else f"; in the child itself: mean {duration(one.child_seconds)}"
        )
        way = f", with the way to its child process, its queue there, and the way back{within}"
        at_a_time = "calls running or on the way"
    lines.append(f"  call: {_spread(one.handler_seconds)}{way}")
    lines += _latency_lines(one)
    what = "child processes" if one.executor == "process" else "slots"
    lines.append(
        f"  {what}: {one.slots} ({one.slots_used:.3g} {at_a_time}, in the mean), "
        f"{_bound(one.slots_rate_bound)}"
    )
    busiest = one.busiest
    if busiest is None:
        lines.append("  busiest key: none, its records run in no order")
    else:
        lines.append(
            f"  busiest key: {busiest.key} of {busiest.partition}, {counted(busiest.records, 'record')} "
            f"({busiest.share:.2%}), {duration(busiest.seconds)} one after another, "
            f"{_bound(busiest.rate_bound)}"
        )
    for kind, count in one.left.items():
        lines.append(
            f"  {'dead letters' if kind == 'dead_letter' else 'records for retry topics'}: {count:,}"
        )
    return lines


def _latency_lines(one: HandlerFindings) -> list[str]:
    if one.latency is None and one.age is None:
        return [
            "  latency: not measured, all records were there before; write some meanwhile (asyncpar produce)"
        ]
    lines = []
    if one.latency is not None:
        lines.append(
            f"  latency from intended send to done: {_spread(one.latency)} "
            f"({counted(one.latency.number, 'record')})"
        )
    if one.age is not None:
        lines.append(
            f"  latency from timestamp to done, where no intended time is said: {_spread(one.age)} "
            f"({counted(one.age.number, 'record')})"
        )
    return lines


def progress(meter: Meter, status: AppStatus) -> str:
    """How far it is, on one line."""
    partitions = [partition for group in status.groups for partition in group.partitions]
    lag = sum(partition.true_lag or 0 for partition in partitions)
    in_flight = sum(group.in_flight for group in status.groups)
    seconds = meter.elapsed_seconds
    speed = meter.done / seconds if seconds else 0.0
    return f"{seconds:6.1f} s  {meter.done:,} done  {speed:,.0f}/s  {in_flight:,} in flight  {lag:,} not done"
