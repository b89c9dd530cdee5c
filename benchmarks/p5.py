"""Workload P5: latency at a steady rate, from the moment a record was to be sent to the end of its handler.

    python benchmarks/p5.py [--bootstrap-servers host:port] [--records N] [--seconds S] [--rounds N]
                            [--json FILE]

What lives here: the loads, the sums over rounds and the targets; the producer and the contenders are
`p5_work.py`'s. First the closed loop: asyncpar with defaults reads `--records` records that are all there,
in each round; the median of its rates is what the loads are shares of. Then, at 50, 70 and 90 % of it, a
producer of its own process sends a record at each tick of a timetable for `--seconds`, whatever becomes of
the others, and each contender reads them, in turn:

- `asyncpar`: defaults, a handler of `asyncio.sleep(0.005)`. That is 100 slots, which the closed loop keeps
  busy: at 90 % of its rate there is little left to make up for a moment in which nothing was done.
- `asyncpar, 1000 slots`: the same with `concurrency=1000`, for comparison.
- `bare loop`: raw aiokafka, `getmany(max_records=500)`, a task per record. It keeps no order, has no limit,
  and commits what it has read, done or not: the least that can be done with the client.
- `bare loop in order`: the same, but a task waits for the one before it of its key. With 1,000 keys at
  14,000 records a second each key is busy 7 % of the time, so 7 % of the records wait for up to 5 ms more,
  whoever keeps order. The difference of the two bare loops is what order costs.

Percentiles are of all records of a run but the 1,000 of the warm-up, by nearest rank; the result has their
medians over the rounds. `sent_late_ms` is by how much the producer itself was late (it sleeps for up to
half a millisecond, and shares the cores): that is in every latency. Exit code 1 when a run lost, repeated
or (where order is kept) reordered a record, or left something uncommitted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from concurrent.futures import ProcessPoolExecutor  # noqa: E402 - after the path
from multiprocessing import get_context  # noqa: E402 - likewise

from benchmarks import p5_work  # noqa: E402 - likewise
from benchmarks.course import (  # noqa: E402 - likewise
    Course,
    Measured,
    Measurements,
    at_most,
    conduct,
    in_turn,
    middle,
    parsed,
    parser,
    say,
    spread,
    topic_for,
)
from benchmarks.harness import RUN_TIMEOUT_SECONDS, Contender, Run, Task, one_run  # noqa: E402 - likewise
from benchmarks.load import PARTITIONS, VALUE_BYTES, Load, produce  # noqa: E402 - likewise
from benchmarks.report import ratios_of  # noqa: E402 - likewise

RECORDS = 100_000
SECONDS = 10
KEYS = 1_000
SHARES = (0.5, 0.7, 0.9)
TARGET_SHARE, TARGET_P99_MS = 0.7, 25.0
TARGET_RATIO = 1.0
CLOSED = "closed loop"
OURS, OURS_WITH_SLOTS = "asyncpar", f"asyncpar, {p5_work.SLOTS} slots"
BARE, BARE_IN_ORDER = "bare loop", "bare loop in order"
CONTENDERS: Mapping[str, Contender] = {
    OURS: p5_work.run_asyncpar,
    OURS_WITH_SLOTS: p5_work.run_asyncpar_with_slots,
    BARE: p5_work.run_bare,
    BARE_IN_ORDER: p5_work.run_bare_in_order,
}


@dataclass
class Closed(Measured):
    """A closed loop's records per second."""

    records: int = 0
    seconds: float = 0.0
    rate: float = 0.0


@dataclass
class Opened(Measured):
    """One contender at one rate (records per second)."""

    asked_rate: float = 0.0
    records: int = 0
    duplicates: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    sent_late_ms: dict[str, float] = field(default_factory=dict)


def label(share: float) -> str:
    """How a load is called."""
    return f"{share:.0%}"


# -- measuring -----------------------------------------------------------------------------------


def measure(bootstrap: str, rounds: int, records: int, seconds: float) -> Measurements:
    """The closed loop in all rounds, then all loads and contenders in each round."""
    closed = _closed(bootstrap, rounds, Load(records, KEYS))
    rate = middle([one.rate for one in closed], 0)
    runs: dict[str, list[Measured]] = {CLOSED: list(closed)}
    runs |= {f"{label(share)} {name}": [] for share in SHARES for name in CONTENDERS}
    for number in range(rounds):
        for share in SHARES:
            load = Load(p5_work.WARM_UP + max(1, round(share * rate * seconds)), KEYS)
            for name in in_turn(list(CONTENDERS), number):
                one = _opened(bootstrap, CONTENDERS[name], load, share * rate)
                runs[f"{label(share)} {name}"].append(one)
                shown = ", ".join(f"{what} {ms:.1f}" for what, ms in one.latency_ms.items())
                say(number, f"{label(share)} {name}", f"{share * rate:,.0f}/s: {shown} ms", one.faults)
    return runs


def _closed(bootstrap: str, rounds: int, load: Load) -> list[Closed]:
    found: list[Closed] = []
    with topic_for(bootstrap, "p5-closed", load.partitions) as topic:
        produce(bootstrap, topic, load)
        for number in range(rounds):
            task = _task(bootstrap, topic, f"{topic}-{number}", load)
            run = one_run(p5_work.run_closed, task)
            found.append(Closed(_faults(run), run.records, run.seconds, run.rate))
            say(number, CLOSED, f"{run.rate:,.0f} records/s", found[-1].faults)
    return found


def _opened(bootstrap: str, contender: Contender, load: Load, rate: float) -> Opened:
    """A topic of its own, a producer of its own, and one contender."""
    with topic_for(bootstrap, "p5-open", load.partitions) as topic:
        task = _task(bootstrap, topic, f"{topic}-group", load)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as sender:
            sending = sender.submit(p5_work.send, task, load, rate)
            run = one_run(contender, task)
            sent = sending.result(RUN_TIMEOUT_SECONDS)
    assert isinstance(run, p5_work.OpenRun)
    return Opened(_faults(run), rate, run.timed, run.duplicates, run.latency_ms, sent.late_ms)


def _task(bootstrap: str, topic: str, group: str, load: Load) -> Task:
    return Task(bootstrap, topic, group, load.records, load.per_key, load.partitions)


def _faults(run: Run) -> list[str]:
    repeated = [f"{run.duplicates} records ran more than once"] if run.duplicates else []
    return [*run.faults, *repeated]


# -- summing up ----------------------------------------------------------------------------------


def result(runs: Measurements) -> dict[str, object]:
    """Medians of the percentiles by load and contender, ratios of p99, targets."""
    loads, targets = {}, {}
    for share in SHARES:
        of_load = {name: _opened_runs(runs, share, name) for name in CONTENDERS}
        p99 = {name: [run.latency_ms.get("p99", 0.0) for run in found] for name, found in of_load.items()}
        against_bare = ratios_of(p99[OURS], p99[BARE])
        loads[label(share)] = {
            "records_per_second": round(of_load[OURS][0].asked_rate),
            **{name: _medians([run.latency_ms for run in found]) for name, found in of_load.items()},
            "p99_spread": {name: spread(found, 2) for name, found in p99.items()},
            "p99_of_bare_loop": middle(against_bare),
            "p99_of_bare_loop_spread": spread(against_bare),
            "p99_of_bare_loop_in_order": middle(ratios_of(p99[OURS], p99[BARE_IN_ORDER])),
            "sent_late_ms": _medians([run.sent_late_ms for found in of_load.values() for run in found]),
        }
        targets[f"p99 of the bare loop's at {label(share)}"] = at_most(TARGET_RATIO, middle(against_bare))
        if share == TARGET_SHARE:
            targets[f"p99 in ms at {label(share)}"] = at_most(TARGET_P99_MS, middle(p99[OURS], 2))
    rates = [one.rate for one in runs[CLOSED] if isinstance(one, Closed)]
    return {
        "closed_loop_records_per_second": middle(rates, 0),
        "closed_loop_spread": spread(rates, 0),
        "loads": loads,
        "targets": targets,
    }


def _opened_runs(runs: Measurements, share: float, name: str) -> list[Opened]:
    return [one for one in runs[f"{label(share)} {name}"] if isinstance(one, Opened)]


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By percentile."""
    names = found[0] if found else {}
    return {name: middle([one.get(name, 0.0) for one in found], 2) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    made = parser("P5: latency at 50, 70 and 90 % of the closed loop's rate, beside a bare loop.")
    made.add_argument("--records", type=int, default=RECORDS, help="of the closed loop")
    made.add_argument("--seconds", type=float, default=SECONDS, help="how long each load lasts")
    options = parsed(made, arguments)
    settings = {
        "records": options.records,
        "seconds": options.seconds,
        "partitions": PARTITIONS,
        "keys": f"{KEYS} at random",
        "value_bytes": VALUE_BYTES,
        "handler": f"asyncio.sleep({p5_work.HANDLER_SECONDS})",
        "latency": "from the intended sending to the end of the handler, all records but the warm-up",
        "producer": "a process of its own, evenly spaced, linger.ms=1, acks=all",
        OURS: "default settings, event loop of the standard library",
        OURS_WITH_SLOTS: f"the same with concurrency={p5_work.SLOTS}",
        BARE: f"getmany(max_records={p5_work.MAX_RECORDS}), a task per record, no order, no limit",
        BARE_IN_ORDER: "the same, but a record waits for the one before it of its key",
    }
    return conduct(
        options,
        Course(
            settings,
            lambda bootstrap: measure(bootstrap, options.rounds, options.records, options.seconds),
            result,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
