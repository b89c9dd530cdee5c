"""The garbage collector of a process that is asyncpar's own.

Lives here: what `asyncpar run` and `asyncpar bench` do to it. Never here: a program that embeds an app, whose
collector is its own (docs/embedding.md says how it may do the same). Called by `run.live`.

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
    """Yields what to call once the app has started; at the end all is as it was then.

    A collector that the app has switched off stays off, and a threshold that it has raised higher stays.
    """
    before, frozen_before = gc.get_threshold(), 0
    is_tuned = False

    def tune() -> None:
        nonlocal before, frozen_before, is_tuned
        before, frozen_before, is_tuned = gc.get_threshold(), gc.get_freeze_count(), True
        gc.collect()
        gc.freeze()
        if before[0]:  # 0: the app has switched it off
            gc.set_threshold(max(YOUNGEST, before[0]), *before[1:])

    try:
        yield tune
    finally:
        if is_tuned:
            gc.set_threshold(*before)
            if not frozen_before:  # what the app froze itself cannot be told from the rest
                gc.unfreeze()
