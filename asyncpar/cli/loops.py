"""The event loop of a process that is asyncpar's own, as the setting `event_loop` says.

Never here: a program that embeds an app, which runs on the loop that it makes. Called by `run.py` and
`bench.py` before anything is connected.
"""

from __future__ import annotations

import asyncio

from asyncpar.errors import ConfigurationError


def runner(event_loop: str) -> asyncio.Runner:
    """What runs a coroutine on that loop; to be entered. ConfigurationError where it is not installed."""
    if event_loop == "asyncio":
        return asyncio.Runner()
    try:
        import uvloop
    except ImportError as error:
        raise ConfigurationError(
            f"event_loop=uvloop: {error}; pip install 'asyncpar[uvloop]', or leave event_loop out"
        ) from None
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
