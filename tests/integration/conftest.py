"""Fixtures of the tests on a real broker: member processes, histories, apps with fast settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from asyncpar import App
from asyncpar.testing.history import HistoryFile
from tests.integration.members import FAST, Member
from tests.integration.plan import Plan
from tests.integration.watch import Watch


class MemberFactory(Protocol):
    """`members(plan, bootstrap, group, *arguments, **settings)` starts one more member process."""

    def __call__(
        self, plan: Plan, bootstrap: str, group: str, *arguments: str, **settings: object
    ) -> Member: ...


@pytest.fixture
def members(tmp_path: Path) -> Iterator[MemberFactory]:
    """Starts members; those that still run at the end of the test are killed."""
    started: list[Member] = []

    def start(plan: Plan, bootstrap: str, group: str, *arguments: str, **settings: object) -> Member:
        log = tmp_path / f"member-{len(started) + 1}.log"
        started.append(Member(plan, bootstrap, group, log, *arguments, **settings))
        return started[-1]

    yield start
    for member in started:
        member.kill()


@pytest.fixture
def history_path(tmp_path: Path) -> Path:
    """This test's history, empty so far."""
    path = tmp_path / "history"
    path.touch()
    return path


@pytest.fixture
def watch(history_path: Path) -> Iterator[Watch]:
    """Watches the app that `make_app` is given it for."""
    history = HistoryFile(history_path)
    yield Watch(history, "the app")
    history.close()


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, group_id: str) -> Callable[..., App]:
    """`make_app(bootstrap, **settings)`: an app of group `group_id` that settles fast and serves no HTTP.

    With `watch=` all that it does is in the history.
    """
    monkeypatch.delenv("ASYNCPAR_ENV", raising=False)

    def make(bootstrap: str, watch: Watch | None = None, **settings: object) -> App:
        values: dict[str, object] = {"group": group_id, "http_port": 0, **FAST, **settings}
        if watch is None:
            return App(bootstrap_servers=bootstrap, **values)  # type: ignore[arg-type]
        watch.app = App(bootstrap_servers=bootstrap, consumers=watch.consumers, **values)  # type: ignore[arg-type]
        return watch.app

    return make
