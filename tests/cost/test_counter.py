"""The guard itself: it counts the same in each run, finds a planted cost, and names it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncpar.core.virtual_partitions import Queues
from tests.cost.core_workload import core_cost
from tests.cost.counter import PACKAGE, Cost, Counter
from tests.cost.flat import assert_flat
from tests.cost.group_workload import group_cost
from tests.cost.kept import complaint, keep, kept
from tests.cost.load import Load

SMALL = Load(records=400, before=100)
PLANTED = """
def finish(self, vp):
    wasted(self)
    return finish_as_before(self, vp)

def wasted(queues):
    for _ in range(rounds(queues)):
        pass
"""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Queues], int]], None]:
    """Makes the end of each record go round as often as it is told, in a file of the package."""

    def waste(rounds: Callable[[Queues], int]) -> None:
        names: dict[str, Any] = {"finish_as_before": Queues.finish, "rounds": rounds}
        exec(compile(PLANTED, f"{PACKAGE}core/planted.py", "exec"), names)
        monkeypatch.setattr(Queues, "finish", names["finish"])

    return waste


@pytest.mark.parametrize("cost_of", [core_cost, group_cost])
def test_two_runs_cost_the_same(cost_of: Callable[[Load], Cost]) -> None:
    """To the instruction, but for the first run of a process in 3.13: a difference is one of the code."""
    cost_of(SMALL)
    assert cost_of(SMALL) == cost_of(SMALL)


def test_a_planted_cost_is_found_and_named(plant: Callable[[Callable[[Queues], int]], None]) -> None:
    """A call with a loop in it, once per record, is red and stands first; taken away again it is red, too."""
    before = core_cost(SMALL)
    plant(lambda _: 20)
    planted = core_cost(SMALL)
    said = complaint("core", planted, before)
    assert said is not None
    assert "costs over 15% more" in said
    assert "core/planted.py wasted" in said.splitlines()[2]
    assert "python -m tests.cost keep" in said
    assert "costs over 15% less" in (complaint("core", before, planted) or "")


def test_a_small_change_is_none() -> None:
    """Up to 15 % more or less, in each kind."""
    before = Cost({"a": 100.0}, {"a": 10.0})
    for instructions, c_calls in ((114.0, 11.4), (86.0, 8.6)):
        assert complaint("core", Cost({"a": instructions}, {"a": c_calls}), before) is None
    for instructions, c_calls in ((116.0, 10.0), (100.0, 11.6), (84.0, 10.0), (100.0, 8.4)):
        assert complaint("core", Cost({"a": instructions}, {"a": c_calls}), before) is not None


def test_a_cost_that_grows_with_the_load_is_found(plant: Callable[[Callable[[Queues], int]], None]) -> None:
    """Work for each key that is known, once per record."""
    plant(lambda queues: len(queues.by_key))
    with pytest.raises(AssertionError, match=r"grow by .* with keys[^$]*core/planted.py wasted"):
        assert_flat(core_cost, "keys", [Load(400, keys=count, before=0) for count in (1, 400)])


def test_what_is_kept_is_kept_by_python(tmp_path: Path) -> None:
    """Other versions stay; small functions are kept as a sum; nothing is kept of a Python that never was."""
    file = tmp_path / "kept.json"
    keep({"core": Cost({"a": 1.0}, {"a": 1.0})}, file, "3.98")
    keep({"core": Cost({"a": 7.004, "b": 0.25, "c": 0.25}, {"a": 2.0})}, file, "3.99")
    assert kept("core", file, "3.98") == Cost({"a": 1.0, "(others)": 0.0}, {"a": 1.0, "(others)": 0.0})
    assert kept("core", file, "3.99") == Cost({"a": 7.0, "(others)": 0.5}, {"a": 2.0, "(others)": 0.0})
    assert kept("group", file, "3.99") is None
    assert kept("core", file, "3.97") is None


def test_counting_leaves_other_tracers_as_they_were() -> None:
    """Coverage measures on, and what runs outside of the block is not counted."""
    traced, profiled, counter = sys.gettrace(), sys.getprofile(), Counter()
    with counter.counting():
        pass
    assert (sys.gettrace(), sys.getprofile()) == (traced, profiled)
    assert counter.cost(1) == Cost({}, {})
