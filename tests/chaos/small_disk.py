"""A disk of a few hundred megabytes for a broker's log folder, to be filled to the last byte.

What lives here: a tmpfs, mounted, filled, freed and unmounted. What never does: brokers. Called by
`cluster.py`. Always: what was mounted is unmounted when the process ends, unless that one is killed.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

_TIMEOUT_SECONDS = 10.0
_FILLER = "filler"


class SmallDisk:
    """`mebibytes` of tmpfs at `path`, which is made if need be."""

    def __init__(self, path: Path, mebibytes: int = 256) -> None:
        self.path = path
        self._mebibytes = mebibytes

    def mount(self) -> None:
        """OSError when this machine or this user may not mount."""
        self.path.mkdir(parents=True, exist_ok=True)
        size = f"size={self._mebibytes}m,mode=755"
        _run("mount", "-t", "tmpfs", "-o", size, "asyncpar-chaos", str(self.path))
        _mounted.append(self)

    def unmount(self) -> None:
        """Also when somebody still has a file open there. Does nothing when it is not mounted."""
        if self in _mounted:
            _mounted.remove(self)
            _run("umount", "--lazy", str(self.path))

    def fill(self) -> None:
        """Take all that is free; to be called again as long as others free some."""
        free = os.statvfs(self.path)
        if not free.f_bavail:
            return
        file = os.open(self.path / _FILLER, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with suppress(OSError):  # somebody else took a page in between: then it is full as well
                os.posix_fallocate(file, os.fstat(file).st_size, free.f_bavail * free.f_frsize)
        finally:
            os.close(file)

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.path / _FILLER).unlink(missing_ok=True)


def why_no_disk() -> str | None:
    """Why no small disk can be had here, as one line; None when it can."""
    with tempfile.TemporaryDirectory(prefix="asyncpar-chaos-") as folder:
        disk = SmallDisk(Path(folder) / "disk", 1)
        try:
            disk.mount()
            disk.unmount()
        except OSError as error:
            return str(error)
    return None


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"`{command[0]}` did not end within {_TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")


_mounted: list[SmallDisk] = []


@atexit.register
def _unmount_all() -> None:
    for disk in _mounted:
        with suppress(OSError):
            disk.unmount()
