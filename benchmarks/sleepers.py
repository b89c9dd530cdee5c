"""Contenders whose handler sleeps as long as its record says: asyncpar, and the floor that nobody can beat.

What lives here: both, on either event loop, the row that they and rivals make, the arithmetic of what is
possible, and figures. What never does: loads and targets. Called by `p2.py`, `p3.py` and `s2.py`. Always: the
floor runs the same handler over the same records on the same kind of loop, without Kafka: a plain coroutine
for each key, as many at a time as there are slots, the busiest keys first.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asyncpar import App
from asyncpar.cli.collection import tuned_collection
from benchmarks import rivals_run
from benchmarks.choice import LeftOut
from benchmarks.harness import Contender, Results, Row, Run, Task, quiet, run_as_command
from benchmarks.load import Load, judge
from benchmarks.report import ratios_of
from benchmarks.work import PLACE_BYTES, SLEEP, SLEEP_END, Handler, entries, handler, writer

STOCK, UVLOOP = "stock", "uvloop"
OURS, ON_UVLOOP = "asyncpar", "asyncpar uvloop"
FLOOR, FLOOR_UVLOOP = "floor", "floor uvloop"
_NOTHING_ELSE: Mapping[str, Contender] = {}


def row(
    name: str,
    load: Load,
    slots: int,
    rivals: Iterable[rivals_run.Rival],
    ours: Callable[[str], Contender],
    others: Mapping[str, Contender] = _NOTHING_ELSE,
) -> Row:
    """asyncpar (`ours` on the loop of that name) and its floor on both loops, `others`, and `rivals`.

    The workload adds its target, what it sets and its figures.
    """
    return Row(
        name=name,
        load=load,
        contenders={
            FLOOR: floor(STOCK, load, slots),
            OURS: ours(STOCK),
            **others,
            FLOOR_UVLOOP: floor(UVLOOP, load, slots),
            ON_UVLOOP: ours(UVLOOP),
            **rivals_run.contenders(rivals, SLEEP),
        },
        subject=OURS,
        baseline=FLOOR,
        target=None,
        settings={
            "delivery": "at least once, asyncpar's defaults",
            FLOOR: f"one plain coroutine per key, {slots} at a time, without Kafka",
            **rivals_run.told(rivals),
        },
        rivals=rivals_run.names(rivals),
        preparations=rivals_run.preparations(rivals)
        | dict.fromkeys((FLOOR_UVLOOP, ON_UVLOOP), uvloop_version),
    )


def uvloop_version() -> str:
    """Of the package; LeftOut when it is not there."""
    try:
        import uvloop
    except ImportError:
        raise LeftOut("no uvloop: pip install 'asyncpar[uvloop]'") from None
    return f"uvloop {uvloop.__version__}"


def asyncpar(loop: str, settings: Mapping[str, int], slots: int | None) -> Contender:
    """asyncpar with these settings of the app; `slots` is the handler's concurrency (None: its default)."""
    return partial(_run_asyncpar, loop, dict(settings), slots)


def floor(loop: str, load: Load, slots: int) -> Contender:
    """A coroutine for each key of the load, `slots` at a time."""
    return partial(_run_floor, loop, load, slots)


# -- one run -------------------------------------------------------------------------------------


def _run_asyncpar(loop: str, settings: Mapping[str, int], slots: int | None, task: Task) -> Run:
    async def read(run: Handler) -> None:
        app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0, **settings)
        options = {} if slots is None else {"concurrency": slots}

        app.topic(task.topic, **options)(run)
        await run_as_command(app)

    return measured(loop, read, task)


def _run_floor(loop: str, load: Load, slots: int, task: Task) -> Run:
    async def read(run: Handler) -> None:
        keys = iter(by_key(load))

        async def slot() -> None:
            for values in keys:
                for value in values:
                    await run(value)

        with tuned_collection() as tune:  # as asyncpar has it
            tune()
            await asyncio.gather(*(slot() for _ in range(min(slots, load.keys))))

    run = measured(loop, read, task)
    run.has_group = False
    return run


def by_key(load: Load) -> list[list[bytes]]:
    """The values of each key that has any, in order; the busiest key first."""
    values: dict[int, list[bytes]] = {}
    for key, value in load.values():
        values.setdefault(key, []).append(value)
    return sorted(values.values(), key=len, reverse=True)


def measured(loop: str, read: Callable[[Handler], Coroutine[Any, Any, None]], task: Task) -> Run:
    """Let `read` run the handler for each record on this kind of loop; judged by the journal."""
    quiet()
    with TemporaryDirectory(prefix="sleepers-") as folder:
        journal = Path(folder, "journal")
        work = handler(SLEEP, writer(journal, 2 * task.records))
        began = time.perf_counter()
        with asyncio.Runner(loop_factory=_factory(loop)) as runner:
            runner.run(read(work))
        total = time.perf_counter() - began
        found = entries([journal])
    seconds = (max(one.ended for one in found) - found[0].began) / 1e9 if found else 0.0
    run = Run(len(found), seconds, total)
    run.duplicates, run.faults = judge(found, task.per_key)
    return run


def _factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if loop == STOCK:
        return None
    import uvloop

    return uvloop.new_event_loop


# -- figures -------------------------------------------------------------------------------------


def possible(load: Load, slots: int) -> float:
    """Records per second that nobody can pass: all sleeps over the slots, and those of the slowest key."""
    sleeps = [sum(_seconds(values)) for values in by_key(load)]
    return load.records / max(sum(sleeps) / slots, *sleeps)


def _seconds(values: Iterable[bytes]) -> Iterable[float]:
    return (int(value[PLACE_BYTES:SLEEP_END]) / 1e6 for value in values)


def shares_of_floors(results: Results) -> dict[str, float]:
    """How near asyncpar came to its floor, on each loop."""
    return shares({OURS: FLOOR, ON_UVLOOP: FLOOR_UVLOOP}, results)


def shares(floors: Mapping[str, str], results: Results) -> dict[str, float]:
    """How near each contender came to its floor, given the name of that: the median over the rounds."""
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    return {
        name: round(statistics.median(ratios_of(rates[name], rates[of])), 3)
        for name, of in floors.items()
        if name in rates and of in rates
    }
