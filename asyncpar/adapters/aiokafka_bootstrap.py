"""The first contact with the cluster: somebody answers, lets us in, and has the topics.

Lives here: dialling the bootstrap servers by hand, because the client says only "Unable to bootstrap" and
keeps the reason to its log, and looking topics up without creating them. Never here: the group. Called by
`aiokafka_consumer` while it starts. Always: refused credentials fail at once, silence fails at the deadline.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import ssl
import time
from collections.abc import Collection
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import (
    code_name,
    no_right_on_topic,
    one_line,
    refused_credentials,
)
from asyncpar.adapters.aiokafka_network import ClientNetwork
from asyncpar.errors import (
    AuthenticationError,
    BrokerError,
    BrokerUnreachableError,
    ConfigurationError,
    UnknownTopicError,
)

log = logging.getLogger(__name__)

REDIAL_SECONDS = 0.25
TOPIC_POLL_SECONDS = 1.0
# The first version of Metadata whose sender can forbid the creation of topics (Kafka 0.11).
MODEST_METADATA_VERSION = 4
_TOPIC_UNKNOWN, _LEADER_MISSING, _TOPIC_INVALID, _TOPIC_FORBIDDEN = 3, 5, 17, 29


def unreachable(config: ClientConfig, why: str) -> BrokerUnreachableError:
    """Nobody served us before `startup_timeout_ms` was over."""
    return BrokerUnreachableError(
        f"no usable broker at {config.bootstrap_servers} within {config.startup_timeout_ms} ms ({why}): "
        "check bootstrap_servers and that the brokers run"
    )


def unusable(config: ClientConfig, why: str) -> BrokerUnreachableError:
    """A server answered, but not with what we need, and asking again would bring the same answer."""
    return BrokerUnreachableError(
        f"the cluster at {config.bootstrap_servers} cannot be used ({why}): "
        "see the logs of its brokers, and check that they are Kafka of version 0.11 or newer"
    )


async def reach_a_server(config: ClientConfig, security: dict[str, Any], deadline: float) -> tuple[str, int]:
    """The first bootstrap server that answers a metadata request; others are tried again until `deadline`.

    Raises AuthenticationError at once when no server lets us in and one of them says why, and
    BrokerUnreachableError at the deadline.
    """
    servers = config.servers()
    while True:
        refusal: AuthenticationError | None = None
        reasons: dict[str, str] = {}
        for host, port in servers:
            share = max((deadline - time.monotonic()) / len(servers), 0.5)
            try:
                async with asyncio.timeout(share):
                    await _greet(host, port, config, security)
                return host, port
            except ConfigurationError:
                raise
            except Exception as err:  # noqa: BLE001 - whatever a dial raises, the next server may be better
                server = f"{host}:{port}"
                refusal = refusal or refused_credentials(err, server, config.sasl_mechanism)
                reasons[server] = _why(err, config.security_protocol)
        if refusal is not None:
            raise refusal
        if time.monotonic() + REDIAL_SECONDS >= deadline:
            raise unreachable(config, "; ".join(f"{server}: {why}" for server, why in reasons.items()))
        await asyncio.sleep(REDIAL_SECONDS)


async def _greet(host: str, port: int, config: ClientConfig, security: dict[str, Any]) -> None:
    """Connect, log in and ask for metadata of no topic, then hang up."""
    connection = await create_conn(
        host,
        port,
        client_id=config.client_id,
        request_timeout_ms=config.request_timeout_ms,
        **security,
    )
    try:
        response = await connection.send(MetadataRequest([]))
    finally:
        connection.close()
    if response.API_VERSION < MODEST_METADATA_VERSION:
        raise ConfigurationError(f"the broker at {host}:{port} is too old: Kafka 0.11 or newer is needed")


def _why(error: Exception, protocol: str) -> str:
    """The reason on one line, and what else it may mean: brokers hang up on whom they do not understand."""
    is_tls = "SSL" in protocol
    if is_tls and isinstance(error, ConnectionResetError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return (
            f"hung up on the TLS handshake ({type(error).__name__}), which a port that does not speak TLS "
            f"also does: check security_protocol={protocol}"
        )
    missing = [name for name, is_used in (("TLS", is_tls), ("SASL", "SASL" in protocol)) if not is_used]
    if missing and isinstance(error, KafkaConnectionError):
        return f"{one_line(error)}, which a broker that expects {' or '.join(missing)} also does"
    return one_line(error)


class TopicLookup:
    """Do the topics asked for exist? Never creates one."""

    def __init__(self, network: ClientNetwork, config: ClientConfig) -> None:
        self._network = network
        self._config = config

    async def require(self, topics: Collection[str]) -> None:
        """Return when the cluster has all `topics`.

        Raises UnknownTopicError, which names similar ones, unless `wait_for_topics`: then it waits for them.
        AuthorizationError for a topic that this user may not see, BrokerError when nobody answers.
        """
        said = False
        while topics:
            try:
                missing = await self._missing(topics)
            except BrokerError:
                # Somebody answered a moment ago; while waiting for topics a broker may come and go.
                if not said:
                    raise
                missing = sorted(topics)
            if not missing:
                return
            if not self._config.wait_for_topics:
                raise await self._unknown(missing)
            if not said:
                log.warning(
                    "waiting for %s to be created: the cluster does not have it yet",
                    _names(missing),
                )
                said = True
            await asyncio.sleep(TOPIC_POLL_SECONDS)

    async def _missing(self, topics: Collection[str]) -> list[str]:
        response = await self._ask(sorted(topics))
        codes = {entry[1]: entry[0] for entry in response.topics}
        forbidden = [topic for topic, code in codes.items() if code == _TOPIC_FORBIDDEN]
        if forbidden:
            raise no_right_on_topic(_names(forbidden))
        for topic, code in codes.items():
            if code == _TOPIC_INVALID:
                raise UnknownTopicError(
                    f"topic {topic!r} is no valid name: use letters, digits, '.', '_' and '-'"
                )
            if code not in (0, _TOPIC_UNKNOWN, _LEADER_MISSING):
                raise BrokerError(f"looking topic {topic!r} up failed: the broker answered {code_name(code)}")
        return [topic for topic in sorted(topics) if codes.get(topic, _TOPIC_UNKNOWN) == _TOPIC_UNKNOWN]

    async def _unknown(self, missing: list[str]) -> UnknownTopicError:
        response = await self._ask(None)
        existing = [entry[1] for entry in response.topics if not entry[2]]
        near = sorted({name for topic in missing for name in difflib.get_close_matches(topic, existing, n=2)})
        what, do, it = ("topic", "does", "it") if len(missing) == 1 else ("topics", "do", "them")
        hint = f"create {it}, or wait for {it} with wait_for_topics"
        if near:
            hint = f"did you mean {_names(near)}?"
        return UnknownTopicError(
            f"{what} {_names(missing)} {do} not exist at {self._config.bootstrap_servers}; {hint}"
        )

    async def _ask(self, topics: list[str] | None) -> Any:
        try:
            async with asyncio.timeout(self._config.request_timeout_ms / 1000):
                return await self._network.ask_any(MetadataRequest(topics, allow_auto_topic_creation=False))
        except (KafkaError, TimeoutError, OSError) as err:
            raise BrokerError(f"looking topics up failed: {one_line(err)}") from err


def _names(topics: Collection[str]) -> str:
    return ", ".join(repr(topic) for topic in topics)
