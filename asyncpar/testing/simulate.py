"""`python -m asyncpar.testing.simulate`: live many lives, judge them, and say what they met.

Exit code 0 when every life passed and every fault and state was met; 1 otherwise. A life that fails is
shrunk and told, with the command that repeats it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace

import click

from asyncpar.testing.simulation.life import Outcome, live, plan_of
from asyncpar.testing.simulation.shrink import shrink
from asyncpar.testing.simulation.table import Totals, render
from asyncpar.testing.simulation.trace import tell

_SEEDS = 2**31
_MIN_LIVES_FOR_ZEROS = 500
_MAX_TOLD = 3


@click.command()
@click.option("--lives", default=500, show_default=True, help="How many lives.")
@click.option(
    "--seed", type=int, default=None, help="Seed of the first life; the others follow. Default: drawn."
)
@click.option("--workers", type=int, default=None, help="Processes. Default: one per core.")
@click.option("--shrink/--no-shrink", "shrinking", default=True, help="Make a failing life smaller.")
@click.option("--verbose", is_flag=True, help="Show the engine's log; for a single life.")
def main(lives: int, seed: int | None, workers: int | None, shrinking: bool, verbose: bool) -> None:
    """Live simulated lives of a consumer group and judge each by its history."""
    first = int.from_bytes(os.urandom(4), "big") % _SEEDS if seed is None else seed
    workers = workers or os.cpu_count() or 1
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    click.echo(f"{lives} lives from seed {first}, {workers} worker{'s' if workers > 1 else ''}")
    begin = time.monotonic()
    totals = Totals()
    failures: list[Outcome] = []
    with click.progressbar(length=lives, label="living", show_pos=True, file=sys.stderr) as bar:
        for outcome in _live_all(range(first, first + lives), workers):
            totals.add(outcome)
            if not outcome.is_ok:
                failures.append(outcome)
            bar.update(1)
    took = time.monotonic() - begin
    for outcome in sorted(failures, key=lambda one: one.seed)[:_MAX_TOLD]:
        click.echo(_explain(outcome, shrinking), err=True)
    click.echo(render(totals))
    click.echo(f"{took:.0f} s, {lives / took:.1f} lives per second")
    missing = totals.never_met() if lives >= _MIN_LIVES_FOR_ZEROS else []
    if missing:
        click.echo(f"never met, so the rig is at fault: {', '.join(missing)}", err=True)
    if failures:
        click.echo(f"failed: {', '.join(map(str, sorted(totals.failed)))}", err=True)
    sys.exit(1 if failures or missing else 0)


def _hash_alike() -> None:
    """Start again with a fixed seed of hashes: the order of sets of texts is part of what a life repeats."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(  # noqa: S606 - itself, without a shell
            sys.executable, [sys.executable, "-m", "asyncpar.testing.simulate", *sys.argv[1:]], environment
        )


def _live_all(seeds: Sequence[int], workers: int) -> Iterator[Outcome]:
    """The outcomes of all `seeds`, in the order in which they are done."""
    if workers == 1:
        for seed in seeds:
            yield live(plan_of(seed))
        return
    with ProcessPoolExecutor(workers) as pool:
        running: set[Future[Outcome]] = set()
        for seed in seeds:
            running.add(pool.submit(_live_briefly, seed))
            if len(running) >= 4 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        for one in running:
            yield one.result()


def _live_briefly(seed: int) -> Outcome:
    """A life without its events, which the other process can have again from the seed."""
    logging.disable()
    return replace(live(plan_of(seed)), events=(), culprits=())


def _explain(outcome: Outcome, shrinking: bool) -> str:
    logging.disable()
    plan, kinds = outcome.plan, outcome.failed_checks
    if shrinking:
        plan = shrink(plan, lambda smaller: bool(live(smaller).failed_checks & kinds))
    logging.disable(logging.NOTSET)
    repeat = (
        f"repeat: python -m asyncpar.testing.simulate --lives 1 --seed {outcome.seed} --workers 1 --verbose"
    )
    return f"{tell(live(plan))}\n{repeat}\n"


if __name__ == "__main__":
    _hash_alike()
    main()
