"""The course of workloads that are more than contenders in turn over one topic: options, processes,
verdict.

What lives here: the command line, a function in a process of its own, a topic for a while, medians and
targets, and `conduct`, which measures, shows, writes JSON of `harness.py`'s shape and gives the exit code.
What never does: what is measured. Called by the workloads that do not fit a `harness.Row`. Always: every
process is bounded in time, every topic is removed, and a fault in any run ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

from benchmarks.harness import broker_at, make_folder_of
from benchmarks.report import broker, environment, show
from tests import kafka_tools

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Measured:
    """One measurement. `faults` is empty when what was measured did what it must; subclasses add figures."""

    faults: list[str] = field(default_factory=list)


Measurements: TypeAlias = Mapping[str, Sequence[Measured]]
"""What was measured, by name and round."""


@dataclass(frozen=True)
class Course:
    """What `conduct` needs to know. `measure` takes the broker's address, or "" where there is none.

    `result` sums the measurements up; `settings` are printed with every figure.
    """

    settings: Mapping[str, object]
    measure: Callable[[str], Measurements]
    result: Callable[[Measurements], Mapping[str, object]]


# -- the command ---------------------------------------------------------------------------------


def parser(description: str, *, needs_broker: bool = True) -> argparse.ArgumentParser:
    """The options of every workload; sizes are its own."""
    made = argparse.ArgumentParser(description=description)
    if needs_broker:
        made.add_argument("--bootstrap-servers", help="a real broker; default: start one (Java and Maven)")
    made.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure worth quoting")
    made.add_argument("--json", type=Path, help="write everything there, too")
    return made


def parsed(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends with a message when a number is not above 0."""
    options = made.parse_args(arguments)
    for name, value in vars(options).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            made.error(f"--{name.replace('_', '-')} must be above 0")
    make_folder_of(options.json, made)
    return options


def conduct(options: argparse.Namespace, course: Course) -> int:
    """Measure, show, write; the exit code: 1 when any measurement has a fault.

    Without `--bootstrap-servers` among the options of the workload no broker takes part.
    """
    around = environment()
    if "bootstrap_servers" in options:
        around["broker"] = broker(options.bootstrap_servers)
    show("environment", around)
    settings = {"rounds": options.rounds, **course.settings}
    show("settings", settings)
    print()
    if "bootstrap_servers" in options:
        with broker_at(options.bootstrap_servers) as bootstrap:
            runs = course.measure(bootstrap)
    else:
        runs = course.measure("")
    faults = {name: sum(len(one.faults) for one in found) for name, found in runs.items()}
    result = {**course.result(runs), "faults": faults}
    show("result", flat(result))
    if options.json:
        plain = {name: [_plain(one) for one in found] for name, found in runs.items()}
        sections = {"environment": around, "settings": settings, "runs": plain, "result": result}
        options.json.write_text(json.dumps(sections, indent=2) + "\n")
    wrong = [name for name, count in faults.items() if count]
    if wrong:
        print(f"\nFAILED: {' and '.join(wrong)} did not do what they must; see above")
    return 1 if wrong else 0


def _plain(one: Measured) -> dict[str, object]:
    rate = getattr(one, "rate", None)
    return asdict(one) | ({} if rate is None else {"rate": rate})


def flat(fields: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Mappings in mappings as one, with names such as `outer: inner`: a line each in a table."""
    lines: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            lines |= flat(value, f"{before}{name}: ")
        else:
            lines[before + name] = value
    return lines


def say(number: int, name: str, what: str, faults: Sequence[str]) -> None:
    """One measurement of round `number` (from 0) on one line, at once."""
    print(f"round {number + 1} {name:<28} {what}   {'; '.join(faults) or 'right'}", flush=True)


# -- processes and topics ------------------------------------------------------------------------


def in_own_process(seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `function`, of the top of its module, returns in a fresh process. SystemExit after `seconds`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        running = process.submit(function, *args, **kwargs)
        if not wait([running], seconds).done:
            for child in multiprocessing.active_children():  # leaving the block would wait for it
                child.kill()
            raise SystemExit(f"{function.__module__}.{function.__name__} did not end within {seconds:.0f} s")
        return running.result()


@contextmanager
def topic_for(bootstrap: str, name: str, partitions: int) -> Iterator[str]:
    """A new topic whose name begins with `name`, for as long as this lasts."""
    topic = f"{name}-{uuid.uuid4().hex[:8]}"
    kafka_tools.create_topic_now(bootstrap, topic, partitions)
    try:
        yield topic
    finally:
        kafka_tools.delete_topics_now(bootstrap, [topic])


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order in round `number`: one way, then the other, so that nobody always comes first."""
    return list(names) if number % 2 == 0 else list(reversed(names))


# -- figures -------------------------------------------------------------------------------------


def middle(values: Sequence[float], digits: int = 3) -> float:
    """The median, rounded."""
    return round(statistics.median(values), digits)


def spread(values: Sequence[float], digits: int = 3) -> list[float]:
    """The least and the greatest, rounded."""
    return [round(min(values), digits), round(max(values), digits)]


def at_most(limit: float, measured: float) -> dict[str, object]:
    """A target that is an upper bound, and whether it is met."""
    return {"at_most": limit, "measured": measured, "is_met": measured <= limit}


def at_least(limit: float, measured: float) -> dict[str, object]:
    """A target that is a lower bound, and whether it is met."""
    return {"at_least": limit, "measured": measured, "is_met": measured >= limit}
