"""Rate limits: when the next call may start. They hold work back and never fail it.

Never here: timers, or who waits. Called by workers before a call starts. A call that needs a token of two
buckets asks both with `wait`, and takes from both only when both say 0.0: what one bucket gave is not given
back. Always true: in any span of t seconds at most `burst + per_second * t` tokens are taken. Tokens
are counted whole from the moment when the bucket was last full, so nothing drifts, in days or in years.
Source: the token bucket, as in RFC 2697.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from asyncpar.core.rule_checks import check_real, check_whole
from asyncpar.core.window import seconds_until

_NEVER = float("-inf")
_DROPPED_PER_TAKE = 2


@dataclass(frozen=True, slots=True)
class RateRules:
    """`per_second` tokens (0.000001 to 1e9; 0.1 is one in ten seconds), of which `burst` may pile up.

    A burst of 1 spaces calls evenly, and loses what a late wake-up loses: a caller that looks every t seconds
    reaches a rate of R with a burst of R * t or more. `max_keys`: see `KeyedBuckets`. Raises ValueError for
    values out of range.
    """

    per_second: float
    burst: int
    max_keys: int = 10_000

    def __post_init__(self) -> None:
        owner = "RateLimit"
        check_real(owner, "per_second", self.per_second, "calls per second", 1e-6, 1e9)
        check_whole(owner, "burst", self.burst, "calls at once")
        check_whole(owner, "max_keys", self.max_keys, "keys")


class TokenBucket:
    """Full at first. Times are monotonic seconds; a clock that goes back gives no tokens."""

    __slots__ = ("_full_at", "_taken", "rules")

    def __init__(self, rules: RateRules) -> None:
        self.rules = rules
        self._full_at = _NEVER
        """When it was full last; since then `_taken` left."""
        self._taken = 0

    def wait(self, now: float) -> float:
        """Seconds until a token is there, 0.0: now. Takes nothing; `take` right after a 0.0 gets it."""
        missing = self._taken + 1 - self.rules.burst
        if missing <= 0:
            return 0.0
        return seconds_until(self._full_at + missing / self.rules.per_second, now)

    def take(self, now: float) -> float:
        """0.0: a token was taken. Else seconds until one is there, and nothing was taken."""
        wait = self.wait(now)
        if wait > 0.0:
            return wait
        if now > self._refilled_at():
            # Later than full: what would have come since is lost. At that very moment (somebody slept for
            # `wait` after each token) going on from there would round every interval by itself.
            self._full_at, self._taken = now, 1
        else:
            self._taken += 1
        return 0.0

    def is_full(self, now: float) -> bool:
        """True when it is as good as new."""
        return now >= self._refilled_at()

    def _refilled_at(self) -> float:
        return self._full_at + self._taken / self.rules.per_second


class KeyedBuckets:
    """A bucket for each key that took a token lately; one that is full again is forgotten.

    At most `max_keys` are kept. When so many are in use, the one that was taken from longest ago is
    forgotten early, counted in `forgotten_early`: its key may pass its rate by what the bucket missed, at
    most a burst. (To hold new keys back instead would make of the memory's bound a rate limit for all.)
    """

    __slots__ = ("_buckets", "forgotten_early", "rules")

    def __init__(self, rules: RateRules) -> None:
        self.rules = rules
        self.forgotten_early = 0
        """Buckets dropped for want of room; a growing number asks for more `max_keys`."""
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()
        """The one taken from longest ago first."""

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, key: Hashable, now: float) -> float:
        """As `TokenBucket.wait`."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.wait(now)

    def take(self, key: Hashable, now: float) -> float:
        """As `TokenBucket.take`."""
        buckets = self._buckets
        bucket = buckets.get(key)
        if bucket is not None:
            wait = bucket.take(now)
            if wait == 0.0:
                buckets.move_to_end(key)
            return wait
        self._drop_full(now, _DROPPED_PER_TAKE)
        if len(buckets) >= self.rules.max_keys:
            buckets.popitem(last=False)
            self.forgotten_early += 1
        buckets[key] = bucket = TokenBucket(self.rules)
        return bucket.take(now)

    def forget_full(self, now: float) -> None:
        """Free the memory of keys that are not seen any more; `take` does it too, a few at a time."""
        self._drop_full(now, len(self._buckets))

    def _drop_full(self, now: float, most: int) -> None:
        """From the front, which is full at the latest a burst's time after it was used."""
        for _ in range(min(most, len(self._buckets))):
            if not next(iter(self._buckets.values())).is_full(now):
                return
            self._buckets.popitem(last=False)
