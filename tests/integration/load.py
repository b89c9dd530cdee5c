"""A steady load: records keep coming for as long as a test needs them, never far ahead of the handlers.

Called by tests in which members come and go. Always: bounded, in records ahead and in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests import kafka_tools
from tests.integration.waiting import ended_calls

BATCH = 400
AHEAD = 2000
MOST = 60_000
_LOOK_SECONDS = 0.03


@asynccontextmanager
async def load(
    bootstrap: str, topic: str, history: Path, keys: int
) -> AsyncIterator[list[kafka_tools.Produced]]:
    """Inside, records of `keys` keys are produced as they are handled; yields the growing list of them."""
    produced: list[kafka_tools.Produced] = []
    enough = asyncio.Event()

    async def produce() -> None:
        while not enough.is_set() and len(produced) < MOST:
            if len(produced) - ended_calls(history) < AHEAD:
                produced.extend(await kafka_tools.produce(bootstrap, topic, kafka_tools.keyed(BATCH, keys)))
            else:
                await asyncio.sleep(_LOOK_SECONDS)

    producing = asyncio.create_task(produce())
    try:
        yield produced
    finally:
        enough.set()
        await producing
