"""The history: events as they were noted, in memory and in files that kill -9 cannot tear."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncpar.records import TopicPartition
from asyncpar.testing.history import Event, History, HistoryFile, decode, encode, handling, read

ROOT = Path(__file__).parent.parent.parent
TP = TopicPartition("orders", 3)


def test_a_file_gives_back_what_was_noted(tmp_path: Path) -> None:
    """No key, an empty one, one with tabs and line breaks; members and details with spaces."""
    history = HistoryFile(tmp_path / "history")
    history.note("join", "member 1")
    history.note("send", tp=TP, offset=7, key=b"\t\n\xff", detail="12")
    history.note("start", "member 1", TP, 7, b"")
    history.note("commit", "member 1", TP, 8, detail="ap1:0000:AAAA")
    history.close()
    events = read(history.path)
    assert [event.kind for event in events] == ["join", "send", "start", "commit"]
    assert [event.key for event in events] == [None, b"\t\n\xff", b"", None]
    assert (events[1].tp, events[1].offset, events[1].detail) == (TP, 7, "12")
    assert events[3].member == "member 1"
    assert [e.at_ns for e in events] == sorted(e.at_ns for e in events)


def test_a_line_is_the_event_and_back() -> None:
    """Also with a line separator that splitlines() would cut at."""
    event = Event("fault", 5, "m", TP, 1, b"k", "cut\u2028here")
    assert decode(encode(event).decode().rstrip("\n")) == event


@pytest.mark.parametrize("text", ["a\tb", "a\nb"])
def test_texts_that_would_break_a_line_are_refused(text: str) -> None:
    """A tab or a line break in a text."""
    with pytest.raises(ValueError, match="must hold no tab and no line break"):
        encode(Event("fault", 1, detail=text))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """A line that is none stops the reading with file and line number."""
    path = tmp_path / "history"
    HistoryFile(path).note("heal")
    with path.open("a") as file:
        file.write("haal\t1\t\t-\t-1\t-1\t-\t\n")
    with pytest.raises(ValueError, match=r"history:2: not an event \(unknown kind 'haal'\)"):
        read(path)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    """A reader may come between two pages of a write, even between the bytes of a character."""
    history = HistoryFile(tmp_path / "history")
    assert read(history.path) == []
    history.note("heal")
    line = encode(Event("fault", 1, detail="\u00e9"))
    with history.path.open("ab") as file:
        file.write(line[:-2])
    assert [event.kind for event in read(history.path)] == ["heal"]


def test_a_full_disk_is_an_error() -> None:
    """Taking only part of a line is never silent."""
    history = HistoryFile("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        history.note("heal")
    history.close()


def test_handling_tells_how_a_call_ended() -> None:
    """Ok, failed and cancelled; with the sign of membership that allowed it."""
    history = History(clock=iter(range(100)).__next__)
    with handling(history, "m", TP, 1, b"k", lambda: 2.5):
        pass
    with pytest.raises(RuntimeError), handling(history, "m", TP, 2, None):
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), handling(history, "m", TP, 3, None, lambda: float("-inf")):
        raise KeyboardInterrupt
    assert [(event.kind, event.detail) for event in history.events] == [
        ("start", "2500000000"),
        ("end", "ok"),
        ("start", ""),
        ("end", "failed"),
        ("start", "0"),
        ("end", "cancelled"),
    ]
    assert [event.at_ns for event in history.events] == list(range(6))


def test_an_event_reads_like_a_line_of_a_trace() -> None:
    """What is not there is left out."""
    assert str(Event("start", 1_500_000_000, "m", TP, 4, b"k")) == "1.500000 m start orders[3] 4 key b'k'"
    assert str(Event("heal", 0)) == "0.000000 - heal"


def test_sigkill_loses_no_line_and_processes_do_not_mix(tmp_path: Path) -> None:
    """Two writers are killed in the middle: every line that they had reported is there, and whole."""
    path = tmp_path / "history"
    code = (
        "import sys, os; from asyncpar.testing.history import HistoryFile\n"
        "from asyncpar.records import TopicPartition\n"
        "history = HistoryFile(sys.argv[1]); count = 0; name = str(os.getpid())\n"
        "while True:\n"
        "    history.note('start', name, TopicPartition('t', 0), count, b'k'); count += 1\n"
        "    if count % 500 == 0: os.write(1, b'%d\\n' % count)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    reported: dict[str, int] = {}
    try:
        for writer in writers:
            assert writer.stdout is not None
            reported[str(writer.pid)] = [int(writer.stdout.readline()) for _ in range(4)][-1]
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate(timeout=10)
    events = read(path)
    for member, count in reported.items():
        offsets = [event.offset for event in events if event.member == member]
        assert offsets == list(range(len(offsets)))
        assert len(offsets) >= count
