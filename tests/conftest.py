"""Fixtures shared by all tests: a real Kafka, topics and groups of one's own.

What lives here: who gets which broker, and what happens where there is none. What never does: how a broker
is run (`kafka_broker.py`) or talked to (`kafka_tools.py`). Called by pytest. Always: a test that uses one of
these fixtures carries the mark `broker`, and no broker starts before the first test that needs it.

Environment: `ASYNCPAR_TEST_BOOTSTRAP=host:port` names a running broker to use instead of starting one
(tests that kill or freeze it are skipped then); `ASYNCPAR_REQUIRE_BROKER=1` turns a missing broker from a
skip into a failure.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pytest

from tests import kafka_tools
from tests.kafka_broker import KafkaBroker
from tests.kafka_jars import BrokerUnavailable, kafka_home, missing_tools

EXISTING = "ASYNCPAR_TEST_BOOTSTRAP"
REQUIRED = "ASYNCPAR_REQUIRE_BROKER"
_BROKER_FIXTURES = {"broker", "own_broker", "private_broker", "make_topic"}
_skipped_for_want_of_broker = pytest.StashKey[list[str]]()


class Broker(Protocol):
    """What every test may use of a broker: its address."""

    @property
    def bootstrap(self) -> str: ...


class TopicFactory(Protocol):
    """`make_topic(partitions=1, config=None, name="")` gives a new topic, named `name` and more."""

    def __call__(
        self, partitions: int = 1, config: Mapping[str, str] | None = None, name: str = ""
    ) -> str: ...


@dataclass(frozen=True)
class ExistingBroker:
    """A broker that somebody else runs: only its address is ours to use."""

    bootstrap: str


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark and the place where skips for want of a broker are noted."""
    config.addinivalue_line("markers", f"broker: needs a real Kafka (Java and Maven, or {EXISTING})")
    config.stash[_skipped_for_want_of_broker] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a broker fixture, before `-m` looks at marks."""
    for item in items:
        if _BROKER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a `broker` test at once where Kafka cannot run; the first one fetches Kafka's jars."""
    if item.get_closest_marker("broker") is None or _uses_existing(item):
        return
    reason = _why_no_kafka()
    if reason is None:
        return
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"no Kafka broker: {reason} ({REQUIRED}=1 forbids to skip)", pytrace=False)
    item.config.stash[_skipped_for_want_of_broker].append(reason)
    pytest.skip(f"no Kafka broker: {reason}")


def _uses_existing(item: pytest.Item) -> bool:
    names = set(getattr(item, "fixturenames", ()))
    return bool(
        os.environ.get(EXISTING) and names & {"broker", "make_topic"} and "private_broker" not in names
    )


@functools.cache
def _why_no_kafka() -> str | None:
    reason = missing_tools()
    if reason is None:
        try:
            kafka_home()
        except BrokerUnavailable as error:
            reason = str(error)
    return reason


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly that the tests against real Kafka did not run."""
    skipped = config.stash[_skipped_for_want_of_broker]
    if skipped:
        terminalreporter.section("REAL KAFKA TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} skipped ({REQUIRED}=1 makes that a failure): {skipped[0]}")


@pytest.fixture(scope="session")
def _session_broker() -> Iterator[Broker]:
    address = os.environ.get(EXISTING)
    if address:
        yield ExistingBroker(address)
        return
    node = KafkaBroker()
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def broker(_session_broker: Broker) -> Broker:
    """The broker of the whole run, running and awake: started again if a test left it otherwise."""
    if isinstance(_session_broker, KafkaBroker):
        _revive(_session_broker)
    return _session_broker


def _revive(node: KafkaBroker) -> None:
    if node.is_running:
        node.resume()
    else:
        node.start()


@pytest.fixture
def own_broker(broker: Broker) -> Iterator[KafkaBroker]:
    """The broker of the whole run, to be killed, paused or restarted; it is brought back after the test.

    Skips when the broker is somebody else's (`ASYNCPAR_TEST_BOOTSTRAP`). Changed `overrides` would stay: use
    `private_broker` for those.
    """
    if not isinstance(broker, KafkaBroker):
        pytest.skip(f"{EXISTING} is set: that broker is not ours to kill or freeze")
    yield broker
    _revive(broker)


@pytest.fixture
def private_broker() -> Iterator[KafkaBroker]:
    """A fresh broker for one test, started; ready in about 1.5 s. Needs Java also where a broker is given."""
    node = KafkaBroker()
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def make_topic(request: pytest.FixtureRequest) -> Iterator[TopicFactory]:
    """Makes topics, removed after the test: on `private_broker` when the test uses that, else on `broker`."""
    fixture = "private_broker" if "private_broker" in request.fixturenames else "broker"
    node: Broker = request.getfixturevalue(fixture)
    made: list[str] = []

    def make(partitions: int = 1, config: Mapping[str, str] | None = None, name: str = "") -> str:
        topic = f"{name or 'topic'}-{uuid.uuid4().hex[:12]}"
        kafka_tools.create_topic_now(node.bootstrap, topic, partitions=partitions, config=config)
        made.append(topic)
        return topic

    yield make
    if isinstance(node, KafkaBroker):
        if fixture == "private_broker":
            return  # its folder goes as a whole
        _revive(node)
    kafka_tools.delete_topics_now(node.bootstrap, made)


@pytest.fixture
def group_id() -> str:
    """A consumer group's name that nobody else uses."""
    return f"group-{uuid.uuid4().hex[:12]}"
