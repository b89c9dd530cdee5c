"""What the bridge of one handler counts, and the snapshot of it that metrics are made of.

Plain integers and histograms, touched once per batch or more rarely. Never here: metric names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from asyncpar.metrics import Histogram, SecondsHistogram

KillReason: TypeAlias = Literal["timeout", "cancelled", "stuck", "close"]
"""Why a child was ended by us: a record over its time, a cancelled one that ran, no sign of life, our end."""
Blame: TypeAlias = Literal["crash", "timeout"]
"""What a record did to the child that ran it; each costs the record an attempt."""


@dataclass(frozen=True, slots=True)
class BridgeStatistics:
    """The bridge of one handler at one moment. Counters never fall."""

    lanes: int
    """Children that are ready."""
    busy: int
    """Those of them that have a batch."""
    pending: int
    """Records that wait for a lane."""
    batch_sizes: Mapping[int, int]
    """How many batches were sent, by their number of records."""
    transit_seconds: Histogram
    """From sending a batch to its reply, without the handler's time; of batches that no other held up."""
    handler_seconds: Histogram
    """What the handler took for a batch."""
    restarts: int
    """Lanes that were replaced because their child had died."""
    recycled: int
    """Lanes that were replaced because their child had run its `max_tasks_per_child`."""
    failed_starts: int
    kills: Mapping[KillReason, int]
    blamed: Mapping[Blame, int]


@dataclass(slots=True)
class Counters:
    """What is counted, as it changes."""

    batch_sizes: dict[int, int] = field(default_factory=dict)
    transit_seconds: SecondsHistogram = field(default_factory=SecondsHistogram)
    handler_seconds: SecondsHistogram = field(default_factory=SecondsHistogram)
    restarts: int = 0
    recycled: int = 0
    failed_starts: int = 0
    kills: dict[KillReason, int] = field(
        default_factory=lambda: {"timeout": 0, "cancelled": 0, "stuck": 0, "close": 0}
    )
    blamed: dict[Blame, int] = field(default_factory=lambda: {"crash": 0, "timeout": 0})

    def snapshot(self, *, lanes: int, busy: int, pending: int) -> BridgeStatistics:
        """The counts of this moment."""
        return BridgeStatistics(
            lanes=lanes,
            busy=busy,
            pending=pending,
            batch_sizes=dict(self.batch_sizes),
            transit_seconds=self.transit_seconds.snapshot(),
            handler_seconds=self.handler_seconds.snapshot(),
            restarts=self.restarts,
            recycled=self.recycled,
            failed_starts=self.failed_starts,
            kills=dict(self.kills),
            blamed=dict(self.blamed),
        )
