"""The pytest plugin: fixtures `kafka_app` and `memory_broker`, and the flag `--asyncpar-bootstrap`.

    async def test_an_order_is_billed(kafka_app) -> None:
        async with kafka_app(app) as kafka:
            await kafka.send("orders", {"customer": "alice", "cents": 250})
            await kafka.settled()

pytest loads it in every project that has asyncpar installed: nothing is imported before a test asks for a
fixture. The fixtures are not async, so they work with any plugin that runs async tests on asyncio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pytest

if TYPE_CHECKING:
    from asyncpar.testing.app import TestApp
    from asyncpar.testing.memory_broker import MemoryBroker
    from asyncpar.testing.rig import Target

_FLAG = "--asyncpar-bootstrap"
_OPTION = "asyncpar_bootstrap"
_MOST_PORT = 65_535


class KafkaApp(Protocol):
    """What the fixture `kafka_app` is: makes a `TestApp`, with the same arguments."""

    def __call__(
        self,
        target: Target | Sequence[Target],
        *,
        partitions: Mapping[str, int] | None = None,
        broker: MemoryBroker | None = None,
        bootstrap_servers: str | None = None,
        env: Mapping[str, str] | None = None,
        toml: Path | str | None = None,
        unsettled: Literal["raise", "ignore"] = "raise",
        **settings: object,
    ) -> TestApp:
        """A `TestApp` that has not started."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the flag."""
    parser.getgroup("asyncpar").addoption(
        _FLAG,
        dest=_OPTION,
        metavar="HOST:PORT",
        help="run the tests that use kafka_app on this Kafka instead of the broker in memory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an address that is none, once and not in every test."""
    bootstrap: str | None = config.getoption(_OPTION)
    if bootstrap is None:
        return
    for address in bootstrap.split(","):
        host, colon, port = address.strip().rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port) <= _MOST_PORT
        if not (colon and host and is_port) or any(map(str.isspace, host)):
            raise pytest.UsageError(
                f"{_FLAG}={bootstrap}: {address!r} is no address; give host:port, or several by commas"
            )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say where tests run, when it is not in memory."""
    bootstrap = config.getoption(_OPTION)
    return [f"asyncpar: kafka_app runs on {bootstrap}"] if bootstrap else []


@pytest.fixture
def memory_broker() -> MemoryBroker:
    """A Kafka in memory, for one test: to make it fail, or to let several apps share it.

    A test that asks for it runs its `kafka_app`s on it, whatever the flag says.
    """
    from asyncpar.testing.memory_broker import MemoryBroker

    return MemoryBroker()


@pytest.fixture
def kafka_app(request: pytest.FixtureRequest) -> KafkaApp:
    """Makes `TestApp`s: in memory, or on the Kafka of `--asyncpar-bootstrap`."""
    from asyncpar.testing.app import TestApp

    flag: str | None = request.config.getoption(_OPTION)
    own: MemoryBroker | None = None
    if "memory_broker" in request.fixturenames:
        own = request.getfixturevalue("memory_broker")

    def make(
        target: Target | Sequence[Target],
        *,
        broker: MemoryBroker | None = None,
        bootstrap_servers: str | None = None,
        **options: object,
    ) -> TestApp:
        if bootstrap_servers is None:
            broker = broker or own
            bootstrap_servers = flag if broker is None else None
        return TestApp(target, broker=broker, bootstrap_servers=bootstrap_servers, **options)  # type: ignore[arg-type]

    return make
