"""Running `python -m asyncpar` (or a script) as its users do, in a folder of its own, bounded in time.

Used by the tests of the command line; knows nothing of Kafka.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BOUND_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that start with the program's error mark."""
        return [line for line in self.err.splitlines() if line.startswith("asyncpar: error: ")]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of asyncpar, plus `variables`; imports find this tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCPAR_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}


def asyncpar(folder: Path, *arguments: str, **variables: str) -> Ended:
    """`asyncpar ARGUMENTS` run in `folder` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncpar", *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Python modules by path without `.py`, with their text, below `folder`."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
