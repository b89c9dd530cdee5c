"""From what members wrote down and what the brokers hold to a verdict by the checkers.

What lives here: `Ground` (a group, its topics, what the brokers say of both) and the whole history of a run.
What never does: members and faults. Called by `round.py`, the rebalances and the soak. Always: the log
decides what was sent; whatever asks a broker is bounded and may raise one of WORLD_ERRORS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException

from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final, Report
from asyncpar.testing.history import Event, encode, read
from tests import kafka_tools
from tests.chaos.cluster import WorldError
from tests.chaos.load import Load, Sent, read_log
from tests.kafka_broker import BrokerStartError

WORLD_ERRORS = (WorldError, BrokerStartError, TimeoutError, KafkaException, KafkaError)
"""The world, not asyncpar, failed: they end a run without a verdict."""
TOLERANCE_NS = 50_000_000
"""Two processes that wait for a core may note one thing so far apart."""
_LOOK_SECONDS = 0.2


def broken_laws(report: Report | None) -> list[str]:
    """Each fault with its law, one text each; none where nothing could be judged."""
    return [] if report is None else [f"{fault.check}: {fault.text}" for fault in report.faults]


@dataclass(frozen=True)
class Ground:
    """Where a run happens: `bootstrap` is the way to the brokers that no fault meets."""

    bootstrap: str
    group: str
    topics: tuple[str, ...]

    async def prepare(self, partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Create the topics."""
        for topic in self.topics:
            await kafka_tools.create_topic(self.bootstrap, topic, partitions, config)

    async def forget(self) -> None:
        """Delete topics and group, as far as the brokers still answer."""
        with suppress(Exception):
            await asyncio.to_thread(kafka_tools.delete_topics_now, self.bootstrap, self.topics)
            await kafka_tools.delete_group(self.bootstrap, self.group)

    async def finals(self) -> dict[TopicPartition, Final]:
        """What is committed, and where the log ends."""
        found: dict[TopicPartition, Final] = {}
        for topic in self.topics:
            ends = await kafka_tools.end_offsets(self.bootstrap, topic, read_committed=True)
            commits = await kafka_tools.committed(self.bootstrap, self.group, topic)
            for number, end in ends.items():
                committed = commits[number].offset if number in commits else None
                found[TopicPartition(topic, number)] = Final(committed, end)
        return found

    async def until_at_rest(self, seconds: float) -> dict[TopicPartition, Final]:
        """What is committed and what is there, as soon as that is the same, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            is_late = time.monotonic() > deadline
            try:
                finals = await self.finals()
            except WORLD_ERRORS:
                if is_late:
                    raise
                continue  # each question has a bound of its own
            if is_late or all((final.committed or 0) == final.end for final in finals.values()):
                return finals
            await asyncio.sleep(_LOOK_SECONDS)

    async def read_log(self, load: Load, finals: dict[TopicPartition, Final]) -> list[Sent]:
        """All that the topics hold; WorldError when a record is missing that was acknowledged to `load`."""
        ends = {tp: final.end for tp, final in finals.items()}
        log = await asyncio.to_thread(read_log, self.bootstrap, ends)
        missing = load.acknowledged - {(sent.tp, sent.offset) for sent in log}
        if missing:
            raise WorldError(f"the brokers lost {len(missing)} acknowledged records, such as {min(missing)}")
        return log


def whole_history(log: Sequence[Sent], noted: Path, into: Path) -> list[Event]:
    """What the log holds as `send` events, for a record exists before it is read; then all that was `noted`.

    In order of time: a process that is frozen between looking at the clock and writing writes late. Written
    to the file `into` as well. Blocks.
    """
    sends = [Event("send", 0, "", sent.tp, sent.offset, sent.key, str(sent.size)) for sent in log]
    events = [*sends, *sorted(read(noted), key=lambda event: event.at_ns)]
    into.write_bytes(b"".join(map(encode, events)))
    return events
