"""Making a topic, and removing a consumer group that has done its work: what the command line owns itself.

Lives here: the two requests, each sent again while that may help. Never here: which topic or group. Called
by `asyncpar produce` and `asyncpar bench`. Always: a topic that exists is left as it is, and a group with
members is never removed.
"""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.admin import CreateTopicsRequest, DeleteGroupsRequest
from aiokafka.protocol.metadata import MetadataRequest

from asyncpar.adapters.aiokafka_errors import code_name
from asyncpar.adapters.aiokafka_reader import AiokafkaReader
from asyncpar.adapters.aiokafka_reader_answers import AgainError
from asyncpar.errors import AuthorizationError, ConfigurationError, UnknownTopicError

_MOST_REPLICAS = 3
_EXISTS, _NOT_EMPTY, _NO_SUCH_GROUP = 36, 68, 69
_NO_RIGHT_ON_TOPIC = frozenset({29, 31})
_NO_RIGHT_ON_GROUP = 30
_REFUSED = {
    17: "the broker takes no such name",
    37: "the broker takes no such number of partitions",
    44: "a policy of the cluster forbids it",
}


class AiokafkaAdmin(AiokafkaReader):
    """A reader that may also make a topic and remove a group. Single-use, as the reader."""

    async def create_topic(self, topic: str, partitions: int) -> bool:
        """Make `topic`, with up to three replicas; True once it can be written to, False if it exists.

        Raises AuthorizationError, ConfigurationError for what the cluster refuses, BrokerUnreachableError.
        """

        async def ask() -> bool:
            found = await self._network.ask_any(MetadataRequest([], allow_auto_topic_creation=False))
            new: tuple[Any, ...] = (topic, partitions, min(len(found.brokers), _MOST_REPLICAS), [], [])
            request = CreateTopicsRequest([new], self._config.request_timeout_ms // 2, False)
            answer = await self._client.send(found.controller_id, request)
            code = int(answer.topic_errors[0][1])
            _check_creation(code, topic, partitions)
            return code != _EXISTS

        is_new = await self._until_answered(f"making topic {topic!r}", ask)
        await self._until_answered(f"waiting for topic {topic!r}", lambda: self._learn_new(topic))
        await self.bounds(await self.partitions(topic))  # which a leader answers once it leads
        return is_new

    async def _learn_new(self, topic: str) -> None:
        try:
            await self._learn(topic)
        except UnknownTopicError as error:
            raise AgainError("the brokers do not know it yet") from error

    async def delete_group(self, group: str) -> None:
        """Remove `group` and its offsets; one that does not exist is no error.

        Waits, within `request_timeout_ms`, for its last members to go. Raises AuthorizationError,
        BrokerUnreachableError.
        """

        async def ask() -> None:
            answer = await self._ask_coordinator(group, DeleteGroupsRequest([group]))
            _check_removal(int(answer.results[0][1]), group)

        await self._until_answered(f"deleting group {group!r}", ask, group)


def _check_creation(code: int, topic: str, partitions: int) -> None:
    """Raise what `code` means for a topic that was to be made."""
    if code in (0, _EXISTS):
        return
    if code in _NO_RIGHT_ON_TOPIC:
        raise AuthorizationError(
            f"no right to create topic {topic!r}: grant CREATE on it to this user, or create it beforehand"
        )
    if code in _REFUSED:
        raise ConfigurationError(
            f"topic {topic!r} with {partitions} partitions was not made: {_REFUSED[code]}"
        )
    raise AgainError(f"the broker answered {code_name(code)}")


def _check_removal(code: int, group: str) -> None:
    """Raise what `code` means for a group that was to be removed."""
    if code in (0, _NO_SUCH_GROUP):
        return
    if code == _NO_RIGHT_ON_GROUP:
        raise AuthorizationError(f"no right to delete group {group!r}: grant DELETE on it to this user")
    raise AgainError("it has members" if code == _NOT_EMPTY else f"the broker answered {code_name(code)}")
