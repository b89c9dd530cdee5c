"""`python -m asyncpar.testing.simulate`: live many lives, judge them, and say what they met.

Exit code 0 when every life passed and every fault and state was met; 1 otherwise; 130 after Ctrl-C. A life
that fails is shrunk and told, with the command that repeats it.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import replace

import click

from asyncpar.testing.simulation.life import Outcome, live, plan_of
from asyncpar.testing.simulation.shrink import shrink
from asyncpar.testing.simulation.table import Totals, render
from asyncpar.testing.simulation.trace import tell

EXIT_INTERRUPTED = 130
_SEEDS = 2**31
_MIN_LIVES_FOR_ZEROS = 500
_MAX_TOLD = 3


@click.command()
@click.option("--lives", type=click.IntRange(min=1), default=500, show_default=True, help="How many lives.")
@click.option(
    "--seed", type=int, default=None, help="Seed of the first life; the others follow. Default: drawn."
)
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes. Default: one per core.")
@click.option("--shrink/--no-shrink", "shrinking", default=True, help="Make a failing life smaller.")
@click.option("--verbose", is_flag=True, help="Show the engine's log; for a single life.")
def main(lives: int, seed: int | None, workers: int | None, shrinking: bool, verbose: bool) -> None:
    """Live simulated lives of a consumer group and judge each by its history."""
    if verbose and lives > 1:
        raise click.UsageError("--verbose shows the log of a single life: say --lives 1 --seed N as well")
    first = int.from_bytes(os.urandom(4), "big") % _SEEDS if seed is None else seed
    workers = min(workers or os.cpu_count() or 1, lives)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    seeds = range(first, first + lives)
    totals = Totals()
    failures: list[Outcome] = []
    try:
        click.echo(f"{_lives(lives)} from seed {first}, {workers} worker{'' if workers == 1 else 's'}")
        code = _run(seeds, workers, totals, failures, shrinking=shrinking, verbose=verbose)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        click.echo(f"\nstopped after {_lives(totals.lives)} from seed {first}", err=True)
        if failures:
            click.echo(_failed(failures), err=True)
    sys.exit(code)


def _run(
    seeds: Sequence[int],
    workers: int,
    totals: Totals,
    failures: list[Outcome],
    *,
    shrinking: bool,
    verbose: bool,
) -> int:
    """Live the lives of `seeds` and tell of them; returns the exit code."""
    begin = time.monotonic()
    with (
        click.progressbar(length=len(seeds), label="living", show_pos=True, file=sys.stderr) as bar,
        closing(_live_all(seeds, workers, verbose=verbose)) as outcomes,
    ):
        for outcome in outcomes:
            totals.add(outcome)
            if not outcome.is_ok:
                failures.append(outcome)
                click.echo(f"\nlife {outcome.seed}: {outcome.problems[0]}", err=True)
            bar.update(1)
    took = time.monotonic() - begin
    for outcome in sorted(failures, key=lambda one: one.seed)[:_MAX_TOLD]:
        click.echo(_explain(outcome, shrinking), err=True)
    click.echo(render(totals))
    click.echo(f"{took:.0f} s, {len(seeds) / took:.1f} lives per second")
    missing = totals.never_met() if len(seeds) >= _MIN_LIVES_FOR_ZEROS else []
    if missing:
        click.echo(f"never met, so the rig is at fault: {', '.join(missing)}", err=True)
    if failures:
        click.echo(_failed(failures), err=True)
    return 1 if failures or missing else 0


def _failed(failures: Sequence[Outcome]) -> str:
    return f"failed: {', '.join(map(str, sorted(one.seed for one in failures)))}"


def _lives(number: int) -> str:
    return f"{number} {'life' if number == 1 else 'lives'}"


def _hash_alike() -> None:
    """Start again with a fixed seed of hashes: the order of sets of texts is part of what a life repeats."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(  # noqa: S606 - itself, without a shell
            sys.executable, [sys.executable, "-m", "asyncpar.testing.simulate", *sys.argv[1:]], environment
        )


def _live_all(seeds: Sequence[int], workers: int, *, verbose: bool) -> Generator[Outcome, None, None]:
    """The outcomes of all `seeds`, in the order in which they are done; with one worker, in this process."""
    if workers == 1:
        for seed in seeds:
            with _silence(but=verbose):
                outcome = live(plan_of(seed))
            yield outcome
        return
    # With what is imported frozen, no collection of garbage looks at it again.
    with ProcessPoolExecutor(workers, initializer=gc.freeze) as pool:
        running: set[Future[Outcome]] = set()
        try:
            for seed in seeds:
                with _undisturbed():
                    running.add(pool.submit(_live_briefly, seed))
                if len(running) >= 4 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            for one in running:
                yield one.result()
        except BaseException:
            _end_workers()
            raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits; a worker that starts meanwhile is deaf to it for good: its end is not its own to say.

    A pool that is interrupted while it starts its workers can neither go on nor be shut down.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_workers() -> None:
    """End the processes that live lives, in the middle of them: nobody waits for their outcomes."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def _live_briefly(seed: int) -> Outcome:
    """A life without its events, which the other process can have again from the seed."""
    logging.disable()
    return replace(live(plan_of(seed)), events=(), culprits=())


@contextmanager
def _silence(*, but: bool = False) -> Iterator[None]:
    """Without the engine's log, which tells of each fault; `but`: with it."""
    before = logging.root.manager.disable
    if not but:
        logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _explain(outcome: Outcome, shrinking: bool) -> str:
    plan, kinds = outcome.plan, outcome.failed_checks
    with _silence():
        if shrinking:
            plan = shrink(plan, lambda smaller: bool(live(smaller).failed_checks & kinds))
        told = tell(live(plan))
    repeat = f"repeat: python -m asyncpar.testing.simulate --lives 1 --seed {outcome.seed} --verbose"
    return f"{told}\n{repeat}\n"


if __name__ == "__main__":
    _hash_alike()
    main()
