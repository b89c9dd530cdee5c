"""What a handler may raise takes what it can honour, and says what it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpar.errors import RetryAfter


def test_a_delay_is_a_number_of_milliseconds() -> None:
    """Whole or not, as it comes out of a header that counts seconds; its text is the default message."""
    assert [RetryAfter(delay_ms=delay).delay_ms for delay in (0, 250, 1.5 * 1000)] == [0, 250, 1500.0]
    assert str(RetryAfter(delay_ms=1500.0)) == "again in 1500 ms"
    assert str(RetryAfter("busy", delay_ms=1)) == "busy"


@pytest.mark.parametrize("delay", [-1, -0.5, float("nan"), float("inf"), 10**400, True, "5", None])
def test_a_delay_that_cannot_be_waited_for_is_refused(delay: Any) -> None:
    """In the handler, as an ordinary failure of it: not where the record is parked."""
    with pytest.raises(ValueError, match="RetryAfter: delay_ms=.* must be a number of milliseconds from"):
        RetryAfter(delay_ms=delay)
