"""Workload P7's run of pyrallel-consumer, by a Python of its own: `python p7_pyrallel.py TASK`, TASK in JSON.

What lives here: that consumer, set up as its README says, and the wait until it has committed everything.
What never does: judging (`p7.py` reads the journal). Started by `p7.py` with the interpreter of an
environment that has pyrallel-consumer; asyncpar is not there. Always: it stops when all is done or `SECONDS`
are over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pyrallel_consumer import (  # type: ignore[import-not-found]  # noqa: E402 - after the path
    ExecutionMode,
    KafkaConfig,
    OrderingMode,
    PyrallelConsumer,
)

from benchmarks import p7_work  # noqa: E402 - likewise

SECONDS = 120.0
LOOK_SECONDS = 0.5
IN_FLIGHT = 2_000


def handle(item: Any) -> None:
    """A record, in one of its processes."""
    value = item.payload
    p7_work.handle(value.encode() if isinstance(value, str) else value)


async def _run(task: dict[str, Any]) -> None:
    config = KafkaConfig(BOOTSTRAP_SERVERS=[task["bootstrap"]], CONSUMER_GROUP=task["group"])
    config.dlq_enabled = False
    parallel = config.parallel_consumer
    parallel.ordering_mode = OrderingMode.KEY_HASH
    parallel.execution.mode = ExecutionMode.PROCESS
    parallel.execution.max_in_flight = IN_FLIGHT
    parallel.execution.process_config.process_count = task["workers"]
    consumer = PyrallelConsumer(config=config, worker=handle, topic=task["topic"])
    await consumer.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not _is_done(consumer, task["records"]):  # noqa: ASYNC110 - no event
        await asyncio.sleep(LOOK_SECONDS)
    await consumer.stop()


def _is_done(consumer: Any, records: int) -> bool:
    """All records ran, and nothing is left to commit."""
    if any(one.true_lag for one in consumer.get_metrics().partitions):
        return False
    return len(p7_work.entries(Path(os.environ[p7_work.FOLDER]))) >= records


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_run(json.loads(sys.argv[1])))
