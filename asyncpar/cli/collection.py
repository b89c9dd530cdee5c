"""The garbage collector of a process that is asyncpar's own.

Lives here: what `asyncpar run` and `asyncpar bench` do to it. Never here: a program that embeds an app, whose
collector is its own (docs/production.md says how it may do the same). Called by `run.live`.

A consumer makes and drops millions of records, which sets the collector off all the time, and each of its
full collections walks over every module, model and function of the program: a third of the cost of a record
whose handler does nothing. What is there once the app has started stays, so it is taken out of the walk; the
youngest generation is looked at after more objects than Python's 700.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

YOUNGEST = 10_000
"""So many new objects set a collection of the youngest generation off."""


@contextmanager
def tuned_collection() -> Iterator[Callable[[], None]]:
    """Yields what to call once the app has started; at the end all is as it was."""
    before = gc.get_threshold()

    def tune() -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNGEST, *before[1:])

    try:
        yield tune
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
