"""The tables of "How it is proved", from the lists that the rig itself works with.

What lives here: the form of the tables, and the places in the page that they are put into. What never does:
a fault, a bug, a case or its explanation: they stand in `asyncpar/testing` and `tests`. Called by `generate`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import get_args

from asyncpar.testing.checker_budget import Budget
from asyncpar.testing.checker_calls import Order, Serial
from asyncpar.testing.checker_commits import CommitLaws, Lost, Stuck
from asyncpar.testing.checker_duplicates import Duplicates
from asyncpar.testing.checker_letters import DeadLetters
from asyncpar.testing.checker_model import Check, Checker
from asyncpar.testing.simulation import plan
from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.life import STATES, plan_of
from asyncpar.testing.simulation.plan import Plan
from asyncpar.testing.simulation.world import LIFE_SECONDS, REST_SECONDS
from tests.chaos import faults as real_faults
from tests.planted.bugs import BUGS
from tests.wire.case import ALWAYS, Case, Code
from tests.wire.cases import CASES

_CHECKERS: tuple[type[Checker], ...] = (
    Lost,
    Order,
    Serial,
    CommitLaws,
    Stuck,
    Duplicates,
    DeadLetters,
    Budget,
)
_TOLD_BY_ANOTHER = {"UNKNOWN"}
_SEEDS = range(1_000)
"""So many plans are drawn to see every value that a life may have."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines)


def _one_line(text: str | None) -> str:
    """A docstring without line breaks. ValueError when there is none: the table would say nothing."""
    words = (text or "").split()
    if not words:
        raise ValueError("something that docs/proof.md lists has no docstring")
    line = " ".join(words)
    return line[0].upper() + line[1:]


def checks() -> str:
    """Each check: its law, and how it is judged, from the checkers' docstrings."""
    rows = []
    for checker in _CHECKERS:
        name, _, text = (inspect.getdoc(checker) or "").partition(": ")
        law, _, how = re.sub(r"\s*\(source:[^)]*\)", "", text, flags=re.IGNORECASE).partition("\n\n")
        rows.append((name, _one_line(law), _one_line(how)))
    told = {name for name, _, _ in rows} | _TOLD_BY_ANOTHER
    if told != set(get_args(Check)):
        raise ValueError(f"the checkers tell of {sorted(told)}, and Check names {sorted(get_args(Check))}")
    return _table(("check", "the law", "precisely"), [(f"**{name}**", law, how) for name, law, how in rows])


# -- the simulation --------------------------------------------------------------------------------


def faults_of_a_life() -> str:
    """What may strike, and what each fault does."""
    names: defaultdict[Callable[..., None], list[str]] = defaultdict(list)
    for name, (_, strike) in FAULTS.items():
        names[strike].append(name)
    rows = [(", ".join(of_strike), _one_line(strike.__doc__)) for strike, of_strike in names.items()]
    return _table(("fault", "what happens"), rows)


def states_of_a_life() -> str:
    """What the lives have to reach."""
    return f"{', '.join(STATES)}."


_DRAWN: Mapping[str, Callable[[Plan], object]] = {
    "members": lambda one: one.members,
    "topics": lambda one: len(one.partitions),
    "partitions": lambda one: sum(one.partitions.values()),
    "different keys, at most": lambda one: one.keys,
    "share of records without a key": lambda one: one.keyless_share,
    "rebalances revoke only what moves": lambda one: one.cooperative,
    "members are static (`group_instance_id`)": lambda one: one.static,
    "attempts": lambda one: one.attempts or "no limit",
    "some records never succeed and become dead letters": lambda one: one.letters is not None,
    "and so does what cannot be decoded": lambda one: one.letters is not None and one.letters.undecodable,
    "a topic of dead letters has partitions": lambda one: one.letters.partitions if one.letters else None,
    "with dead letters: `dead_letter_budget`": lambda one: bool(one.letters and one.letters.budget),
    "with dead letters: `breaker`": lambda one: bool(one.letters and one.letters.breaker),
    "with dead letters: `poison_keys`": lambda one: bool(one.letters and one.letters.poison),
    "with dead letters: `rate_limit`": lambda one: bool(one.letters and one.letters.rate),
}


def draws_of_a_life() -> str:
    """A life's measures, and the values that are drawn for it."""
    rows = [
        ("records", f"{plan.MIN_RECORDS:,} to {plan.MAX_RECORDS:,}"),
        ("faults that are planned", f"{plan.MIN_FAULTS} to {plan.MAX_FAULTS}"),
        ("seconds in which they strike", f"{plan.CHAOS_SECONDS:.0f}"),
        ("seconds in all, at least", f"{LIFE_SECONDS:.0f}"),
        ("seconds from the heal until all must be done, at most", f"{REST_SECONDS:.0f}"),
    ]
    plans = [plan_of(seed) for seed in _SEEDS]
    rows += [(name, _values(map(look, plans))) for name, look in _DRAWN.items()]
    for part in ("handler", "settings"):
        knobs: list[Mapping[str, object]] = [getattr(one, part) for one in plans]
        names = dict.fromkeys(name for one in knobs for name in one)
        rows += [(f"`{name}`", _values(one.get(name, "the default") for one in knobs)) for name in names]
    return _table(("of a life", "what it is"), [row for row in rows if row[0] != "`http_port`"])


def _values(drawn: Iterable[object]) -> str:
    different = set(drawn)
    numbers = sorted(value for value in different if isinstance(value, int | float))
    words = sorted(value for value in different if isinstance(value, str))
    return ", ".join(_value(value) for value in (*numbers, *words))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


# -- the wire, real faults, planted bugs -----------------------------------------------------------


def wire() -> str:
    """For each request and moment: which answers the app recovers from, and which end it how."""
    survived: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    ended: defaultdict[tuple[str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in CASES:
        if case.ends is None:
            survived[_place(case)].append(_answer(case))
        else:
            ended[_place(case)][f"`{case.ends.__name__}` ({case.ends.exit_code})"].append(_answer(case))
    moments: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for request, phase in dict.fromkeys(map(_place, CASES)):
        here = (request, phase)
        ends = [f"{error}: {_joined(answers)}" for error, answers in ended[here].items()]
        moments[request, _joined(survived[here]) or "-", "<br>".join(ends) or "-"].append(phase)
    rows = [(request, ", ".join(when), well, ill) for (request, well, ill), when in moments.items()]
    return _table(("request", "when", "recovers from", "ends with (exit code)"), rows)


def _place(case: Case) -> tuple[str, str]:
    return "".join(map(str.capitalize, case.request.name.split("_"))), case.phase.value


def _answer(case: Case) -> str:
    if case.code is Code.HANGS_UP:
        name = "hanging up"
    elif case.code is Code.LATE:
        name = f"an answer after {case.delay_ms // 1000} s"
    else:
        name = f"`{case.code.name}`"
    if case.times != ALWAYS:
        return name
    return f"{name} for {case.heal_seconds:g} s" if case.heal_seconds else f"{name} for ever"


def _joined(answers: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(answers))


def real() -> str:
    """The lanes of real faults: their kinds, and what these are, from the texts below the lists."""
    texts = _texts_below_names(real_faults)
    lanes = {"members": "MEMBER_KINDS", "the network": "NETWORK_KINDS", "brokers": "BROKER_KINDS"}
    rows = [
        (where, ", ".join(getattr(real_faults, name)), _one_line(texts.get(name)))
        for where, name in lanes.items()
    ]
    return _table(("what is struck", "kinds of faults", "what they are, in the same order"), rows)


def _texts_below_names(module: ModuleType) -> Mapping[str, str]:
    """The strings below assignments, which Python itself forgets."""
    found: dict[str, str] = {}
    for above, below in pairwise(ast.parse(inspect.getsource(module)).body):
        match above, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found


def planted_bugs() -> str:
    """The bugs that are planted: what is wrong, where, and which checks are good reasons to fail."""
    rows = [(f"`{bug.name}`", f"`{bug.module}`", bug.wrong, ", ".join(bug.checks)) for bug in BUGS]
    return _table(("bug", "in", "what is wrong", "one of these must catch it"), rows)


# -- the page --------------------------------------------------------------------------------------

TABLES: Mapping[str, Callable[[], str]] = {
    "checks": checks,
    "draws of a life": draws_of_a_life,
    "faults of a life": faults_of_a_life,
    "states of a life": states_of_a_life,
    "wire": wire,
    "real faults": real,
    "planted bugs": planted_bugs,
}
_PLACE = re.compile(r"<!-- ([a-z ]+), written by `make pages` -->\n.*?\n<!-- end -->", re.DOTALL)


def filled(page: str) -> str:
    """`page` with its tables made anew. ValueError when it has not one place for each of them."""
    places = _PLACE.findall(page)
    if sorted(places) != sorted(TABLES):
        raise ValueError(f"docs/proof.md has places for {places}, and the tables are {list(TABLES)}")
    return _PLACE.sub(
        lambda place: f"<!-- {place[1]}, written by `make pages` -->\n\n{TABLES[place[1]]()}\n\n<!-- end -->",
        page,
    )
