"""Whether what is quiet could be fetched at all: asks the broker where its log ends, now and then.

A partition that delivers nothing may be empty, have no leader, or belong to a fetcher that died in silence;
a topic of which this member has nothing may be gone. Says so once per transition, for readiness to name.
A task of its own, because an answer may take as long as a request may. Never asks about what delivers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from asyncpar.errors import AuthorizationError, BrokerError, ConfigurationError, EngineError
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.poller import Poller

_CHECK_SECONDS = 5.0
_RECHECK_SECONDS = 1.0
_LOST_AFTER_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 30.0


class Reach:
    """Watches one consumer's partitions. `dead` replaces the consumer, `fatal` ends the group's run."""

    def __init__(
        self,
        state: GroupState,
        consumer: Consumer,
        poller: Poller,
        dead: Callable[[BaseException], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._consumer = consumer
        self._poller = poller
        self._dead = dead
        self._fatal = fatal
        self._since: dict[TopicPartition, float] = {}
        self._stuck: dict[TopicPartition, tuple[int, float]] = {}
        self.lost: dict[TopicPartition, str] = {}
        """What could not be fetched for longer than 10 s, and why. Partition 0 stands for a topic of which we
        have nothing."""

    async def run(self, topics: Iterable[str]) -> None:
        """Check until cancelled; `topics` are those subscribed to by name."""
        names = sorted(topics)
        while True:
            await asyncio.sleep(_RECHECK_SECONDS if self._since else _CHECK_SECONDS)
            await self._check(names)

    async def _check(self, topics: list[str]) -> None:
        began = self._state.clock.monotonic()
        asked = self._quiet(topics)
        try:
            ends = await self._consumer.end(asked) if asked else {}
        except (AuthorizationError, ConfigurationError) as error:
            self._fatal(error)
            return
        except BrokerError as error:
            self._stuck.clear()  # the broker is away: that is no sign of a dead fetcher
            self._judge(error.partitions or dict.fromkeys(asked, str(error)), began)
            return
        self._judge(self._delivers_nothing(ends, began), began)

    def _quiet(self, topics: list[str]) -> list[TopicPartition]:
        """What was asked for in vain, and one partition of each topic of which nothing is ours."""
        state, poller = self._state, self._poller
        if state.stopping or state.phase != "joined":
            return []
        quiet = [
            partition.tp
            for partition in state.partitions.values()
            if partition.is_open
            and not partition.in_flight
            and partition.tp in poller.empty_handed
            and partition.tp not in poller.unreadable
        ]
        ours = {tp.topic for tp in state.partitions}
        return quiet + [TopicPartition(topic, 0) for topic in topics if topic not in ours]

    def _delivers_nothing(self, ends: dict[TopicPartition, int], now: float) -> dict[TopicPartition, str]:
        """Those whose log goes on although nothing of it comes: fetches fail, or the fetcher is dead."""
        stuck: dict[TopicPartition, tuple[int, float]] = {}
        reasons: dict[TopicPartition, str] = {}
        for tp, end in ends.items():
            position = self._consumer.position(tp) if tp in self._state.partitions else None
            if position is None or position >= end:
                continue
            before = self._stuck.get(tp)
            since = before[1] if before is not None and before[0] == position else now
            stuck[tp] = position, since
            reasons[tp] = f"nothing was delivered from offset {position}, although the log ends at {end}"
            if now - since > _DEAD_AFTER_SECONDS:
                self._dead(EngineError(f"{tp}: {reasons[tp]}"))
        self._stuck = stuck
        return reasons

    def _judge(self, reasons: dict[TopicPartition, str], began: float) -> None:
        state, now = self._state, self._state.clock.monotonic()
        self._since = {tp: self._since.get(tp, began) for tp in reasons}
        lost = {tp: why for tp, why in reasons.items() if now - self._since[tp] > _LOST_AFTER_SECONDS}
        if fresh := sorted(lost.keys() - self.lost.keys()):
            names = ", ".join(map(str, fresh))
            state.log.warning(
                "group %s: %s could not be fetched for more than %.0f s: %s",
                state.group,
                names,
                _LOST_AFTER_SECONDS,
                "; ".join(sorted({lost[tp] for tp in fresh})),
            )
        if back := sorted(self.lost.keys() - lost.keys()):
            state.log.info("group %s: %s can be fetched again", state.group, ", ".join(map(str, back)))
        self.lost = lost
