"""The service that a handler depends on, in miniature: TCP on 127.0.0.1, up or down.

What lives here: the service, and the client of it that members use. What never does: Kafka. Called by
`outage.py` and `caller.py`. Always: while it is down nobody listens, and whoever was connected is cut off;
what it has `heard` it remembers, and nobody else says what was done.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from tests.kafka_broker import LOOPBACK, free_port

_WORK_SECONDS = 0.02
"""Long enough that calls one at a time are slower than what comes."""
_DONE = b"done\n"


class Heard(NamedTuple):
    """A record that somebody told the service of. `at`: time.monotonic() seconds."""

    at: float
    partition: int
    offset: int


class Downstream:
    """The service. Begins down."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[Heard] = []
        self._server: asyncio.Server | None = None
        self._connected: set[asyncio.StreamWriter] = set()

    async def up(self) -> None:
        """Listen. OSError when somebody else has taken the port meanwhile."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    async def down(self) -> None:
        """Refuse whoever comes, and cut off whoever is there."""
        if self._server is None:
            return
        self._server.close()
        for writer in self._connected:
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        try:
            while line := await reader.readline():
                partition, offset = map(int, line.split())
                await asyncio.sleep(_WORK_SECONDS)
                if writer.is_closing():
                    break
                self.heard.append(Heard(time.monotonic(), partition, offset))
                writer.write(_DONE)
        except ConnectionError:
            pass  # cut off, by us or by a member that ended
        finally:
            self._connected.discard(writer)
            writer.close()


class Client:
    """What a handler has: as many connections as it needs at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def tell(self, partition: int, offset: int) -> None:
        """One call; ConnectionError when the service is down, or goes down before it has answered."""
        try:
            reader, writer = (
                self._idle.pop() if self._idle else await asyncio.open_connection(LOOPBACK, self._port)
            )
        except OSError as error:
            raise ConnectionError(f"the service is down: {error}") from error
        is_good = False
        try:
            writer.write(b"%d %d\n" % (partition, offset))
            is_good = await reader.readline() == _DONE
        finally:
            if is_good:
                self._idle.append((reader, writer))
            else:
                writer.close()
                self._forget_idle()
        if not is_good:
            raise ConnectionError("the service hung up")

    def _forget_idle(self) -> None:
        """They are as dead as the one that has just failed."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
