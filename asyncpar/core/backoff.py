"""How long a failed record waits before its next attempt.

Pure: chance comes in as `u`, uniform in [0, 1), from a generator that is seeded once per process
(one re-seeded at each call would give a constant).
"""

from __future__ import annotations


def exp_full_jitter(attempt: int, base_ms: int, max_ms: int, u: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): u * min(max, base * 2^(n-1)).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, "Full Jitter".
    """
    doublings = min(attempt - 1, 62)
    return u * min(max_ms, base_ms * (1 << doublings)) / 1000.0
