"""Frames: whole ones come out, torn ones stay back, what is no plain value is refused."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncpar.executors.lane_frames import FrameError, FramePipe, FrameReader, frame


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, FramePipe]]:
    """The parent's socket, and the child's pipe."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, FramePipe(theirs)


def messages(data: bytes) -> list[tuple[Any, ...]]:
    """All that `data` holds."""
    return list(FrameReader().feed(data))


def test_messages_come_out_however_the_bytes_arrive() -> None:
    """Byte by byte, or many frames at once, with a torn one at the end that never comes out."""
    sent = [
        ("reply", 1, 2, 0.5),
        ("failure", 1, 0, ("failed", ("a", "b"), "x" * 1000, "", 0, False)),
        ("bye",),
    ]
    data = b"".join(frame(message) for message in sent)
    assert messages(data + frame(("torn",))[:-1]) == sent
    reader = FrameReader()
    assert [message for at in range(len(data)) for message in reader.feed(data[at : at + 1])] == sent


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(("reply", FrameReader)),
        pickle.dumps(("reply", print)),
        b"nonsense",
        b"",
        pickle.dumps(["reply"]),
        pickle.dumps(()),
    ],
    ids=["class", "function", "no pickle", "empty", "list", "no word"],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Nothing that a child sends makes the parent import or call anything."""
    with pytest.raises(FrameError):
        messages(struct.pack("!I", len(body)) + body)


def test_a_length_that_makes_no_sense_is_refused_at_once() -> None:
    """The parent does not collect gigabytes for it."""
    with pytest.raises(FrameError, match="bytes"):
        messages(b"\xff\xff\xff\xff")


def test_the_childs_end_takes_what_the_parent_sends(ends: tuple[socket.socket, FramePipe]) -> None:
    """Batches, the end, and EOFError when the parent has gone."""
    ours, pipe = ends
    ours.sendall(frame((1, [("t", 0)])) + frame(None))
    ours.shutdown(socket.SHUT_WR)
    assert pipe.receive() == (1, [("t", 0)])
    assert pipe.receive() is None
    with pytest.raises(EOFError):
        pipe.receive()


def test_offers_that_the_parent_does_not_read_are_dropped_and_counted(
    ends: tuple[socket.socket, FramePipe],
) -> None:
    """No offer blocks; the next message that must arrive brings those that waited, whole and in order."""
    ours, pipe = ends
    for number in range(10_000):
        if pipe.has_room():
            pipe.offer("log", number, "x" * 500)
    ours.setblocking(False)
    reader = FrameReader()
    heard: list[tuple[Any, ...]] = []

    with contextlib.suppress(BlockingIOError):
        while True:
            heard.extend(reader.feed(ours.recv(2**16)))
    ours.settimeout(30)
    sender = threading.Thread(target=pipe.send, args=("bye",), daemon=True)
    sender.start()
    while heard[-1] != ("bye",):
        heard.extend(reader.feed(ours.recv(2**16)))
    sender.join(30)
    logs = [message[1] for message in heard if message[0] == "log"]
    assert logs == list(range(len(logs)))
    assert heard[-2] == ("dropped", 10_000 - len(logs))
    assert 0 < len(logs) < 10_000


def test_an_offer_to_a_parent_that_has_gone_is_nothing(ends: tuple[socket.socket, FramePipe]) -> None:
    """A line of a log must not fail the handler; what must arrive fails."""
    ours, pipe = ends
    ours.close()
    pipe.offer("log", 1)
    with pytest.raises(OSError, match="pipe"):
        pipe.send("bye")


class _Interrupted:
    """A socket in the middle of whose sending something happens in the same thread, as in a finaliser."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner
        self.happens: Callable[[], None] | None = None

    def makefile(self, *given: Any, **named: Any) -> Any:
        return self.inner.makefile(*given, **named)

    def sendall(self, data: bytes) -> None:
        self.inner.sendall(data[:5])
        self._interrupt()
        self.inner.sendall(data[5:])

    def send(self, data: bytes, flags: int) -> int:
        size = 5 if self._interrupt() else len(data)
        return self.inner.send(bytes(data[:size]), flags)

    def _interrupt(self) -> bool:
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return happens is not None


@pytest.mark.timeout(30)
def test_a_line_that_is_logged_in_the_middle_of_sending_stands_behind_it() -> None:
    """It does not wait for what waits for it, and tears no frame apart."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = _Interrupted(theirs)
        pipe = FramePipe(connection)  # type: ignore[arg-type]
        connection.happens = lambda: pipe.offer("log", "while a reply is sent")
        pipe.send("reply", 1)
        assert messages(ours.recv(2**16)) == [("reply", 1), ("log", "while a reply is sent")]
        connection.happens = lambda: pipe.offer("log", "while a line is sent")
        pipe.offer("log", "a line")
        pipe.send("bye")
        assert messages(ours.recv(2**16)) == [("log", "a line"), ("log", "while a line is sent"), ("bye",)]
