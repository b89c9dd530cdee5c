"""A group's committed offsets, read and written by raw requests of ours.

Lives here: building OffsetFetch and OffsetCommit and reading their answers, errors of the whole answer
included (the client ignores those and reports "nothing committed"). Never here: retries, or the client's own
commit(), which retries for ever, each time with the current generation. Called by `aiokafka_consumer`.
Always: a commit carries the token it was given, and a refused one changes nothing in the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from asyncpar.adapters.aiokafka_errors import (
    COORDINATOR_MOVED,
    answered_error,
    code_name,
    commit_answer,
    final_error,
    one_line,
    request_error,
)
from asyncpar.adapters.aiokafka_private import ClientInternals
from asyncpar.errors import AuthorizationError, BrokerError
from asyncpar.records import CommitAnswer, Committed, GroupToken, TopicPartition

log = logging.getLogger(__name__)

READING = "reading committed offsets"
# A string of the protocol carries its length in 15 bits.
LONGEST_STRING_BYTES = 32_767


class GroupOffsets:
    """The committed offsets of `group`. `timeout_seconds` bounds one reading."""

    def __init__(self, inside: ClientInternals, group: str, timeout_seconds: float) -> None:
        self._inside = inside
        self._group = group
        self._timeout_seconds = timeout_seconds

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """What the group has committed for `partitions`; raises BrokerError or AuthorizationError."""
        if not partitions:
            return {}
        found = await self._read(_by_topic((tp, tp.partition) for tp in partitions))
        silent = [tp for tp in partitions if tp not in found]
        if silent:
            raise BrokerError(f"{READING} of group {self._group!r}: the answer leaves out {silent[0]}")
        return {tp: found[tp] for tp in partitions}

    async def has_commits(self, is_ours: Callable[[str], bool]) -> bool:
        """Whether the group has a commit for any partition of a topic that `is_ours`."""
        found = await self._read(None)
        return any(offset is not None and is_ours(tp.topic) for tp, offset in found.items())

    async def _read(
        self, partitions: list[tuple[str, list[int]]] | None
    ) -> dict[TopicPartition, Committed | None]:
        """One OffsetFetch; None asks for all partitions that the group has committed."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                node = self._inside.coordinator_node
                response = await self._inside.ask_coordinator(OffsetFetchRequest(self._group, partitions))
        except (KafkaError, TimeoutError, OSError) as err:
            raise request_error(err, READING, self._group) from err
        code = getattr(response, "error_code", 0)
        if code:
            self._note(code, node)
            raise answered_error(code, READING, self._group, "the whole group")
        found: dict[TopicPartition, Committed | None] = {}
        for topic, answers in response.topics:
            for partition, offset, metadata, code in answers:
                if code:
                    self._note(code, node)
                    raise answered_error(code, READING, self._group, f"{topic}[{partition}]")
                known = Committed(offset, metadata or "") if offset >= 0 else None
                found[TopicPartition(topic, partition)] = known
        return found

    def _note(self, code: int, node: Any) -> None:
        if code in COORDINATOR_MOVED:
            self._inside.coordinator_moved(node)

    async def commit(
        self,
        token: GroupToken,
        offsets: Mapping[TopicPartition, Committed],
        timeout_s: float,
    ) -> dict[TopicPartition, CommitAnswer]:
        """One attempt bound to `token`; an answer for every partition. Raises nothing but cancellation."""
        if token.generation < 0 or not token.member_id:
            # Such a commit is taken once the group is empty, and moves the offsets of others.
            return dict.fromkeys(offsets, CommitAnswer.STALE)
        answers = {
            tp: CommitAnswer.METADATA_TOO_LARGE for tp, at in offsets.items() if not _fits(at.metadata)
        }
        sent = {tp: at for tp, at in offsets.items() if tp not in answers}
        if sent:
            answers.update(await self._send(token, sent, timeout_s))
        return answers

    async def _send(
        self,
        token: GroupToken,
        offsets: Mapping[TopicPartition, Committed],
        timeout_s: float,
    ) -> dict[TopicPartition, CommitAnswer]:
        entries = _by_topic((tp, (tp.partition, at.offset, at.metadata)) for tp, at in offsets.items())
        request = OffsetCommitRequest(self._group, token.generation, token.member_id, -1, entries)
        try:
            async with asyncio.timeout(timeout_s):
                node = self._inside.coordinator_node
                response = await self._inside.ask_coordinator(request)
        except Exception as err:  # noqa: BLE001 - the port promises an answer whatever the client raises
            log.debug("commit of group %s failed: %s", self._group, one_line(err))
            refused = isinstance(final_error(err, self._group), AuthorizationError)
            return dict.fromkeys(offsets, CommitAnswer.FORBIDDEN if refused else CommitAnswer.RETRY)
        answers = dict.fromkeys(offsets, CommitAnswer.RETRY)
        for topic, partitions in response.topics:
            for partition, code in partitions:
                self._note(code, node)
                answers[TopicPartition(topic, partition)] = commit_answer(code)
                if code:
                    log.debug(
                        "commit of group %s for %s[%s]: %s",
                        self._group,
                        topic,
                        partition,
                        code_name(code),
                    )
        return answers


def _fits(metadata: str) -> bool:
    """Whether the protocol can carry `metadata`; the broker's own, smaller limit is the broker's to apply."""
    try:
        return len(metadata.encode()) <= LONGEST_STRING_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _by_topic(
    entries: Iterable[tuple[TopicPartition, Any]],
) -> list[tuple[str, list[Any]]]:
    topics: defaultdict[str, list[Any]] = defaultdict(list)
    for tp, entry in entries:
        topics[tp.topic].append(entry)
    return list(topics.items())
