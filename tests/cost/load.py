"""What is run to be counted: so many records, over so many partitions and keys, behind so large a gap."""

from __future__ import annotations

import random
from dataclasses import dataclass

from asyncpar.records import RawRecord, TopicPartition
from tests.runtime.fakes import FakeRecord

TOPIC = "t"
STUCK = b"stuck"


@dataclass(frozen=True, slots=True)
class Load:
    """`before` records run first and are not counted: they bring keys, or make a gap."""

    records: int = 4000
    partitions: int = 8
    keys: int = 1000
    before: int = 1000
    is_stuck: bool = False
    """The first record of each partition does not end: what is done above it is its gap."""

    def logs(self) -> dict[TopicPartition, list[RawRecord]]:
        """An equal share for each partition, of keys drawn at random, the same ones each time."""
        drawn = random.Random(1)
        share = -(-(self.before + self.records) // self.partitions) + self.is_stuck
        return {
            TopicPartition(TOPIC, number): [
                FakeRecord(0, STUCK, STUCK, timestamp=1_000_000)
                if self.is_stuck and not offset
                else FakeRecord(offset, b"%d" % drawn.randrange(self.keys), b"a value", timestamp=1_000_000)
                for offset in range(share)
            ]
            for number in range(self.partitions)
        }
