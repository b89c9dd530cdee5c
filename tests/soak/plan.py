"""What the member of a soak is told, and what it says about itself.

What lives here: plain data, both ends of it. What never does: Kafka, processes, clocks. Called by
`member.py`, which reads a plan and writes vitals, and by `soaking.py` and `sampling.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from zlib import crc32


@dataclass(frozen=True)
class SoakPlan:
    """One member process. `vitals` is the file in which it says how it is, every `vitals_seconds`."""

    name: str
    bootstrap: str
    group: str
    topic: str
    http_port: int
    vitals: str
    vitals_seconds: float = 0.25

    def to_argument(self) -> str:
        """For the member's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> SoakPlan:
        """In the member."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Vitals:
    """What nobody can see from outside. `at`: time.monotonic() seconds.

    `handled`: records whose handler has ended well, by partition. `faults`: the first things that must not
    happen, of `fault_count` in all.
    """

    at: float
    tasks: int
    handled: dict[int, int]
    fault_count: int
    faults: list[str]

    @property
    def total(self) -> int:
        """Handled in all."""
        return sum(self.handled.values())

    def to_line(self) -> str:
        """One line of the file of vitals."""
        return f"{json.dumps(asdict(self))}\n"

    @classmethod
    def from_line(cls, text: str) -> Vitals:
        """The other end of it."""
        found = json.loads(text)
        found["handled"] = {int(number): count for number, count in found["handled"].items()}
        return cls(**found)


def work_seconds(partition: int, offset: int) -> float:
    """How long the record at this place is waited for: 1 to 5 ms."""
    return 0.001 + crc32(b"%d %d" % (partition, offset)) % 1000 * 0.000_004
