"""`MembershipClock`: what extends the lease and what moves the drain's deadline."""

from __future__ import annotations

import math

import pytest

from asyncpar.adapters.aiokafka_lease import JOIN_MARGIN_SECONDS, MembershipClock


def test_nothing_heard_means_no_lease() -> None:
    """Before the first answer there is neither a lease nor time to drain."""
    clock = MembershipClock(10.0)
    assert (clock.lease_from, clock.drain_deadline()) == (-math.inf, -math.inf)


def test_answer_0_extends_both() -> None:
    """An answer without error counts from the moment its request was sent."""
    clock = MembershipClock(10.0)
    clock.heard(100.0, 0)
    assert clock.lease_from == 100.0
    assert clock.drain_deadline() == 110.0 - JOIN_MARGIN_SECONDS


def test_answer_27_extends_the_lease_only() -> None:
    """While the group rebalances we are still a member, but the time to drain runs."""
    clock = MembershipClock(10.0)
    clock.heard(100.0, 0)
    clock.heard(103.0, 27)
    assert clock.lease_from == 103.0
    assert clock.drain_deadline() == 110.0 - JOIN_MARGIN_SECONDS


@pytest.mark.parametrize("code", [15, 16, 22, 25, 82])
def test_refusals_extend_nothing(code: int) -> None:
    """A member that the broker does not know has no lease to extend."""
    clock = MembershipClock(10.0)
    clock.heard(100.0, code)
    assert clock.lease_from == -math.inf


def test_time_never_goes_back() -> None:
    """An answer that arrives late does not undo a newer one."""
    clock = MembershipClock(10.0)
    clock.heard(100.0, 0)
    clock.heard(90.0, 0)
    assert (clock.lease_from, clock.calm) == (100.0, 100.0)
