"""What a member process is told to do, as one environment variable.

What lives here: `Plan`, both ends of the variable. What never does: Kafka and processes. Called by tests,
which write plans, and by `member_app.py`, which reads one. Always: whatever is passed is plain data, so that
a test reads like the description of a run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "ASYNCPAR_TEST_PLAN"


@dataclass(frozen=True)
class Plan:
    """What the handler of a member does with the records of `topic`.

    `work_ms`: how long an ordinary record takes. Offsets with a habit of their own: `stuck` wait until the
    file `<history>.release` exists, `failing` raise until then, `deaf` never end and swallow cancellation,
    `sleepers` block their thread for good (`threads`: the handler is a plain function).
    """

    topic: str
    history: str
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
        return Path(f"{self.history}.release")

    def to_environment(self) -> dict[str, str]:
        """For the member's environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Plan:
        """In the member."""
        return cls(**json.loads(os.environ[VARIABLE]))
