"""What an aiokafka consumer is configured with: `ClientConfig`, checked when it is made.

Lives here: the fields, what is derived from them, and which of the client's own options a user may set.
Never here: TLS files (`aiokafka_security`), anything that connects. Called by the app, which fills the
fields from its settings, and by `aiokafka_consumer`. Always: a secret is in no repr and in no message.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from aiokafka import AIOKafkaConsumer
from aiokafka.conn import collect_hosts
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from asyncpar.errors import ConfigurationError

# The broker's clock starts at another member's JoinGroup, which we hear of at our next heartbeat; the
# final commit and our own JoinGroup must fit in as well.
REBALANCE_SLACK_MS = 2000
# A request must outlive the rebalance that the broker may be busy with.
REQUEST_SLACK_MS = 5000

_ASSIGNORS = {
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
}

# Options of the client that would break a law of asyncpar, or that a setting of ours owns: name, and why.
_REFUSED = {
    "enable_auto_commit": "asyncpar commits only what is done",
    "auto_commit_interval_ms": "asyncpar commits only what is done; set commit_interval_ms",
    "key_deserializer": "a record that does not decode would lose others; decode in the handler (decoder=)",
    "value_deserializer": "a record that does not decode would lose others; decode in the handler (decoder=)",
    "auto_offset_reset": "the client could skip records silently; set offset_reset",
    "max_poll_records": "each fetch carries its own limit; set poll_batch_size",
    "group_id": "set group",
    "bootstrap_servers": "set bootstrap_servers itself",
    "client_id": "set client_id itself",
    "group_instance_id": "set group_instance_id itself",
    "isolation_level": "set isolation_level itself",
    "session_timeout_ms": "the lease depends on it; set session_timeout_ms itself",
    "heartbeat_interval_ms": "set heartbeat_interval_ms itself",
    "rebalance_timeout_ms": "it follows from max_revoke_grace_ms",
    "request_timeout_ms": "it follows from max_revoke_grace_ms",
    "metadata_max_age_ms": "set metadata_max_age_ms itself",
    "fetch_max_wait_ms": "set fetch_max_wait_ms itself",
    "fetch_min_bytes": "set fetch_min_bytes itself",
    "max_partition_fetch_bytes": "set max_partition_fetch_bytes itself",
    "security_protocol": "set security_protocol itself",
    "ssl_context": "set ssl_cafile, ssl_certfile and ssl_keyfile",
    "sasl_mechanism": "set sasl_mechanism itself",
    "sasl_plain_username": "set sasl_username",
    "sasl_plain_password": "set sasl_password",
    "sasl_oauth_token_provider": "set sasl_oauth_token_provider itself",
    "loop": "the running loop is used",
    "api_version": "versions are negotiated",
}


@dataclass(frozen=True)
class ClientConfig:
    """How to reach the cluster and how to be a member of a group. Times in ms, sizes in bytes.

    `rebalance_timeout_ms` and `request_timeout_ms` follow from the others. `client_options` reaches
    `AIOKafkaConsumer` as it is. Raises ConfigurationError when a value does not fit.
    """

    bootstrap_servers: str = "localhost:9092"
    client_id: str = "asyncpar"
    group_instance_id: str | None = None
    isolation_level: str = "read_committed"
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 3_000
    max_revoke_grace_ms: int = 5_000
    metadata_max_age_ms: int = 30_000
    startup_timeout_ms: int = 20_000
    wait_for_topics: bool = False
    fetch_max_wait_ms: int = 500
    fetch_min_bytes: int = 1
    max_partition_fetch_bytes: int = 1024 * 1024
    client_records: bool = False
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    sasl_oauth_token_provider: object | None = field(default=None, repr=False)
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_key_password: str | None = field(default=None, repr=False)
    ssl_check_hostname: bool = True
    client_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.isolation_level not in ("read_committed", "read_uncommitted"):
            raise ConfigurationError(
                f"isolation_level is {self.isolation_level!r}: use read_committed or read_uncommitted"
            )
        self.servers()
        check_client_options(self.client_options)

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long the broker waits for us to give partitions back once another member wants to join."""
        return self.max_revoke_grace_ms + self.heartbeat_interval_ms + REBALANCE_SLACK_MS

    @property
    def request_timeout_ms(self) -> int:
        """How long any request but JoinGroup may take."""
        return self.rebalance_timeout_ms + REQUEST_SLACK_MS

    def servers(self) -> list[tuple[str, int]]:
        """`(host, port)` of each bootstrap server. Raises ConfigurationError when one is malformed."""
        try:
            found = [(host, port) for host, port, _ in collect_hosts(self.bootstrap_servers, randomize=False)]
        except ValueError:
            found = []
        if not found or not all(host for host, _ in found):
            raise ConfigurationError(
                f"bootstrap_servers is {self.bootstrap_servers!r}: give host:port, or several by commas"
            )
        return found


def check_client_options(options: Mapping[str, object]) -> None:
    """Refuse what breaks a law, what a setting of ours owns, and what the client does not know."""
    known = set(inspect.signature(AIOKafkaConsumer.__init__).parameters) - {
        "self",
        "topics",
    }
    for name in options:
        if name in _REFUSED:
            raise ConfigurationError(f"client_options[{name!r}] is not allowed: {_REFUSED[name]}")
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known - set(_REFUSED)), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"client_options[{name!r}] is no option of AIOKafkaConsumer{hint}")
    if "partition_assignment_strategy" in options:
        _assignor(options["partition_assignment_strategy"])


def _assignor(wish: object) -> type:
    """The one assignor asked for: its class, or "range" or "roundrobin", alone or in a sequence of one."""
    one = wish
    if isinstance(wish, list | tuple) and len(wish) == 1:
        one = wish[0]
    if isinstance(one, str):
        one = _ASSIGNORS.get(one.lower())
    for allowed in _ASSIGNORS.values():
        if one is allowed:
            return cast(type, allowed)
    # Sticky keeps its state per class and never learns the generation; two assignors double the joins.
    raise ConfigurationError(
        f"client_options['partition_assignment_strategy'] is {wish!r}: "
        "use exactly one of 'range' and 'roundrobin'"
    )


def consumer_options(config: ClientConfig, group: str) -> dict[str, Any]:
    """The arguments of `AIOKafkaConsumer`, without those of TLS and SASL."""
    options: dict[str, Any] = dict(config.client_options)
    strategy = _assignor(options.pop("partition_assignment_strategy", "roundrobin"))
    options.update(
        bootstrap_servers=config.bootstrap_servers,
        client_id=config.client_id,
        group_id=group,
        group_instance_id=config.group_instance_id,
        isolation_level=config.isolation_level,
        session_timeout_ms=config.session_timeout_ms,
        heartbeat_interval_ms=config.heartbeat_interval_ms,
        rebalance_timeout_ms=config.rebalance_timeout_ms,
        request_timeout_ms=config.request_timeout_ms,
        metadata_max_age_ms=config.metadata_max_age_ms,
        fetch_max_wait_ms=config.fetch_max_wait_ms,
        fetch_min_bytes=config.fetch_min_bytes,
        max_partition_fetch_bytes=config.max_partition_fetch_bytes,
        partition_assignment_strategy=(strategy,),
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    return options
