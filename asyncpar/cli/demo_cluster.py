"""Where the demo runs: a topic of its own, on the embedded broker or on a cluster that somebody named.

What lives here: making that topic and taking it away again. What never does: records. Called by `demo.py`.
Always: every call to a cluster happens in a thread and is bounded; on a real cluster no topic and no group
but the demo's own is touched, and both are removed at the end.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from asyncpar.adapters import mock_cluster
from asyncpar.errors import (
    AsyncparError,
    AuthenticationError,
    AuthorizationError,
    BrokerUnreachableError,
    ConnectError,
)

PARTITIONS = 8
"""Of the topic on a real cluster; the embedded broker has no choice."""
_ANSWER_SECONDS = 10.0
_NO_RIGHT = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
_NOBODY_THERE = frozenset(
    {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}  # noqa: SLF001 - librdkafka's public names
)
_REFUSED = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})  # noqa: SLF001 - likewise


@dataclass(frozen=True, slots=True)
class Place:
    """Where to produce and to consume."""

    bootstrap_servers: str
    topic: str
    group: str
    partitions: int
    is_embedded: bool

    @property
    def title(self) -> str:
        """In words, for people."""
        where = "the embedded mock cluster" if self.is_embedded else self.bootstrap_servers
        return f"topic {self.topic} ({self.partitions} partitions) on {where}"


@asynccontextmanager
async def embedded() -> AsyncIterator[Place]:
    """A broker inside this process, with a topic. Raises BrokerUnreachableError."""
    name = _name()
    cluster = await asyncio.to_thread(mock_cluster.MockCluster)
    try:
        partitions = await asyncio.to_thread(cluster.create_topic, name)
        yield Place(cluster.bootstrap_servers, name, name, partitions, is_embedded=True)
    finally:
        await asyncio.to_thread(cluster.close)


@asynccontextmanager
async def existing(bootstrap_servers: str, warn: Callable[[str], None]) -> AsyncIterator[Place]:
    """A topic of the demo's own on a real cluster, removed at the end together with the group.

    What cannot be removed is told to `warn`. Raises BrokerUnreachableError, AuthenticationError,
    AuthorizationError, ConnectError.
    """
    name = _name()
    await asyncio.to_thread(_create, bootstrap_servers, name)
    try:
        yield Place(bootstrap_servers, name, name, PARTITIONS, is_embedded=False)
    finally:
        for problem in await asyncio.to_thread(_remove, bootstrap_servers, name):
            warn(problem)


def _name() -> str:
    return f"asyncpar-demo-{uuid.uuid4().hex[:8]}"


def _admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers, "client.id": "asyncpar-demo", "log_level": 0})


def _create(bootstrap_servers: str, name: str) -> None:
    """Make the topic and return when each partition has a leader."""
    try:
        admin = _admin(bootstrap_servers)
        admin.list_topics(timeout=_ANSWER_SECONDS)
        new = NewTopic(name, num_partitions=PARTITIONS)
        _answer(admin.create_topics([new], request_timeout=_ANSWER_SECONDS))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            found = admin.list_topics(timeout=_ANSWER_SECONDS).topics.get(name)
            leaders = [] if found is None else [part.leader for part in found.partitions.values()]
            if len(leaders) == PARTITIONS and min(leaders) >= 0:
                return
            time.sleep(0.05)
    except KafkaException as error:
        raise _translated(error, f"cannot create topic {name} on {bootstrap_servers}") from error
    raise ConnectError(
        f"topic {name} on {bootstrap_servers} has no leaders after {_ANSWER_SECONDS:.0f} s; "
        "look at the cluster's health and remove the topic"
    )


def _remove(bootstrap_servers: str, name: str) -> list[str]:
    """Remove the group and the topic; what could not be removed, one sentence each."""
    problems = []
    admin = _admin(bootstrap_servers)
    group = admin.delete_consumer_groups([name], request_timeout=_ANSWER_SECONDS)
    topic = admin.delete_topics([name], request_timeout=_ANSWER_SECONDS)
    for what, asked in (("group", group), ("topic", topic)):
        try:
            _answer(asked)
        except KafkaException as error:
            # A demo that was stopped early has no group.
            cause: KafkaError = error.args[0]
            if cause.code() != KafkaError.GROUP_ID_NOT_FOUND:
                problems.append(f"{what} {name} could not be removed ({cause.str()}); remove it yourself")
    return problems


def _answer(asked: dict[str, Future[Any]]) -> None:
    for future in asked.values():
        try:
            # librdkafka ends it by the request's timeout; the second bound is for one that it forgot.
            future.result(_ANSWER_SECONDS + 5)
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None  # noqa: SLF001 - a public name


def _translated(error: KafkaException, what: str) -> AsyncparError:
    """The error in our words, with what to do."""
    cause: KafkaError = error.args[0]
    code = cause.code()
    if code in _NO_RIGHT:
        return AuthorizationError(
            f"{what}: no right to create it ({cause.str()}); ask for CREATE on topics asyncpar-demo-*, "
            "or leave --bootstrap-servers out to use the embedded broker"
        )
    if code in _REFUSED:
        return AuthenticationError(f"{what}: {cause.str()}; the demo knows clusters without credentials only")
    if code in _NOBODY_THERE:
        return BrokerUnreachableError(
            f"{what}: no broker answered ({cause.str()}); check the address, "
            "or leave --bootstrap-servers out to use the embedded broker"
        )
    return ConnectError(f"{what}: {cause.str()}; leave --bootstrap-servers out to use the embedded broker")
