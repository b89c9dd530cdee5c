"""How a failure is told on stderr: the user's part of the traceback if there is one, then one line.

The last line is always `asyncpar: error: what, where, what to do`; once logs are JSON, it is one of them,
with the traceback inside. Frames of asyncpar are shown only for what is asyncpar's own fault. Called by
`main.py` and `run.py`; returns the exit code that the failure means.
"""

from __future__ import annotations

import logging
import sys
import traceback

from asyncpar.cli.targets import UserCodeError
from asyncpar.cli.tracebacks import innermost_place, user_traceback
from asyncpar.errors import AsyncparError

EXIT_FAILED = 1
log = logging.getLogger("asyncpar.run")


def report(error: BaseException) -> int:
    """Print `error` and return the exit code for it."""
    trace = user_traceback(error.cause) if isinstance(error, UserCodeError) else ""
    if isinstance(error, AsyncparError):
        error_line(str(error), trace)
        return error.exit_code
    summary = _one_line(f"{type(error).__name__}: {error}")
    trace = user_traceback(error)
    if trace:
        error_line(f"{summary}, {innermost_place(error) or 'see above'}; fix it and start again", trace)
    else:
        trace = "".join(traceback.format_exception(error))
        error_line(f"{summary}; this is a fault in asyncpar, please report it with the lines above", trace)
    return EXIT_FAILED


def error_line(message: str, trace: str = "") -> None:
    """Print `trace`, and the one line that every failure ends with."""
    if _logs_are_json():
        log.critical(_one_line(message), extra={"exception": trace} if trace else None)
        return
    sys.stderr.write(trace)
    last_words(f"error: {_one_line(message)}")


def last_words(text: str) -> None:
    """Print one line in asyncpar's name, where the logs go and in their form."""
    if _logs_are_json():
        log.critical(text)
    else:
        print(f"asyncpar: {text}", file=sys.stderr)


def _logs_are_json() -> bool:
    # Not imported for this: whoever has set logging up has loaded it, and `--help` need not.
    logs = sys.modules.get("asyncpar.cli.logs")
    handlers = logging.getLogger().handlers
    return logs is not None and any(isinstance(each.formatter, logs.JsonFormatter) for each in handlers)


def _one_line(text: str) -> str:
    return " ".join(text.split())
