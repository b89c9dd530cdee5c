"""How a failure is told on stderr: the user's part of the traceback if there is one, then one line.

The last line is always `asyncpar: error: what, where, what to do`. Frames of asyncpar are shown only for
what is asyncpar's own fault. Called by `main.py` and `run.py`; returns the exit code that the failure means.
"""

from __future__ import annotations

import sys
import traceback

from asyncpar.cli.targets import UserCodeError
from asyncpar.cli.tracebacks import innermost_place, user_traceback
from asyncpar.errors import AsyncparError

EXIT_FAILED = 1


def report(error: BaseException) -> int:
    """Print `error` and return the exit code for it."""
    if isinstance(error, UserCodeError):
        sys.stderr.write(user_traceback(error.cause))
    if isinstance(error, AsyncparError):
        error_line(str(error))
        return error.exit_code
    summary = _one_line(f"{type(error).__name__}: {error}")
    trace = user_traceback(error)
    if trace:
        sys.stderr.write(trace)
        error_line(f"{summary}, {innermost_place(error) or 'see above'}; fix it and start again")
    else:
        traceback.print_exception(error)
        error_line(f"{summary}; this is a fault in asyncpar, please report it with the lines above")
    return EXIT_FAILED


def error_line(message: str) -> None:
    """Print the one line that every failure ends with."""
    print(f"asyncpar: error: {_one_line(message)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
