"""The proxy fails as asked, and only as asked: seen through an echo server behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.chaos.tcp_proxy import CALM, LOOPBACK, TcpProxy, Weather
from tests.kafka_broker import free_port

BOUND_SECONDS = 5.0


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def echo(self, text: bytes = b"hello") -> float:
        """Send, and wait for the answer; how long it took."""
        began = time.monotonic()
        self.send(text)
        await self.expect(text)
        return time.monotonic() - began

    def send(self, text: bytes) -> None:
        self._writer.write(text)

    async def expect(self, text: bytes) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            assert await self._reader.readexactly(len(text)) == text

    async def hears(self, seconds: float) -> bool:
        """Whether anything comes within `seconds`, an end or a reset included."""
        try:
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def finish(self) -> None:
        """No more from us: half a close."""
        self._writer.write_eof()

    async def is_ended(self) -> bool:
        """Whether the connection ends, reset or closed."""
        async with asyncio.timeout(BOUND_SECONDS):
            try:
                return await self._reader.read() == b""
            except OSError:
                return True

    def close(self) -> None:
        self._writer.transport.abort()


class World:
    """An echo server, a proxy before it, and clients."""

    def __init__(self, proxy: TcpProxy) -> None:
        self.proxy = proxy
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        """A new client whose link stands."""
        before = self.proxy.links
        async with asyncio.timeout(BOUND_SECONDS):
            client = Client(*await asyncio.open_connection(LOOPBACK, self.proxy.port))
            self._clients.append(client)
            while self.proxy.links == before:  # noqa: ASYNC110 - the proxy tells nobody
                await asyncio.sleep(0.001)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(1024):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def _world(luck: list[float]) -> AsyncIterator[World]:
    server = await asyncio.start_server(_echo, LOOPBACK, 0)
    proxy = TcpProxy(free_port(), server.sockets[0].getsockname()[1], lambda: luck.pop(0) if luck else 0.0)
    world = World(proxy)
    await proxy.start()
    try:
        yield world
    finally:
        world.close()
        await proxy.stop()
        server.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A proxy whose every link has the worst luck."""
    async with _world([]) as one:
        yield one


async def test_in_calm_weather_bytes_and_ends_pass(world: World) -> None:
    """What is sent arrives, in order, and a close of one side reaches the other."""
    client = await world.connect()
    await client.echo(b"x" * 100_000)
    client.finish()
    assert await client.is_ended()
    assert world.proxy.met == 0


async def test_a_cut_resets_links_and_welcomes_new_ones(world: World) -> None:
    """Standing connections end at once, the next one works."""
    client = await world.connect()
    assert world.proxy.cut() == 1
    assert await client.is_ended()
    assert world.proxy.links == 0
    await (await world.connect()).echo()


async def test_refused_connections_are_refused_until_the_heal(world: World) -> None:
    """Nobody listens, links are reset, and after the heal the same port answers."""
    client = await world.connect()
    await world.proxy.refuse()
    assert await client.is_ended()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, world.proxy.port)
    await world.proxy.heal()
    await (await world.connect()).echo()


async def test_a_delay_holds_each_chunk_in_both_directions(world: World) -> None:
    """An answer takes twice the delay, and no time any more when the weather turns."""
    client = await world.connect()
    world.proxy.turn(Weather(delay_seconds=0.1))
    assert await client.echo() >= 0.2
    assert world.proxy.met == 2
    world.proxy.turn(CALM)
    assert await client.echo() < 0.1


async def test_a_slow_link_passes_so_many_bytes_a_second(world: World) -> None:
    """2,000 bytes at 10,000 a second need 0.2 s there and 0.2 s back."""
    client = await world.connect()
    world.proxy.turn(Weather(bytes_per_second=10_000))
    assert await client.echo(b"x" * 2000) >= 0.35


async def test_a_change_of_weather_ends_a_long_wait(world: World) -> None:
    """What waits for an hour is delivered when the network is well again."""
    client = await world.connect()
    world.proxy.turn(Weather(delay_seconds=3600))
    client.send(b"late")
    assert not await client.hears(0.1)
    await world.proxy.heal()
    await client.expect(b"late")


async def test_half_open_links_swallow_bytes_and_are_reset_in_the_end(world: World) -> None:
    """Neither bytes nor ends pass, old and new links alike; they never come back, but new ones do."""
    old = await world.connect()
    world.proxy.turn(Weather(is_dark=True))
    new = await world.connect()
    for client in (old, new):
        client.send(b"lost")
        client.finish()
        assert not await client.hears(0.1)
    assert world.proxy.met >= 2
    await world.proxy.heal()
    assert await old.is_ended()
    assert await new.is_ended()
    await (await world.connect()).echo()


async def test_stalled_answers_let_requests_through(world: World) -> None:
    """The other side does what it was asked to, and the answer arrives when the stall ends."""
    client = await world.connect()
    world.proxy.turn(Weather(stalled=frozenset({"answers"})))
    client.send(b"done")
    assert not await client.hears(0.1)
    assert world.proxy.met == 1, "only the answer was held"
    await world.proxy.heal()
    await client.expect(b"done")


async def test_stalled_requests_never_arrive_before_the_stall_ends(world: World) -> None:
    """The other side hears nothing, so there is no answer to hold."""
    client = await world.connect()
    world.proxy.turn(Weather(stalled=frozenset({"requests"})))
    client.send(b"wait")
    assert not await client.hears(0.1)
    assert world.proxy.met == 1, "only the request was held"
    await world.proxy.heal()
    await client.expect(b"wait")


async def test_weather_of_half_the_links_spares_the_lucky_ones() -> None:
    """A share below one meets only the links whose luck is below it."""
    async with _world([0.2, 0.8]) as world:
        unlucky, lucky = await world.connect(), await world.connect()
        world.proxy.turn(Weather(is_dark=True, share=0.5))
        await lucky.echo()
        unlucky.send(b"lost")
        assert not await unlucky.hears(0.1)
        world.proxy.turn(CALM)
        assert world.proxy.cut(0.9) == 1, "the dark one was reset before"
        assert await lucky.is_ended()


async def test_a_broker_that_is_down_is_a_connection_that_ends() -> None:
    """Nobody listens behind the proxy: the client is let in and thrown out."""
    proxy = TcpProxy(free_port(), free_port())
    await proxy.start()
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            client = Client(*await asyncio.open_connection(LOOPBACK, proxy.port))
        assert await client.is_ended()
    finally:
        await proxy.stop()


async def test_a_stopped_proxy_leaves_nothing_behind(world: World) -> None:
    """Links in any weather end with it."""
    client = await world.connect()
    world.proxy.turn(Weather(stalled=frozenset({"requests", "answers"})))
    client.send(b"held")
    await world.proxy.stop()
    assert await client.is_ended()
    assert world.proxy.links == 0
