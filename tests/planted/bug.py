"""What a planted bug is: one change of one module's source, and who has to notice.

Imports nothing of asyncpar, which must not be imported before its bug is planted.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


class RottenPatchError(Exception):
    """A bug that does not fit the source any more."""


@dataclass(frozen=True, slots=True)
class Bug:
    """`old` occurs exactly once in `module`; `new` takes its place."""

    name: str
    wrong: str
    """One sentence: what the engine does wrong."""
    module: str
    """Below `asyncpar`."""
    old: str
    new: str
    checks: tuple[str, ...]
    """Each of them is a good reason to fail a life with this bug; one is enough."""

    @property
    def path(self) -> Path:
        """The module's file."""
        return ROOT / "asyncpar" / f"{self.module.replace('.', '/')}.py"

    def planted_in(self, source: str) -> str:
        """`source` with the bug in it. RottenPatchError when its place is not there, or not the only one."""
        found = source.count(self.old)
        if found != 1:
            raise RottenPatchError(
                f"planted bug {self.name}: its text occurs {found} times in {self.path}, not once; "
                f"write it anew for the present source:\n{textwrap.indent(self.old, '    ')}"
            )
        return source.replace(self.old, self.new)
