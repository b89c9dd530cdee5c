"""One life: drawn from its seed, lived on a virtual clock, judged by its history."""

from __future__ import annotations

import gc
import random
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from asyncpar.testing.checkers import Rules, check
from asyncpar.testing.history import Event
from asyncpar.testing.simulation.children import CHILD_STATES
from asyncpar.testing.simulation.faults import FAULTS, WEIGHTS
from asyncpar.testing.simulation.plan import Plan, draw
from asyncpar.testing.simulation.world import World
from asyncpar.testing.virtual_time import SimulationError, virtual_time

MAX_STEPS = 5_000_000
_KEY_BYTES = 20
STATES = (
    "handler raises",
    "handler fails for good",
    "handler hangs",
    "handler swallows cancellation",
    "handler is slow",
    "handler leaves a context variable",
    "handler never succeeds",
    "worker retired",
    "partition halted",
    "retried amid chaos",
    "retry",
    "record restored as done",
    "records held back",
    "dead letter acknowledged",
    "dead letter refused",
    "dead letter late",
    "partition held",
    "budget used up",
    "breaker opened",
    "key poisoned",
    "stale completion",
    "straggler left",
    "straggler adopted",
    "rebalance revoked",
    "rebalance lost",
    "commit acknowledged",
    "commit retry",
    "commit stale",
    "commit metadata_too_large",
    "offset reset out_of_range",
    "ended by DrainIncompleteError",
    *CHILD_STATES,
)
"""What an engine under faults goes through; all of it has to be met, or the rig tests less than it says."""
FAULTS_AND_STATES = (*FAULTS, *STATES)


class Problem(NamedTuple):
    """What is wrong with a life: which check says so (or PROBLEM, UNHANDLED, SIMULATION), and how."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check} {self.text}"


@dataclass(frozen=True)
class Outcome:
    """How a life ended. `met`: faults that struck and states that were reached, by name."""

    plan: Plan
    problems: tuple[Problem, ...]
    """Empty when all is well."""
    met: Mapping[str, int]
    counts: Mapping[str, int]
    """What the checkers counted."""
    simulated_seconds: float
    events: Sequence[Event] = field(default=(), repr=False)
    culprits: Sequence[Event] = ()

    @property
    def seed(self) -> int:
        """The seed that repeats this life."""
        return self.plan.seed

    @property
    def is_ok(self) -> bool:
        """True when no law was broken."""
        return not self.problems

    @property
    def failed_checks(self) -> frozenset[str]:
        """Those that found something."""
        return frozenset(problem.check for problem in self.problems)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage waits for the end of the life: it takes a tenth of its time, and has no say in what happens."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # all of the life is young
        if was_enabled:
            gc.enable()


def plan_of(seed: int) -> Plan:
    """The plan of life `seed`."""
    return draw(seed, WEIGHTS)


def live(plan: Plan) -> Outcome:
    """Live a life and judge it. Never raises for what the engine does."""
    with _uncollected():
        return _lived(plan)


def _lived(plan: Plan) -> Outcome:
    problems: list[Problem] = []
    with virtual_time(random.Random(f"{plan.seed}/steps"), max_steps=MAX_STEPS) as loop:
        world = World(plan, loop)
        begin = loop.time()
        try:
            loop.run_until_complete(world.live())
        except SimulationError as error:
            problems.append(Problem("SIMULATION", str(error)))
        except Exception:  # noqa: BLE001 - the rig's own failure is a failure of the life
            problems.append(Problem("SIMULATION", traceback.format_exc()))
        problems += [Problem("PROBLEM", text) for text in world.problems]
        problems += [Problem("UNHANDLED", _brief(context)) for context in loop.errors]
        report = check(world.history.events, rules_of(plan, world))
        problems += [Problem(fault.check, fault.told()) for fault in report.faults]
        met = Counter({**dict.fromkeys(FAULTS_AND_STATES, 0)})
        met.update(world.struck)
        met.update(world.cluster.link.struck)
        met.update(world.fates.met)
        met.update(world.states)
        return Outcome(
            plan=plan,
            problems=tuple(problems),
            met=met,
            counts=report.counts,
            simulated_seconds=loop.time() - begin,
            events=tuple(world.history.events),  # before the world is abandoned, which ends what still runs
            culprits=report.faults[0].events if report.faults else (),
        )


def rules_of(plan: Plan, world: World) -> Rules:
    """What the checkers have to know of a life."""
    settings, letters = plan.settings, plan.letters
    # What still runs of a halted partition, or from before a log was cut, is not counted: the slots bound it.
    halts = letters is None and (plan.attempts is not None or plan.children is not None)
    begins_again = halts or world.struck["log truncated"] > 0
    uncounted = plan.handler["concurrency"] if begins_again else 0
    chunk = settings["poll_batch_size"] + uncounted  # type: ignore[operator]
    rules = Rules(
        order=plan.handler["order"],  # type: ignore[arg-type]
        session_timeout_ms=settings["session_timeout_ms"],  # type: ignore[arg-type]
        max_revoke_grace_ms=settings["max_revoke_grace_ms"],  # type: ignore[arg-type]
        shutdown_drain_timeout_ms=settings["shutdown_drain_timeout_ms"],  # type: ignore[arg-type]
        max_in_flight=settings["max_in_flight"] + uncounted,  # type: ignore[operator]
        max_in_flight_bytes=settings.get("max_in_flight_bytes"),  # type: ignore[arg-type]
        concurrency=plan.handler["concurrency"],  # type: ignore[arg-type]
        attempts=plan.attempts,
        rebalancing="cooperative" if plan.cooperative else "eager",
        chunk_bytes=chunk * (plan.payload_bytes + _KEY_BYTES),
        finals=world.cluster.finals(),
        letters=world.cluster.letters(),
    )
    if letters is not None and letters.poison is not None:
        rules = replace(rules, poison_failures=letters.poison.failures)
    if letters is not None and letters.budget is not None and not letters.budget.share:
        budget = letters.budget
        rules = replace(rules, letter_budget=budget.at_least, letter_window_ms=budget.window_ms)
    return rules


def _brief(context: Mapping[str, object]) -> str:
    error = context.get("exception")
    return f"{context.get('message')} {error!r}" if error is not None else str(context.get("message"))
