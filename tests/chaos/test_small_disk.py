"""A disk can be filled to the last byte and given back, where mounting is allowed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.chaos.small_disk import SmallDisk, why_no_disk


def test_a_full_disk_takes_nothing_until_it_is_freed(tmp_path: Path) -> None:
    """Filled, not a byte can be written; freed, it can; unmounted, nothing of it is left."""
    reason = why_no_disk()
    if reason is not None:
        pytest.skip(f"no disk can be mounted here: {reason}")
    disk = SmallDisk(tmp_path / "disk", 1)
    disk.mount()
    try:
        disk.fill()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk.path / "file").write_bytes(b"x" * 10_000)
        disk.free()
        (disk.path / "file").write_bytes(b"x" * 10_000)
    finally:
        disk.unmount()
    assert list(disk.path.iterdir()) == []
    disk.unmount()


def test_a_disk_that_cannot_be_mounted_says_why(tmp_path: Path) -> None:
    """An OSError with the command and its reason, on one line."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        SmallDisk(tmp_path / "file" / "disk", 1).mount()
