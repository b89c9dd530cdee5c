"""What a member with child processes is told, as one environment variable: its children have it too.

Pure data. Read by `app.py` and `handlers.py`, written by those who start members.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

VARIABLE = "ASYNCPAR_TEST_WORKERS"


@dataclass(frozen=True)
class WorkersPlan:
    """A record takes as many milliseconds as its value says, `work_ms` where it is empty.

    `history`: what the member's consumer did; `journal`: what its children did.
    """

    topic: str
    history: str
    journal: str
    work_ms: float = 2.0
    retry_base_ms: int = 20
    dead_letter: str | None = None
    on_revoke: str = "cancel"

    def to_environment(self) -> dict[str, str]:
        """For the member's environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> WorkersPlan:
        """In the member, and in its children."""
        return cls(**json.loads(os.environ[VARIABLE]))
