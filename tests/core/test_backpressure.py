"""Tests of the limits: a machine that fetches as much as it is allowed, and named cases."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncpar.core.assignment import Event, Partition
from asyncpar.core.backpressure import Backpressure, Limits, bytes_held, payload_bytes
from asyncpar.records import TopicPartition
from tests.core.models import FakeRecord, bounded, opened, queues_of, records, tracker_of

WIDE = 1 << 30


def _limits(
    records_: int, per_partition: int | None = None, bytes_: int = WIDE, poll_batch_size: int = 500
) -> Limits:
    return Limits(records_, per_partition, bytes_, poll_batch_size)


def _partitions(count: int) -> list[Partition]:
    return [opened(tp=TopicPartition("orders", number)) for number in range(count)]


def _fill(intake: Backpressure, partition: Partition, count: int) -> None:
    position = tracker_of(partition).position
    _admit(intake, partition, records(*range(position, position + count)))


def _admit(intake: Backpressure, partition: Partition, chunk: list[FakeRecord]) -> None:
    intake.admitted(partition, tracker_of(partition).admit(chunk))


def _empty(partition: Partition, count: int) -> None:
    tracker = tracker_of(partition)
    for offset in list(tracker.unfinished)[:count]:
        tracker.complete(offset)


class IntakeMachine(RuleBasedStateMachine):
    """Fetches as greedy as they may be, and completions in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.partitions: list[Partition] = []
        self.intake = Backpressure(_limits(1))
        self.last_chunk_bytes = 0
        self.above_reserves = 0
        """Bytes of what starving partitions got in records that are larger than their reserve."""

    @initialize(
        count=st.integers(1, 4),
        records_=st.integers(1, 200),
        per_partition=st.one_of(st.none(), st.integers(1, 100)),
        bytes_=st.integers(0, 3_000),
        poll_batch_size=st.integers(1, 500),
    )
    def configure(
        self, count: int, records_: int, per_partition: int | None, bytes_: int, poll_batch_size: int
    ) -> None:
        """Any limits, however small beside the size of a fetch."""
        self.partitions = _partitions(count)
        self.intake = Backpressure(Limits(records_, per_partition, bytes_, poll_batch_size))

    @rule(share=st.sampled_from([0.1, 0.5, 1.0, 1.0]), first=st.integers(0, 3), sizes=st.integers(0, 300))
    def fetch(self, share: float, first: int, sizes: int) -> None:
        """A fetch delivers up to what was asked for, spread over the wanted partitions as it likes."""
        wanted, room = self.intake.wanted(self.partitions)
        assert bool(wanted) is bool(room)
        assert room <= self.intake.limits.poll_batch_size
        if self.intake.records_active or self.intake.bytes_active:
            assert not wanted
        left = max(1, int(room * share)) if wanted else 0
        self.last_chunk_bytes = 0 if wanted else self.last_chunk_bytes
        for partition in wanted[first % len(wanted) :] if wanted else []:
            count = min(self.intake.share, left if partition is wanted[-1] else (left + 1) // 2)
            left -= count
            position = tracker_of(partition).position
            chunk = [FakeRecord(position + n, b"k", b"v" * (sizes * n % 301)) for n in range(count)]
            _admit(self.intake, partition, chunk)
            self.last_chunk_bytes += sum(map(payload_bytes, chunk))

    @rule(first=st.integers(0, 3), size=st.integers(0, 300))
    def fetch_starving(self, first: int, size: int) -> None:
        """While the group is full a fetch delivers to one that starves all that was asked for."""
        self.intake.wanted(self.partitions)
        if not self.intake.is_full:
            return
        wanted, room = self.intake.starving(self.partitions)
        assert bool(wanted) is bool(room)
        assert room <= self.intake.limits.poll_batch_size
        for partition in wanted[first % len(wanted) :][:1] if wanted else []:
            position = tracker_of(partition).position
            chunk = [FakeRecord(position + n, b"k", b"v" * size) for n in range(room)]
            if self.intake.bytes_active:
                share = self.intake.limits.reserved_bytes(len(self.partitions))
                self.above_reserves += max(0, size + 1 - share)
            else:
                self.last_chunk_bytes = sum(map(payload_bytes, chunk))
            _admit(self.intake, partition, chunk)

    @precondition(lambda self: any(partition.in_flight for partition in self.partitions))
    @rule(data=st.data(), count=st.integers(1, 80))
    def complete(self, data: st.DataObject, count: int) -> None:
        """Some records of one partition end."""
        busy = [partition for partition in self.partitions if partition.in_flight]
        tracker = tracker_of(data.draw(st.sampled_from(busy)))
        held = list(tracker.unfinished)
        for offset in held[:: data.draw(st.integers(1, 3))][:count]:
            tracker.complete(offset)

    @invariant()
    def limits_are_never_passed(self) -> None:
        """Records never; bytes by no more than what one fetch brought."""
        limits, held = self.intake.limits, [partition.in_flight for partition in self.partitions]
        assert sum(held) <= limits.max_in_flight
        assert max(held, default=0) <= limits.per_partition(len(held))
        most = limits.max_in_flight_bytes + self.last_chunk_bytes + self.above_reserves
        assert bytes_held(self.partitions) <= most

    def teardown(self) -> None:
        """With nothing in flight everything is wanted, whatever went before."""
        for partition in self.partitions:
            _empty(partition, partition.in_flight)
        if self.partitions:
            wanted, room = self.intake.wanted(self.partitions)
            assert wanted == self.partitions
            assert room >= 1


IntakeMachine.TestCase.settings = bounded(40, 25)
TestIntake = IntakeMachine.TestCase


def test_the_limit_of_a_partition_follows_the_number_assigned() -> None:
    """Twice its fair share, at least 64, never above the group's limit; a set value is taken as it is."""
    limits = _limits(5_000)
    shares = [limits.per_partition(assigned) for assigned in (0, 1, 2, 4, 100, 5_000)]
    assert shares == [5_000, 5_000, 5_000, 2_500, 100, 64]
    assert _limits(10).per_partition(50) == 10
    assert _limits(5_000, 300).per_partition(1) == 300
    assert _limits(100, 300).per_partition(1) == 100


def test_intake_stops_before_the_limit_and_starts_again_at_seventy_percent() -> None:
    """Hysteresis: off when less than one fetch of room is left, on again at 70 %."""
    (partition,) = partitions = _partitions(1)
    intake = Backpressure(_limits(1_000, poll_batch_size=100))
    assert intake.wanted(partitions) == ([partition], 100)
    _fill(intake, partition, 900)
    assert intake.wanted(partitions) == ([partition], 100)
    _fill(intake, partition, 1)
    assert intake.wanted(partitions) == ([], 0)
    assert (partition.backpressure, intake.records_active) == (True, True)
    _empty(partition, 200)
    assert intake.wanted(partitions) == ([], 0)
    _empty(partition, 1)
    assert intake.wanted(partitions) == ([partition], 100)
    assert (partition.backpressure, intake.records_active) == (False, False)


def test_many_partitions_share_a_fetch_of_full_size() -> None:
    """Each may hold 64 records only; the fetch is not as small as what one of them may get of it."""
    partitions = _partitions(256)
    intake = Backpressure(_limits(5_000))
    assert intake.wanted(partitions) == (partitions, 500)
    assert intake.share == 19
    one = Backpressure(_limits(5_000))
    assert one.wanted(partitions[:1]) == (partitions[:1], 500)
    assert one.share == 500


def test_a_full_partition_does_not_hold_back_the_others() -> None:
    """Parked retries of one partition fill its own share; intake goes on beside it."""
    full, free = partitions = _partitions(2)
    intake = Backpressure(_limits(1_000, per_partition=200, poll_batch_size=50))
    _fill(intake, full, 200)
    assert intake.wanted(partitions) == ([free], 50)
    assert full.backpressure
    assert not intake.records_active


def test_what_fills_the_group_leaves_the_others_their_reserve() -> None:
    """Half of the limit is shared out: four partitions have 125 of 1,000 records each for themselves."""
    stuck, *others = partitions = _partitions(4)
    intake = Backpressure(_limits(1_000, per_partition=1_000, poll_batch_size=50))
    _fill(intake, stuck, 576)
    assert intake.wanted(partitions) == ([], 0)
    assert intake.records_active
    assert intake.starving(partitions) == (others, 50)
    _fill(intake, others[0], 63)
    assert intake.wanted(partitions) == ([], 0)
    assert intake.starving(partitions) == (others[1:], 50)
    _empty(others[0], 1)
    assert intake.starving(partitions) == (others, 50)
    assert _limits(1_000, per_partition=100).reserve(4) == 100


def test_a_reserve_waits_for_what_was_let_in_when_there_were_fewer_partitions() -> None:
    """The whole limit was one partition's; the limit stands, also for those that joined it."""
    stuck, other = partitions = _partitions(2)
    intake = Backpressure(_limits(16))
    _fill(intake, stuck, 15)
    assert intake.wanted(partitions) == ([], 0)
    assert intake.starving(partitions) == ([other], 1)
    _fill(intake, stuck, 1)
    assert intake.starving(partitions) == ([], 0)


def test_where_the_limit_is_smaller_than_two_for_each_partition_nothing_is_reserved() -> None:
    """A limit of one record means one."""
    stuck, _ = partitions = _partitions(2)
    intake = Backpressure(_limits(1))
    _fill(intake, stuck, 1)
    assert intake.wanted(partitions) == ([], 0)
    assert intake.starving(partitions) == ([], 0)


def test_what_fills_the_bytes_leaves_the_others_a_record_at_a_time() -> None:
    """Nobody knows how large the next records are: whoever holds nothing gets one."""
    stuck, *others = partitions = _partitions(3)
    intake = Backpressure(_limits(1_000, bytes_=8_000))
    _admit(intake, stuck, [FakeRecord(n, None, b"v" * 1_000) for n in range(10)])
    assert intake.wanted(partitions) == ([], 0)
    assert intake.bytes_active
    assert intake.starving(partitions) == (others, 1)
    _fill(intake, others[0], 1)
    assert intake.starving(partitions) == (others[1:], 1)


def test_bytes_that_fit_beside_the_reserves_are_no_limit() -> None:
    """Of 8,000 bytes one of two partitions may hold 6,000, and the other its reserve of 2,000."""
    one, other = partitions = _partitions(2)
    intake = Backpressure(_limits(1_000, bytes_=8_000))
    _admit(intake, one, [FakeRecord(n, None, b"v" * 1_000) for n in range(5)])
    _admit(intake, other, [FakeRecord(n, None, b"v" * 500) for n in range(4)])
    assert intake.wanted(partitions)[0] == partitions
    _admit(intake, one, [FakeRecord(5, None, b"v" * 1_000)])
    assert intake.wanted(partitions) == ([], 0)


def test_a_limit_of_one_record_still_lets_one_in() -> None:
    """The smallest limits make it slow, not stuck."""
    (partition,) = partitions = _partitions(1)
    intake = Backpressure(_limits(1))
    assert intake.wanted(partitions) == ([partition], 1)
    _fill(intake, partition, 1)
    assert intake.wanted(partitions) == ([], 0)
    _empty(partition, 1)
    assert intake.wanted(partitions) == ([partition], 1)


@pytest.mark.parametrize("limit", [0, 10])
def test_one_record_always_fits_whatever_its_size(limit: int) -> None:
    """A record larger than the byte limit is let in alone, and holds the rest back until it is done."""
    (partition,) = partitions = _partitions(1)
    intake = Backpressure(_limits(100, bytes_=limit))
    assert intake.wanted(partitions)[0] == partitions
    _admit(intake, partition, [FakeRecord(0, None, b"x" * 5_000)])
    assert intake.wanted(partitions) == ([], 0)
    assert (intake.bytes_active, intake.records_active) == (True, False)
    _empty(partition, 1)
    assert intake.wanted(partitions)[0] == partitions
    assert (intake.bytes_active, intake.records_active) == (False, False)


def test_bytes_have_hysteresis_and_are_counted_exactly_when_it_matters() -> None:
    """On at the limit, off below 70 % of it; completions are seen although nothing counts them down."""
    (partition,) = partitions = _partitions(1)
    intake = Backpressure(_limits(1_000, bytes_=1_000))
    for round_ in range(20):
        _admit(intake, partition, [FakeRecord(round_, b"key", b"v" * 97)])
        assert intake.wanted(partitions)[0] == partitions
        _empty(partition, 1)
    position = tracker_of(partition).position
    _admit(intake, partition, [FakeRecord(position + n, None, b"v" * 100) for n in range(10)])
    assert intake.wanted(partitions) == ([], 0)
    _empty(partition, 3)
    assert intake.wanted(partitions) == ([], 0)
    assert bytes_held(partitions) == 700
    _empty(partition, 1)
    assert intake.wanted(partitions)[0] == partitions


def test_payload_bytes_are_those_of_key_and_value() -> None:
    """A missing key and a tombstone weigh nothing."""
    assert payload_bytes(FakeRecord(0, b"abc", b"de")) == 5
    assert payload_bytes(FakeRecord(0, None, b"de")) == 2
    assert payload_bytes(FakeRecord(0, b"abc", None)) == 3
    assert payload_bytes(FakeRecord(0, None, None)) == 0


def test_only_open_partitions_are_asked_for() -> None:
    """One that is being opened has no position, one that halted or drains wants nothing."""
    partitions = _partitions(3)
    opening = Partition(TopicPartition("orders", 9), 1)
    partitions[1].apply(Event.HALT)
    partitions[2].apply(Event.REVOKE)
    assert Backpressure(_limits(100)).wanted([opening, *partitions])[0] == partitions[:1]
    assert Backpressure(_limits(100)).wanted([opening]) == ([], 0)
    assert Backpressure(_limits(100)).wanted([]) == ([], 0)
    assert bytes_held([opening]) == 0


def test_a_partition_near_its_metadata_cap_is_asked_only_up_to_its_gate() -> None:
    """Records above the gate could not start; those below it are still needed."""
    partition, other = partitions = _partitions(2)
    intake = Backpressure(_limits(100))
    _fill(intake, partition, 5)
    queues_of(partition).move_gate(6)
    assert intake.wanted(partitions)[0] == partitions
    _fill(intake, partition, 1)
    assert intake.wanted(partitions)[0] == [other]


def test_a_smaller_share_after_a_rebalance_holds_back_what_has_too_much() -> None:
    """More partitions mean smaller shares: what is over drains, nothing more comes in meanwhile."""
    partitions = _partitions(4)
    intake = Backpressure(_limits(1_000, poll_batch_size=50))
    _fill(intake, partitions[0], 520)
    assert partitions[0] in intake.wanted(partitions[:1])[0]
    assert intake.wanted(partitions)[0] == partitions[1:]
