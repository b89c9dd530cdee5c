"""What the brokers' answers to a reader mean: error codes in, asyncpar's errors out.

Never here: a request. Called by `aiokafka_reader`. Always: `AgainError` stands for what may pass, and never
leaves the reader.
"""

from __future__ import annotations

from asyncpar.adapters.aiokafka_errors import (
    code_name,
    commit_answer,
    no_right_on_group,
    no_right_on_topic,
)
from asyncpar.errors import AuthorizationError, BrokerError, ConfigurationError, UnknownTopicError
from asyncpar.records import CommitAnswer, TopicPartition

OUT_OF_RANGE, UNKNOWN_TOPIC, INVALID_TOPIC, NO_RIGHT = 1, 3, 17, 29
_NO_RIGHT_ON_GROUP, _POLICY = 30, 44
# No leader, not the leader, request timed out, replica not available, storage error, and those of an epoch.
PASSING = frozenset({3, 5, 6, 7, 9, 13, 19, 56, 74, 75, 76, 78})


class AgainError(Exception):
    """What was asked cannot be had just now."""


def check_partition(code: int, tp: TopicPartition, what: str) -> None:
    """Raise what `code` means; `what` names what was asked of `tp`."""
    if code == NO_RIGHT:
        raise no_right_on_topic(repr(tp.topic))
    if code in PASSING:
        raise AgainError(f"{tp}: the broker answered {code_name(code)}")
    if code:
        raise BrokerError(f"{tp}: {what} failed: the broker answered {code_name(code)}")


def check_deletion(code: int, tp: TopicPartition, offset: int) -> None:
    """Raise what `code` means for a deletion of all records of `tp` below `offset`, and for nothing else."""
    if code == NO_RIGHT:
        raise AuthorizationError(
            f"no right to delete records of {tp}: grant DELETE on the topic to this user"
        )
    if code == _POLICY:
        raise ConfigurationError(
            f"the records of {tp} cannot be deleted: Kafka does that only for a topic whose cleanup.policy "
            "has delete; this one is compacted"
        )
    if code == OUT_OF_RANGE:
        raise ConfigurationError(f"{tp} has no offset {offset}: give one up to its end")


def check_group(code: int, group: str, tp: TopicPartition | None) -> None:
    """Raise what `code` means beside `tp`, or for the whole of `group`."""
    if code == _NO_RIGHT_ON_GROUP:
        raise no_right_on_group(group)
    if code == NO_RIGHT and tp is not None:
        raise no_right_on_topic(repr(tp.topic))
    if code:
        raise AgainError(f"the broker answered {code_name(code)}")


def check_commit(code: int, group: str, tp: TopicPartition) -> None:
    """Raise what `code` means for a commit by nobody: without a generation and a member."""
    answer = commit_answer(code)
    if answer is CommitAnswer.STALE:
        raise ConfigurationError(f"group {group!r} has members, so its offsets are theirs: use another group")
    if answer is CommitAnswer.METADATA_TOO_LARGE:
        raise ConfigurationError(
            f"the broker does not take what group {group!r} is to remember of {tp} ({code_name(code)}): let "
            "it have offset.metadata.max.bytes of 4096 or more"
        )
    if answer is CommitAnswer.UNKNOWN_TOPIC:
        raise UnknownTopicError(f"offsets of {tp} cannot be committed: the topic is gone")
    if answer is not CommitAnswer.ACKNOWLEDGED:
        check_group(code, group, tp)
