"""When the broker last said that we are a member, and how long a revoke may take because of it.

Pure: times are arguments in `time.monotonic()` seconds. Never here: requests. Called by `aiokafka_private`
(one call per answered Heartbeat or SyncGroup) and read by `aiokafka_consumer`. Always: what counts is when a
request was *sent*, because the broker's clock may have started at any moment after that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OK = 0
REBALANCE_IN_PROGRESS = 27
# What the JoinGroup after a drain may need to reach the broker.
JOIN_MARGIN_SECONDS = 1.0


@dataclass(slots=True)
class MembershipClock:
    """The last good signs of our membership.

    `lease_from` is the send time of the last Heartbeat or SyncGroup answered 0 or 27: the session runs from
    there. `calm` is that of the last one answered 0: no rebalance waited for us then. Both are -inf at first.
    """

    rebalance_timeout_seconds: float
    lease_from: float = -math.inf
    calm: float = -math.inf

    def heard(self, sent: float, code: int) -> None:
        """A Heartbeat or SyncGroup sent at `sent` was answered `code`."""
        if code == OK:
            self.calm = max(self.calm, sent)
        if code in (OK, REBALANCE_IN_PROGRESS):
            self.lease_from = max(self.lease_from, sent)

    def drain_deadline(self) -> float:
        """A revoke that returns by then, final commit included, does not cost us our membership."""
        return self.calm + self.rebalance_timeout_seconds - JOIN_MARGIN_SECONDS
