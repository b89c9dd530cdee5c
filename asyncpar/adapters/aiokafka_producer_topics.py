"""Which topics there are to write to, and who leads their partitions: asked for when somebody needs it.

Lives here: what was answered last, and the one request for all who ask at the same time. Never here: how it
is asked (`aiokafka_producer_wire`). Called by `aiokafka_producer_batching`. Always: idle costs nothing; a
topic that does not exist is asked for again only when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple

from asyncpar.adapters.aiokafka_errors import code_name, one_line
from asyncpar.errors import PublishError
from asyncpar.records import TopicPartition

log = logging.getLogger(__name__)

SPACING_SECONDS = 0.1
FOUND, UNKNOWN, INVALID, FORBIDDEN = 0, 3, 17, 29


class Described(NamedTuple):
    """What the cluster says of a topic: an error code, and each partition's leader (-1: none for now)."""

    code: int
    leaders: Mapping[int, int]


Describe = Callable[[Collection[str]], Awaitable[Mapping[str, Described]]]


class ProducerTopics:
    """What is known of topics. `describe` asks and raises ConnectionError when nobody answers.

    `told` is called with each topic's answer, `rounded` after each request, answered or not.
    """

    def __init__(
        self,
        describe: Describe,
        told: Callable[[str, Described], None],
        rounded: Callable[[], None],
        max_age_seconds: float,
    ) -> None:
        self.trouble = "the brokers have not answered yet"
        """Why the last request failed."""
        self._describe = describe
        self._told = told
        self._rounded = rounded
        self._max_age_seconds = max_age_seconds
        self._known: dict[str, Described] = {}
        self._asked_at: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._round: asyncio.Task[None] | None = None
        self._last_round = -SPACING_SECONDS
        self._is_stopped = False

    def leaders(self, topic: str) -> Mapping[int, int] | None:
        """Leaders by partition, asked for again in the background when that is long ago; None: not known."""
        found = self._known.get(topic)
        if found is None or not found.leaders:
            return None
        if asyncio.get_running_loop().time() - self._asked_at[topic] > self._max_age_seconds:
            self.demand(topic)
        return found.leaders

    def leader(self, tp: TopicPartition) -> int | None:
        """The node that leads `tp`; None when that is not known, or there is none."""
        found = self._known.get(tp.topic)
        leader = -1 if found is None else found.leaders.get(tp.partition, -1)
        return None if leader == -1 else leader

    def demand(self, topic: str) -> None:
        """Have `topic` asked for soon."""
        if not self._is_stopped:
            self._wanted.add(topic)
            self._begin()

    async def look_up(self, topic: str) -> Described:
        """Ask for `topic` until it is found or refused for good; the caller bounds it.

        Raises PublishError once stopped.
        """
        self._wanted.add(topic)
        while topic in self._wanted:
            if self._is_stopped:
                raise PublishError(f"looking topic {topic!r} up given up: the producer was stopped", "other")
            await asyncio.wait([self._begin()])
        return self._known[topic]

    def stop(self) -> asyncio.Task[None] | None:
        """Ask no more; the task to be waited for, if there is one."""
        self._is_stopped = True
        if self._round is not None:
            self._round.cancel()
        return self._round

    def _begin(self) -> asyncio.Task[None]:
        if self._round is None or self._round.done():
            self._round = asyncio.get_running_loop().create_task(self._ask(), name="asyncpar-producer-topics")
            self._round.add_done_callback(lambda _: self._rounded())
        return self._round

    async def _ask(self) -> None:
        """One request, some time after the last one."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._last_round + SPACING_SECONDS - loop.time())
        asked = sorted(self._wanted)
        try:
            answers = await self._describe(asked)
        except ConnectionError as error:
            self.trouble = one_line(error)
        except Exception as error:
            self.trouble = one_line(error)
            log.exception("looking topics up failed")
        else:
            self._take(asked, answers)
        finally:
            self._last_round = loop.time()

    def _take(self, asked: Collection[str], answers: Mapping[str, Described]) -> None:
        now = asyncio.get_running_loop().time()
        for topic in asked:
            found = answers[topic]
            if found.code not in (FOUND, UNKNOWN, INVALID, FORBIDDEN):
                self.trouble = f"looking topic {topic!r} up: the broker answered {code_name(found.code)}"
                continue  # may pass: it stays wanted, and what was known of it stays
            self._wanted.discard(topic)
            self._known[topic] = found
            self._asked_at[topic] = now
            self._told(topic, found)
