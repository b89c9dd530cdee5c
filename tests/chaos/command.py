"""What the commands of rebalances and soak have in common: a broker of their own, a folder, an exit code.

What lives here: the frame around one run. What never does: what is run. Called by `tests/rebalances` and
`tests/soak`. Always: no broker is left, and no folder but that of a run that found something.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from tests.kafka_broker import BrokerStartError, KafkaBroker
from tests.kafka_jars import BrokerUnavailable, kafka_home, missing_tools

EXIT_FOUND = 1
EXIT_NO_VERDICT = 2
EXIT_INTERRUPTED = 130


class Outcome(Protocol):
    """What a run must say of itself."""

    @property
    def faults_found(self) -> list[str]: ...

    @property
    def void(self) -> str | None: ...


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def conduct(
    name: str, run: Callable[[str, Path], Awaitable[AnyOutcome]], summary: Callable[[AnyOutcome], str]
) -> int:
    """`run(bootstrap, folder)` on a broker of its own, then its summary; the exit code.

    0: nothing found; 1: something; 2: no verdict, because there is no broker or it failed; 130: interrupted.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"asyncpar-{name}-"))
    keep = False
    try:
        reason = missing_tools()
        if reason is not None:
            raise BrokerUnavailable(reason)
        kafka_home()
        outcome = asyncio.run(_on_own_broker(run, folder))
        keep = bool(outcome.faults_found)
        say(summary(outcome))
        if outcome.void is not None:
            return EXIT_NO_VERDICT
        return EXIT_FOUND if keep else 0
    except (BrokerUnavailable, BrokerStartError, OSError) as error:
        say(f"no verdict: {error}")
        return EXIT_NO_VERDICT
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


async def _on_own_broker(run: Callable[[str, Path], Awaitable[AnyOutcome]], folder: Path) -> AnyOutcome:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    broker = KafkaBroker()
    try:
        await asyncio.to_thread(broker.start)
        return await run(broker.bootstrap, folder)
    finally:
        broker.remove()
