"""Plants a bug while its module is imported: a meta path finder before all others.

Only in a process of its own, and before anything of asyncpar is imported: a module that was imported already
would keep its old functions in the hands of others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType

from tests.planted.bug import Bug


class _PlantingLoader(SourceFileLoader):
    """Compiles the changed source; compiled files of the true one are neither read nor written."""

    def __init__(self, bug: Bug, fullname: str) -> None:
        super().__init__(fullname, str(bug.path))
        self._bug = bug

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode("utf-8")
        code: CodeType = self.source_to_code(self._bug.planted_in(source).encode("utf-8"), self.path)
        return code


class _PlantingFinder(MetaPathFinder):
    """Finds one module."""

    def __init__(self, bug: Bug) -> None:
        self._bug = bug
        self._fullname = f"asyncpar.{bug.module}"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._fullname:
            return None
        loader = _PlantingLoader(self._bug, fullname)
        return spec_from_file_location(fullname, self._bug.path, loader=loader)


def plant(bug: Bug) -> None:
    """From here on the engine has `bug`. RuntimeError when it has been imported already."""
    early = sorted(name for name in sys.modules if name.partition(".")[0] == "asyncpar")
    if early:
        raise RuntimeError(f"planted bug {bug.name}: {early[0]} was imported before it could be planted")
    sys.meta_path.insert(0, _PlantingFinder(bug))
