"""The member of a soak as a process: `python -m tests.soak.member PLAN`. Says each moment how it is.

Run by `soaking.py` through `tests.chaos.crew`, never imported. Its settings are the defaults: what is soaked
is what people run. Ends with 0 after a clean stop, 10 when that left work unfinished, 1 for anything else.
Always: it dies with the process that started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from asyncpar import App, Record
from asyncpar.errors import DrainIncompleteError
from tests.chaos.plan import EXIT_UNFINISHED, READY
from tests.soak.ledger import Ledger
from tests.soak.plan import SoakPlan, Vitals, work_seconds


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _vitals(ledger: Ledger) -> Vitals:
    return Vitals(
        time.monotonic(), len(asyncio.all_tasks()), ledger.handled, ledger.fault_count, ledger.faults
    )


async def _tell(file: TextIO, ledger: Ledger, every_seconds: float) -> None:
    try:
        while True:
            file.write(_vitals(ledger).to_line())
            await asyncio.sleep(every_seconds)
    finally:
        file.write(_vitals(ledger).to_line())


async def run(plan: SoakPlan, file: TextIO) -> int:
    """Until SIGTERM; the exit code."""
    ledger = Ledger()
    app = App(bootstrap_servers=plan.bootstrap, group=plan.group, http_port=plan.http_port)

    @app.topic(plan.topic)
    async def work(record: Record) -> None:
        with ledger.handling(record.partition, record.offset, record.key):
            await asyncio.sleep(work_seconds(record.partition, record.offset))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop)
    telling = asyncio.create_task(_tell(file, ledger, plan.vitals_seconds))
    try:
        await app.run(on_started=lambda: _say(READY))
    except DrainIncompleteError as error:
        _say(f"unfinished: {error}")
        return EXIT_UNFINISHED
    finally:
        telling.cancel()
        await asyncio.wait([telling])
    return 0


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        sys.exit("the process that started this member is gone")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    given = SoakPlan.from_argument(sys.argv[1])
    with Path(given.vitals).open("a", encoding="utf-8", buffering=1) as opened:
        code = asyncio.run(run(given, opened))
    sys.exit(code)
