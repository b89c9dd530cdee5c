"""From settings to the parts that work with them: the runtime's numbers, and the client's consumers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncpar.core.backpressure import Limits
from asyncpar.ports import ConsumerFactory, Producer, ProducerFactory
from asyncpar.runtime.config import RuntimeConfig
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.outbox import Departure
from asyncpar.settings import Settings

if TYPE_CHECKING:
    from asyncpar.adapters.aiokafka_config import ClientConfig


class Rigging(NamedTuple):
    """What groups run with; `asyncpar.testing` puts its own in place. None: aiokafka's adapters.

    `watch(group, handler)` may return one like it whose calls are seen; `departed(group, departure)` hears of
    records that another topic has acknowledged.
    """

    consumers: ConsumerFactory | None = None
    producers: ProducerFactory | None = None
    watch: Callable[[str, Handler], Handler] = lambda _group, handler: handler
    departed: Callable[[str, Departure], None] = lambda _group, _departure: None


def runtime_config(settings: Settings) -> RuntimeConfig:
    """The numbers of `settings` that a group's runtime works with."""
    return RuntimeConfig(
        limits=Limits(
            settings.max_in_flight,
            settings.max_in_flight_per_partition,
            settings.max_in_flight_bytes,
            settings.poll_batch_size,
        ),
        offset_reset=settings.offset_reset,
        session_timeout_ms=settings.session_timeout_ms,
        commit_every=settings.commit_every,
        commit_interval_ms=settings.commit_interval_ms,
        max_revoke_grace_ms=settings.max_revoke_grace_ms,
        shutdown_drain_timeout_ms=settings.shutdown_drain_timeout_ms,
        max_blocking_duration_ms=settings.max_blocking_duration_ms,
        on_blocked=settings.on_blocked,
    )


def kafka_consumers(settings: Settings) -> ConsumerFactory:
    """Makes consumers on aiokafka; the client is imported when the first app is about to run."""
    from asyncpar.adapters.aiokafka_consumer import AiokafkaConsumer

    config = client_config(settings)
    return lambda group: AiokafkaConsumer(config, group)


def kafka_producers(settings: Settings) -> ProducerFactory:
    """Makes producers on aiokafka; the client is imported when the first one is made."""

    def make() -> Producer:
        from asyncpar.adapters.aiokafka_producer import AiokafkaProducer

        return AiokafkaProducer(client_config(settings))

    return make


def check_client(settings: Settings) -> None:
    """All that the client's adapter checks before it connects; reads the files for TLS.

    Raises ConfigurationError.
    """
    from asyncpar.adapters.aiokafka_security import security_options

    security_options(client_config(settings))


def client_config(settings: Settings) -> ClientConfig:
    """The part of `settings` that a consumer is made with."""
    from asyncpar.adapters.aiokafka_config import ClientConfig

    names = [name for name in ClientConfig.__dataclass_fields__ if hasattr(settings, name)]
    return ClientConfig(**{name: _plain(getattr(settings, name)) for name in names})


def _plain(value: Any) -> Any:
    """A secret's text; anything else as it is."""
    reveal = getattr(value, "get_secret_value", None)
    return value if reveal is None else reveal()


def client_version() -> str:
    """Name and version of the Kafka client."""
    import aiokafka

    return f"aiokafka {aiokafka.__version__}"
