"""A TCP proxy that stands between clients and one broker and makes the network between them fail.

What lives here: one listening port, its links, and the weather that they meet. What never does: Kafka. Called
by `cluster.py`, on the event loop. Always: loopback only; nothing of a link outlives `stop`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 3.0
_CHUNK_BYTES = 16 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Direction = Literal["requests", "answers"]


@dataclass(frozen=True)
class Weather:
    """What a link meets: each chunk is held for `delay_seconds`, passes at `bytes_per_second`, waits while
    its direction is stalled, or vanishes without a word (`is_dark`). A `share` of the links, by their luck,
    meets it.
    """

    delay_seconds: float = 0.0
    bytes_per_second: float | None = None
    stalled: frozenset[Direction] = frozenset()
    is_dark: bool = False
    share: float = 1.0


CALM = Weather()


class _Link:
    """One client's connection and the one to the broker that belongs to it."""

    def __init__(self, luck: float, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.luck = luck
        self.ends = (client, broker)
        self.is_dark = False
        self.gone = asyncio.Event()

    def reset(self) -> None:
        """RST to both sides: whatever was under way is lost."""
        self.gone.set()
        for end in self.ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.transport.abort()


class TcpProxy:
    """Passes 127.0.0.1:`port` on to 127.0.0.1:`target`, and fails on request.

    `met` counts what the present weather did: chunks held or swallowed, links reset, connections refused.
    """

    def __init__(self, port: int, target: int, luck: Callable[[], float] = random.random) -> None:
        self.port = port
        self.target = target
        self.met = 0
        self._luck = luck
        self._weather = CALM
        self._turned = asyncio.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def links(self) -> int:
        """How many connections stand."""
        return len(self._links)

    async def start(self) -> None:
        """Listen; OSError when the port is taken. Does nothing when it listens already."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def stop(self) -> None:
        """Stop listening and reset every link."""
        await self._close_door()
        self._reset(list(self._links))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CONNECT_SECONDS)

    # -- faults ------------------------------------------------------------------------------

    def turn(self, weather: Weather) -> None:
        """From now on links meet `weather`. Those that were dark before are reset: they have lost bytes."""
        self._reset([link for link in self._links if link.is_dark])
        self.met = 0
        self._weather = weather
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()
        if weather.is_dark:
            for link in self._links:
                link.is_dark = link.luck < weather.share

    def cut(self, share: float = 1.0) -> int:
        """Reset a share of the links; new ones are welcome. Returns how many it were."""
        doomed = [link for link in self._links if link.luck < share]
        self._reset(doomed)
        self.met += len(doomed)
        return len(doomed)

    async def refuse(self) -> None:
        """Reset all links and refuse connections until `heal`."""
        await self._close_door()
        self.cut()

    async def heal(self) -> None:
        """The network is well: connections are accepted, and whatever was stalled goes on."""
        self.turn(CALM)
        await self.start()

    # -- inside ------------------------------------------------------------------------------

    async def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _reset(self, links: list[_Link]) -> None:
        for link in links:
            link.reset()
            self._links.discard(link)

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        # A task of our own: the one that asyncio would make complains when it is cancelled.
        task = asyncio.get_running_loop().create_task(self._serve(reader, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answers, broker = await asyncio.open_connection(LOOPBACK, self.target)
        except (OSError, TimeoutError):
            client.transport.abort()
            return
        link = _Link(self._luck(), client, broker)
        link.is_dark = self._weather.is_dark and link.luck < self._weather.share
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, "requests", reader, broker))
                pumps.create_task(self._pump(link, "answers", answers, client))
        except* OSError:
            pass  # one side is gone: the other hears it below
        finally:
            link.reset()
            self._links.discard(link)

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            chunk = await reader.read(_CHUNK_BYTES)
            await self._endure(link, direction, len(chunk))
            if link.is_dark:
                # A machine that is gone sends no end either: the other side finds out by itself.
                self.met += 1
                if chunk:
                    continue
                await link.gone.wait()
                return
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    async def _endure(self, link: _Link, direction: Direction, size: int) -> None:
        """Wait as the weather wants it; a change of weather ends the wait."""
        while (weather := self._weather) is not CALM and link.luck < weather.share and not link.is_dark:
            seconds = weather.delay_seconds
            if weather.bytes_per_second is not None:
                seconds += size / weather.bytes_per_second
            is_stalled = direction in weather.stalled
            if not is_stalled and not seconds:
                return
            self.met += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(None if is_stalled else seconds):
                    await self._turned.wait()
            if self._weather is weather:
                return
