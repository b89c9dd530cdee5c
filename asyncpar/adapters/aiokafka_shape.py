"""The shape of aiokafka that we lean on, by name, and a check that it is there.

Lives here: the version that asyncpar was tested with and the names of the parts. Never here: a use of any of
them. Called by `aiokafka_consumer` (`check_client`), `aiokafka_private` and `aiokafka_network`
(`require_parts`). Always: what is missing is named in a ConfigurationError before anything connects.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import aiokafka
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState

from asyncpar.errors import ConfigurationError

TESTED_MINOR = "0.14."

_CLASSES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        AIOKafkaConsumer,
        ("start", "stop", "getmany", "seek", "pause", "resume", "subscribe"),
    ),
    (
        AIOKafkaClient,
        (
            "_get_conn",
            "coordinator_lookup",
            "send",
            "ready",
            "set_topics",
            "force_metadata_update",
        ),
    ),
    (AIOKafkaClient, ("close", "get_random_node", "_metadata_update")),
    (AIOKafkaConnection, ("send", "close")),
    (
        GroupCoordinator,
        (
            "_send_req",
            "start_commit_offsets_refresh_task",
            "coordinator_dead",
            "request_rejoin",
        ),
    ),
    (GroupCoordinator, ("ensure_coordinator_known", "check_errors")),
    (
        SubscriptionState,
        (
            "subscribe_pattern",
            "abort_waiters",
            "assigned_partitions",
            "reassignment_in_progress",
            "wait_for_assignment",
        ),
    ),
    (TopicPartitionState, ("has_valid_position", "position")),
)
_PARTS: dict[type, tuple[str, ...]] = {
    AIOKafkaConsumer: ("_client", "_subscription", "_fetcher", "_coordinator"),
    AIOKafkaClient: ("_conns", "cluster", "_sync_task", "_bootstrap_servers"),
    AIOKafkaConnection: ("_request_timeout", "_writer"),
    SubscriptionState: ("_fetch_count", "_last_fetch_ended", "subscription", "topics"),
    TopicPartitionState: ("highwater", "lso"),
    Fetcher: (
        "_records",
        "_fetch_task",
        "_pending_tasks",
        "_fetch_max_wait_ms",
        "_fetch_max_bytes",
        "_max_partition_fetch_bytes",
        "_get_actions_per_node",
    ),
    GroupCoordinator: (
        "generation",
        "member_id",
        "coordinator_id",
        "_coordination_task",
        "_heartbeat_task",
        "_group_subscription",
        "_group_instance_id",
    ),
}


def check_client() -> None:
    """Raise ConfigurationError, naming what does not fit, unless the installed client is one we know."""
    version = aiokafka.__version__
    if not version.startswith(TESTED_MINOR):
        raise ConfigurationError(
            f"aiokafka {version} is installed, but asyncpar knows {TESTED_MINOR}x only: "
            "pip install 'aiokafka>=0.14,<0.15'"
        )
    for owner, names in _CLASSES:
        _require(owner, owner.__name__, names)
    if inspect.iscoroutinefunction(AIOKafkaConnection.send):
        raise _does_not_fit(
            "AIOKafkaConnection.send is a coroutine, so a request's own time-out cannot be set"
        )


def _require(thing: object, owner: str, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(thing, name):
            raise _does_not_fit(f"{owner} has no {name!r}")


def require_parts(thing: object) -> None:
    """Raise ConfigurationError unless `thing` is one of the client's objects and has the parts we use."""
    for owner, names in _PARTS.items():
        if isinstance(thing, owner):
            _require(thing, owner.__name__, names)
            return
    raise _does_not_fit(f"{type(thing).__name__} stands where asyncpar expects another object")


def _does_not_fit(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"aiokafka {aiokafka.__version__} does not fit: {what}; "
        "install the version that asyncpar was tested with"
    )
