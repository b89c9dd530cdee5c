"""What a consumer knows of the topics: which there are, how many partitions, and when to look again.

Lives here: the first look, refreshes, and whether a change means that the group must share out anew. Never
here: joining. Called by `memory_consumer` at the start, by `memory_member` afterwards. Always: nothing
creates a topic.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Collection, Iterable

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import no_right_on_topic
from asyncpar.errors import AuthorizationError, BrokerUnreachableError, UnknownTopicError
from asyncpar.ports import Subscription
from asyncpar.records import TopicPartition
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_connection import BACKOFF_SECONDS, MemoryConnection
from asyncpar.testing.memory_link import Code, LinkError, RefusedError

log = logging.getLogger(__name__)

TOPIC_POLL_SECONDS = 1.0


class MemoryMetadata:
    """Topics and partition counts, as of the last refresh."""

    def __init__(self, broker: MemoryBroker, connection: MemoryConnection, config: ClientConfig) -> None:
        self.subscription = Subscription(frozenset())
        self.counts: dict[str, int] = {}
        """Partitions by topic."""
        self.refresh_at = 0.0
        """When to look again, by the loop's time."""
        self._broker = broker
        self._connection = connection
        self._config = config
        self._wished: frozenset[str] | None = None
        self._watched: dict[str, int] = {}

    # -- at the start ------------------------------------------------------------------------

    async def require(self, topics: Collection[str]) -> None:
        """Return when the cluster has all `topics`.

        Raises UnknownTopicError unless `wait_for_topics`, AuthorizationError, BrokerUnreachableError.
        """
        said = False
        while topics:
            existing = await self._existing(topics, patient=said)
            missing = sorted(set(topics) - existing.keys())
            if not missing:
                return
            if not self._config.wait_for_topics:
                raise _unknown(missing, existing)
            if not said:
                log.warning("waiting for %s to be created: the broker does not have it yet", _names(missing))
                said = True
            await asyncio.sleep(TOPIC_POLL_SECONDS)

    async def _existing(self, topics: Collection[str], patient: bool) -> dict[str, int]:
        try:
            return await self._connection.ask_any("Metadata", self._broker.partition_counts)
        except LinkError as error:
            if patient:
                return {}
            raise BrokerUnreachableError(
                f"looking topics up in the in-memory broker failed: {error}"
            ) from error
        except RefusedError as refused:
            if refused.code is Code.TOPIC_AUTHORIZATION_FAILED:
                raise no_right_on_topic(_names(topics)) from refused
            raise BrokerUnreachableError(
                f"looking topics up failed: the broker answered {refused}"
            ) from refused

    # -- afterwards --------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look again; when nobody answers, keep what is known. Raises AuthorizationError."""
        now = asyncio.get_running_loop().time()
        self.refresh_at = now + BACKOFF_SECONDS
        try:
            self.counts = await self._connection.ask_any("Metadata", self._broker.partition_counts)
        except LinkError:
            return
        except RefusedError as refused:
            if refused.code is Code.TOPIC_AUTHORIZATION_FAILED:
                raise self._forbidden() from refused
            return
        self.refresh_at = now + self._config.metadata_max_age_ms / 1000

    def _forbidden(self) -> AuthorizationError:
        return no_right_on_topic(_names(self.subscription.topics))

    def is_due(self) -> bool:
        """Whether it is time to look again."""
        return asyncio.get_running_loop().time() >= self.refresh_at

    def wish(self) -> frozenset[str]:
        """The topics to join with; remembered, and no growth is watched until `watch` is called."""
        self._wished = self._topics()
        self._watched = {}
        return self._wished

    def _topics(self) -> frozenset[str]:
        pattern = self.subscription.pattern
        if pattern is None:
            return self.subscription.topics
        return frozenset(topic for topic in self.counts if pattern.fullmatch(topic))

    async def watch(self, topics: frozenset[str]) -> None:
        """We lead: the growth of `topics` is ours to notice from now on."""
        if not topics <= self.counts.keys():
            await self.refresh()
        self._watched = self._counts_of(topics)

    def watch_static(self, partitions: Collection[TopicPartition]) -> None:
        """A static leader that came back does not know that it leads: each static member watches."""
        if not self._watched:
            topics = self.subscription.topics | {tp.topic for tp in partitions}
            self._watched = {topic: count for topic, count in self._counts_of(topics).items() if count}

    def _counts_of(self, topics: Iterable[str]) -> dict[str, int]:
        return {topic: self.counts.get(topic, 0) for topic in topics}

    def must_join_again(self) -> bool:
        """Whether a pattern's topics, or the growth of one that we watch, ask for a rebalance."""
        return self._wished != self._topics() or self._watched != self._counts_of(self._watched)


def _names(topics: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(topics)))


def _unknown(missing: Collection[str], existing: Collection[str]) -> UnknownTopicError:
    near = sorted({name for topic in missing for name in difflib.get_close_matches(topic, existing, n=2)})
    hint = f"did you mean {_names(near)}?" if near else "create it, or wait for it with wait_for_topics"
    return UnknownTopicError(f"topic {_names(missing)} does not exist in the in-memory broker; {hint}")
