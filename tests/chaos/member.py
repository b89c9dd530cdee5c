"""One member of the group as a process: `python -m tests.chaos.member PLAN`. It writes down all it does.

Run by `crew.py`, never imported. Ends with 0 after a clean stop, 4 when the cluster could not be reached at
the start, 10 when a stop left work unfinished, 1 for anything else. Always: it dies with the process that
started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys

from asyncpar import App, Record, Retry
from asyncpar.assembly import kafka_consumers
from asyncpar.errors import ConnectError, DrainIncompleteError
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.testing.history import HistoryFile, handling
from asyncpar.testing.recording import recording
from tests.chaos.plan import (
    EXIT_UNFINISHED,
    EXIT_UNREACHABLE,
    QUICK_CONCURRENCY,
    READY,
    SETTINGS,
    SLOW_CONCURRENCY,
    MemberPlan,
    Temper,
    kind_temper,
    temper,
)

_RETRY = Retry(attempts=None, base_ms=20, max_ms=200)


class Member:
    """The app of this process, and the history of what its consumer and its handlers do."""

    def __init__(self, plan: MemberPlan) -> None:
        self._plan = plan
        self._history = HistoryFile(plan.history)
        self._consumer: Consumer | None = None
        self.app = App(
            bootstrap_servers=plan.bootstrap,
            group=plan.group,
            consumers=self._make_consumer,
            **{**SETTINGS, **plan.settings},
        )
        temper_of = kind_temper if plan.is_kind else temper
        # Functions, because a bound method cannot carry a declaration.

        async def quick(record: Record) -> None:
            await self._work(record, temper_of(record.topic, record.partition, record.offset, is_quick=True))

        async def slow(record: Record) -> None:
            await self._work(record, temper_of(record.topic, record.partition, record.offset, is_quick=False))

        self.app.topic(plan.quick_topic, concurrency=QUICK_CONCURRENCY, retry=_RETRY)(quick)
        self.app.topic(plan.slow_topic, concurrency=SLOW_CONCURRENCY, retry=_RETRY)(slow)

    def _make_consumer(self, group: str) -> Consumer:
        factory = recording(kafka_consumers(self.app.settings), self._history, self._plan.name)
        self._consumer = factory(group)
        return self._consumer

    async def _work(self, record: Record, how: Temper) -> None:
        assert self._consumer is not None
        tp = TopicPartition(record.topic, record.partition)
        lease_from = self._consumer.lease_from
        with handling(self._history, self._plan.name, tp, record.offset, record.key, lease_from):
            try:
                await asyncio.sleep(how.seconds)
            except asyncio.CancelledError:
                if not how.is_deaf:
                    raise
                await asyncio.sleep(how.seconds)
            if record.attempt <= how.failures:
                raise RuntimeError(f"attempt {record.attempt} at offset {record.offset} fails by plan")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


async def run(plan: MemberPlan) -> int:
    """Until SIGTERM; the exit code."""
    member = Member(plan)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, member.app.stop)
    try:
        await member.app.run(on_started=lambda: _say(READY))
    except DrainIncompleteError as error:
        _say(f"unfinished: {error}")
        return EXIT_UNFINISHED
    except ConnectError as error:
        _say(f"unreachable: {error}")
        return EXIT_UNREACHABLE
    return 0


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        sys.exit("the process that started this member is gone")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    sys.exit(asyncio.run(run(MemberPlan.from_argument(sys.argv[1]))))
