"""The series of faults: repeatable, and fair to every kind."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from tests.chaos.cluster import ChaosCluster
from tests.chaos.crew import Crew
from tests.chaos.faults import (
    BROKER_KINDS,
    LIVELY,
    MEMBER_KINDS,
    NEEDS_SEVERAL_BROKERS,
    NETWORK_KINDS,
    pace_of,
    series,
)
from tests.chaos.striking import Striker

ALL_KINDS = (*MEMBER_KINDS, *NETWORK_KINDS, *BROKER_KINDS)


def test_a_seed_repeats_its_series() -> None:
    """The same seed gives the same faults and the same pace, another seed others."""
    first, again, other = (list(islice(series(seed, ALL_KINDS, LIVELY), 50)) for seed in ("1", "1", "2"))
    assert first == again
    assert first != other
    assert pace_of("1") == pace_of("1")


def test_every_kind_comes_equally_often() -> None:
    """After any whole number of turns each kind came as often as every other."""
    kinds = Counter(fault.kind for fault in islice(series("1", ALL_KINDS, LIVELY), 5 * len(ALL_KINDS)))
    assert kinds == dict.fromkeys(ALL_KINDS, 5)


def test_faults_stay_within_their_bounds() -> None:
    """Pauses are those of the pace, a zombie sleeps longer than its session, a nap is shorter."""
    for fault in islice(series("1", ALL_KINDS, LIVELY), 500):
        assert LIVELY.least <= fault.pause <= LIVELY.most
        assert 0 <= fault.luck < 1
        if fault.kind == "freeze":
            assert fault.seconds > 1.5
        if fault.kind == "nap":
            assert fault.seconds < 1.5


def test_every_kind_can_strike() -> None:
    """Each kind of the series has its method, and each method its kind."""
    cluster: ChaosCluster = None  # type: ignore[assignment]
    crew: Crew = None  # type: ignore[assignment]
    assert set(Striker(cluster, crew)._kinds) == set(ALL_KINDS)
    assert set(BROKER_KINDS) > NEEDS_SEVERAL_BROKERS


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_no_kind_is_two(kind: str) -> None:
    """A name stands for one kind only, so that figures mean what they say."""
    assert ALL_KINDS.count(kind) == 1
