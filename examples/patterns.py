"""Many topics, one handler: a pattern, with other handlers for the topics that need their own.

    asyncpar run examples.patterns --group auditors

A topic's whole name must match. An exact name wins over a pattern, and topics that appear later are read
from their beginning.
"""

from __future__ import annotations

import logging
from typing import Any

from asyncpar import Record, topic

log = logging.getLogger("examples.patterns")


@topic(pattern=r"audit-.*")
async def audit(event: dict[str, Any], record: Record) -> None:
    """Every audit topic but those below."""
    log.info("%s: %s", record.topic, event.get("what"))


@topic("audit-payments", order="partition")
async def audit_payments(event: dict[str, Any]) -> None:
    """One record of a partition at a time, whatever its key: the auditors want the log's order."""
    log.info("payment audited: %s", event.get("what"))
