"""What a child logs goes to the parent's loggers: sent as plain values, handled there like the parent's own.

Lines are dropped and counted when the parent does not keep up (`FramePipe.has_room`): a handler never waits
for its log. Levels are the parent's at the moment when the child starts.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any, TypeAlias

from asyncpar.executors.lane_failures import plain_text, traceback_text
from asyncpar.executors.lane_frames import FramePipe

Levels: TypeAlias = tuple[int, tuple[tuple[str, int], ...]]
"""Below which nothing is logged at all, and the level of each logger that has one."""

_PLAIN = (str, int, float, bool, type(None))


def present_levels() -> Levels:
    """Those of this process."""
    loggers = [("", logging.root.level)]
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            loggers.append((name, logger.level))
    return logging.root.manager.disable, tuple(loggers)


def send_logs(pipe: FramePipe, levels: Levels) -> None:
    """From now on all that reaches the root logger of this child goes to the parent, and nowhere else.

    A process that the handler forks is none of ours: what it logs would stand in the middle of our frames.
    """
    disabled, loggers = levels
    logging.disable(disabled)
    for name, level in loggers:
        logging.getLogger(name).setLevel(level)
    logging.root.handlers[:] = [_Sender(pipe)]
    os.register_at_fork(after_in_child=logging.root.handlers.clear)


def log_here(values: dict[str, Any]) -> None:
    """Handle what a child logged, in the parent."""
    try:
        record = logging.makeLogRecord(values)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # noqa: BLE001 - a filter of the program's, say: no reply may be lost for it
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()


class _Sender(logging.Handler):
    def __init__(self, pipe: FramePipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send it as plain values; what is none, in `extra`, stays behind."""
        try:
            if self._pipe.has_room():
                self._pipe.offer("log", _values(record))
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - the habit of logging: a line that cannot be written stops nothing
            self.handleError(record)


def _values(record: logging.LogRecord) -> dict[str, object]:
    values: dict[str, object] = {
        name: plain_text(value) if isinstance(value, str) else value
        for name, value in vars(record).items()
        if type(value) in _PLAIN
    }
    values["msg"] = plain_text(record.getMessage())
    values["args"] = None
    values["levelno"] = int(record.levelno)
    if record.exc_info and not record.exc_text:
        error = record.exc_info[1]
        values["exc_text"] = "" if error is None else traceback_text(error)
    return values
