"""How `asyncpar dlq` and `produce` reach the cluster: the settings of `asyncpar run`, without an app.

Lives here: the options that both share, reading the settings, opening and closing a reader and a producer.
Never here: what is done with them. Called by `dlq.py` and `produce.py`. Always: what is opened is closed,
within a bound.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncpar.cli.run import run
from asyncpar.errors import SettingError

if TYPE_CHECKING:
    from asyncpar.adapters.aiokafka_reader import AiokafkaReader
    from asyncpar.ports import Producer
    from asyncpar.settings import Settings

log = logging.getLogger("asyncpar.dlq")

CLOSE_SECONDS = 3.0
_SHARED = ("bootstrap_servers", "pairs", "toml", "env_file", "log_level", "log_format")
"""Options of `asyncpar run` that mean the same here."""


def connects(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `asyncpar run` for the cluster; they reach it as `how`."""

    def with_settings(**options: Any) -> Any:
        how = {name: options.pop(name) for name in _SHARED}
        return command(how=how, **options)

    with_settings.__name__, with_settings.__doc__ = command.__name__, command.__doc__
    shared = [parameter for parameter in run.params if parameter.name in _SHARED]
    # Where click's decorators put them, the last one first.
    with_settings.__click_params__ = shared[::-1]  # type: ignore[attr-defined]
    return with_settings


def settings(how: Mapping[str, Any]) -> Settings:
    """The settings that hold, and logging set up as they say. Raises SettingError."""
    # Imported here, so that `--help` does not pay for pydantic.
    from asyncpar.cli import logs
    from asyncpar.settings_sources import load

    toml: Path | None = how["toml"]
    env_file: Path | None = how["env_file"]
    given = {name: how[name] for name in ("bootstrap_servers", "log_level", "log_format")}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in how["pairs"].items():
        if name in given:
            raise SettingError(f"command line: {name} is given twice, by its option and by --set; remove one")
        given[name] = value
    loaded = load(cli=given, env=os.environ, env_file=env_file, toml=toml)
    logs.configure(loaded)
    if not loaded.is_explicit("log_level"):
        logging.getLogger().setLevel(logging.WARNING)
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded.settings


@asynccontextmanager
async def reader(chosen: Settings) -> AsyncIterator[AiokafkaReader]:
    """A reader that has started. Raises ConnectError, ConfigurationError."""
    from asyncpar.adapters.aiokafka_reader import AiokafkaReader
    from asyncpar.assembly import client_config

    one = AiokafkaReader(client_config(chosen))
    try:
        await one.start()
        yield one
    finally:
        await one.stop(CLOSE_SECONDS)


@asynccontextmanager
async def producer(chosen: Settings) -> AsyncIterator[Producer]:
    """A producer that has started. Raises ConnectError, ConfigurationError."""
    from asyncpar.assembly import kafka_producers

    one = kafka_producers(chosen)()
    try:
        await one.start()
        yield one
    finally:
        await one.stop(CLOSE_SECONDS)
