"""A run of FastStream, by a Python of its own: `python rivals_faststream.py topic=t group=g ...`.

What lives here: a FastStream app as its documentation shows it, and the wait until all records ran. What
never does: judging (`rivals_run.py` reads the journal). Started by `rivals_run.py` with the interpreter of an
environment that has FastStream; asyncpar is not there. Always: it prints at last how its run ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]  # noqa: E402 - after the path
from faststream.kafka import KafkaBroker  # type: ignore[import-not-found]  # noqa: E402 - likewise

from benchmarks import work  # noqa: E402 - likewise

ACKS = {"first": AckPolicy.ACK_FIRST, "after": AckPolicy.ACK}


async def _run(words: dict[str, str]) -> str:
    quiet = logging.getLogger("faststream")  # its `log_level` is the level at which it logs each record
    quiet.setLevel(logging.ERROR)
    broker = KafkaBroker(words["bootstrap"], logger=quiet)
    app = FastStream(broker, logger=quiet)
    run = work.handler(words["work"], work.writer(Path(words["journal"]), int(words["lines"])))
    progress = work.Progress(int(words["records"]), float(words["seconds"]))

    @broker.subscriber(
        words["topic"],
        group_id=words["group"],
        auto_offset_reset="earliest",
        ack_policy=ACKS[words["ack"]],
        max_workers=int(words.get("workers", 1)),
    )
    async def handle(value: bytes) -> None:
        await run(value)
        progress.did(value)
        if progress.is_late:  # it lets nothing else run as long as it has fetched records: not the end either
            await asyncio.sleep(work.LOOK_SECONDS)

    async def watch() -> str:
        end = await progress.ended()
        app.exit()
        return end

    watching = asyncio.create_task(watch())
    await app.run()
    return await watching


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    print(asyncio.run(_run(dict(word.split("=", 1) for word in sys.argv[1:]))))
