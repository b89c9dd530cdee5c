"""The page on pitfalls names tests: each of them exists, and each line names one or says why not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")


def existing_tests() -> set[str]:
    """Names of all test functions of the suite."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.update(
            re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
    return found


def test_every_test_that_the_page_names_exists() -> None:
    """A renamed or removed test turns this red."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - existing_tests() == set()


def test_every_line_names_a_test_or_a_reason() -> None:
    """No pitfall stands there with an empty cell."""
    rows = re.findall(r"^\| (\d+)\. [^|]+\| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 50
    assert all(len(cell) > 20 for _, cell in rows)
