"""TLS and SASL: from plain settings to what the client wants, with an error that names the setting.

Lives here: the checks of security settings against each other and the TLS context. Never here: a
connection. Called by `aiokafka_consumer` before it connects. Always: secrets appear in no message.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import ssl
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import TokenError, one_line
from asyncpar.errors import ConfigurationError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI")
_TLS_FIELDS = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password")
_SASL_FIELDS = (
    "sasl_mechanism",
    "sasl_username",
    "sasl_password",
    "sasl_oauth_token_provider",
)


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """Makes any object with `async def token()` acceptable to the client, which checks the class.

    The client neither bounds the wait for a token nor expects that there may be none.
    """

    def __init__(self, provider: Any, timeout_seconds: float) -> None:
        self._provider = provider
        self._timeout_seconds = timeout_seconds

    async def token(self) -> str:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return str(await self._provider.token())
        except Exception as err:
            raise TokenError(
                f"sasl_oauth_token_provider gave no token: {type(err).__name__}: {one_line(err)}"
            ) from err

    def extensions(self) -> dict[str, str]:
        extensions = getattr(self._provider, "extensions", None)
        return dict(extensions()) if callable(extensions) else {}


def security_options(config: ClientConfig) -> dict[str, Any]:
    """The client's arguments for TLS and SASL. Raises ConfigurationError; reads the files named."""
    protocol = config.security_protocol
    if protocol not in PROTOCOLS:
        raise ConfigurationError(f"security_protocol is {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(config)
    else:
        _refuse_useless(config, _TLS_FIELDS, "SSL or SASL_SSL")
        if not config.ssl_check_hostname:
            raise ConfigurationError(
                f"ssl_check_hostname has no effect with security_protocol {protocol}: use SSL or SASL_SSL"
            )
    if protocol.startswith("SASL_"):
        options.update(_sasl_options(config))
    else:
        _refuse_useless(config, _SASL_FIELDS, "SASL_SSL or SASL_PLAINTEXT")
    return options


def _refuse_useless(config: ClientConfig, names: tuple[str, ...], wanted: str) -> None:
    for name in names:
        if getattr(config, name) is not None:
            raise ConfigurationError(
                f"{name} is set but security_protocol is {config.security_protocol}: "
                f"use {wanted}, or remove {name}"
            )


def _sasl_options(config: ClientConfig) -> dict[str, Any]:
    mechanism = config.sasl_mechanism
    if mechanism is None:
        raise ConfigurationError(
            f"security_protocol {config.security_protocol} needs sasl_mechanism: "
            f"one of {', '.join(MECHANISMS)}"
        )
    if mechanism not in MECHANISMS:
        raise ConfigurationError(f"sasl_mechanism is {mechanism!r}: use one of {', '.join(MECHANISMS)}")
    options: dict[str, Any] = {"sasl_mechanism": mechanism}
    if mechanism == "OAUTHBEARER":
        provider: Any = config.sasl_oauth_token_provider
        if not callable(getattr(provider, "token", None)):
            raise ConfigurationError(
                "sasl_mechanism OAUTHBEARER needs sasl_oauth_token_provider, with `async def token()`"
            )
        options["sasl_oauth_token_provider"] = _Tokens(provider, config.request_timeout_ms / 1000)
    elif mechanism == "GSSAPI":
        if importlib.util.find_spec("gssapi") is None:
            raise ConfigurationError("sasl_mechanism GSSAPI needs the gssapi package: pip install gssapi")
    else:
        for name in ("sasl_username", "sasl_password"):
            if not getattr(config, name):
                raise ConfigurationError(f"sasl_mechanism {mechanism} needs {name}")
        options["sasl_plain_username"] = config.sasl_username
        options["sasl_plain_password"] = config.sasl_password
    return options


def tls_context(config: ClientConfig) -> ssl.SSLContext:
    """A context that verifies the broker, and shows our certificate when there is one (mTLS)."""
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(config, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"{name} {path!r} does not exist or cannot be read")
    if config.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_key_password"):
            if getattr(config, name) is not None:
                raise ConfigurationError(f"{name} is set without ssl_certfile: a key needs its certificate")
    try:
        context = ssl.create_default_context(cafile=config.ssl_cafile)
    except (ssl.SSLError, OSError) as err:
        raise ConfigurationError(
            f"ssl_cafile {config.ssl_cafile!r} holds no PEM certificates: {err}"
        ) from err
    context.check_hostname = config.ssl_check_hostname
    if config.ssl_certfile is not None:
        _show_certificate(context, config, config.ssl_certfile)
    return context


def _show_certificate(context: ssl.SSLContext, config: ClientConfig, certfile: str) -> None:
    # With no password given OpenSSL would ask on the terminal: an empty one is refused instead.
    password = config.ssl_key_password or (lambda: "")
    try:
        context.load_cert_chain(certfile, config.ssl_keyfile, password)
    except (ssl.SSLError, OSError, ValueError) as err:
        where = config.ssl_keyfile or certfile
        raise ConfigurationError(
            f"ssl_certfile {certfile!r} with the key in {where!r} cannot be loaded ({err}): "
            "check that they belong together and that ssl_key_password is right"
        ) from err
