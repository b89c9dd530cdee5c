"""Async tests on virtual time: hours of time-outs cost nothing, and a test that hangs fails at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from asyncpar.testing.virtual_time import VirtualLoop, run_virtually

MAX_STEPS = 1_000_000


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on virtual time."""

    def run() -> None:
        run_virtually(test, max_steps=MAX_STEPS)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def loop() -> VirtualLoop:
    """The running virtual loop."""
    return cast(VirtualLoop, asyncio.get_running_loop())


def now() -> float:
    """The virtual time."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until `condition` holds, for `seconds` of virtual time at most."""
    deadline = now() + seconds
    while not condition():
        assert now() < deadline, f"the condition did not come true in {seconds} s"
        await asyncio.sleep(0.01)
