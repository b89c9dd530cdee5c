"""What the fork server runs before it makes children: it imports what they need, so that they start fast.

The server's own preloading does not know the parent's `sys.path`, where `--app-dir` stands, and it ends when
a module raises; here such a module is left to the children, which say what is wrong. What to import comes
in the environment, because a fork server takes nothing else. Imported by the fork server only, by its name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys

from asyncpar.executors.lane_child import PRELOAD_VARIABLE

_wanted = json.loads(os.environ.pop(PRELOAD_VARIABLE))
sys.path[:] = _wanted["path"]
for _name in _wanted["modules"]:
    with contextlib.suppress(Exception, SystemExit):
        importlib.import_module(_name)
