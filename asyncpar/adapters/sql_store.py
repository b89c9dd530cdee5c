"""De-duplication over a PostgreSQL table that all instances share (extra `postgres`).

What lives here: `PostgresStore`. What never does: when to claim and what an answer means
(`asyncpar/deduplication.py`). Made by users. Always: one row for each key, one statement for each step, so
that each step is atomic, and the server's clock ends leases and memories.

The driver is asyncpg: asyncio through and through, no libpq, one dependency, and it cancels on the server
what is cancelled here. A transaction of yours is not joined: what a handler writes and the note that it is
done are two commits.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

try:
    import asyncpg
except ImportError as error:  # pragma: no cover - the tests run with it installed
    raise ImportError("PostgresStore needs asyncpg: pip install 'asyncpar[postgres]'") from error

from asyncpar.deduplication import DeduplicationStoreError
from asyncpar.errors import ConfigurationError
from asyncpar.ports import Claim, Claimed

_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What a statement may end with; the third comes where uvloop tells of a cut connection late."""
_NAME = re.compile(r"([a-z_][a-z0-9_]{0,50}\.)?[a-z_][a-z0-9_]{0,50}")

_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    key bytea PRIMARY KEY,
    owner bytea NOT NULL,
    done boolean NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS {index} ON {table} (expires_at);
"""
_CLAIM = """
INSERT INTO {table} AS old (key, owner, done, expires_at)
VALUES ($1, $2, false, clock_timestamp() + $3::float8 * interval '1 millisecond')
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, done = false, expires_at = excluded.expires_at
WHERE old.expires_at <= clock_timestamp() OR (old.owner = excluded.owner AND NOT old.done)
RETURNING true
"""
_LOOK = """
SELECT done, ceil(extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint AS left_ms
FROM {table} WHERE key = $1 AND expires_at > clock_timestamp()
"""
_DONE = """
INSERT INTO {table} AS old (key, owner, done, expires_at)
VALUES ($1, $2, true, clock_timestamp() + $3::float8 * interval '1 millisecond')
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, done = true, expires_at = excluded.expires_at
WHERE old.expires_at <= clock_timestamp() OR old.owner = excluded.owner
RETURNING true
"""
_RELEASE = "DELETE FROM {table} WHERE key = $1 AND owner = $2 AND NOT done"
# Instances that clean at the same time take different rows, and wait for nobody's.
_CLEAN = """
WITH ended AS MATERIALIZED (
    SELECT key FROM {table} WHERE expires_at <= clock_timestamp()
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} AS old USING ended WHERE old.key = ended.key RETURNING 1
)
SELECT count(*) FROM gone
"""
_CREATE_LOCK = 0x61737061  # "aspa": CREATE IF NOT EXISTS of two instances at once would fail in one of them
_CLEAN_ROWS = 1_000
_CLEAN_EVERY_SECONDS = 60.0
_CLEAN_SECONDS = 30.0
_RELEASE_SECONDS = 1.0
_CLOSE_SECONDS = 2.0

_log = logging.getLogger("asyncpar.deduplication")


class PostgresStore:
    """A `DeduplicationStore` on PostgreSQL 12 or newer.

    `dsn` is a `postgresql://` URL. `table` is made at the first use when `create_table` is set;
    `schema_sql()` is the same for those who migrate by other means. At most `max_connections` are opened;
    `options` go to asyncpg's connections (behind PgBouncer: `statement_cache_size=0`). Expired rows are
    deleted on the way, 1,000 at a time, about once a minute, without a pause for as long as there are more;
    `clean()` takes one such step. It connects at the first claim, and serves one event loop until
    `close()`. Every method but `close` raises DeduplicationStoreError, and has no time-out of its own.

    Raises ConfigurationError for a `table` that is no plain lower-case name, with or without a schema.
    """

    def __init__(
        self,
        dsn: str,
        *,
        table: str = "asyncpar_done",
        create_table: bool = False,
        max_connections: int = 10,
        **options: Any,
    ) -> None:
        if not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"PostgresStore: table={table!r}: use lower-case letters, digits and _, 51 at most, "
                "with or without a schema in front"
            )
        self._dsn = dsn
        self._table = table
        self._create_table = create_table
        self._max_connections = max_connections
        self._options = options
        self._where = _place(dsn)
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._clean_at = 0.0
        self._cleaning: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

    def schema_sql(self) -> str:
        """The statements that make the table and its index where they are not there yet."""
        return _CREATE.format(table=self._table, index=self._table.rpartition(".")[2] + "_expires_at")

    async def claim(self, key: bytes, owner: bytes, lease_ms: int) -> Claimed:
        """See `DeduplicationStore`."""
        for _ in range(3):  # between the two statements the row may have gone
            if await self._row(_CLAIM, key, owner, float(lease_ms)) is not None:
                self._clean_sometimes()
                return Claimed(Claim.NEW)
            row = await self._row(_LOOK, key)
            if row is not None:
                return Claimed(Claim.DONE) if row["done"] else Claimed(Claim.HELD, max(0, row["left_ms"]))
        return Claimed(Claim.HELD)

    async def done(self, key: bytes, owner: bytes, ttl_ms: int) -> bool:
        """See `DeduplicationStore`."""
        return await self._row(_DONE, key, owner, float(ttl_ms)) is not None

    async def release(self, key: bytes, owner: bytes) -> None:
        """See `DeduplicationStore`."""
        await self._row(_RELEASE, key, owner)

    async def clean(self) -> int:
        """Delete up to 1,000 expired rows in one statement; how many there were."""
        row = await self._row(_CLEAN, _CLEAN_ROWS)
        return 0 if row is None else int(row[0])

    async def close(self) -> None:
        """Close the connections; those still in use are cut after 2 seconds. Never raises."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait({self._cleaning}, timeout=_CLOSE_SECONDS)
            self._cleaning = None
        pool, self._pool = self._pool, None
        self._opening = asyncio.Lock()  # the next use may be on another event loop
        if pool is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await pool.close()
        except _ERRORS:
            pool.terminate()

    async def _row(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        """The first row that `statement` returns, on a connection of the pool."""
        try:
            pool = await self._open()
            connection = await pool.acquire()
            try:
                row = await connection.fetchrow(statement.format(table=self._table), *arguments)
            except asyncio.CancelledError:
                # asyncpg tells the server to stop; whoever cancelled need not wait for that.
                self._release_later(pool, connection)
                raise
            except BaseException:
                await pool.release(connection, timeout=_RELEASE_SECONDS)
                raise
            await pool.release(connection, timeout=_RELEASE_SECONDS)
            return row
        except asyncpg.UndefinedTableError as error:
            raise DeduplicationStoreError(
                f"PostgreSQL at {self._where}: there is no table {self._table}: make it by schema_sql(), "
                "or say create_table=True"
            ) from error
        except _ERRORS as error:
            raise DeduplicationStoreError(
                f"PostgreSQL at {self._where}: {type(error).__name__}: {error}"
            ) from error

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await self._connect()
            return self._pool

    async def _connect(self) -> asyncpg.Pool:
        pool = asyncpg.create_pool(
            self._dsn, min_size=0, max_size=self._max_connections, reset=_nothing_to_reset, **self._options
        )
        try:
            await pool
            if self._create_table:
                connection = await pool.acquire()
                # Sent as one message, and so one transaction.
                await connection.execute(f"SELECT pg_advisory_xact_lock({_CREATE_LOCK}); {self.schema_sql()}")
                await pool.release(connection)
        except BaseException:
            pool.terminate()
            raise
        return pool

    def _release_later(self, pool: asyncpg.Pool, connection: Any) -> None:
        async def release() -> None:
            # Otherwise it is cut, and the pool opens another one when it needs one.
            with suppress(*_ERRORS):
                await pool.release(connection, timeout=_RELEASE_SECONDS)

        task = asyncio.get_running_loop().create_task(release(), name="asyncpar-postgres-release")
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    def _clean_sometimes(self) -> None:
        is_running = self._cleaning is not None and not self._cleaning.done()
        if not is_running and time.monotonic() >= self._clean_at:
            self._cleaning = asyncio.get_running_loop().create_task(self._clean_now(), name="asyncpar-clean")

    async def _clean_now(self) -> None:
        """One step; the next claim takes another one when this one did not get them all."""
        try:
            async with asyncio.timeout(_CLEAN_SECONDS):
                deleted = await self.clean()
        except (DeduplicationStoreError, TimeoutError) as error:
            _log.warning(
                "expired rows of %s could not be deleted, tried again in a minute: %s", self._table, error
            )
            deleted = 0
        self._clean_at = 0.0 if deleted == _CLEAN_ROWS else time.monotonic() + _CLEAN_EVERY_SECONDS


async def _nothing_to_reset(_: object) -> None:
    """Connections of this pool run single statements, which leave nothing behind: spare the round trip."""


def _place(dsn: str) -> str:
    """Where `dsn` points, without what it says about credentials."""
    parts = urlsplit(dsn)
    return parts.netloc.rpartition("@")[2] + parts.path
