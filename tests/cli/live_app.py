"""A program for `test_run.py`: `asyncpar.cli.run.live` around an app that ends as its argument says.

Prints `running` when it may be signalled. Needs no Kafka: the app is a fake with the five things that the
runner uses of an App.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable

from asyncpar.cli.loops import runner
from asyncpar.cli.run import live
from asyncpar.errors import BrokerUnreachableError, DrainIncompleteError


class FakeApp:
    """Runs until it is stopped; `mode` says how it ends."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self, *, drain_and_exit: bool, on_started: Callable[[], None]) -> None:
        on_started()
        if self.mode == "unreachable":
            raise BrokerUnreachableError(
                "no broker answered at localhost:1 within 20000 ms; check the address"
            )
        if self.mode == "fails":
            fail_in_the_users_code()
        if self.mode == "drained":
            assert drain_and_exit
            return
        if self.mode == "blocked loop":
            say("running")
            threading.Event().wait()
        if self.mode == "swallowing task":
            self.task = asyncio.create_task(swallow(), name="stubborn")
        if self.mode == "stuck thread":
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        await asyncio.sleep(0)
        say("running")
        await self.asked.wait()
        say("stopping")
        if self.mode == "long":
            await self.cancelled.wait()
            raise DrainIncompleteError("1 record was not finished; it runs again after a restart")

    def stop(self, *, now: bool = False) -> None:
        self.asked.set()
        if now:
            self.cancelled.set()

    def unfinished(self) -> tuple[str, ...]:
        return ("bill at orders[0] offset 7",) if self.mode == "unfinished" else ()


def say(text: str) -> None:
    """Tell the test where the program is."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fail_in_the_users_code() -> None:
    """What a lifespan of the user does when its database is down."""
    raise ValueError("no database")


async def swallow() -> None:
    """A task that does not end when it is cancelled."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def main() -> int:
    """The exit code that `live` came to."""
    return await live(FakeApp(sys.argv[1]), drain_and_exit=sys.argv[1] == "drained", tune_gc=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    with runner(sys.argv[2]) as loop:
        code = loop.run(main())
    sys.exit(code)
