"""TLS against a real broker: certificates on both sides, SASL inside TLS, and what is said when it fails."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from asyncpar.errors import AuthenticationError, BrokerUnreachableError
from asyncpar.records import CommitAnswer, Committed
from tests.adapters.aiokafka_member import Member, eventually, member
from tests.kafka_broker import KafkaBroker, free_port

pytestmark = pytest.mark.broker

SCRAM = "SCRAM-SHA-256=[name=reader,password=reader-secret]"
LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
TOKEN_LOGIN = (
    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
    'unsecuredLoginStringClaim_sub="broker";'
)
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA (`ca.pem`), and with certificate and key of a broker, a client and a stranger."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no `openssl` on PATH to make certificates with")
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str, *args: str) -> None:
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        command = [openssl, "req", "-x509", *CURVE, *files, "-subj", f"/CN={name}", *args]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)

    make("ca")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    make("broker", *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    make("client", *signed)
    make("stranger")
    both = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker-store.pem").write_text(both)
    return folder


class TlsBroker(KafkaBroker):
    """A broker with a plain port for the tests' own tools, one that wants a certificate, one with SCRAM."""

    def __init__(self, pem: Path) -> None:
        super().__init__(format_args=("-S", SCRAM))
        ports = {"SSL": free_port(), "SASL_SSL": free_port()}
        self.mutual, self.scram = (f"127.0.0.1:{port}" for port in ports.values())
        plain = f"PLAINTEXT://{self.bootstrap}"
        encrypted = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        self.overrides |= {
            "listeners": f"{plain},{encrypted},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"{plain},{encrypted}",
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(pem / "broker-store.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(pem / "ca.pem"),
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "SCRAM-SHA-256,OAUTHBEARER",
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": LOGIN,
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": TOKEN_LOGIN,
            # The broker hangs up when the token that a connection began with has run out.
            "listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms": "60000",
        }


@pytest.fixture(scope="module")
def tls_broker(pem: Path) -> Iterator[TlsBroker]:
    """The broker of this file, with a topic `t`."""
    node = TlsBroker(pem)
    try:
        node.start()
        admin = AdminClient({"bootstrap.servers": node.bootstrap, "log_level": 0})
        for future in admin.create_topics([NewTopic("t", num_partitions=1)]).values():
            future.result(20)
        yield node
    finally:
        node.remove()


def mutual(pem: Path, name: str | None = "client") -> dict[str, Any]:
    settings = {"security_protocol": "SSL", "ssl_cafile": str(pem / "ca.pem")}
    if name is not None:
        settings |= {"ssl_certfile": str(pem / f"{name}.pem"), "ssl_keyfile": str(pem / f"{name}.key")}
    return settings


def scram(pem: Path, password: str = "reader-secret") -> dict[str, Any]:
    return {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(pem / "ca.pem"),
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_username": "reader",
        "sasl_password": password,
    }


@pytest.mark.parametrize("port", ["mutual", "scram"])
async def test_a_member_lives_inside_tls(tls_broker: TlsBroker, pem: Path, port: str) -> None:
    """With a client certificate, or with SCRAM inside TLS, a member joins, reads bounds and commits."""
    settings = mutual(pem) if port == "mutual" else scram(pem)
    async with member(getattr(tls_broker, port), f"group-{port}", "t", **settings) as m:
        (p0,) = await m.joined(1)
        assert await m.consumer.end([p0]) == {p0: 0}
        assert await m.consumer.commit(m.token, {p0: Committed(0, "x")}, 5.0) == {
            p0: CommitAnswer.ACKNOWLEDGED
        }
        assert await m.consumer.committed([p0]) == {p0: Committed(0, "x")}


async def refusal(bootstrap: str, settings: dict[str, Any]) -> str:
    """What a start that is refused at once says."""
    begin = time.monotonic()
    with pytest.raises(AuthenticationError) as caught:
        await Member(bootstrap, "g", **settings).start("t")
    assert time.monotonic() - begin < 5
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)
    return str(caught.value)


class Tokens:
    """Unsigned tokens that hold for a second, which the broker accepts as they are; or an error."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def token(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        now = time.time()
        parts = ({"alg": "none"}, {"sub": "reader", "iat": now - 1, "exp": now + 1})
        encoded = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts
        ]
        return f"{encoded[0]}.{encoded[1]}."


async def test_tokens_that_run_out_and_a_provider_that_fails(tls_broker: TlsBroker, pem: Path) -> None:
    """A broker that hangs up when a token ends, and a time without tokens, cost a member nothing."""
    tokens = Tokens()
    settings = {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(pem / "ca.pem"),
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": tokens,
    }
    async with member(tls_broker.scram, "group-tokens", "t", session_timeout_ms=30_000, **settings) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)

        async def fetch_until_asked(more: int) -> None:
            wanted = tokens.asked + more
            async with asyncio.timeout(15):
                while tokens.asked < wanted:
                    assert await m.consumer.fetch([p0], 10, 50) == []

        await fetch_until_asked(2)
        tokens.error = ValueError("no answer from the token server")
        await fetch_until_asked(10)
        tokens.error = None
        heard = m.consumer.lease_from()
        await eventually(lambda: m.consumer.lease_from() > heard + 0.5)
        await fetch_until_asked(1)
        assert m.consumer.failure() is None
        assert m.said == ["assigned"]


async def test_a_provider_that_fails_at_the_start_is_named(tls_broker: TlsBroker, pem: Path) -> None:
    """No credentials were refused: the start tries again until its time is over, and says why."""
    tokens = Tokens()
    tokens.error = ValueError("no answer from the token server")
    settings = scram(pem) | {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": tokens}
    m = Member(tls_broker.scram, "g", startup_timeout_ms=700, **settings)
    with pytest.raises(BrokerUnreachableError, match="gave no token: ValueError: no answer from the token"):
        await m.start("t")
    assert tokens.asked > 1


@pytest.mark.parametrize("name", [None, "stranger"])
async def test_a_client_without_a_good_certificate(
    tls_broker: TlsBroker, pem: Path, name: str | None
) -> None:
    """A broker that wants a certificate and gets none, or a stranger's, is told so at once."""
    assert "ssl_certfile" in await refusal(tls_broker.mutual, mutual(pem, name))


async def test_a_broker_of_another_authority(tls_broker: TlsBroker, pem: Path) -> None:
    """A broker whose certificate our CA did not sign is refused at once."""
    settings = mutual(pem) | {"ssl_cafile": str(pem / "stranger.pem")}
    assert "does not verify" in await refusal(tls_broker.mutual, settings)


async def test_a_wrong_password_inside_tls(tls_broker: TlsBroker, pem: Path) -> None:
    """SCRAM's refusal comes out at once, without the password."""
    said = await refusal(tls_broker.scram, scram(pem, "wrong-hush"))
    assert "refused the credentials (SASL SCRAM-SHA-256)" in said


async def test_a_plain_client_at_a_tls_port(tls_broker: TlsBroker) -> None:
    """A client without TLS is hung up on, and is told that this may be why."""
    m = Member(tls_broker.mutual, "g", startup_timeout_ms=700)
    with pytest.raises(BrokerUnreachableError, match="expects TLS or SASL"):
        await m.start("t")


async def test_a_tls_client_at_a_plain_port(tls_broker: TlsBroker, pem: Path) -> None:
    """A client with TLS at a plain port ends with an error that names the server and what is likely wrong."""
    m = Member(tls_broker.bootstrap, "g", startup_timeout_ms=700, **mutual(pem))
    with pytest.raises(BrokerUnreachableError, match="a port that does not speak TLS also does") as caught:
        await m.start("t")
    assert tls_broker.bootstrap in str(caught.value)


async def test_sasl_at_a_port_without_it(tls_broker: TlsBroker) -> None:
    """The credentials were never looked at: the error names the listener, not the password."""
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}
    said = await refusal(tls_broker.bootstrap, {"security_protocol": "SASL_PLAINTEXT", **login})
    assert "takes no SASL at this port" in said
