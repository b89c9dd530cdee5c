"""The first contact: servers that are not there, do not speak, or do not let us in."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncpar.adapters.aiokafka_bootstrap import TopicLookup, reach_a_server
from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_security import security_options
from asyncpar.errors import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    BrokerUnreachableError,
    UnknownTopicError,
)
from asyncpar.ports import Subscription
from tests.adapters.aiokafka_member import Member
from tests.kafka_broker import free_port


@asynccontextmanager
async def silent_server(context: ssl.SSLContext | None = None, hang_up: bool = False) -> AsyncIterator[str]:
    """Accepts connections and never answers; the address."""
    writers = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if hang_up:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def dial(servers: str, timeout_s: float = 1.0, **settings: Any) -> tuple[str, int]:
    config = ClientConfig(bootstrap_servers=servers, startup_timeout_ms=int(timeout_s * 1000), **settings)
    return await reach_a_server(config, security_options(config), time.monotonic() + timeout_s)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no `openssl` on PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", *curve, "-keyout", "both.pem", "-out", "cert.pem", *names]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)
    with (folder / "both.pem").open("a") as both:
        both.write((folder / "cert.pem").read_text())
    return folder / "both.pem"


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_nobody_listens() -> None:
    """A closed port is dialled again until the time is over; the error names server and reason."""
    server = f"127.0.0.1:{free_port()}"
    begin = time.monotonic()
    with pytest.raises(BrokerUnreachableError) as caught:
        await dial(server)
    assert 0.7 < time.monotonic() - begin < 2.0
    assert server in str(caught.value)
    assert "within 1000 ms" in str(caught.value)
    assert "Connect" in str(caught.value)


async def test_start_cleans_up_after_itself() -> None:
    """A start that fails leaves no task behind, and stop() may still be called."""
    before = asyncio.all_tasks()
    m = Member(f"127.0.0.1:{free_port()}", "g", startup_timeout_ms=300)
    with pytest.raises(BrokerUnreachableError):
        await m.consumer.start(Subscription(frozenset({"t"})), m)
    await m.consumer.stop(1.0)
    assert asyncio.all_tasks() == before


async def test_a_server_that_never_answers() -> None:
    """A frozen broker accepts connections: the bound holds all the same."""
    async with silent_server() as server:
        begin = time.monotonic()
        with pytest.raises(BrokerUnreachableError, match="no answer in time"):
            await dial(server)
        assert time.monotonic() - begin < 2.5


async def test_a_server_that_hangs_up() -> None:
    """A plain client at a TLS or SASL port is hung up on, and is told that this may be why."""
    async with silent_server(hang_up=True) as server:
        with pytest.raises(BrokerUnreachableError, match="expects TLS or SASL"):
            await dial(server)


async def test_a_certificate_that_does_not_verify(certificate: Path) -> None:
    """The reason stands in the error, at once, without waiting for the deadline."""
    async with silent_server(server_context(certificate)) as server:
        begin = time.monotonic()
        with pytest.raises(AuthenticationError, match=r"does not verify: self.signed certificate"):
            await dial(server, 20.0, security_protocol="SSL")
        assert time.monotonic() - begin < 5


async def test_tls_at_a_plain_port() -> None:
    """A server that answers TLS with something else is called just that."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        with pytest.raises(AuthenticationError, match="check that the port speaks TLS"):
            await dial(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", 20.0, security_protocol="SSL")
    finally:
        server.close()


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
async def test_tls_at_a_port_that_hangs_up(protocol: str) -> None:
    """A broker's plain port resets the connection: the error names the handshake and the setting to check."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    credentials: dict[str, Any] = {}
    if protocol == "SASL_SSL":
        credentials = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}
    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    try:
        at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(BrokerUnreachableError) as caught:
            await dial(at, 0.5, security_protocol=protocol, **credentials)
    finally:
        server.close()
    assert "hung up on the TLS handshake" in str(caught.value)
    assert f"does not speak TLS also does: check security_protocol={protocol}" in str(caught.value)


class Cluster:
    """Answers metadata requests: all of `topics` with their codes, unknown names with 3."""

    def __init__(self, **topics: int) -> None:
        self.topics = topics
        self.asked: list[Any] = []

    async def ask_any(self, request: Any) -> Any:
        self.asked.append((request._topics, request._allow_auto_topic_creation))
        names = self.topics if request._topics is None else request._topics
        return SimpleNamespace(topics=[(self.topics.get(name, 3), name, False, []) for name in names])


def lookup(cluster: Cluster) -> TopicLookup:
    return TopicLookup(cluster, ClientConfig())  # type: ignore[arg-type]


async def test_lookups_create_nothing() -> None:
    """The question for a topic forbids its creation; a topic without a leader exists all the same."""
    cluster = Cluster(a=0, b=5)
    await lookup(cluster).require({"a", "b"})
    assert cluster.asked == [(["a", "b"], False)]


async def test_a_forbidden_topic() -> None:
    """A topic that this user may not see is a matter of rights."""
    with pytest.raises(AuthorizationError, match="no right on topic 'b'"):
        await lookup(Cluster(a=0, b=29)).require({"a", "b"})


async def test_an_answer_that_nobody_expected() -> None:
    """An unknown code is reported with its number."""
    with pytest.raises(BrokerError, match="-1"):
        await lookup(Cluster(a=-1)).require({"a"})


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"images"}, "topic 'images' does not exist at"),
        ({"images", "orders"}, "topics 'images', 'orders' do not exist at"),
        ({"image"}, "did you mean 'images1'?"),
    ],
)
async def test_topics_that_do_not_exist_are_counted(names: set[str], text: str) -> None:
    """One topic does not exist, two do not; what is near is offered, else what to do with it or them."""
    cluster = Cluster(**({"images1": 0} if names == {"image"} else {}))
    with pytest.raises(UnknownTopicError) as caught:
        await lookup(cluster).require(names)
    assert text in str(caught.value)
    assert ("them" in str(caught.value)) is (len(names) > 1)
