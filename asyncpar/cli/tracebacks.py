"""The user's own part of a traceback, for errors that their code raised.

Leaves out the frames of asyncpar and of the machinery below it (importlib, asyncio, contextlib), also
in chained exceptions. Called by `main.py` before it prints its one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import traceback
from pathlib import Path

_FOLDERS = (Path(asyncio.__file__).parent, Path(importlib.__file__).parent, Path(__file__).parent.parent)
_MACHINERY = (*(f"{folder}{os.sep}" for folder in _FOLDERS), contextlib.__file__, "<frozen ")


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` with the user's frames only; "" when none of it is theirs.

    A SyntaxError shows its file, line and caret, which are the user's although no frame is.
    """
    found = traceback.TracebackException.from_exception(error)
    has_frames = _keep_user_frames(found, set())
    if not has_frames and not isinstance(error, SyntaxError):
        return ""
    return "".join(found.format())


def _keep_user_frames(found: traceback.TracebackException, seen: set[int]) -> bool:
    """Drop all other frames, here and in what is chained; True when a user's frame is left."""
    if id(found) in seen:
        return False
    seen.add(id(found))
    kept = [frame for frame in found.stack if not frame.filename.startswith(_MACHINERY)]
    found.stack = traceback.StackSummary.from_list(kept)
    chained = [found.__cause__, found.__context__, *(getattr(found, "exceptions", None) or ())]
    below = [_keep_user_frames(each, seen) for each in chained if each is not None]
    return bool(kept) or any(below)


def innermost_place(error: BaseException) -> str:
    """`file:line` of the innermost frame of the user's code in `error`, or ""."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_as_written(error.filename)}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_MACHINERY)
    ]
    return f"{_as_written(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _as_written(file: str) -> str:
    """A path as its user would write it: without the current folder."""
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file
