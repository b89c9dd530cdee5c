"""The HTTP adapter: probes tell the truth, the server shares the loop politely and stops in time."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncpar.adapters.http import MAX_CONNECTIONS, HttpServer, admin_app
from asyncpar.errors import PortInUseError, SettingError
from asyncpar.metrics import MetricsSnapshot, SnapshotBuilder
from asyncpar.status import AppStatus, GroupStatus, HandlerStatus, PartitionStatus

STOP_SECONDS = 5.0

PARTITION = PartitionStatus(
    group="billing",
    topic="orders",
    partition=0,
    state="open",
    generation=1,
    hwm=10,
    committed=8,
    position=20,
    blocking_offset=10,
    blocking_duration_seconds=1.5,
    blocking_reason="running",
    blocking_handler="bill",
    blocking_attempts=0,
    gap_count=1,
    done_above_hwm=3,
    in_flight=7,
    queued=5,
    running=2,
    parked=0,
    log_end=25,
    true_lag=15,
    held_by_transactions=None,
    backpressure=False,
    metadata_chars=12,
    metadata_truncated=False,
    halt_reason=None,
)
HANDLER = HandlerStatus(
    group="billing",
    name="bill",
    topics=("orders",),
    executor="async",
    concurrency=100,
    running=2,
    ready=1,
    parked=0,
    succeeded=17,
    failed=1,
    skipped=0,
    oldest_task_duration_seconds=0.5,
    workers_retired=0,
    uncancellable=0,
)
GROUP = GroupStatus(
    group="billing",
    state="joined",
    member_id="member-1",
    group_generation=3,
    lease_closed=False,
    in_flight=7,
    max_in_flight=5000,
    bytes_in_flight=700,
    max_in_flight_bytes=2**26,
    rebalances=1,
    consumer_replacements=0,
    partitions=(PARTITION,),
    handlers=(HANDLER,),
)
WELL = AppStatus(
    name="shop",
    version="0.1.0",
    uptime_seconds=3.5,
    live=True,
    ready=True,
    not_live=(),
    not_ready=(),
    loop_lag_seconds=0.001,
    groups=(GROUP,),
)


class FakeApp:
    """What the server is given of an app: a status to change, and metrics."""

    def __init__(self) -> None:
        self.now = WELL

    def status(self) -> AppStatus:
        return self.now

    def metrics(self) -> MetricsSnapshot:
        builder = SnapshotBuilder()
        builder.add("commits_total", ("billing", "acknowledged"), 4)
        return builder.snapshot()


@pytest.fixture
def fake() -> FakeApp:
    """An app that is well until the test says otherwise."""
    return FakeApp()


@pytest.fixture
async def server(fake: FakeApp) -> AsyncIterator[HttpServer]:
    """A running server on a free port."""
    server = HttpServer(admin_app(fake.status, fake.metrics), port=0)
    await server.start()
    yield server
    await server.stop(STOP_SECONDS)


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the running server."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=5) as client:
        yield client


async def test_probes_are_green_when_the_app_is_well(client: httpx.AsyncClient) -> None:
    """Both probes answer 200 with an empty list of reasons, never to be cached."""
    for path, question in (("/livez", "live"), ("/readyz", "ready")):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.json() == {question: True, "reasons": []}
        assert answer.headers["cache-control"] == "no-store"


async def test_probes_are_red_with_the_reasons(client: httpx.AsyncClient, fake: FakeApp) -> None:
    """A probe that fails answers 503 and says why; the other one keeps its own answer."""
    reason = "orders[0] of group billing is halted at offset 10"
    fake.now = replace(WELL, ready=False, not_ready=(reason,))
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reasons": [reason]})
    assert (await client.get("/livez")).status_code == 200

    fake.now = replace(WELL, live=False, not_live=("the poller stopped", "the loop is stuck"))
    answer = await client.get("/livez")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["the poller stopped", "the loop is stuck"]
    assert (await client.get("/readyz")).status_code == 200


async def test_status_is_the_whole_snapshot(client: httpx.AsyncClient) -> None:
    """`/status` holds every field of the app, its groups, partitions and handlers."""
    answer = (await client.get("/status")).json()
    assert answer["name"] == "shop"
    group = answer["groups"][0]
    assert set(group) == set(GroupStatus.__dataclass_fields__)
    assert group["partitions"][0]["blocking_reason"] == "running"
    assert group["handlers"][0]["topics"] == ["orders"]


async def test_status_is_text_for_people(client: httpx.AsyncClient, fake: FakeApp) -> None:
    """`/status?format=text`: what is wrong first, then handlers and partitions with what they wait for."""
    reason = "its breaker is open: 9 of 9 calls failed"
    held = replace(HANDLER, hold_reason=reason, hold_duration_seconds=12.3)
    fake.now = replace(WELL, ready=False, not_ready=("why",), groups=(replace(GROUP, handlers=(held,)),))
    answer = await client.get("/status?format=text")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.splitlines() == [
        "shop 0.1.0, up for 4 s: live, NOT READY",
        "  not ready: why",
        "",
        "group billing: joined, generation 3, 7 of 5000 records in flight",
        "  handler bill of orders (async): 2 of 100 run, 0 wait for a retry; 17 succeeded, 1 failed",
        f"    for 12 s: {reason}",
        "  orders[0]: open, committed 8, lag 15, 7 in flight",
        "    offset 10: running in handler bill for 1.5 s",
    ]


async def test_metrics_in_the_format_asked_for(client: httpx.AsyncClient) -> None:
    """`/metrics` speaks the classic text format, or OpenMetrics to who accepts it."""
    classic = await client.get("/metrics")
    assert classic.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'asyncpar_commits_total{group="billing",result="acknowledged"} 4.0' in classic.text
    modern = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


async def test_only_reading_is_offered(client: httpx.AsyncClient) -> None:
    """Other paths are 404, other methods 405: nothing here changes anything."""
    assert (await client.get("/")).status_code == 404
    assert (await client.post("/livez")).status_code == 405


async def test_default_host_is_loopback() -> None:
    """Without a host nothing outside of the machine can connect."""
    server = HttpServer(Starlette(), port=0)
    await server.start()
    try:
        addresses = [listener.getsockname()[0] for one in server._uvicorn.servers for listener in one.sockets]
        assert addresses == ["127.0.0.1"]
    finally:
        await server.stop(STOP_SECONDS)


async def test_a_taken_port_is_named_with_the_way_out() -> None:
    """A port in use raises PortInUseError on one line: which port, and what to set."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port} is in use.*http_port") as caught:
            await HttpServer(Starlette(), port=port).start()
    assert "\n" not in str(caught.value)


async def test_an_address_of_another_machine_is_a_setting_error() -> None:
    """A host that is not ours is refused with the setting's name, not with a traceback of the socket."""
    with pytest.raises(SettingError, match=r"203\.0\.113\.1:0.*http_host"):
        await HttpServer(Starlette(), host="203.0.113.1", port=0).start()


async def test_ipv6_loopback() -> None:
    """`::1` is served where the machine has it, and shown in brackets when it is taken."""
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"\[::1\]:{port}"):
            await HttpServer(Starlette(), host="::1", port=port).start()


async def test_port_is_known_only_while_running(fake: FakeApp) -> None:
    """`port` is the real one between start and stop; before and after there is none, and nobody answers."""
    server = HttpServer(admin_app(fake.status, fake.metrics), port=0)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.port
    await server.stop(STOP_SECONDS)  # nothing to stop: no error
    await server.start()
    port = server.port
    assert port > 0
    await server.stop(STOP_SECONDS)
    await server.stop(STOP_SECONDS)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_signal_handlers_and_loggers_stay_as_they_were(fake: FakeApp) -> None:
    """The server takes no signals and changes no logger: an embedding host may run uvicorn itself."""

    def settings() -> list[object]:
        names = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
        loggers = [logging.getLogger(name) for name in names]
        handlers: list[object] = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
        return handlers + [(one.level, one.propagate, list(one.handlers), one.disabled) for one in loggers]

    before = settings()
    server = HttpServer(admin_app(fake.status, fake.metrics), port=0)
    await server.start()
    during = settings()
    await server.stop(STOP_SECONDS)
    assert during == before
    assert settings() == before


async def test_nothing_is_logged(fake: FakeApp, caplog: pytest.LogCaptureFixture) -> None:
    """Start, requests and stop leave no line in the log, whatever level the host has set."""
    with caplog.at_level(logging.DEBUG):
        server = HttpServer(admin_app(fake.status, fake.metrics), port=0)
        await server.start()
        async with httpx.AsyncClient(timeout=5) as client:
            assert (await client.get(f"http://127.0.0.1:{server.port}/livez")).status_code == 200
        await server.stop(STOP_SECONDS)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_stop_closes_idle_connections_at_once(server: HttpServer) -> None:
    """A keep-alive connection, or one that never asked, does not hold up the stop."""
    _, silent = await asyncio.open_connection("127.0.0.1", server.port)
    reader, asked = await asyncio.open_connection("127.0.0.1", server.port)
    asked.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"200" in await asyncio.wait_for(reader.readline(), 5)
    started = time.monotonic()
    await asyncio.wait_for(server.stop(STOP_SECONDS), 10)
    assert time.monotonic() - started < STOP_SECONDS / 2
    for writer in (silent, asked):
        writer.close()


async def test_stop_cuts_off_an_answer_that_never_ends() -> None:
    """A request that hangs is given the time-out and not more."""
    entered = asyncio.Event()

    async def hang(_: Request) -> PlainTextResponse:
        entered.set()
        await asyncio.Event().wait()
        return PlainTextResponse("never")

    server = HttpServer(Starlette(routes=[Route("/", hang)]), port=0)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.wait_for(entered.wait(), 5)
    await asyncio.wait_for(server.stop(0.1), 5)
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        answer = b""
    assert b"never" not in answer
    writer.close()


async def test_stop_lets_a_running_answer_end() -> None:
    """A request that is being answered when the stop begins gets its answer."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> PlainTextResponse:
        entered.set()
        await release.wait()
        return PlainTextResponse("done")

    server = HttpServer(Starlette(routes=[Route("/", slow)]), port=0)
    await server.start()
    async with httpx.AsyncClient(timeout=5) as client:
        asking = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
        await asyncio.wait_for(entered.wait(), 5)
        stopping = asyncio.create_task(server.stop(STOP_SECONDS))
        release.set()
        answer = await asyncio.wait_for(asking, 5)
        await asyncio.wait_for(stopping, 10)
    assert answer.text == "done"


async def test_connections_are_bounded(server: HttpServer) -> None:
    """One connection over the limit is answered with 503 instead of being held."""
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
    try:
        reader, writer = opened[-1]
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"503" in await asyncio.wait_for(reader.readline(), 5)
    finally:
        for _, writer in opened:
            writer.close()


async def test_app_can_be_mounted_into_a_host(fake: FakeApp) -> None:
    """The application works below a prefix of a host's own server."""
    host = Starlette()
    host.mount("/asyncpar", admin_app(fake.status, fake.metrics))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://host") as client:
        answer = await client.get("/asyncpar/readyz")
    assert answer.json() == {"ready": True, "reasons": []}
