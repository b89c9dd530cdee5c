"""What the tests of the benchmarks share: nobody asks whether a broker is there where none is needed."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from benchmarks import harness


@pytest.fixture(autouse=True)
def broker_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are made up take an address at which nobody is."""
    monkeypatch.setattr(harness, "AdminClient", Mock())
