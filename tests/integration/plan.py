"""What a member process is told to do, as one environment variable, and the ledger of what it did.

What lives here: `Plan` (both ends of the variable) and `Recorder` (a ledger that also notes new generations).
What never does: Kafka and processes. Called by tests, which write plans, and by `member_app.py`, which reads
one. Always: whatever is passed is plain data, so that a test reads like the description of a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from asyncpar import Record
from tests.ledger import Ledger

VARIABLE = "ASYNCPAR_TEST_PLAN"


@dataclass(frozen=True)
class Plan:
    """What the handler of a member does with the records of `topic`.

    `work_ms`: how long an ordinary record takes. Offsets with a habit of their own: `stuck` wait until the
    file `<ledger>.release` exists, `failing` raise until then, `deaf` never end and swallow cancellation,
    `sleepers` block their thread for good (`threads`: the handler is a plain function).
    """

    topic: str
    ledger: str
    work_ms: float = 2.0
    concurrency: int = 50
    attempts: int | None = None
    threads: bool = False
    stuck: tuple[int, ...] = ()
    failing: tuple[int, ...] = ()
    deaf: tuple[int, ...] = ()
    sleepers: tuple[int, ...] = ()

    @property
    def release(self) -> Path:
        """The file whose existence lets the stuck go on and the failing succeed."""
        return Path(f"{self.ledger}.release")

    def to_environment(self) -> dict[str, str]:
        """For the member's environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Plan:
        """In the member."""
        return cls(**json.loads(os.environ[VARIABLE]))


class Recorder:
    """Writes calls into `ledger`, and `assign` when a partition is first handled in a new generation.

    That makes a step back in a key's order a replay only where asyncpar began anew, once per generation.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._generations: dict[tuple[str, int], int] = {}

    @contextmanager
    def handling(self, record: Record) -> Iterator[None]:
        """Around a handler's body."""
        place = (record.topic, record.partition)
        if self._generations.get(place) != record.generation:
            self._generations[place] = record.generation
            self.ledger.assigned(*place, 0)
        with self.ledger.handling(*place, record.offset, record.key):
            yield
