"""A member of either run, watched: what its consumer, its handler and its letters do goes into the history.

What lives here: the recording shells around an app's clients, `Steps` (where a member is to die) and `live`,
the frame of a member process. What never does: what a handler does. Run in members only. Always: a letter
says which process wrote it, and is noted as done once its topic has acknowledged it and before the engine
hears of that.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from asyncpar import App, Record
from asyncpar.assembly import kafka_consumers, kafka_producers
from asyncpar.errors import ConnectError, DrainIncompleteError
from asyncpar.headers import origin
from asyncpar.ports import Consumer, Late, Producer
from asyncpar.records import CommitAnswer, Committed, GroupToken, OutgoingRecord, TopicPartition
from asyncpar.testing.history import HistoryFile, Recorder, handling
from asyncpar.testing.recording import RecordingConsumer
from tests.chaos.plan import EXIT_UNFINISHED, EXIT_UNREACHABLE, READY
from tests.letters.plan import MEMBER, Aim


class Steps:
    """Where this process is on the way from a failure to a commit; at its `aim` it says its name.

    `told` is a file that whoever kills it reads.
    """

    def __init__(self, name: str, aim: Aim | None, told: str) -> None:
        self._line = f"{name}\n".encode()
        self._aim = aim
        self._left = 0 if aim is None else aim.nth
        self._told = -1 if aim is None else os.open(told, os.O_WRONLY)
        self.has_new_letters = False
        """Whether a letter was acknowledged since the last commit was sent."""

    def reach(self, step: str) -> None:
        """The process is at `step` now."""
        self.has_new_letters |= step == "acknowledged"
        if self._aim is None or step != self._aim.step:
            return
        self._left -= 1
        if self._left == 0:
            os.write(self._told, self._line)
            if self._aim.delay_ms is None:
                os.kill(os.getpid(), signal.SIGSTOP)


class SteppingConsumer(RecordingConsumer):
    """A recorded consumer; its commits are steps where they tell of a new letter."""

    def __init__(self, consumer: Consumer, recorder: Recorder, member: str, steps: Steps) -> None:
        super().__init__(consumer, recorder, member)
        self._steps = steps

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """See the port."""
        is_step, self._steps.has_new_letters = self._steps.has_new_letters, False
        if is_step:
            self._steps.reach("committing")
        answers = await super().commit(token, offsets, timeout_s)
        if is_step:
            self._steps.reach("committed")
        return answers


class LetterProducer:
    """`producer`, which writes dead letters: its sends are steps, and say who sends."""

    def __init__(self, producer: Producer, recorder: Recorder, member: str, steps: Steps) -> None:
        self._producer = producer
        self._recorder = recorder
        self._member = member
        self._steps = steps

    async def start(self) -> None:
        """See the port."""
        await self._producer.start()

    async def send(
        self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        """See the port."""
        place = origin(record.headers)
        assert place is not None, f"a letter that does not say where it comes from: {record}"
        self._steps.reach("publishing")
        signed = record._replace(headers=(*record.headers, (MEMBER, self._member.encode())))
        where = await self._producer.send(signed, timeout_s, late)
        self._recorder.note("done", self._member, *place, record.key, "dead_letter")
        self._steps.reach("acknowledged")
        return where

    async def partition_count(self, topic: str, timeout_s: float) -> int | None:
        """See the port."""
        return await self._producer.partition_count(topic, timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """See the port."""
        await self._producer.stop(timeout_s)


class Watched:
    """The app of this process, and the shells around its clients. `settings` are the app's."""

    def __init__(
        self,
        name: str,
        bootstrap: str,
        group: str,
        history: str,
        settings: Mapping[str, Any],
        steps: Steps | None = None,
    ) -> None:
        self._name = name
        self._history = HistoryFile(history)
        self._steps = steps or Steps(name, None, "")
        self._consumer: Consumer | None = None
        self.app = App(
            bootstrap_servers=bootstrap,
            group=group,
            consumers=self._make_consumer,
            producers=self._make_producer,
            **settings,
        )

    def _make_consumer(self, group: str) -> Consumer:
        plain = kafka_consumers(self.app.settings)(group)
        self._consumer = SteppingConsumer(plain, self._history, self._name, self._steps)
        return self._consumer

    def _make_producer(self) -> Producer:
        plain = kafka_producers(self.app.settings)()
        return LetterProducer(plain, self._history, self._name, self._steps)

    def handling(self, record: Record) -> AbstractContextManager[None]:
        """Around a handler's body."""
        assert self._consumer is not None
        tp = TopicPartition(record.topic, record.partition)
        return handling(self._history, self._name, tp, record.offset, record.key, self._consumer.lease_from)


def live(app: App) -> int:
    """Run `app` until SIGTERM; the exit code. The process dies with the one that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        sys.exit("the process that started this member is gone")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    return asyncio.run(_until_sigterm(app))


async def _until_sigterm(app: App) -> int:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop)
    try:
        await app.run(on_started=lambda: _say(READY))
    except DrainIncompleteError as error:
        _say(f"unfinished: {error}")
        return EXIT_UNFINISHED
    except ConnectError as error:
        _say(f"unreachable: {error}")
        return EXIT_UNREACHABLE
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
