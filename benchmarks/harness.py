"""The course of every benchmark: a broker, contenders in turn over one topic, medians, ratios, a table, JSON.

What lives here: all that the workloads share. A workload (`p*.py`) is a file with its loads, its contenders
and its target, which it hands to `conduct` as rows. What never does: what a contender runs, the load
(`load.py`), and what is said about the runs (`report.py`). Called by the workloads' `main`. Always: each
contender runs in a fresh process and a group of its own, they take turns at going first, and a run that left
anything uncommitted is a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from asyncpar import App
from asyncpar.cli.collection import tuned_collection
from benchmarks.choice import chosen, prepared, unasked
from benchmarks.load import PARTITIONS, Load, produce
from benchmarks.report import broker, environment, exit_code, plain, settings, show, summary, title, told
from tests import kafka_tools
from tests.kafka_broker import KafkaBroker

RUN_TIMEOUT_SECONDS = 300.0
_ANSWER_SECONDS = 15.0


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

    `notes` are said beside it and are no faults. `is_stopped`: it was ended before it had read everything,
    and is judged by what it did until then. `has_group`: it read the topic as a group, and has to commit. A
    workload that has more to say of a run adds fields in a class of its own; they come into the JSON.
    """

    records: int
    seconds: float
    total_seconds: float
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_stopped: bool = False
    has_group: bool = True

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
    `settings` are printed with every figure. `figures` takes the results, those of the subject and the
    baseline among them, and gives more lines for them. A contender in `rivals` may be wrong: that is shown,
    and does not fail the benchmark. In each round all others run `passes` times, in turn: for short runs on
    an unsteady machine. `preparations` make what a contender needs; they return its versions, or raise
    `LeftOut`.
    """

    name: str
    load: Load
    contenders: Mapping[str, Contender]
    subject: str
    baseline: str
    target: float | None
    settings: Mapping[str, object]
    figures: Callable[[Results], dict[str, object]] = lambda results: {}
    rivals: frozenset[str] = frozenset()
    passes: int = 1
    preparations: Mapping[str, Callable[[], str]] = field(default_factory=dict)


# -- one run -------------------------------------------------------------------------------------


def quiet() -> None:
    """What every contender does first: nothing below ERROR is logged."""
    logging.basicConfig(level=logging.ERROR)


async def run_as_command(app: App, *, drain_and_exit: bool = True) -> None:
    """As `asyncpar run` runs it: with the garbage collector tuned once it has started (`tune_gc`)."""
    with tuned_collection() as tune:
        await app.run(drain_and_exit=drain_and_exit, on_started=tune)


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
    if run.has_group:
        run.faults += uncommitted(run, *asyncio.run(_positions(task)))
        with suppress(*([KafkaException] if run.faults else [])):  # a member that was killed is still in it
            asyncio.run(kafka_tools.delete_group(task.bootstrap, task.group))
    return run


def uncommitted(run: Run, committed: Mapping[int, int], ends: Mapping[int, int]) -> list[str]:
    """What is wrong with the positions that a run left: all of it committed, or no more than what ran."""
    if not run.is_stopped:
        return [] if committed == ends else [f"committed {committed} instead of {ends}"]
    beyond = sum(committed.values()) - (run.records - run.duplicates)
    return [f"committed {beyond} records that did not run"] if beyond > 0 else []


async def _positions(task: Task) -> tuple[dict[int, int], dict[int, int]]:
    committed = await kafka_tools.committed(task.bootstrap, task.group, task.topic)
    ends = await kafka_tools.end_offsets(task.bootstrap, task.topic)
    # A partition that no key fell into (few records) has nothing to commit.
    return (
        {number: found.offset for number, found in committed.items() if ends.get(number)},
        {number: end for number, end in ends.items() if end},
    )


# -- all runs of a row ---------------------------------------------------------------------------


@contextmanager
def broker_at(address: str | None) -> Iterator[str]:
    """The broker's address: the one given, or that of a node of our own for as long as this lasts.

    SystemExit when there is none at the one given.
    """
    if address:
        try:
            AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=_ANSWER_SECONDS)
        except KafkaException as error:
            raise SystemExit(f"no Kafka answers at {address}: {error.args[0].str()}") from None
        yield address
        return
    node = KafkaBroker()
    try:
        node.start()
        yield node.bootstrap
    finally:
        node.remove()


def measure(bootstrap: str, row: Row, rounds: int) -> Results:
    """All contenders in each round, one after the other, the first one in turn; see `Row.passes`."""
    topic = f"{row.name}-{uuid.uuid4().hex[:8]}"
    width = max(map(len, row.contenders)) + 2
    kafka_tools.create_topic_now(bootstrap, topic, row.load.partitions)
    try:
        produce(bootstrap, topic, row.load)
        # A new broker makes its topic of commits when first asked for one: not in the first contender's time.
        asyncio.run(kafka_tools.committed(bootstrap, topic, topic))
        results: dict[str, list[Run]] = {name: [] for name in row.contenders}
        for number in range(rounds * row.passes):
            names = list(row.contenders) if number % 2 == 0 else list(reversed(row.contenders))
            for name in names:
                if name in row.rivals and number % row.passes:
                    continue
                group = f"{topic}-{name.replace(' ', '-')}-{number}"
                task = Task(bootstrap, topic, group, row.load.records, row.load.per_key, row.load.partitions)
                run = one_run(row.contenders[name], task)
                results[name].append(run)
                print(f"round {1 + number // row.passes} {name:<{width}} {told(run)}", flush=True)
        return results
    finally:
        kafka_tools.delete_topics_now(bootstrap, [topic])


# -- the command ---------------------------------------------------------------------------------


def conduct(
    description: str, records: int, rows: Callable[[int], Sequence[Row]], arguments: Sequence[str] | None
) -> int:
    """Measure and show the rows that `rows` makes of a number of records (default: `records`).

    Returns the exit code: 1 when any contender but a rival was wrong in any run. The JSON of a workload with
    one row has its settings, runs and result at the top, that of one with several has them by row.
    """
    options = _options(description, records, arguments)
    every = rows(options.records)
    found = prepared(chosen(every, options.rows, options.contenders))
    found.left_out |= unasked(every, options.contenders)
    measured, around = found.rows, environment() | {"broker": broker(options.bootstrap_servers)}
    if found.versions or found.left_out:
        around |= {"versions": found.versions, "left_out": found.left_out}
    show("environment", around)
    sections: dict[str, dict[str, object]] = {}
    for row in measured:
        sections[row.name] = {"settings": settings(row, options.rounds)}
        show(title(row, measured, "settings"), settings(row, options.rounds))
    results: dict[str, Results] = {}
    with broker_at(options.bootstrap_servers) as bootstrap:
        for row in measured:
            print(f"\n{title(row, measured, 'runs')}" if len(measured) > 1 else "")
            results[row.name] = measure(bootstrap, row, options.rounds)
    for row in measured:
        summed = summary(row, results[row.name])
        show(title(row, measured, "result"), summed)
        sections[row.name] |= {"runs": plain(results[row.name]), "result": summed}
    if options.json:
        parts = {"rows": sections} if len(measured) > 1 else sections[measured[0].name]
        options.json.write_text(json.dumps({"environment": around, **parts}, indent=2) + "\n")
    return exit_code([(row, results[row.name]) for row in measured])


def _options(description: str, records: int, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bootstrap-servers", help="a real broker; default: start one (Java and Maven)")
    parser.add_argument("--records", type=int, default=records)
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure worth quoting")
    parser.add_argument("--rows", metavar="NAME,...", help="only these rows; default: all")
    parser.add_argument("--contenders", metavar="NAME,...", help="only these contenders; default: all")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    options = parser.parse_args(arguments)
    if options.records < 1 or options.rounds < 1:
        parser.error("--records and --rounds must be at least 1")
    make_folder_of(options.json, parser)
    return options


def make_folder_of(path: Path | None, parser: argparse.ArgumentParser) -> None:
    """Before anything is measured, so that nothing is lost for want of it; ends with a message without it."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--json {path}: {error.strerror}: {error.filename}")
    if path.is_dir():
        parser.error(f"--json {path}: it is a folder; name a file")
