"""What the members of both runs are told: where to work, where to die, and how to fail.

What lives here: plain data and plain functions. What never does: Kafka, processes, clocks. Called by the
members and by what hires them. Always: both sides compute the same from the same plan.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple
from zlib import crc32

from tests.chaos.plan import SETTINGS as SHORT_SETTINGS

SESSION_TIMEOUT_MS = 10_000
"""Long: on a busy machine nobody may be taken for dead who was not killed."""
SETTINGS: dict[str, Any] = {**SHORT_SETTINGS, "session_timeout_ms": SESSION_TIMEOUT_MS}
ATTEMPTS = 2
MEMBER = "x-test-member"
"""The header in which a dead letter says which process wrote it."""

# -- kills ---------------------------------------------------------------------------------------

STEPS = ("failed", "publishing", "acknowledged", "committing", "committed")
"""What becomes of a record that fails for good: an attempt, the send, its answer, the commit, its answer."""
_LATEST = {"failed": 40, "publishing": 25, "acknowledged": 25, "committing": 4, "committed": 4}
LONGEST_DELAY_MS = 20.0


class Aim(NamedTuple):
    """A member dies when it comes to `step` for the `nth` time, or `delay_ms` after it.

    Without a delay it stands still at that step until it is killed: nothing of the next step has begun.
    """

    step: str
    nth: int
    delay_ms: float | None


def aim_of(seed: int, number: int) -> Aim:
    """Where the kill with this `number`, from 0, strikes. Each step comes once in every five."""
    block, place = divmod(number, len(STEPS))
    step = random.Random(f"steps {seed} {block}").sample(STEPS, len(STEPS))[place]
    chance = random.Random(f"aim {seed} {number}")
    nth = chance.randint(1, _LATEST[step])
    return Aim(step, nth, None if chance.random() < 1 / 2 else chance.uniform(0, LONGEST_DELAY_MS))


@dataclass(frozen=True)
class KillPlan:
    """One life. Of the members m1, m2, ... the first `times` are killed; they write into `told` when."""

    name: str
    bootstrap: str
    group: str
    topic: str
    history: str
    told: str
    seed: int
    times: int

    @property
    def aim(self) -> Aim | None:
        """Where it dies; None: it lives on."""
        number = int(self.name[1:]) - 1
        return aim_of(self.seed, number) if number < self.times else None

    def to_argument(self) -> str:
        """For the member's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> KillPlan:
        """In the member."""
        return cls(**json.loads(text))


def is_bad(value: bytes | None) -> bool:
    """Every fifth record fails whenever it runs; which ones, their values decide."""
    return crc32(value or b"") % 5 == 0


# -- an outage -----------------------------------------------------------------------------------

Policy = Literal["breaker", "budget"]


@dataclass(frozen=True)
class Shape:
    """How long an outage lasts, what comes before and after, and the numbers of the two policies.

    `settle_seconds` after the return work has to run at full speed again, which is judged for
    `after_seconds`. `at_least` is the number of the dead-letter budget, per member and `window_ms`.
    """

    outage_seconds: float
    calm_seconds: float = 15.0
    settle_seconds: float = 10.0
    after_seconds: float = 10.0
    open_ms: int = 5_000
    max_open_ms: int = 10_000
    at_least: int = 20
    window_ms: int = 30_000
    per_second: int = 200
    keys: int = 60


@dataclass(frozen=True)
class OutagePlan:
    """One of the members whose handler calls the service on `port`. `http_ports` are theirs, by name."""

    name: str
    bootstrap: str
    group: str
    topic: str
    history: str
    port: int
    policy: Policy
    shape: Shape
    http_ports: Mapping[str, int]

    def to_argument(self) -> str:
        """For the member's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> OutagePlan:
        """In the member."""
        found = json.loads(text)
        return cls(**{**found, "shape": Shape(**found["shape"])})
