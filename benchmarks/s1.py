"""Workload S1: a matrix of settings against itself: an earlier run of the same, on the same machine.

    python benchmarks/s1.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--against FILE] [--rows NAME,...] [--contenders NAME,...]

What lives here: the matrix, the check of dead letters, the comparison; the course of it is `harness.py`'s.

- `async`: 100,000 records, `asyncio.sleep(0.005)`; `max_in_flight` 256 and 1024, with as many slots, each
  with `poll_batch_size` 500 and 1000.
- `process`: 20,000 records, 500 x sha256; half of the cores and all of them, each with `process_batch_size`
  64 and 128; `process_queue_size` 2048.
- `dead-letters`: 50,000 records, `asyncio.sleep(0.005)`, `dead_letter_payload="metadata_only"`; no record
  fails, or 1 % of them, which are given up at once.

In each round a yardstick runs beside them: a coroutine per key without Kafka, or a plain loop that computes.
What counts is each contender's share of it, as a machine is not always equally fast. `--against` names the
JSON of an earlier run: the shares of both, divided, are in `of_earlier`, and a contender below 0.90 of its
earlier share is a regression. Exit code 1 for one of those, and when a run was wrong: a record lost,
repeated, out of order or not committed, or a failed one without exactly one dead letter, with its key,
without its value, and in the order of its key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer, TopicPartition  # noqa: E402 - after the path

from asyncpar import App, Record, Retry, headers  # noqa: E402 - likewise
from asyncpar.settings import usable_cores  # noqa: E402 - likewise
from benchmarks import p4, p7, p7_work  # noqa: E402 - likewise
from benchmarks.harness import Contender, Results, Row, Run, Task, conduct, quiet, run_as_command  # noqa: E402 - likewise
from benchmarks.load import Load, check  # noqa: E402 - likewise
from benchmarks.report import ratios_of  # noqa: E402 - likewise
from benchmarks.sleepers import STOCK, asyncpar, floor  # noqa: E402 - likewise
from benchmarks.work import PLACE_BYTES  # noqa: E402 - likewise
from tests import kafka_tools  # noqa: E402 - likewise

RECORDS = 100_000
KEYS = 1_000
SLEEP_US = 5_000
SLOTS = 100
HASHES = 500
IN_FLIGHT, POLL_BATCHES = (256, 1024), (500, 1000)
PROCESS_BATCHES, PROCESS_QUEUE = (64, 128), 2048
LEAST_OF_EARLIER = 0.90
YARDSTICK, PLAIN, FAILING = "yardstick", "no errors", "dead letters"
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "async": {
        "handler": f"asyncio.sleep({SLEEP_US / 1e6}), concurrency as max_in_flight",
        YARDSTICK: "a coroutine per key, without Kafka",
    },
    "process": {
        "handler": f"{HASHES} x sha256, process_queue_size {PROCESS_QUEUE}",
        YARDSTICK: "a plain loop over raw aiokafka",
    },
    "dead-letters": {
        "handler": f"asyncio.sleep({SLEEP_US / 1e6})",
        FAILING: "1 % of the records, metadata_only",
        YARDSTICK: "a coroutine per key, without Kafka",
    },
}
_READ_SECONDS = 60.0


class Refused(Exception):  # noqa: N818 - not a defect: it is what the row is about
    """Raised by the records that are to become dead letters."""


@dataclass
class LetterRun(Run):
    """Also: how many dead letters there are."""

    letters: int = 0


# -- contenders ----------------------------------------------------------------------------------


def run_process(workers: int, batch: int, task: Task) -> Run:
    """A handler that computes, in child processes."""
    return p7.judged(partial(_process, workers, batch), HASHES, task)


def _process(workers: int, batch: int, task: Task) -> None:
    sizes = {"process_batch_size": batch, "process_queue_size": PROCESS_QUEUE}
    app = _app(task, worker_pool_size=workers, **sizes)
    app.topic(task.topic, name="p7", executor="process")(p7_work.handle)
    asyncio.run(run_as_command(app))


def run_letters(is_failing: bool, task: Task) -> Run:
    """A handler of which some calls fail for good, each of which is one dead letter."""
    quiet()
    letters = f"{task.group}.dlq"
    kafka_tools.create_topic_now(task.bootstrap, letters, task.partitions)
    try:
        run = _run_letters(letters, set(p4.failing_places(task.per_key)) if is_failing else set(), task)
    finally:
        kafka_tools.delete_topics_now(task.bootstrap, [letters])
    return run


def _run_letters(letters: str, failing: Collection[bytes], task: Task) -> LetterRun:
    app = _app(task)
    seen: list[bytes] = []
    began: list[float] = []
    refused: dict[tuple[int, int], bytes | None] = {}

    @app.topic(task.topic, retry=Retry(attempts=1), dead_letter=letters, dead_letter_payload="metadata_only")
    async def handle(record: Record) -> None:
        if not began:
            began.append(time.perf_counter())
        await asyncio.sleep(SLEEP_US / 1e6)
        assert record.value is not None
        seen.append(record.value)
        if len(seen) == task.records:
            began.append(time.perf_counter())
        if record.value[:PLACE_BYTES] in failing:
            refused[record.partition, record.offset] = record.key
            raise Refused

    run = _judged(app, task, seen, began)
    if len(refused) != len(failing):
        run.faults.append(f"{len(refused)} records failed instead of {len(failing)}")
    found = asyncio.run(_read(task.bootstrap, letters))
    run.letters = len(found)
    run.faults += judge_letters(found, refused)
    return run


def _app(task: Task, **settings: object) -> App:
    return App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0, **settings)


def _judged(app: App, task: Task, seen: list[bytes], stamps: list[float]) -> LetterRun:
    """To the end of the topic, each record once, in order of its key. `stamps`: first begin, last end."""
    began = time.perf_counter()
    asyncio.run(run_as_command(app))
    total = time.perf_counter() - began
    run = LetterRun(len(seen), stamps[-1] - stamps[0] if len(stamps) > 1 else 0.0, total)
    run.duplicates, run.faults = check(seen, task.per_key)
    if run.duplicates:
        run.faults.append(f"{run.duplicates} records ran more than once")
    return run


# -- dead letters --------------------------------------------------------------------------------


async def _read(bootstrap: str, topic: str) -> list[Any]:
    """All of a topic, partition by partition; SystemExit when it does not come."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        ends = await kafka_tools.end_offsets(bootstrap, topic)
        wanted = {TopicPartition(topic, number): end for number, end in ends.items() if end}
        consumer.assign([TopicPartition(topic, number) for number in ends])
        for number in ends:
            consumer.seek(TopicPartition(topic, number), 0)
        found: list[Any] = []
        deadline = time.monotonic() + _READ_SECONDS
        while wanted:
            if time.monotonic() > deadline:
                raise SystemExit(f"{topic} could not be read within {_READ_SECONDS:.0f} s")
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                found += records
                if records[-1].offset + 1 >= wanted.get(partition, 0):
                    wanted.pop(partition, None)
        return found
    finally:
        await consumer.stop()


def judge_letters(found: Sequence[Any], refused: Mapping[tuple[int, int], bytes | None]) -> list[str]:
    """What is wrong with dead letters, given the key of each record that failed by partition and offset."""
    faults: list[str] = []
    places: list[tuple[int, int]] = []
    by_key: dict[tuple[int, bytes | None], list[int]] = defaultdict(list)
    odd = 0
    for letter in found:
        origin = headers.origin(letter.headers)
        if origin is None:
            odd += 1
            continue
        place = (origin[0].partition, origin[1])
        places.append(place)
        by_key[place[0], letter.key].append(place[1])
        is_marked = headers.text(letter.headers, headers.PAYLOAD) == headers.METADATA_ONLY
        odd += not is_marked or letter.value is not None or letter.key != refused.get(place, b"")
    if sorted(places) != sorted(refused):
        faults.append(
            f"{len(found)} dead letters, which are not one of each of {len(refused)} failed records"
        )
    if odd:
        faults.append(f"{odd} dead letters have a value, another key, or do not say what they are")
    swapped = sum(first > second for offsets in by_key.values() for first, second in pairwise(offsets))
    if swapped:
        faults.append(f"{swapped} dead letters overtook an earlier one of their key")
    return faults


# -- rows ----------------------------------------------------------------------------------------

Earlier = Mapping[str, Mapping[str, float]]
"""Of an earlier run, by row and contender: rates as shares of the yardstick's."""


def rows(earlier: Earlier, regressions: list[str], records: int) -> list[Row]:
    """`records` is the number of `async`. What is slower than it was `earlier` is put into `regressions`."""
    sleep_us = (SLEEP_US, SLEEP_US)
    waiting, computing, dead = (
        Load(records, KEYS, sleep_us=sleep_us),
        Load(max(1, records // 5), KEYS),
        Load(max(1, records // 2), KEYS, sleep_us=sleep_us),
    )
    workers = sorted({max(1, usable_cores() // 2), usable_cores()})
    contenders: list[tuple[str, Load, dict[str, Contender]]] = [
        ("async", waiting, {YARDSTICK: floor(STOCK, waiting, max(IN_FLIGHT)), **_waiting()}),
        ("process", computing, {YARDSTICK: partial(p7.run_loop, HASHES), **_computing(workers)}),
        (
            "dead-letters",
            dead,
            {
                YARDSTICK: floor(STOCK, dead, SLOTS),
                PLAIN: partial(run_letters, False),
                FAILING: partial(run_letters, True),
            },
        ),
    ]
    return [
        Row(
            name=name,
            load=load,
            contenders=found,
            subject=list(found)[-1],
            baseline=YARDSTICK,
            target=None,
            settings={"delivery": "at least once, asyncpar's defaults but for the names", **SETTINGS[name]},
            figures=_compared(name, earlier.get(name, {}), regressions),
        )
        for name, load, found in contenders
    ]


def _waiting() -> dict[str, Contender]:
    return {
        f"{most} in flight, batch {batch}": asyncpar(
            STOCK, {"max_in_flight": most, "poll_batch_size": batch}, most
        )
        for most, batch in product(IN_FLIGHT, POLL_BATCHES)
    }


def _computing(workers: Sequence[int]) -> dict[str, Contender]:
    return {
        f"{count} workers, batch {batch}": partial(run_process, count, batch)
        for count, batch in product(workers, PROCESS_BATCHES)
    }


def _compared(
    row: str, earlier: Mapping[str, float], regressions: list[str]
) -> Callable[[Results], dict[str, object]]:
    def figures(results: Results) -> dict[str, object]:
        shares = of_yardstick(results)
        found = of_earlier(shares, earlier)
        regressions.extend(f"{row}, {name}" for name, share in found.items() if share < LEAST_OF_EARLIER)
        compared = {"of_earlier": found, "least_of_earlier": LEAST_OF_EARLIER} if found else {}
        return {"of_yardstick": shares, **compared}

    return figures


def of_yardstick(results: Results) -> dict[str, float]:
    """Each contender's rate as a share of the yardstick's in the same round: the median over the rounds."""
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    return {
        name: round(statistics.median(ratios_of(found, rates[YARDSTICK])), 4)
        for name, found in rates.items()
        if name != YARDSTICK
    }


def of_earlier(shares: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    """Each as a share of the earlier one, where there is one."""
    return {name: round(share / earlier[name], 3) for name, share in shares.items() if earlier.get(name)}


def read_earlier(path: Path | None) -> Earlier:
    """What the JSON of an earlier run has. SystemExit when `path` is not such a file."""
    if path is None:
        return {}
    try:
        parts = json.loads(path.read_text())["rows"]
        return {row: dict(part["result"]["of_yardstick"]) for row, part in parts.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"--against {path}: no JSON of an earlier run of s1.py ({error!r})") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong, or slower than earlier by a tenth."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--against", type=Path, metavar="FILE")
    own, others = parser.parse_known_args(arguments)
    regressions: list[str] = []
    code = conduct(
        "S1: a matrix of settings; --against FILE compares with the JSON of an earlier run.",
        RECORDS,
        partial(rows, read_earlier(own.against), regressions),
        others,
    )
    if regressions:
        print(f"\nFAILED: slower than earlier by more than a tenth: {'; '.join(regressions)}")
    return 1 if regressions else code


if __name__ == "__main__":
    sys.exit(main())
