"""The numbers that the runtime works with, taken from the settings by the app. Units in the names."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncpar.core.backpressure import Limits


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """One group's knobs; the settings of the same names document them."""

    limits: Limits = field(default_factory=lambda: Limits(5000, None, 64 * 1024 * 1024, 500))
    offset_reset: str = "earliest"
    session_timeout_ms: int = 10_000
    commit_every: int = 2_000
    commit_interval_ms: int = 1_000
    max_revoke_grace_ms: int = 5_000
    shutdown_drain_timeout_ms: int = 30_000
    max_blocking_duration_ms: int = 60_000
    on_blocked: str = "warn"
    request_timeout_ms: int = 5_000
    """Bound of one commit or offset request."""
