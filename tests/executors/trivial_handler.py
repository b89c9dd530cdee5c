"""Handlers that need nothing: what their child holds beside them is ours. One sets up logging, as some do."""

import logging
import multiprocessing
import sys

from asyncpar import topic

if multiprocessing.parent_process() is not None:
    logging.basicConfig(force=True)


@topic("t", name="modules")
def modules(names: str) -> None:
    """Fails with those of `names` that are imported."""
    raise ValueError(" ".join(name for name in names.split() if name in sys.modules))


@topic("t", name="logs")
def logs(_value: bytes) -> None:
    """One line."""
    logging.getLogger("tests.child").warning("to the parent")
