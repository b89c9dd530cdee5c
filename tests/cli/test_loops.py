"""Which event loop a process of asyncpar's own runs on."""

from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop

from asyncpar.cli.loops import runner
from asyncpar.errors import ConfigurationError


@pytest.mark.parametrize(("name", "kind"), [("asyncio", asyncio.SelectorEventLoop), ("uvloop", uvloop.Loop)])
def test_it_is_the_one_that_the_setting_names(name: str, kind: type) -> None:
    """For all that runs in it."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with runner(name) as running:
        assert isinstance(running.run(loop()), kind)


def test_one_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ConfigurationError, match=r"event_loop=uvloop: .* pip install 'asyncpar\[uvloop\]'"):
        runner("uvloop")
