"""Tests of what the fields of rules may be, for every field of every rules class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from asyncpar.core.breaker import BreakerRules
from asyncpar.core.dead_letter_budget import BudgetRules
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.core.rule_checks import MOST, check_real, check_whole


def _rate(**fields: Any) -> RateRules:
    return RateRules(**{"per_second": 1.0, "burst": 1, **fields})


WHOLE = [
    (BreakerRules, "Breaker", ["min_calls", "window_ms", "open_ms", "probes", "successes", "max_open_ms"]),
    (BudgetRules, "DeadLetterBudget", ["at_least", "window_ms"]),
    (PoisonRules, "PoisonKeys", ["failures", "cool_down_ms", "max_keys"]),
    (_rate, "RateLimit", ["burst", "max_keys"]),
]
REAL = [
    (BreakerRules, "Breaker", "failure_share", [0, 0.0, -0.1, 1.01]),
    (BudgetRules, "DeadLetterBudget", "share", [-0.1, 1.01]),
    (_rate, "RateLimit", "per_second", [0, -1.0, 1e-7, 2e9, math.inf]),
]


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "5", MOST + 1, 10**400])
@pytest.mark.parametrize(
    ("make", "owner", "field"), [(make, owner, field) for make, owner, fields in WHOLE for field in fields]
)
def test_a_count_or_a_time_is_a_whole_number_of_at_least_one(
    make: Callable[..., object], owner: str, field: str, value: object
) -> None:
    """One line says whose field it is, its value and what is allowed."""
    with pytest.raises(ValueError, match=rf"{owner}: {field}=.* must be a whole number from 1 to") as raised:
        make(**{field: value})
    assert repr(value) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("make", "owner", "field", "wrong"), REAL)
def test_a_share_or_a_rate_is_a_number_in_its_range(
    make: Callable[..., object], owner: str, field: str, wrong: list[object]
) -> None:
    """Neither a text nor NaN is one, and a share of nothing would open a breaker by the first success."""
    for value in [*wrong, math.nan, True, None, "0.5"]:
        with pytest.raises(ValueError, match=rf"{owner}: {field}=.* must be a number from"):
            make(**{field: value})


def test_what_lies_on_the_edge_is_allowed() -> None:
    """The smallest and the largest of everything."""
    assert BreakerRules(1e-9, 1, 1, 1, 1, 1, 1) != BreakerRules(1.0, MOST, MOST, MOST, MOST, MOST, MOST)
    assert BudgetRules(0.0, 1, 1) != BudgetRules(1.0, MOST, MOST)
    assert PoisonRules(1, 1, 1) != PoisonRules(MOST, MOST, MOST)
    assert RateRules(1e-6, 1, 1) != RateRules(1e9, MOST, MOST)
    check_whole("Any", "zero", 0, "things", least=0)
    check_real("Any", "whole", 1, "things", 1, 1)


def test_the_longest_open_time_is_not_below_the_first() -> None:
    """Doubling would shorten it."""
    with pytest.raises(ValueError, match="Breaker: max_open_ms=4999 is below open_ms=5000"):
        BreakerRules(open_ms=5000, max_open_ms=4999)
