"""How long a failed record waits before its next attempt: five ways to grow.

Pure: chance comes in as `u`, uniform in [0, 1), from a generator that is seeded once per process
(one re-seeded at each call would give a constant). Always true: a delay is at least 0 and at most
`max_ms`, for every attempt from 1 up, however many there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

Backoff: TypeAlias = Callable[[int, int, int, float], float]
"""`(attempt, base_ms, max_ms, u) -> seconds`; `attempt` is the number of the one that failed, from 1."""


def fixed(_attempt: int, base_ms: int, max_ms: int, _u: float) -> float:
    """Seconds to wait after any failed attempt: min(max, base).

    Records that failed together come back together.
    """
    return min(max_ms, base_ms) / 1000.0


def linear(attempt: int, base_ms: int, max_ms: int, _u: float) -> float:
    """Seconds to wait after failed attempt number n: min(max, base * n)."""
    return min(max_ms, base_ms * attempt) / 1000.0


def exponential(attempt: int, base_ms: int, max_ms: int, _u: float) -> float:
    """Seconds to wait after failed attempt number n: min(max, base * 2^(n-1)).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, before it adds jitter.
    """
    return exp_full_jitter(attempt, base_ms, max_ms, 1.0)


def exp_full_jitter(attempt: int, base_ms: int, max_ms: int, u: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): u * min(max, base * 2^(n-1)).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, "Full Jitter".
    """
    doublings = min(attempt - 1, 62)
    return u * min(max_ms, base_ms * (1 << doublings)) / 1000.0


def exp_equal_jitter(attempt: int, base_ms: int, max_ms: int, u: float) -> float:
    """Seconds to wait after failed attempt number n: half + u * half, of the exponential delay.

    So no retry is immediate. Source: as above, "Equal Jitter".
    """
    half = exponential(attempt, base_ms, max_ms, u) / 2
    return half + u * half


BACKOFFS: Mapping[str, Backoff] = {
    "fixed": fixed,
    "linear": linear,
    "exponential": exponential,
    "exp_full_jitter": exp_full_jitter,
    "exp_equal_jitter": exp_equal_jitter,
}
"""By the names that a declaration and the settings use."""
