"""The work per record does not grow with the number of keys: counted in calls, not in seconds."""

from __future__ import annotations

import sys
from types import FrameType

from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.virtual_partitions import Queues, ReadyQueue
from asyncpar.records import TopicPartition
from tests.core.models import records


def calls_for(count_of_records: int, keys: int) -> int:
    """Python and C calls that it takes to queue, take and finish records of `keys` keys."""
    tracker, handler = OffsetTracker(0), ReadyQueue("bill")
    queues = Queues(TopicPartition("t", 0), 1, tracker, handler)
    chunk = [made for at in range(count_of_records) for made in records(at, key=b"%d" % (at % keys))]
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        queues.enqueue(tracker.admit(chunk), None)
        while handler.ready:
            vp = handler.ready.popleft()
            assert vp.head is not None
            tracker.complete(vp.head.offset)
            queues.finish(vp)
    finally:
        sys.setprofile(None)
    return calls


def test_the_calls_per_record_do_not_grow_with_the_number_of_keys() -> None:
    """5,000 records of 5,000 keys cost no more calls than 1.2 times those of 10 keys."""
    assert calls_for(5000, 5000) <= 1.2 * calls_for(5000, 10)
