"""HTTP: probes, metrics and status of a running app, on the event loop that the app runs on.

What lives here: the Starlette application (`admin_app`) and the server around it (`HttpServer`). What
never does: judging health (the `AppStatus` says what is wrong) and changing anything. Called by the app,
and by hosts that mount `admin_app` into their own server. Always: no signal handler, logger setting or
thread of the host's is touched; the port is ours before `start()` returns; a stop is bounded.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from asyncpar.adapters.prometheus import render
from asyncpar.errors import PortInUseError, SettingError
from asyncpar.metrics import MetricsSnapshot
from asyncpar.status import AppStatus, as_text

MAX_CONNECTIONS = 100
"""Open connections; one more is answered with 503. A scraper and a kubelet need two."""

_NO_STORE = {"cache-control": "no-store"}
_CLOSING_POLL_SECONDS = 0.01
_DATE_TICK_SECONDS = 1.0


def admin_app(status: Callable[[], AppStatus], metrics: Callable[[], MetricsSnapshot]) -> Starlette:
    """GET `/livez`, `/readyz` (200, or 503 with the reasons), `/metrics` and `/status`, ready to be mounted.

    `/status` is JSON, `/status?format=text` the same for people.
    `status` and `metrics` are called on the event loop, once per request.
    """

    # Coroutines on purpose: Starlette runs plain functions in threads, and only the loop may look.
    async def livez(_: Request) -> Response:
        now = status()
        return _verdict("live", now.live, now.not_live)

    async def readyz(_: Request) -> Response:
        now = status()
        return _verdict("ready", now.ready, now.not_ready)

    async def scrape(request: Request) -> Response:
        body, content_type = render(metrics, request.headers.get("accept"))
        # As a header: `media_type` would get a second charset appended.
        return Response(body, headers={"content-type": content_type, **_NO_STORE})

    async def show(request: Request) -> Response:
        if request.query_params.get("format") == "text":
            return PlainTextResponse(as_text(status()), headers=_NO_STORE)
        return JSONResponse(asdict(status()), headers=_NO_STORE)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", scrape),
            Route("/status", show),
        ]
    )


def _verdict(question: str, answer: bool, reasons: tuple[str, ...]) -> Response:
    return JSONResponse(
        {question: answer, "reasons": list(reasons)}, 200 if answer else 503, headers=_NO_STORE
    )


class HttpServer:
    """Serves an ASGI application on `host`:`port` inside the running event loop. Start once, stop once.

    Port 0 asks the system for a free one; that nothing is served with `http_port=0` is the caller's rule.
    """

    def __init__(self, app: Starlette, host: str = "127.0.0.1", port: int = 9464) -> None:
        self._host = host
        self._asked_port = port
        self._listener: socket.socket | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_QuietProtocol,
                ws="none",
                lifespan="off",
                # With these three uvicorn leaves its loggers alone: they may be those of the host's server.
                log_config=None,
                log_level=None,
                access_log=True,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )

    @property
    def port(self) -> int:
        """The port that is listened on. RuntimeError before `start()` and after `stop()`."""
        if self._listener is None:
            raise RuntimeError("the HTTP server is not running; call start() first")
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen and serve; requests are answered once this returns.

        Raises PortInUseError when the port is taken, SettingError when the address cannot be used at all.
        """
        listener = _listen(self._host, self._asked_port)
        # The parts of `Server.serve()` that remain without its signal handlers, log lines and exits.
        self._uvicorn.config.load()
        self._uvicorn.lifespan = self._uvicorn.config.lifespan_class(self._uvicorn.config)
        await self._uvicorn.startup(sockets=[listener])
        self._listener = listener
        self._ticker = asyncio.create_task(self._tick(), name="asyncpar-http-date")

    async def _tick(self) -> None:
        """Keep the Date header right."""
        while True:
            await self._uvicorn.on_tick(0)
            await asyncio.sleep(_DATE_TICK_SECONDS)

    async def stop(self, timeout_s: float) -> None:
        """Stop listening, let running answers end for up to `timeout_s` seconds, then cut them off."""
        if self._listener is None or self._ticker is None:
            return
        deadline = time.monotonic() + timeout_s
        self._ticker.cancel()
        for server in self._uvicorn.servers:
            server.close()
        self._listener = self._ticker = None
        state = self._uvicorn.server_state
        for connection in list(state.connections):
            connection.shutdown()
        while state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_CLOSING_POLL_SECONDS)
        for task in list(state.tasks):
            task.cancel()
        for connection in list(state.connections):
            connection.transport.abort()


class _QuietProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 without access logs: a probe each second is not news."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket of our own, so that a taken port is an exception and not an exit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"HTTP port {place} is in use by another program; "
                "set http_port to a free port, or to 0 to serve no HTTP"
            ) from error
        raise SettingError(
            f"cannot serve HTTP on {place}: {error.strerror or error}; "
            "set http_host to an address of this machine and http_port to a port that you may use"
        ) from error
    listener.setblocking(False)
    return listener
