"""The app of a member with child processes: `python -m asyncpar run tests.workers.app:app`.

Never imported by tests, nor by children. Always: it dies with the process that started it, however that one
ends, and its children with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from asyncpar import App
from asyncpar.assembly import Rigging
from asyncpar.testing.history import HistoryFile
from asyncpar.testing.witness import note_departure
from tests.integration.watch import Watch
from tests.workers import handlers
from tests.workers.plan import WorkersPlan

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

_watch = Watch(HistoryFile(WorkersPlan.from_environment().history), str(os.getpid()))
_watch.app = app = App(consumers=_watch.consumers)
app._rigging = Rigging(
    _watch.consumers,
    departed=lambda _group, departure: note_departure(_watch.history, _watch.member, departure),
)
app.include(handlers.work)
