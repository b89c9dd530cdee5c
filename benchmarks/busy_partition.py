"""Workload `busy_partition`: all records in one partition of eight, against the same number over all eight.

    python benchmarks/busy_partition.py [--bootstrap-servers host:port] [--records N] [--rounds N]
                                        [--json FILE]

What lives here: the two loads, the figures and the target; the contenders are P1's, a no-op handler with
defaults and a raw aiokafka loop. When a client has drained the one busy partition, the next fetch of it
waits behind a request for its idle siblings that the broker holds until something comes or a time is over.
With the client's own half a second that is most of the time; the raw loop shows it. A consumer that adapts
that time loses little. The rate with one busy partition is to be 0.90 of the even one, asyncpar's own, at
least.

Keys are 1,000 at random in both loads; with one busy partition they all lie in it, as after a bad choice of
keys. Exit code 1 when a run lost, reordered or did not commit anything.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks import p1  # noqa: E402 - after the path
from benchmarks.course import (  # noqa: E402 - likewise
    Course,
    Measured,
    Measurements,
    at_least,
    conduct,
    in_turn,
    middle,
    parsed,
    parser,
    say,
    spread,
    topic_for,
)
from benchmarks.harness import Contender, Task, one_run  # noqa: E402 - likewise
from benchmarks.load import PARTITIONS, VALUE_BYTES, Load, produce  # noqa: E402 - likewise
from benchmarks.report import ratios_of  # noqa: E402 - likewise
from tests import kafka_tools  # noqa: E402 - likewise

RECORDS = 500_000
KEYS = 1_000
BUSY = 0
"""The partition that has them all."""
TARGET_RATIO = 0.90
EVEN, ONE = "even", "one busy"
OURS, RAW = "asyncpar", "raw aiokafka"
CONTENDERS: Mapping[str, Contender] = {OURS: p1.run_asyncpar, RAW: p1.run_raw}
_PRODUCE_SECONDS = 120.0
_AT_ONCE = 100_000


@dataclass
class Rate(Measured):
    """Records per second."""

    records: int = 0
    seconds: float = 0.0
    rate: float = 0.0


def produce_to_one(bootstrap: str, topic: str, load: Load) -> None:
    """The records of `load`, all of them into partition `BUSY`."""
    records = [kafka_tools.Record(b"key-%04d" % key, value, partition=BUSY) for key, value in load.values()]
    for first in range(0, len(records), _AT_ONCE):
        chunk = records[first : first + _AT_ONCE]
        asyncio.run(kafka_tools.produce(bootstrap, topic, chunk, timeout_seconds=_PRODUCE_SECONDS))


def measure(rounds: int, records: int, bootstrap: str) -> Measurements:
    """Both contenders with both loads in each round."""
    load = Load(records, KEYS)
    names = [f"{name}, {how}" for name in CONTENDERS for how in (EVEN, ONE)]
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    with ExitStack() as stack:
        topics = {how: stack.enter_context(topic_for(bootstrap, "busy", PARTITIONS)) for how in (EVEN, ONE)}
        produce(bootstrap, topics[EVEN], load)
        produce_to_one(bootstrap, topics[ONE], load)
        for number in range(rounds):
            for name in in_turn(names, number):
                who, how = name.split(", ")
                group = f"{topics[how]}-{who.replace(' ', '-')}-{number}"
                task = Task(bootstrap, topics[how], group, records, load.per_key, PARTITIONS)
                run = one_run(CONTENDERS[who], task)
                runs[name].append(Rate(run.faults, run.records, run.seconds, run.rate))
                say(number, name, f"{run.rate:>10,.0f} records/s", run.faults)
    return runs


def result(runs: Measurements) -> dict[str, object]:
    """Medians, and each contender's rate with one busy partition as a share of its even one."""
    rates = {name: [one.rate for one in found if isinstance(one, Rate)] for name, found in runs.items()}
    shares = {name: ratios_of(rates[f"{name}, {ONE}"], rates[f"{name}, {EVEN}"]) for name in CONTENDERS}
    return {
        "median_records_per_second": {name: middle(found, 0) for name, found in rates.items()},
        "spread": {name: spread(found, 0) for name, found in rates.items()},
        "busy_of_even": {name: middle(found) for name, found in shares.items()},
        "busy_of_even_spread": {name: spread(found) for name, found in shares.items()},
        "targets": {"busy of even": at_least(TARGET_RATIO, middle(shares[OURS]))},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    made = parser("One busy partition of eight, against an even load.")
    made.add_argument("--records", type=int, default=RECORDS)
    options = parsed(made, arguments)
    settings = {
        "records": options.records,
        "partitions": PARTITIONS,
        "keys": f"{KEYS} at random",
        "value_bytes": VALUE_BYTES,
        OURS: "no-op async handler, default settings, event loop of the standard library",
        RAW: f"getmany(max_records={p1.MAX_RECORDS}), a commit every {p1.COMMIT_SECONDS:.0f} s",
    }
    return conduct(options, Course(settings, partial(measure, options.rounds, options.records), result))


if __name__ == "__main__":
    sys.exit(main())
