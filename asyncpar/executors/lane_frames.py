"""What crosses the socket of a lane: frames of a length and a pickle (protocol 5) of plain values.

The parent builds no class from what a child sends: a frame that names one is refused. To the child go
`(number, jobs)` with jobs as plain tuples, and None for its end. To the parent go tuples that begin with a
word; `lane.py` lists them. Never here: what they mean.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import threading
from collections.abc import Iterator
from socket import MSG_DONTWAIT, socket
from typing import Any, NoReturn, TypeAlias

Message: TypeAlias = tuple[Any, ...]

_LENGTH = struct.Struct("!I")
_MOST_BYTES_TO_PARENT = 2**24
_MOST_BYTES_WAITING = 2**18


class FrameError(Exception):
    """A child sent what is no frame of ours: it cannot be trusted any more."""


def frame(message: object) -> bytes:
    """`message` as it crosses."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise FrameError(f"a frame names {module}.{name}, only plain values may cross")


class FrameReader:
    """The parent's end: from bytes as they come to messages. A torn frame stays back."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            end = _LENGTH.size + length
            if length > _MOST_BYTES_TO_PARENT:
                raise FrameError(f"a frame of {length} bytes, more than a child ever sends")
            if len(buffer) < end:
                return
            body = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            yield _message(body)


def _message(body: bytes) -> Message:
    try:
        message = _PlainUnpickler(io.BytesIO(body)).load()
    except FrameError:
        raise
    except Exception as error:
        raise FrameError(f"a frame cannot be read: {type(error).__name__}") from error
    if not isinstance(message, tuple) or not message:
        raise FrameError(f"a frame holds a {type(message).__name__}, no message")
    return message


class FramePipe:
    """The child's end: it waits for what comes, and sends what must arrive or what may be dropped."""

    def __init__(self, connection: socket) -> None:
        self._socket = connection
        self._incoming = connection.makefile("rb", buffering=2**16)
        # A finaliser or the handler of a signal may log in the middle of all this, in the same thread.
        self._lock = threading.RLock()
        self._is_sending = False
        self._waiting = bytearray()
        """Frames that the socket did not take yet."""
        self._dropped = 0

    def receive(self) -> Any:
        """The next message; EOFError when the parent has gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301 - from the parent that started this process

    def _exactly(self, size: int) -> bytes:
        data: bytes = self._incoming.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def send(self, *message: object) -> None:
        """Send it, after what waits. Blocks while the parent reads nothing. OSError when it has gone."""
        data = frame(message)
        with self._lock:
            if self._dropped:
                self._waiting += frame(("dropped", self._dropped))
                self._dropped = 0
            data = bytes(self._waiting) + data
            self._waiting.clear()
            with self._sending():
                self._socket.sendall(data)
            if self._waiting:  # came in the middle
                self._flush()

    def has_room(self) -> bool:
        """An `offer` would be taken now; False counts as one that was dropped."""
        with self._lock:
            if self._waiting:
                self._flush()
            if len(self._waiting) < _MOST_BYTES_WAITING:
                return True
            self._dropped += 1
            return False

    def offer(self, *message: object) -> None:
        """Send it as far as the parent keeps up; the rest goes with the next message. Never blocks.

        `has_room` is asked before, so that what is dropped need not be made.
        """
        data = frame(message)
        with self._lock:
            self._waiting += data
            self._flush()

    def _flush(self) -> None:
        """Send of what waits as much as the socket takes; nothing in the middle of another frame."""
        if self._is_sending:
            return
        with self._sending(), contextlib.suppress(OSError):
            # OSError: it is full, or the parent has gone, which the next `send` finds out.
            sent = self._socket.send(self._waiting, MSG_DONTWAIT)
            del self._waiting[:sent]

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False
