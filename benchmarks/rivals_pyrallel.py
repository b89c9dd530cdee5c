"""A run of pyrallel-consumer's async mode, by a Python of its own: `python rivals_pyrallel.py topic=t ...`.

What lives here: that consumer, set up as its README says, and the wait until all records ran and are
committed. What never does: judging (`rivals_run.py` reads the journal), its process mode (`p7_pyrallel.py`).
Started by `rivals_run.py` with the interpreter of an environment that has pyrallel-consumer; asyncpar is not
there. Always: it prints at last how its run ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys
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

from benchmarks import work  # noqa: E402 - likewise

COMMIT_LOOKS = 100


async def _run(words: dict[str, str]) -> str:
    config = KafkaConfig(BOOTSTRAP_SERVERS=[words["bootstrap"]], CONSUMER_GROUP=words["group"])
    config.dlq_enabled = False
    parallel = config.parallel_consumer
    parallel.ordering_mode = OrderingMode.KEY_HASH
    parallel.execution.mode = ExecutionMode.ASYNC
    parallel.execution.max_in_flight = int(words["in_flight"])
    run = work.handler(words["work"], work.writer(Path(words["journal"]), int(words["lines"])))
    progress = work.Progress(int(words["records"]), float(words["seconds"]))

    async def handle(item: Any) -> None:
        value = item.payload.encode() if isinstance(item.payload, str) else item.payload
        await run(value)
        progress.did(value)

    consumer = PyrallelConsumer(config=config, worker=handle, topic=words["topic"])
    await consumer.start()
    end = await progress.ended()
    for _ in range(COMMIT_LOOKS if end == work.ALL else 0):
        if not any(one.true_lag for one in consumer.get_metrics().partitions):
            break
        await asyncio.sleep(work.LOOK_SECONDS)
    await consumer.stop()
    return end


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    print(asyncio.run(_run(dict(word.split("=", 1) for word in sys.argv[1:]))))
