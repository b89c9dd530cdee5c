"""The user's own part of a traceback, for errors that their code raised.

Leaves out the frames of asyncpar and of the machinery around it (importlib, asyncio, contextlib, click),
also in chained exceptions. Frames of the standard library, and of what asyncpar stands on, are shown where
the user's code called it; alone they are no code of the user. Called by `targets.py` and `reports.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import click


def _folders(paths: Iterable[str | Path]) -> tuple[str, ...]:
    return tuple(f"{path}{os.sep}" for path in paths)


_OURS = Path(__file__).parent.parent
_MACHINERY = (
    *_folders(Path(str(module.__file__)).parent for module in (asyncio, importlib, click)),
    *_folders([_OURS]),
    str(contextlib.__file__),
    "<frozen ",
)
_SITES = _folders({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_CLIENT = ("aiokafka", "anyio", "confluent_kafka", "dotenv")
_STOOD_ON = (*_CLIENT, "prometheus_client", "pydantic", "rich", "starlette", "uvicorn")
_LIBRARIES = (*_folders(f"{site}{name}" for site in _SITES for name in _STOOD_ON), "<string>")
_STANDARD = _folders({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = (
    *_SITES,
    *_folders(f"{folder}{name}" for folder in _STANDARD for name in ("site-packages", "dist-packages")),
)


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` without machinery; "" when none of it is the user's.

    A SyntaxError shows its file, line and caret, which are the user's although no frame is.
    """
    found = traceback.TracebackException.from_exception(error)
    has_frames = _keep_outer_frames(found, set())
    if not has_frames and not isinstance(error, SyntaxError):
        return ""
    return "".join(found.format())


def _keep_outer_frames(found: traceback.TracebackException, seen: set[int]) -> bool:
    """Drop machinery, here and in what is chained; True when a user's frame is left."""
    if id(found) in seen:
        return False
    seen.add(id(found))
    kept = [frame for frame in found.stack if not frame.filename.startswith(_MACHINERY)]
    found.stack = traceback.StackSummary.from_list(kept)
    chained = [found.__cause__, found.__context__, *(getattr(found, "exceptions", None) or ())]
    below = [_keep_outer_frames(each, seen) for each in chained if each is not None]
    return any(_is_users(frame.filename) for frame in kept) or any(below)


def innermost_place(error: BaseException) -> str:
    """`file:line` of the innermost frame of the user's code in `error`, or ""."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_as_written(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{_as_written(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _is_users(file: str) -> bool:
    """True for a file that is neither asyncpar's, nor the standard library's, nor of what asyncpar needs."""
    if file.startswith((*_MACHINERY, *_LIBRARIES)):
        return False
    # Packages are installed below the standard library: an app of the user may be one of them.
    return file.startswith(_INSTALLED) or not file.startswith(_STANDARD)


def _as_written(file: str) -> str:
    """A path as its user would write it: without the current folder."""
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file
