"""A TCP proxy that reads Kafka's frames and rewrites some answers on their way to the client.

What lives here: frames, and the answers that the mock cluster cannot give by itself. What never does: when to
give them. Called by `lives.py`. Always: what is not to be rewritten passes through unchanged; when one side
hangs up the other is hung up on as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import JoinGroupRequest

from tests.wire.case import Rewrite
from tests.wire.mock_cluster import Request

_ANSWERS = {
    kind.API_KEY: {one.API_VERSION: one.RESPONSE_TYPE for one in kind._CLASSES}
    for kind in (OffsetFetchRequest, JoinGroupRequest)
}
_LENGTH_BYTES, _CORRELATION_BYTES = 4, 4


def _in_partitions(answer: Any, code: int) -> None:
    answer.topics = [
        (topic, [(partition, -1, "", code) for partition, *_ in partitions])
        for topic, partitions in answer.topics
    ]


def _whole(answer: Any, code: int) -> None:
    answer.topics, answer.error_code = [], code


def _with_id(answer: Any, code: int) -> None:
    answer.error_code, answer.generation_id, answer.members = code, -1, []


_CHANGES: dict[Rewrite, Callable[[Any, int], None]] = {
    Rewrite.PARTITIONS: _in_partitions,
    Rewrite.WHOLE: _whole,
    Rewrite.MEMBER_ID: _with_id,
}


class Proxy:
    """Passes everything on between a client and one broker, but for the answers of `rewrite`."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._wish: tuple[Request, int, Callable[[Any, int], None]] | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0
        self.left = 0
        """How many answers are still to be rewritten."""

    def rewrite(self, request: Request, code: int, how: Rewrite, times: int = 1) -> None:
        """Put `code` into the next `times` answers to `request` that the client under test gets."""
        self._wish, self.left = (request, code, _CHANGES[how]), times

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until a side hangs up."""
        asked: dict[int, tuple[int, int]] = {}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection(*self._upstream)
            try:
                await asyncio.gather(self._requests(reader, back, asked), self._answers(there, writer, asked))
            finally:
                back.close()
        writer.close()

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: dict[int, tuple[int, int]],
    ) -> None:
        while True:
            frame = await _frame(reader)
            key, version, correlation = struct.unpack_from(">hhi", frame)
            asked[correlation] = (key, version)
            writer.write(struct.pack(">i", len(frame)) + frame)

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: dict[int, tuple[int, int]],
    ) -> None:
        while True:
            frame = await _frame(reader)
            (correlation,) = struct.unpack_from(">i", frame)
            frame = self._changed(frame, *asked.pop(correlation))
            writer.write(struct.pack(">i", len(frame)) + frame)

    def _changed(self, frame: bytes, key: int, version: int) -> bytes:
        # A version that the client under test does not speak is somebody else's.
        kind = _ANSWERS.get(key, {}).get(version)
        if self._wish is None or not self.left or kind is None or key != self._wish[0]:
            return frame
        self.left -= 1
        answer = kind.decode(frame[_CORRELATION_BYTES:])
        self._wish[2](answer, self._wish[1])
        encoded: bytes = answer.encode()
        return frame[:_CORRELATION_BYTES] + encoded


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(_LENGTH_BYTES))
    return await reader.readexactly(length)


@contextlib.asynccontextmanager
async def proxy(address: str) -> AsyncIterator[Proxy]:
    """A proxy before the broker at `address`, on a port of its own."""
    host, _, port = address.rpartition(":")
    made = Proxy(host, int(port))
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
