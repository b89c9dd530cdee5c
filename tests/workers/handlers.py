"""The handler that the children of a member run. Each run leaves two lines in the plan's journal.

Imported by `app.py` and by the children, never by tests. A line is one write to a file opened with O_APPEND:
those of several processes never mix, and a kill loses none that was written.
"""

from __future__ import annotations

import hashlib
import os
import time

from asyncpar import Record, Retry, topic
from tests.workers.plan import WorkersPlan

_plan = WorkersPlan.from_environment()
# The member imports this first; its fork server and its children have what is in its environment then.
_member = os.environ.setdefault("ASYNCPAR_TEST_MEMBER", str(os.getpid()))
_journal = os.open(_plan.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _note(what: str, record: Record) -> None:
    key = (record.key or b"").decode()
    fields = (
        what,
        time.monotonic_ns(),
        _member,
        os.getpid(),
        record.partition,
        record.offset,
        key,
        record.attempt,
    )
    os.write(_journal, ("\t".join(map(str, fields)) + "\n").encode())


@topic(
    _plan.topic,
    name="work",
    executor="process",
    retry=Retry(base_ms=_plan.retry_base_ms, max_ms=100),
    dead_letter=_plan.dead_letter,
    on_revoke=_plan.on_revoke,  # type: ignore[arg-type]
)
def work(record: Record) -> None:
    """Take as long as the record says, some of that computing."""
    _note("start", record)
    ends = time.monotonic() + float(record.value or _plan.work_ms) / 1000
    hashlib.sha256(bytes(20_000)).hexdigest()
    time.sleep(max(0.0, ends - time.monotonic()))
    _note("end", record)
