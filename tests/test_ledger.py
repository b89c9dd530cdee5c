"""The ledger loses nothing to SIGKILL, and its checker flags each hand-made bad history and no good one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kafka_tools import Produced
from tests.ledger import Event, Kind, Ledger, Place, Writer, check, read

A, B = Writer(1, "a"), Writer(2, "b")


class History:
    """A hand-made ledger of topic t, partition 0; each event comes one nanosecond after the one before."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, kind: Kind, offset: int, writer: Writer = A, key: bytes | None = b"k") -> History:
        self.events.append(Event(kind, Place("t", 0, offset), key, len(self.events) + 1, writer))
        return self

    def call(self, *offsets: int, writer: Writer = A, key: bytes | None = b"k") -> History:
        for offset in offsets:
            self.note("start", offset, writer, key).note("end", offset, writer, key)
        return self


def produced(count: int, key: bytes | None = b"k") -> list[Produced]:
    """What History refers to: `count` records of one key."""
    return [Produced("t", 0, offset, key) for offset in range(count)]


def test_handled_once_in_order_is_ok() -> None:
    """The plain good history has no fault and no duplicate."""
    report = check(History().call(0, 1, 2).events, produced(3))
    assert report.is_ok
    assert report.handled == 3
    assert report.duplicates == 0
    assert report.explain() == "3 handled, 0 duplicates, 0 lost, 0 reordered, 0 overlapping, 0 unknown"


def test_a_record_without_a_successful_call_is_lost() -> None:
    """Never started and only failed both count as lost; the followers of a lost record are not reordered."""
    history = History().call(0).note("start", 1).note("fail", 1).call(3)
    report = check(history.events, produced(4))
    assert report.lost == (("t", 0, 1), ("t", 0, 2))
    assert not report.reordered
    assert not report.is_ok


def test_a_settled_record_is_not_lost() -> None:
    """A dead-lettered record is dealt with, started or not."""
    history = History().call(0).note("start", 1).note("fail", 1).call(3)
    assert check(history.events, produced(4), settled=[("t", 0, 1), ("t", 0, 2)]).is_ok


def test_a_retry_is_in_order() -> None:
    """The same record again after a failure is neither reordered nor a duplicate."""
    history = History().note("start", 0).note("fail", 0).call(0, 1)
    report = check(history.events, produced(2))
    assert report.is_ok
    assert report.duplicates == 0


def test_two_records_of_a_key_swapped_are_reordered() -> None:
    """The later one first: both steps are named."""
    report = check(History().call(1, 0).events, produced(2))
    assert [fault.place.offset for fault in report.reordered] == [1, 0]
    assert "left out" in report.explain()
    assert "without a replay" in report.explain()


def test_a_follower_that_overtakes_a_retry_is_reordered() -> None:
    """A failed record must succeed before the next one of its key starts."""
    history = History().note("start", 0).note("fail", 0).call(1, 0)
    assert [fault.place.offset for fault in check(history.events, produced(2)).reordered] == [0]


def test_other_keys_and_keyless_records_have_no_order() -> None:
    """Only records of one key are compared; a record without a key is free, and may overlap others."""
    history = History().call(2, key=b"x").note("start", 1, key=None).note("start", 0, key=None)
    history.note("end", 1, key=None).note("end", 0, key=None)
    records = [*produced(2, key=None), Produced("t", 0, 2, b"x")]
    assert check(history.events, records).is_ok


def test_equal_keys_in_two_partitions_have_no_order() -> None:
    """A key's order is a matter of its partition."""
    steps: list[tuple[Kind, int]] = [("start", 1), ("start", 0), ("end", 1), ("end", 0)]
    events = [Event(kind, Place("t", part, 0), b"k", at, A) for at, (kind, part) in enumerate(steps, 1)]
    assert check(events, [Produced("t", p, 0, b"k") for p in (0, 1)]).is_ok


def test_a_replay_by_another_writer_is_duplicates_only() -> None:
    """After a death the next owner repeats from the committed offset and goes on."""
    report = check(History().call(0, 1, 2).call(1, 2, 3, writer=B).events, produced(4))
    assert report.is_ok
    assert (report.duplicates, report.duplicated) == (2, (("t", 0, 1), ("t", 0, 2)))


def test_a_replay_by_the_same_writer_needs_its_assignment() -> None:
    """A step back is a replay after an assignment at or below it, else a fault."""
    assert check(History().call(0, 1).note("assign", 0, key=None).call(0, 1).events, produced(2)).is_ok
    for history in (History().call(0, 1), History().call(0, 1).note("assign", 1, key=None)):
        report = check(history.call(0, 1).events, produced(2))
        assert [fault.place.offset for fault in report.reordered] == [0]
        assert check(history.events, produced(2), rewinds="any").is_ok


def test_a_replay_must_not_skip() -> None:
    """From where a replay starts, each record of the key comes in turn."""
    report = check(History().call(0, 1, 2).call(0, 2, writer=B).events, produced(3))
    assert [fault.place.offset for fault in report.reordered] == [2]


def test_a_member_that_starts_after_its_loss_is_reordered() -> None:
    """An old owner that goes on after the new one went back is flagged, unless named as a straggler."""
    history = History().call(0, 1, 2).call(1, writer=B).call(3).call(2, 3, writer=B)
    report = check(history.events, produced(4))
    assert [(fault.place.offset, fault.writer) for fault in report.reordered] == [(3, A)]
    assert check(history.events, produced(4), stragglers=[("t", 0, 3)]).is_ok


def test_overlapping_calls_of_a_key_are_flagged() -> None:
    """One key, two calls at a time: in one writer and across two, with the time they shared."""
    for other in (A, B):
        history = History().note("start", 0).note("start", 1, other).note("end", 0).note("end", 1, other)
        (fault,) = check(history.events, produced(2)).overlapping
        assert (fault.first.offset, fault.second.offset, fault.nanoseconds) == (0, 1, 1)
        assert fault.writers == (A, other)
        assert check(history.events, produced(2), stragglers=[("t", 0, 0)]).is_ok


def test_a_short_call_inside_a_long_one_hides_nothing() -> None:
    """A third call is compared with the one that still runs, not with the one that started last."""
    history = History().note("start", 0).call(1, writer=B).call(2, writer=B).note("end", 0)
    assert [fault.second.offset for fault in check(history.events, produced(3)).overlapping] == [1, 2]


def test_an_unfinished_call_lasts_until_its_process_was_seen_last() -> None:
    """Without an end the call overlaps what others start while its writer still writes, and nothing later."""
    history = History().note("start", 0).call(0, writer=B).call(1, key=b"x").call(2, writer=B)
    records = [Produced("t", 0, 0, b"k"), Produced("t", 0, 1, b"x"), Produced("t", 0, 2, b"k")]
    assert [fault.second.offset for fault in check(history.events, records).overlapping] == [0]


def test_an_unfinished_call_lasts_until_its_process_is_dead() -> None:
    """What the next owner starts before the death overlaps, what it starts after it does not."""
    dead = Event("dead", Place("-", 0, 0), None, 2, A)
    after = [History().note("start", 0).events[0], dead, *_later(History().call(0, 1, writer=B).events, 2)]
    assert check(after, produced(2)).is_ok
    late = dead._replace(monotonic_ns=4)
    before = [after[0], *after[2:], late]
    assert [fault.second.offset for fault in check(before, produced(2)).overlapping] == [0]


def _later(events: list[Event], nanoseconds: int) -> list[Event]:
    return [event._replace(monotonic_ns=event.monotonic_ns + nanoseconds) for event in events]


def test_a_record_nobody_produced_is_unknown() -> None:
    """A wrong offset and a wrong key are both flagged."""
    history = History().call(0, key=b"other").call(7)
    report = check(history.events, produced(1))
    assert {(event.place.offset, event.key) for event in report.unknown} == {(0, b"other"), (7, b"k")}
    assert not report.is_ok


def test_events_count_by_time_not_by_line() -> None:
    """Two processes may reach the file in another order than they took the time."""
    events = History().call(0).call(1, writer=B).events
    assert check(list(reversed(events)), produced(2)).is_ok


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    """All kinds, no key, an empty key, one with tabs and newlines; handling() tells success from failure."""
    ledger = Ledger(tmp_path / "ledger", instance="a 1")
    ledger.assigned("t", 0, 0)
    with ledger.handling("t", 0, 0, b"\t\n\xff"):
        pass
    with pytest.raises(RuntimeError), ledger.handling("t", 0, 1, b""):
        raise RuntimeError
    ledger.write("start", "t", 0, 2, None)
    ledger.dead(12345)
    ledger.close()
    events = read(ledger.path)
    assert [event.kind for event in events] == ["assign", "start", "end", "start", "fail", "start", "dead"]
    assert [event.key for event in events] == [None, b"\t\n\xff", b"\t\n\xff", b"", b"", None, None]
    assert events[0].writer == (os.getpid(), "a 1")
    assert events[-1].writer.pid == 12345
    assert [e.monotonic_ns for e in events] == sorted(e.monotonic_ns for e in events)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """A line that is none stops the check with file and line number."""
    path = tmp_path / "ledger"
    Ledger(path).assigned("t", 0, 0)
    with path.open("a") as file:
        file.write("stat\tt\t0\t0\t-\t1\t1\t\n")
    with pytest.raises(ValueError, match=r"ledger:2: not a ledger line \(unknown kind 'stat'\)"):
        read(path)


def test_sigkill_loses_no_line_and_processes_do_not_mix(tmp_path: Path) -> None:
    """Two writers are killed in the middle: every line that they had reported is there, and whole."""
    path = tmp_path / "ledger"
    code = (
        "import sys, os; from tests.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1]); count = 0\n"
        "while True:\n"
        "    ledger.write('start', 't', 0, count, b'k'); count += 1\n"
        "    if count % 500 == 0: os.write(1, b'%d\\n' % count)\n"
    )
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    reported: dict[int, int] = {}
    try:
        for writer in writers:
            assert writer.stdout is not None
            reported[writer.pid] = [int(writer.stdout.readline()) for _ in range(4)][-1]
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate(timeout=10)
    events = read(path)
    for pid, count in reported.items():
        offsets = [event.place.offset for event in events if event.writer.pid == pid]
        assert offsets == list(range(len(offsets)))
        assert len(offsets) >= count
