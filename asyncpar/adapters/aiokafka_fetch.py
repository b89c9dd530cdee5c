"""Taking records out of the client: fairly, and without losing any when a partition raises.

Lives here: which buffered partition is drained next, what an exception of the client costs, how long brokers
may hold an empty fetch and how much of one partition they may send. Never here: which partitions are wanted.
Called by `aiokafka_consumer` for the poller, one call at a time. Always: what one partition yielded is
returned before another's error is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition as ClientPartition

from asyncpar.adapters.aiokafka_errors import fetch_error, is_unreadable
from asyncpar.adapters.aiokafka_private import ClientInternals
from asyncpar.errors import AsyncparError, FetchError
from asyncpar.records import Chunk, TopicPartition

# Asking for no partition at all means all of them to the client; this one is never assigned.
NOBODY = ClientPartition("__asyncpar_none__", 0)
# A partition drained while a fetch for its idle siblings waits at the broker waits with it: keep that short
# while there is work, and let an idle client sleep.
BUSY_WAIT_MS = 50
IDLE_AFTER_SECONDS = 2.0
# The client asks for a partition again once what it has of it is used up. One that alone has records makes
# that way for each answer of its own, where several share it: it gets the bytes that the others do not use.
ALONE_AFTER_SECONDS = 0.2
MOST_SHARES = 8


class FairFetch:
    """`fetch` over one aiokafka consumer. `max_wait_ms` is what an idle client lets the broker wait."""

    def __init__(self, consumer: Any, inside: ClientInternals, group: str, max_wait_ms: int) -> None:
        self._consumer = consumer
        self._inside = inside
        self._group = group
        self._idle_wait_ms = max_wait_ms
        self._wait_ms = max_wait_ms
        self._last_work = self._alone_since = time.monotonic()
        self._alone: Any = None
        """The partition that alone has had records, without a pause, since `_alone_since`."""
        self._held: AsyncparError | None = None
        self._careful: set[tuple[str, int]] = set()

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """Records of `wanted`; see the port. Does not suspend while records are buffered."""
        if self._held is not None:
            held, self._held = self._held, None
            raise held
        await self._check(timeout_ms)
        taken: dict[Any, list[Any]] = {}
        ready = self._inside.buffered(wanted)
        if not ready:
            # One record only: a call that drains several partitions loses them when the next one raises.
            taken.update(await self._wait(wanted, timeout_ms))
            ready = self._inside.buffered(wanted) if taken else []
        await self._drain(ready, taken, max_records - len(taken), max_per_partition or max_records)
        self._adapt(taken, len(ready), len(wanted))
        return [Chunk(tp.topic, tp.partition, records) for tp, records in taken.items()]

    async def _check(self, timeout_ms: int) -> None:
        try:
            self._inside.check_errors()
        except Exception as err:
            error = fetch_error(err, self._group, None, None)
            if isinstance(error, FetchError):
                # A dead coordination task raises at every call: the caller must not spin.
                await asyncio.sleep(timeout_ms / 1000)
            raise error from err

    async def _wait(self, wanted: Sequence[TopicPartition], timeout_ms: int) -> dict[Any, list[Any]]:
        asked = [ClientPartition(*tp) for tp in wanted] or [NOBODY]
        try:
            return await self._getmany(asked, 1, timeout_ms)
        except Exception as err:
            culprit = self._unreadable(asked, err)
            if culprit is None:
                raise fetch_error(err, self._group, None, None) from err
            raise self._after_failure(culprit, self._inside.position(culprit), err) from err

    def _unreadable(self, asked: Sequence[Any], err: Exception) -> Any:
        """The one of `asked` whose records cannot be read, where `err` says that; else None."""
        if not is_unreadable(err):
            return None
        # The client drops each chunk that it has finished and keeps the one that raised.
        return next(iter(self._inside.buffered(asked)), None)

    async def _drain(
        self, ready: Sequence[Any], taken: dict[Any, list[Any]], budget: int, share: int
    ) -> None:
        """Move up to `budget` records of `ready` into `taken`, `share` of each, without suspending."""
        for tp in ready:
            if budget <= 0:
                return
            room = min(budget, share - len(taken.get(tp, ())))
            if room <= 0:
                continue
            before = self._inside.position(tp)
            try:
                # After an error a chunk is taken record by record, so that the good ones before it come out.
                answer = await self._getmany([tp], 1 if tp in self._careful else room, 0)
            except Exception as err:
                error = self._after_failure(tp, before, err)
                if not taken:
                    raise error from err
                error.__cause__ = err
                self._held = error
                return
            records = answer.get(tp)
            if records:
                budget -= len(records)
                if tp in taken:
                    taken[tp].extend(records)
                else:
                    taken[tp] = records
            self._inside.rotate(tp)
            if self._careful and not self._inside.has_buffer(tp):
                self._careful.discard(tp)

    def _after_failure(self, tp: Any, before: int | None, err: Exception) -> AsyncparError:
        """Put `tp` back to where it was, because the client forgot what it had taken, and translate `err`."""
        error = fetch_error(err, self._group, TopicPartition(*tp), before)
        if before is not None and self._inside.is_assigned(tp):
            self._consumer.seek(tp, before)
        if isinstance(error, FetchError):
            self._careful.add(tp)
        return error

    async def _getmany(
        self, partitions: list[Any], max_records: int, timeout_ms: int
    ) -> dict[Any, list[Any]]:
        count = self._inside.fetch_count()
        try:
            answer: dict[Any, list[Any]] = await self._consumer.getmany(
                *partitions, max_records=max_records, timeout_ms=timeout_ms
            )
        except BaseException:
            self._inside.restore_fetch_count(count)
            raise
        return answer

    def _adapt(self, taken: Mapping[Any, object], ready: int, wanted: int) -> None:
        """After each fetch: of so many partitions some were buffered, and these yielded records."""
        now = time.monotonic()
        if taken:
            tp, *more = taken
            if more or ready > 1 or tp != self._alone or now - self._last_work > ALONE_AFTER_SECONDS:
                self._alone, self._alone_since = tp, now
            self._last_work = now
            is_alone = now - self._alone_since > ALONE_AFTER_SECONDS
            self._inside.take_shares(min(wanted, MOST_SHARES) if is_alone else 1)
        idle = now - self._last_work > IDLE_AFTER_SECONDS
        wait_ms = self._idle_wait_ms if idle else min(BUSY_WAIT_MS, self._idle_wait_ms)
        if wait_ms != self._wait_ms:
            self._wait_ms = wait_ms
            self._inside.wait_at_broker(wait_ms)
