"""The fork server imports what children need, from where the parent has it; what raises is left to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncpar.executors.lane import lanes
from asyncpar.executors.lane_child import PRELOAD_VARIABLE
from tests.executors.lane_rig import SECONDS, work

ROOT = Path(__file__).parents[2]
COUNTED = """
import os
from pathlib import Path

if os.getpid() != int(os.environ["PARENT"]):
    with Path(os.environ["IMPORTS"]).open("a") as file:
        file.write(f"{__name__} {os.getpid()}\\n")
    if "RAISE" in os.environ:
        raise RuntimeError("not in a child")
"""
HANDLER = """
from asyncpar import topic

@topic("t", name="handle")
def handle(value: bytes) -> None:
    pass
"""
PROGRAM = """
import asyncio, os, sys

if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())

import elsewhere
from asyncpar.executors.lane import ChildWork, lanes
from asyncpar.executors.lane_port import LaneStartError

async def main():
    make = lanes(ChildWork("handling", "handle", "handle", "g"), "forkserver")
    for _ in range(2):
        lane = make(print, print)
        try:
            await lane.start()
        except LaneStartError as error:
            print(error)
        else:
            print("child", lane.pid)
            await lane.close(10)

if __name__ == "__main__":
    asyncio.run(main())
"""


def _run(tmp_path: Path, program: str, **environment: str) -> tuple[list[str], list[list[str]]]:
    """What the program printed, and which modules were imported by which other processes."""
    imports = tmp_path / "imports"
    (tmp_path / "elsewhere.py").write_text(COUNTED)
    (tmp_path / "handling.py").write_text(COUNTED + HANDLER)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "IMPORTS": str(imports), **environment},
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), [line.split() for line in imports.read_text().splitlines()]


def test_modules_outside_of_the_working_folder_are_imported_once(tmp_path: Path) -> None:
    """By the fork server, the handler's as well as what the program imports: no child does it again."""
    printed, imports = _run(tmp_path, PROGRAM)
    children = [line.removeprefix("child ") for line in printed]
    assert len(set(children)) == 2
    assert sorted(name for name, _ in imports) == ["elsewhere", "handling"]
    ((server,),) = [{pid for _, pid in imports}]
    assert server not in children


def test_a_module_that_raises_is_told_of_by_the_children(tmp_path: Path) -> None:
    """The fork server lives on; each child tries again, and says what it got."""
    printed, imports = _run(tmp_path, PROGRAM.replace("import elsewhere\n", ""), RAISE="1")
    line = "did not start: importing handling.handle raised RuntimeError: not in a child"
    assert all(line in one for one in printed)
    assert len(printed) == 2
    assert len(imports) == 3


def test_what_is_no_text_in_the_search_path_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may put a Path there: imports pass over it, and a start does not fail for it."""
    searched = sys.path.copy()
    monkeypatch.setattr(sys, "path", [*searched, Path("folder")])
    lanes(work(), "forkserver")
    assert json.loads(os.environ[PRELOAD_VARIABLE])["path"] == searched
