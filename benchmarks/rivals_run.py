"""One run of a rival: its program in its environment, bounded in time, judged by the journal that it wrote.

What lives here: the rivals that are measured and how each is set up, starting them, judging, and comparing.
What never does: making environments (`rivals.py`), and the programs (`rivals_*.py`, `rivals_java/`), which
get words such as `topic=t` and print how their run ended. Called by the workloads. Always: a rival stops
after `SECONDS`, and then it is judged by what it did until then; what is wrong with it is said and fails
nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Contender, Results, Run, Task
from benchmarks.load import judge, reached
from benchmarks.report import ratios_of
from benchmarks.rivals import JavaEnvironment, PythonEnvironment
from benchmarks.work import ALL, IDLE, IDLE_SECONDS, LATE, START_SECONDS, Entry, entries

SECONDS = 20.0
_LEAVE_SECONDS = 40.0
_LAST_LINES = 3


@dataclass(frozen=True, eq=False)
class Rival:
    """A rival, set up one way. `words` are for its program; `told` says the same to people."""

    name: str
    environment: PythonEnvironment | JavaEnvironment
    words: Mapping[str, object]
    told: str


FASTSTREAM = PythonEnvironment("faststream[kafka]==0.7.8", "rivals_faststream.py", ("faststream", "aiokafka"))
PYRALLEL_CONSUMER = PythonEnvironment(
    "pyrallel-consumer==1.0.0", "rivals_pyrallel.py", ("pyrallel-consumer", "confluent-kafka"), oldest=(3, 12)
)
PARALLEL_CONSUMER = JavaEnvironment(
    "rivals_java", "ParallelConsumerRival", ("parallel-consumer-core", "kafka-clients")
)

WORKERS = 200
IN_FLIGHT = 2_000
ACK_FIRST = Rival("faststream", FASTSTREAM, {"ack": "first"}, "ack first (its default): at most once")
ACK_AFTER = Rival(
    "faststream ack after", FASTSTREAM, {"ack": "after"}, "AckPolicy.ACK: a commit after each record"
)
ACK_FIRST_WORKERS = Rival(
    "faststream workers",
    FASTSTREAM,
    {"ack": "first", "workers": WORKERS},
    f"ack first, max_workers={WORKERS}: at most once, no order",
)
PYRALLEL = Rival(
    "pyrallel",
    PYRALLEL_CONSUMER,
    {"in_flight": IN_FLIGHT},
    f"async mode, key_hash, max_in_flight={IN_FLIGHT}",
)
PARALLEL_100, PARALLEL_1000 = (
    Rival(
        f"parallel-consumer {number}",
        PARALLEL_CONSUMER,
        {"concurrency": number},
        f"Java, ordering KEY, maxConcurrency {number}, else defaults",
    )
    for number in (100, 1_000)
)


# -- in a row ------------------------------------------------------------------------------------


def contenders(rivals: Iterable[Rival], work: str) -> dict[str, Contender]:
    """What runs each of them with `work.NO_OP` or `work.SLEEP` as its handler."""
    return {rival.name: partial(run, rival, work) for rival in rivals}


def names(rivals: Iterable[Rival]) -> frozenset[str]:
    """Whose faults fail nothing."""
    return frozenset(rival.name for rival in rivals)


def preparations(rivals: Iterable[Rival]) -> dict[str, Callable[[], str]]:
    """What makes their environments."""
    return {rival.name: rival.environment.prepare for rival in rivals}


def told(rivals: Iterable[Rival]) -> dict[str, str]:
    """How each is set up, and the bound of their runs."""
    return {"rivals": f"{SECONDS:.0f} s each at most", **{rival.name: rival.told for rival in rivals}}


def times(
    ours: str, wanted: Mapping[Rival, float | None], results: Results, possible: float | None = None
) -> dict[str, object]:
    """How much faster `ours` is than each rival that ran (the median over the rounds), and what is wanted.

    With `possible`, the records per second that nobody can pass, also how much faster anyone could be.
    """
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    ran = {one.name: factor for one, factor in wanted.items() if one.name in rates}
    found: dict[str, object] = {}
    for name, factor in ran.items():
        median = statistics.median(rates[name])
        found[name] = {
            "times": round(statistics.median(ratios_of(rates[ours], rates[name])), 1),
            **({} if factor is None else {"wanted": factor}),
            **({"possible": round(possible / median, 1)} if possible and median else {}),
        }
    return found


# -- one run -------------------------------------------------------------------------------------


def run(rival: Rival, work: str, task: Task) -> Run:
    """Its program from start to end, and what its journal says."""
    with TemporaryDirectory(prefix="rival-") as folder:
        journal = Path(folder, "journal")
        words = {
            "bootstrap": task.bootstrap,
            "group": task.group,
            "topic": task.topic,
            "records": task.records,
            "work": work,
            "seconds": SECONDS,
            "start_seconds": START_SECONDS,
            "idle_seconds": IDLE_SECONDS,
            "journal": journal,
            "lines": 2 * task.records,  # what runs twice is to be seen
            **rival.words,
        }
        began = time.perf_counter()
        given = [f"{name}={value}" for name, value in words.items()]
        end, faults = _end([*rival.environment.command, *given])
        total = time.perf_counter() - began
        found = entries([journal]) if journal.exists() else []
    return judged(found, end, faults, total, task)


def _end(command: Sequence[str]) -> tuple[str, list[str]]:
    """The last word that the program printed, and what was wrong with how it ended."""
    seconds = START_SECONDS + SECONDS + _LEAVE_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        return _last_word(late.stdout), [f"killed, as it had not ended after {seconds:.0f} s"]
    lines = done.stderr.strip().splitlines()[-_LAST_LINES:]
    faults = [f"ended with code {done.returncode}: {' '.join(lines)}"] if done.returncode else []
    return _last_word(done.stdout), faults


def _last_word(printed: Any) -> str:
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
    return text.split()[-1] if text.split() else ""


def judged(found: Sequence[Entry], end: str, faults: Sequence[str], total_seconds: float, task: Task) -> Run:
    """A run by its journal. `end`, the program's own word: with `LATE` what is missing is no loss."""
    seconds = (max(one.ended for one in found) - found[0].began) / 1e9 if found else 0.0
    result = Run(len(found), seconds, total_seconds, is_stopped=end == LATE)
    per_key = reached(found, len(task.per_key)) if result.is_stopped else task.per_key
    result.duplicates, wrong = judge(found, per_key)
    result.faults = [*faults, *wrong]
    if result.is_stopped:
        result.notes.append(f"stopped after {SECONDS:.0f} s")
    elif end == IDLE:
        waited = IDLE_SECONDS if found else START_SECONDS
        result.faults.append(f"after {len(found)} records none came for {waited:.0f} s")
    elif end != ALL and not faults:
        result.faults.append("ended without saying how")
    return result
