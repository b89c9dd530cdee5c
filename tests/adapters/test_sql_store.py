"""De-duplication on a real PostgreSQL: the contract, the table, and what only a server between us can do."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg
import pytest

from asyncpar.adapters.sql_store import PostgresStore
from asyncpar.deduplication import Deduplicate, DeduplicationStoreError
from asyncpar.errors import ConfigurationError
from asyncpar.middleware import Call
from asyncpar.records import SUCCESS, Outcome
from tests.store_contract import LONG_MS, NEW, MakeStore, StoreContract, call, claim, race_of_two_processes

if TYPE_CHECKING:
    from tests.store_servers import PostgresServer

pytest_plugins = ["tests.store_servers"]


@pytest.fixture
def table() -> str:
    return f"done_{uuid.uuid4().hex}"


@pytest.fixture
def make(postgres_server: PostgresServer, table: str) -> MakeStore:
    """Stores on one table, which the first one makes; few connections, because tests leave some open."""
    return lambda: PostgresStore(postgres_server.dsn, table=table, create_table=True, max_connections=2)


@pytest.fixture
async def admin(postgres_server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection of our own, to look at tables and to be in the way."""
    connection = await asyncpg.connect(postgres_server.dsn)
    yield connection
    connection.terminate()


async def in_the_end(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask the server until `condition` holds."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - it is a server that knows
            await asyncio.sleep(0.01)


class TestContract(StoreContract):
    """PostgreSQL keeps the contract."""


def test_of_two_processes_each_key_goes_to_one(postgres_server: PostgresServer, table: str) -> None:
    """Two interpreters that claim the same 100 keys at once win each of them exactly once."""
    won = race_of_two_processes(
        "asyncpar.adapters.sql_store",
        "PostgresStore",
        f"{postgres_server.dsn!r}, table={table!r}, create_table=True",
    )
    assert sorted(won[0] + won[1]) == sorted(f"race-{number}" for number in range(100))


async def test_the_table_is_made_when_asked_by_many_at_once(
    postgres_server: PostgresServer, table: str, admin: asyncpg.Connection
) -> None:
    """Ten instances that start together make one table with its index; also in a schema."""
    await admin.execute(f"CREATE SCHEMA s_{table[:20]}")
    name = f"s_{table[:20]}.{table}"
    stores = [PostgresStore(postgres_server.dsn, table=name, create_table=True) for _ in range(10)]
    answers = await asyncio.gather(*(claim(store, b"%d" % n, b"a") for n, store in enumerate(stores)))
    assert set(answers) == {NEW}
    assert await admin.fetchval(f"SELECT count(*) FROM {name}") == 10
    indexes = await admin.fetch("SELECT indexname FROM pg_indexes WHERE tablename = $1", table)
    assert f"{table}_expires_at" in {row[0] for row in indexes}
    for store in stores:
        await store.close()


async def test_a_missing_table_is_named_with_what_to_do(postgres_server: PostgresServer, table: str) -> None:
    """Nothing is made unless asked for; schema_sql() is what a migration runs, as often as it likes."""
    store = PostgresStore(postgres_server.dsn, table=table)
    with pytest.raises(DeduplicationStoreError, match=f"no table {table}: make it by schema_sql"):
        await store.claim(b"k", b"a", LONG_MS)
    connection = await asyncpg.connect(postgres_server.dsn)
    for _ in range(2):
        await connection.execute(store.schema_sql())
    await connection.close()
    assert await claim(store, b"k", b"a") is NEW
    await store.close()


@pytest.mark.parametrize("name", ["", "Done", "a.b.c", "done; drop table x", 'a"b', "1st", "a" * 52])
def test_a_table_name_that_would_need_quotes_is_refused(name: str) -> None:
    """Names go into statements as they are, so only plain ones may."""
    with pytest.raises(ConfigurationError, match="lower-case letters"):
        PostgresStore("postgresql://localhost/x", table=name)


async def test_expired_rows_are_deleted_in_bounded_steps(
    make: MakeStore, table: str, admin: asyncpg.Connection
) -> None:
    """clean() takes 1,000 rows at most, and none that still counts."""
    store, setup = make(), make()
    assert isinstance(store, PostgresStore)
    await claim(setup, b"held", b"a")
    await claim(setup, b"done", b"a")
    await setup.done(b"done", b"a", LONG_MS)
    await setup.close()  # a claim may have begun to clean
    await _expired(admin, table, 2_300)
    assert [await store.clean() for _ in range(4)] == [1_000, 1_000, 300, 0]
    assert {row[0] for row in await admin.fetch(f"SELECT key FROM {table}")} == {b"held", b"done"}
    await store.close()


async def test_connections_are_bounded(
    postgres_server: PostgresServer, table: str, admin: asyncpg.Connection
) -> None:
    """50 claims at once over at most 2 connections all get their answer."""
    name = {"application_name": table}
    store = PostgresStore(
        postgres_server.dsn, table=table, create_table=True, max_connections=2, server_settings=name
    )
    answers = await asyncio.gather(*(claim(store, b"k%d" % number, b"a") for number in range(50)))
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
    assert await admin.fetchval(ours, table) == 2
    assert set(answers) == {NEW}
    await store.close()


async def test_a_row_that_has_expired_counts_as_none(
    make: MakeStore, table: str, admin: asyncpg.Connection
) -> None:
    """Whether or not it was deleted yet; as a claim, as a memory, and in the way of a late end."""
    store = make()
    for key in (b"claimed", b"done", b"late"):
        await claim(store, key, b"b")
    await store.done(b"done", b"b", LONG_MS)
    await admin.execute(f"UPDATE {table} SET expires_at = now()")
    assert await claim(store, b"claimed", b"a") is NEW
    assert await claim(store, b"done", b"a") is NEW
    assert await store.done(b"late", b"a", LONG_MS) is True
    await store.close()


async def test_rows_that_another_instance_is_at_are_not_waited_for(
    make: MakeStore, table: str, admin: asyncpg.Connection
) -> None:
    """Two that clean at once share the work instead of queueing behind each other."""
    store = make()
    assert isinstance(store, PostgresStore)
    await admin.execute(store.schema_sql())
    await _expired(admin, table, 10)
    async with admin.transaction():
        await admin.execute(f"SELECT 1 FROM {table} WHERE expires_at < now() LIMIT 4 FOR UPDATE")
        assert await asyncio.wait_for(store.clean(), 5) == 6
    assert await store.clean() == 4
    await store.close()


async def test_claims_clean_up_on_their_way(make: MakeStore, table: str, admin: asyncpg.Connection) -> None:
    """Without anybody calling clean() the rows of the past go, more than one step of them too."""
    setup = make()
    await claim(setup, b"first", b"a")
    await _expired(admin, table, 2_500)
    store = make()

    async def claimed_until_gone() -> bool:
        await claim(store, uuid.uuid4().bytes, b"a")
        return await admin.fetchval(f"SELECT count(*) FROM {table} WHERE expires_at < now()") == 0

    await in_the_end(claimed_until_gone)
    await setup.close()
    await store.close()


async def test_a_locked_table_costs_a_bounded_time_and_leaves_nobody_waiting_on_the_server(
    make: MakeStore, table: str, admin: asyncpg.Connection, postgres_server: PostgresServer
) -> None:
    """A claim that is given up is cancelled on the server too: a long lock collects no connections."""
    store = make()
    deduplicate = Deduplicate(key=lambda r: r.key, ttl_ms=LONG_MS, store=store, store_timeout_ms=300)
    called: list[Call] = []

    async def handle(made: Call) -> Outcome:
        called.append(made)
        return SUCCESS

    await deduplicate(call(key=b"warm"), handle)
    watcher = await asyncpg.connect(postgres_server.dsn)
    async with admin.transaction():
        await admin.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        outcomes = await asyncio.gather(*(deduplicate(call(key=b"k%d" % n), handle) for n in range(2)))
        assert time.monotonic() - started < 2
        assert {type(outcome.error) for outcome in outcomes} == {DeduplicationStoreError}

        async def nobody_waits() -> bool:
            waiting = "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            queries = [row[0] for row in await watcher.fetch(waiting)]
            return not any("INSERT" in query for query in queries)  # cleaning may wait a little longer

        await in_the_end(nobody_waits)
    assert len(called) == 1
    assert (await deduplicate(call(key=b"k0"), handle)).ok
    watcher.terminate()
    await deduplicate.close()


async def test_a_server_that_is_down_is_an_error_without_the_password(
    postgres_server: PostgresServer, make: MakeStore
) -> None:
    """The error says where and what; when the server is back the same store works, and remembers."""
    store = make()
    await claim(store, b"k", b"a")
    await store.done(b"k", b"a", 600_000)
    postgres_server.stop()
    for step in (store.claim(b"k", b"a", 1), store.done(b"k", b"a", 1), store.release(b"k", b"a")):
        with pytest.raises(
            DeduplicationStoreError, match=f"127.0.0.1:{postgres_server.port}/postgres"
        ) as raised:
            await asyncio.wait_for(step, 5)
        assert "tell-nobody" not in str(raised.value)
    postgres_server.start()
    assert (await store.claim(b"k", b"b", LONG_MS)).claim.value == "done"
    await store.close()


async def test_a_connection_that_the_client_has_given_up_is_an_error_of_the_store(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on uvloop, where the first statement on a connection that the server has cut ends so."""
    store = make()

    async def fetchrow(*_: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 12")

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "fetchrow", fetchrow)
        with pytest.raises(DeduplicationStoreError, match="cannot switch to state 12"):
            await store.claim(b"k", b"a", 1_000)
    await store.close()


async def test_closing_is_bounded_while_a_claim_hangs(
    make: MakeStore, table: str, admin: asyncpg.Connection
) -> None:
    """What is still in use is cut: an app's end does not wait for somebody's lock."""
    store = make()
    await claim(store, b"warm", b"a")
    async with admin.transaction():
        await admin.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        hanging = asyncio.ensure_future(store.claim(b"k", b"a", LONG_MS))
        await asyncio.wait({hanging}, timeout=0.1)
        started = time.monotonic()
        await store.close()
        assert time.monotonic() - started < 5
        with pytest.raises(DeduplicationStoreError):
            await asyncio.wait_for(hanging, 5)


async def _expired(admin: asyncpg.Connection, table: str, rows: int) -> None:
    await admin.execute(
        f"INSERT INTO {table} SELECT decode(md5(n::text), 'hex'), 'x', true, now() - interval '1 hour' "
        f"FROM generate_series(1, {rows}) AS n"
    )
