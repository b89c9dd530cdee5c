"""TLS and SASL settings: what fits together, what does not, and what is said then."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiokafka.abc import AbstractTokenProvider

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_security import security_options, tls_context
from asyncpar.errors import ConfigurationError


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem`, `key.pem` (plain) and `locked.pem` (the same key, password "right")."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no `openssl` on PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("pem")

    def run(*args: str) -> None:
        subprocess.run([openssl, *args], cwd=folder, check=True, capture_output=True, timeout=30)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    run(
        "req",
        "-x509",
        *curve,
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-days",
        "2",
        "-subj",
        "/CN=x",
    )
    run("pkcs8", "-topk8", "-in", "key.pem", "-out", "locked.pem", "-passout", "pass:right")
    return folder


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"security_protocol": "TLS"}, "security_protocol is 'TLS'"),
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism is set but security_protocol is PLAINTEXT"),
        ({"sasl_password": "hush"}, "sasl_password is set but"),
        ({"ssl_cafile": "/x"}, "ssl_cafile is set but"),
        ({"ssl_check_hostname": False}, "ssl_check_hostname has no effect"),
        ({"security_protocol": "SASL_PLAINTEXT"}, "needs sasl_mechanism"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "CRAM"}, "sasl_mechanism is 'CRAM'"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}, "PLAIN needs sasl_username"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "u"},
            "SCRAM-SHA-512 needs sasl_password",
        ),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"},
            "needs sasl_oauth_token_provider",
        ),
        (
            {"security_protocol": "SSL", "ssl_cafile": "/no/such/ca.pem"},
            "ssl_cafile '/no/such/ca.pem' does not exist",
        ),
        ({"security_protocol": "SSL", "ssl_keyfile": __file__}, "ssl_keyfile is set without ssl_certfile"),
        ({"security_protocol": "SSL", "ssl_cafile": __file__}, "holds no PEM certificates"),
        ({"security_protocol": "SSL", "ssl_certfile": __file__}, "cannot be loaded"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], text: str) -> None:
    """Each contradiction is named by its settings before anything connects, and no secret is shown."""
    with pytest.raises(ConfigurationError) as caught:
        security_options(ClientConfig(**settings))
    assert text in str(caught.value)
    assert "hush" not in str(caught.value)


def test_plaintext_needs_nothing() -> None:
    """The default has no TLS context and no credentials."""
    assert security_options(ClientConfig()) == {"security_protocol": "PLAINTEXT"}


def test_scram_reaches_the_client() -> None:
    """User and password go under the client's own names."""
    config = ClientConfig(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-256", sasl_username="u", sasl_password="p"
    )
    options = security_options(config)
    assert isinstance(options.pop("ssl_context"), ssl.SSLContext)
    assert options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }


async def test_any_token_provider_will_do() -> None:
    """An object with `async def token()` is enough, though the client insists on its own class."""

    class Provider:
        async def token(self) -> str:
            return "t"

    config = ClientConfig(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider=Provider()
    )
    provider = security_options(config)["sasl_oauth_token_provider"]
    assert isinstance(provider, AbstractTokenProvider)
    assert await provider.token() == "t"
    assert provider.extensions() == {}


def test_brokers_are_verified(pem: Path) -> None:
    """A context verifies certificate and host name; only the name can be left out."""
    context = tls_context(ClientConfig(security_protocol="SSL", ssl_cafile=str(pem / "cert.pem")))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    lax = tls_context(ClientConfig(security_protocol="SSL", ssl_check_hostname=False))
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_a_client_certificate_is_loaded(pem: Path) -> None:
    """mTLS takes a certificate with a plain key, or a locked one with its password."""
    cert = str(pem / "cert.pem")
    tls_context(ClientConfig(security_protocol="SSL", ssl_certfile=cert, ssl_keyfile=str(pem / "key.pem")))
    locked = str(pem / "locked.pem")
    tls_context(
        ClientConfig(security_protocol="SSL", ssl_certfile=cert, ssl_keyfile=locked, ssl_key_password="right")
    )


@pytest.mark.parametrize("password", [None, "wrong-hush"])
def test_a_locked_key_never_asks(pem: Path, password: str | None) -> None:
    """A key whose password is missing or wrong is an error, never a question on the terminal."""
    config = ClientConfig(
        security_protocol="SSL",
        ssl_certfile=str(pem / "cert.pem"),
        ssl_keyfile=str(pem / "locked.pem"),
        ssl_key_password=password,
    )
    with pytest.raises(ConfigurationError, match="ssl_key_password is right") as caught:
        tls_context(config)
    assert "hush" not in str(caught.value)
