"""A real Redis and a real PostgreSQL for tests: installed programs, on 127.0.0.1, in temporary folders.

What lives here: the two servers and their fixtures. What never does: stores of asyncpar. Loaded by the
tests that need it (`pytest_plugins = ["tests.store_servers"]`). Always: every wait is bounded, a server is
ended by its pid, and on Linux none outlives the test process. A server whose program is not installed skips
its tests; `ASYNCPAR_REQUIRE_STORES=1` turns that into a failure.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.freezing import freeze
from tests.kafka_broker import LOOPBACK, free_port

REQUIRED = "ASYNCPAR_REQUIRE_STORES"
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class StoreServer:
    """One server process. A subclass says how it is started, and when it answers."""

    stop_signal = signal.SIGTERM

    def __init__(self, name: str) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"asyncpar-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and return when it answers."""
        if self.is_running:
            raise RuntimeError(f"the server on port {self.port} runs already")
        log_path = self.directory / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        give_up = time.monotonic() + _START_SECONDS
        while not self.is_ready():
            if not self.is_running or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self.command()[0]} did not start: {log_path.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and kill it when it does not."""
        if self._process is not None and self.is_running:
            os.kill(self._process.pid, signal.SIGCONT)
            os.kill(self._process.pid, self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing answers."""
        assert self._process is not None
        freeze(self._process.pid)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisServer(StoreServer):
    """Redis, with a password and without persistence."""

    password = "tell-nobody"

    def __init__(self) -> None:
        super().__init__("redis")

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def command(self) -> list[str]:
        program = shutil.which("redis-server")
        assert program is not None
        options = ["--bind", LOOPBACK, "--port", str(self.port), "--dir", str(self.directory)]
        options += ["--save", "", "--appendonly", "no", "--requirepass", self.password]
        return [*_as_user(None), program, *options]

    def is_ready(self) -> bool:
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=1) as link:
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


class PostgresServer(StoreServer):
    """PostgreSQL that trusts its one superuser. It refuses to run as root, who runs it as somebody else."""

    stop_signal = signal.SIGINT  # "fast": connections are cut

    def __init__(self) -> None:
        super().__init__("postgres")
        self._user = _postgres_user() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        self._data = self.directory / "data"
        initdb = [*_as_user(self._user), _postgres("initdb"), "--pgdata", str(self._data), "--no-sync"]
        initdb += ["--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(initdb, cwd="/", check=True, capture_output=True, timeout=60)

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres:tell-nobody@{LOOPBACK}:{self.port}/postgres"

    def command(self) -> list[str]:
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 40,
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [*_as_user(self._user), _postgres("postgres"), "-D", str(self._data), *settings]

    def is_ready(self) -> bool:
        ask = [_postgres("pg_isready"), "-h", LOOPBACK, "-p", str(self.port), "-t", "1", "-q"]
        return subprocess.run(ask, check=False, timeout=10).returncode == 0


def _as_user(user: str | None) -> list[str]:
    """What stands before a command so that it runs as `user` (None: as we do) and dies with us."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    command = [setpriv, "--pdeathsig", "KILL"]
    if user is not None:
        entry = pwd.getpwnam(user)
        command += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
    return [*command, "--"]


def _postgres_user() -> str | None:
    """Somebody whom root can run PostgreSQL as."""
    if shutil.which("setpriv") is None:
        return None
    for user in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    return None


def _postgres(program: str) -> str:
    """Where a program of PostgreSQL is; Debian keeps most of them off PATH. Raises FileNotFoundError."""
    found = shutil.which(program)
    if found is None:
        places = Path("/usr/lib/postgresql").glob(f"*/bin/{program}")
        newest = max(places, key=lambda place: float(place.parent.parent.name), default=None)
        if newest is None:
            raise FileNotFoundError(program)
        found = str(newest)
    return found


def _do_without(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason} ({REQUIRED}=1 forbids to skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        _do_without("no Redis: redis-server is not on PATH (Debian: apt-get install redis-server)")
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> Iterator[RedisServer]:
    """A Redis that a test may kill, pause and stop; it is brought back afterwards."""
    yield _session_redis
    _revive(_session_redis)


@pytest.fixture(scope="session")
def _session_postgres() -> Iterator[PostgresServer]:
    try:
        for program in ("postgres", "initdb", "pg_isready"):
            _postgres(program)
    except FileNotFoundError as missing:
        _do_without(f"no PostgreSQL: {missing} is not installed (Debian: apt-get install postgresql)")
    if os.geteuid() == 0 and _postgres_user() is None:
        _do_without("no PostgreSQL: it refuses to run as root, and there is no setpriv or no other user")
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_server(_session_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may stop; it is brought back afterwards."""
    yield _session_postgres
    _revive(_session_postgres)


def _revive(server: StoreServer) -> None:
    if server.is_running:
        server.resume()
    else:
        server.start()
