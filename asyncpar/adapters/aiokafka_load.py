"""Writing very many records for a load test: aiokafka's own producer, with asyncpar's settings and errors.

Lives here: `AiokafkaLoadProducer`. Never here: dead letters and retries, which are written one by one and
never twice (`aiokafka_producer`). Called by `asyncpar produce`, which has seen to it that the topic exists.
Always: acknowledged by all replicas in sync; a record whose answer was lost is sent again, and may be there
twice.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from asyncpar.adapters.aiokafka_bootstrap import unreachable, unusable
from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import one_line
from asyncpar.adapters.aiokafka_security import security_options
from asyncpar.errors import PublishError, PublishReason
from asyncpar.records import OutgoingRecord

CLIENT_ID_SUFFIX = "-load"
_BATCH_BYTES = 64 * 1024
_MOST_REQUEST_BYTES = 64 * 1024 * 1024
_ALL_IN_SYNC = "all"
_REASONS: tuple[tuple[tuple[type[Exception], ...], PublishReason, str], ...] = (
    ((kafka.TopicAuthorizationFailedError,), "forbidden", "grant WRITE on it to this user"),
    ((kafka.UnknownTopicOrPartitionError,), "unknown_topic", "it is gone"),
    (
        (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError),
        "too_large",
        "raise its max.message.bytes, or write smaller values",
    ),
    (
        (
            kafka.KafkaTimeoutError,
            kafka.RequestTimedOutError,
            kafka.KafkaConnectionError,
            kafka.NodeNotReadyError,
        ),
        "unreachable",
        "see that the brokers run",
    ),
)

Answered = Callable[[PublishError | None], None]
"""Hears once of each record that it was acknowledged (None), or why it was not."""


class AiokafkaLoadProducer:
    """A producer for loads. Single-use: start once, stop once."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._producer: Any = None

    async def start(self) -> None:
        """Connect. Raises BrokerUnreachableError, ConfigurationError."""
        config = self._config
        known = inspect.signature(AIOKafkaProducer.__init__).parameters
        options = {name: value for name, value in config.client_options.items() if name in known}
        options.update(
            bootstrap_servers=config.bootstrap_servers,
            client_id=config.client_id + CLIENT_ID_SUFFIX,
            metadata_max_age_ms=config.metadata_max_age_ms,
            request_timeout_ms=config.request_timeout_ms,
            acks=_ALL_IN_SYNC,
            max_batch_size=_BATCH_BYTES,
            max_request_size=_MOST_REQUEST_BYTES,
            **security_options(config),
        )
        self._producer = AIOKafkaProducer(**options)
        try:
            async with asyncio.timeout(config.startup_timeout_ms / 1000):
                await self._producer.start()
        except TimeoutError as err:
            raise unreachable(config, "no broker answered the load's producer") from err
        except (kafka.KafkaError, ValueError) as err:  # SCRAM raises ValueErrors
            raise unusable(config, f"connecting the load's producer: {one_line(err)}") from err

    async def send(self, record: OutgoingRecord, answered: Answered) -> None:
        """Put `record` under way; waits only while its partition has more waiting than fits into a batch.

        `answered` is called within about twice `request_timeout_ms`, also for what could not be put there.
        """
        try:
            future = await self._producer.send(
                record.topic, record.value, record.key, headers=list(record.headers)
            )
        except kafka.KafkaError as err:
            answered(_publish_error(record.topic, err))
            return
        future.add_done_callback(partial(_tell, record.topic, answered))

    async def stop(self, timeout_s: float) -> None:
        """Close, within about `timeout_s`, also with the brokers down: what waits then is not sent."""
        if self._producer is None:
            return
        closing = asyncio.get_running_loop().create_task(self._producer.stop())
        try:
            await asyncio.wait([closing], timeout=timeout_s)
        finally:
            closing.cancel()
        await asyncio.wait([closing], timeout=timeout_s)
        if closing.done() and not closing.cancelled():
            closing.exception()  # seen: there is nobody left to tell


def _tell(topic: str, answered: Answered, future: asyncio.Future[Any]) -> None:
    if future.cancelled():
        answered(PublishError(f"record for topic {topic!r} given up: the producer was stopped", "other"))
        return
    error = future.exception()
    answered(None if error is None else _publish_error(topic, error))


def _publish_error(topic: str, error: BaseException) -> PublishError:
    for kinds, reason, what_to_do in _REASONS:
        if isinstance(error, kinds):
            return PublishError(
                f"topic {topic!r} did not take a record ({type(error).__name__}): {what_to_do}", reason
            )
    return PublishError(
        f"topic {topic!r} did not take a record ({type(error).__name__}: {one_line(error)})", "other"
    )
