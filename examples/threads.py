"""A library that blocks: a plain `def` runs in a thread, so that nothing on the event loop waits for it.

    asyncpar run examples.threads --group mailer

Failures are retried before the next record of the same key; other keys go on meanwhile.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from asyncpar import Context, Retry, topic

log = logging.getLogger("examples.threads")


def send_mail(address: str) -> None:
    """Stands in for a client library without asyncio, such as smtplib."""
    time.sleep(0.01)
    log.info("mail to %s is out", address)


@topic("mails", name="send", concurrency=16, retry=Retry(base_ms=200, max_ms=60_000))
def send(mail: dict[str, Any], context: Context) -> None:
    """At most 16 mails at a time, each in a thread of this handler's own."""
    if context.attempt > 1:
        context.logger.info("trying again")
    send_mail(str(mail["to"]))
