"""The course of every benchmark: a broker, contenders in turn over one topic, medians, ratios, a table, JSON.

What lives here: all that the workloads share. A workload (`p*.py`) is a file with its loads, its contenders
and its target, which it hands to `conduct` as rows. What never does: what a contender runs, and the load
(`load.py`). Called by the workloads' `main`. Always: each contender runs in a fresh process and a group of
its own, they take turns at going first, and a run that left anything uncommitted is a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import platform
import statistics
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from benchmarks.load import PARTITIONS, VALUE_BYTES, Load, produce
from tests import kafka_tools
from tests.kafka_broker import KafkaBroker

RUN_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Task:
    """What a contender is to read. `per_key` is how many records each key has."""

    bootstrap: str
    topic: str
    group: str
    records: int
    per_key: tuple[int, ...]
    partitions: int = PARTITIONS


@dataclass
class Run:
    """One contender's run. `faults` is empty when it was right; seconds are of the wall.

    A workload that has more to say of a run adds fields in a class of its own; they come into the JSON.
    """

    records: int
    seconds: float
    total_seconds: float
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Records per second from the first to the last."""
        return self.records / self.seconds if self.seconds else 0.0


Contender: TypeAlias = Callable[[Task], Run]
"""A function at the top of its module (it is called in a process of its own), ending when all is read."""

Results: TypeAlias = Mapping[str, Sequence[Run]]
"""The runs of each contender, by round."""


@dataclass(frozen=True)
class Row:
    """One load and who reads it. `subject` and `baseline` name two contenders.

    `target` is what the subject's rate is to be, at least, as a share of the baseline's; None: no target.
    `settings` are printed with every figure. `figures` takes the results and gives more lines for them.
    """

    name: str
    load: Load
    contenders: Mapping[str, Contender]
    subject: str
    baseline: str
    target: float | None
    settings: Mapping[str, object]
    figures: Callable[[Results], dict[str, object]] = lambda results: {}


# -- one run -------------------------------------------------------------------------------------


def quiet() -> None:
    """What every contender does first: nothing below ERROR is logged."""
    logging.basicConfig(level=logging.ERROR)


def one_run(contender: Contender, task: Task) -> Run:
    """One contender in a process of its own, and what it left committed. SystemExit when it does not end."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        running = process.submit(contender, task)
        if not wait([running], RUN_TIMEOUT_SECONDS).done:
            for child in multiprocessing.active_children():  # leaving the block would wait for it
                child.kill()
            raise SystemExit(f"{task.group} had not read all records after {RUN_TIMEOUT_SECONDS:.0f} s")
        run = running.result()
    committed, ends = asyncio.run(_positions(task))
    if committed != ends:
        run.faults.append(f"committed {committed} instead of {ends}")
    return run


async def _positions(task: Task) -> tuple[dict[int, int], dict[int, int]]:
    committed = await kafka_tools.committed(task.bootstrap, task.group, task.topic)
    ends = await kafka_tools.end_offsets(task.bootstrap, task.topic)
    await kafka_tools.delete_group(task.bootstrap, task.group)
    # A partition that no key fell into (few records) has nothing to commit.
    return (
        {number: found.offset for number, found in committed.items() if ends.get(number)},
        {number: end for number, end in ends.items() if end},
    )


# -- all runs of a row ---------------------------------------------------------------------------


@contextmanager
def broker_at(address: str | None) -> Iterator[str]:
    """The broker's address: the one given, or that of a node of our own for as long as this lasts."""
    if address:
        yield address
        return
    node = KafkaBroker()
    try:
        node.start()
        yield node.bootstrap
    finally:
        node.remove()


def measure(bootstrap: str, row: Row, rounds: int) -> Results:
    """All contenders in each round, one after the other, the first one in turn."""
    topic = f"{row.name}-{uuid.uuid4().hex[:8]}"
    width = max(map(len, row.contenders)) + 2
    kafka_tools.create_topic_now(bootstrap, topic, row.load.partitions)
    try:
        produce(bootstrap, topic, row.load)
        results: dict[str, list[Run]] = {name: [] for name in row.contenders}
        for number in range(rounds):
            names = list(row.contenders) if number % 2 == 0 else list(reversed(row.contenders))
            for name in names:
                group = f"{topic}-{name.replace(' ', '-')}-{number}"
                task = Task(bootstrap, topic, group, row.load.records, row.load.per_key, row.load.partitions)
                run = one_run(row.contenders[name], task)
                results[name].append(run)
                print(f"round {number + 1} {name:<{width}} {told(run)}", flush=True)
        return results
    finally:
        kafka_tools.delete_topics_now(bootstrap, [topic])


def told(run: Run) -> str:
    """One run on one line."""
    verdict = "; ".join(run.faults) or f"right, {run.duplicates} duplicates"
    return f"{run.rate:>10,.0f} records/s   {run.total_seconds:6.2f} s in all   {verdict}"


# -- what is said about it -----------------------------------------------------------------------


def environment() -> dict[str, object]:
    """What the figures were measured with."""
    import aiokafka
    import confluent_kafka

    import asyncpar

    return {
        "python": platform.python_version(),
        "asyncpar": asyncpar.__version__,
        "aiokafka": aiokafka.__version__,
        "confluent_kafka": confluent_kafka.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}, {platform.system()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def settings(row: Row, rounds: int) -> dict[str, object]:
    """The workload."""
    return {
        "records": row.load.records,
        "rounds": rounds,
        "partitions": row.load.partitions,
        "keys": _keys(row.load),
        "value_bytes": VALUE_BYTES,
        **row.settings,
    }


def _keys(load: Load) -> str:
    if not load.exponent:
        return f"{load.keys} at random"
    busiest = max(load.per_key)
    return f"{load.keys} by Zipf's law, exponent {load.exponent:g}; the busiest has {busiest} records"


def summary(row: Row, results: Results) -> dict[str, object]:
    """Medians, spread and the ratio."""
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    pairs = zip(rates[row.subject], rates[row.baseline], strict=True)
    ratios = [ours / theirs if theirs else 0.0 for ours, theirs in pairs]
    target = {} if row.target is None else {"target_ratio": row.target}
    return {
        "median_records_per_second": {name: round(rate) for name, rate in medians.items()},
        "spread": {name: [round(min(found)), round(max(found))] for name, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        **target,
        **row.figures(results),
        "faults": {name: sum(len(run.faults) for run in runs) for name, runs in results.items()},
    }


def show(title: str, fields: Mapping[str, object]) -> None:
    """A part of the table for people."""
    print(f"\n{title}")
    for name, value in fields.items():
        print(f"  {name:<26} {value}")


# -- the command ---------------------------------------------------------------------------------


def conduct(
    description: str, records: int, rows: Callable[[int], Sequence[Row]], arguments: Sequence[str] | None
) -> int:
    """Measure and show the rows that `rows` makes of a number of records (default: `records`).

    Returns the exit code: 1 when any contender was wrong in any run. The JSON of a workload with one row has
    its settings, runs and result at the top, that of one with several has them by row.
    """
    options = _options(description, records, arguments)
    measured = rows(options.records)
    around = environment()
    show("environment", around)
    sections: dict[str, dict[str, object]] = {}
    for row in measured:
        sections[row.name] = {"settings": settings(row, options.rounds)}
        show(_title(row, measured, "settings"), settings(row, options.rounds))
    results: dict[str, Results] = {}
    with broker_at(options.bootstrap_servers) as bootstrap:
        for row in measured:
            print(f"\n{_title(row, measured, 'runs')}" if len(measured) > 1 else "")
            results[row.name] = measure(bootstrap, row, options.rounds)
    for row in measured:
        summed = summary(row, results[row.name])
        show(_title(row, measured, "result"), summed)
        sections[row.name] |= {"runs": _plain(results[row.name]), "result": summed}
    if options.json:
        found = {"rows": sections} if len(measured) > 1 else sections[measured[0].name]
        options.json.write_text(json.dumps({"environment": around, **found}, indent=2) + "\n")
    return _exit_code(results.values())


def _options(description: str, records: int, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bootstrap-servers", help="a real broker; default: start one (Java and Maven)")
    parser.add_argument("--records", type=int, default=records)
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure worth quoting")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    options = parser.parse_args(arguments)
    if options.records < 1 or options.rounds < 1:
        parser.error("--records and --rounds must be at least 1")
    return options


def _title(row: Row, rows: Sequence[Row], part: str) -> str:
    return f"{row.name}: {part}" if len(rows) > 1 else part


def _plain(results: Results) -> dict[str, list[dict[str, object]]]:
    return {name: [asdict(run) | {"rate": run.rate} for run in found] for name, found in results.items()}


def _exit_code(measured: Iterable[Results]) -> int:
    """1 when a contender was wrong in any run, and that is said."""
    runs = [(name, run) for results in measured for name, found in results.items() for run in found]
    wrong = list(dict.fromkeys(name for name, run in runs if run.faults))
    if wrong:
        print(f"\nFAILED: {' and '.join(wrong)} lost, reordered or did not commit records; see above")
    return 1 if wrong else 0
