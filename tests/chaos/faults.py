"""What may happen to a running group: the kinds of faults, and an endless series of them from a seed.

What lives here: plain data. What never does: signals, sockets, brokers (`striking.py`). Called by `round.py`.
Always: the same seed gives the same series, and within a lane every kind comes equally often.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MEMBER_KINDS = ("kill", "freeze", "nap", "starve", "term", "join")
"""A member: kill -9; stopped for longer than its session (a zombie wakes up); stopped for less; given a tenth
of its time; SIGTERM; one more begins."""

NETWORK_KINDS = ("cut", "refuse", "delay", "slow link", "half-open", "stalled requests", "stalled answers")
"""The way to a broker: connections reset; nobody listens; every chunk late; few bytes a second; bytes vanish
without a close; one direction stands still (with stalled answers the outcome of requests is not known)."""

BROKER_KINDS = (
    "broker kill",
    "broker restart",
    "broker pause",
    "rolling restart",
    "coordinator kill",
    "disk full",
)
"""A broker: kill -9 and back; stopped in order and back; frozen for longer than its session; all of them
stopped in order and back, one by one; kill -9 of the group's coordinator, back when another one took over; no
byte left for its log."""

NEEDS_SEVERAL_BROKERS = frozenset({"rolling restart", "coordinator kill"})


class Fault(NamedTuple):
    """One fault to come: `seconds` long where it lasts, `pause` seconds before it begins.

    `luck` in [0, 1) picks the victim; `share` of the connections meet a fault of the network; `is_aimed` at
    the group's coordinator; `strength` in [0, 1) says how bad it is.
    """

    kind: str
    pause: float
    seconds: float
    luck: float
    share: float
    is_aimed: bool
    strength: float


class Pace(NamedTuple):
    """How long the pause before a fault is, at least and at most, in seconds."""

    least: float
    most: float


STORM, LIVELY, CALMER = Pace(0.2, 0.6), Pace(0.3, 1.2), Pace(1.0, 3.0)

_SECONDS = {
    "freeze": (1.8, 4.0),
    "nap": (0.2, 1.2),
    "starve": (0.8, 3.0),
    "refuse": (0.3, 3.0),
    "delay": (0.5, 3.0),
    "slow link": (0.5, 3.0),
    "half-open": (0.8, 5.0),
    "stalled requests": (0.3, 3.0),
    "stalled answers": (0.3, 3.0),
    "broker kill": (0.2, 2.5),
    "broker pause": (2.2, 5.0),
    "coordinator kill": (0.2, 1.5),
}


def series(seed: str, kinds: Sequence[str], pace: Pace) -> Iterator[Fault]:
    """Faults of `kinds` without end: all kinds in a random order, then all of them again in another."""
    chance = random.Random(seed)
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            yield Fault(
                kind,
                pause=chance.uniform(*pace),
                seconds=chance.uniform(*_SECONDS.get(kind, (0.0, 0.0))),
                luck=chance.random(),
                share=chance.choice((1.0, 1.0, 0.5)),
                is_aimed=chance.random() < 0.5,
                strength=chance.random(),
            )


def pace_of(seed: str) -> Pace:
    """How fast faults of members follow each other in the round with this seed."""
    return random.Random(f"pace {seed}").choice((STORM, LIVELY, LIVELY, CALMER))
