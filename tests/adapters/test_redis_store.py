"""De-duplication on a real Redis: the contract, and what only a server between us can do."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from asyncpar import App
from asyncpar.adapters.redis_store import RedisStore
from asyncpar.deduplication import Deduplicate, DeduplicationStoreError
from asyncpar.middleware import Call
from asyncpar.records import SUCCESS, Outcome, Verdict
from asyncpar.testing import TestApp
from tests.store_contract import LONG_MS, NEW, MakeStore, StoreContract, call, claim, race_of_two_processes

if TYPE_CHECKING:
    from tests.store_servers import RedisServer

pytest_plugins = ["tests.store_servers"]


@pytest.fixture
def prefix() -> str:
    return f"test:{uuid.uuid4().hex}:"


@pytest.fixture
def make(redis_server: RedisServer, prefix: str) -> MakeStore:
    """Stores on one Redis that see the same keys. They are never closed: Redis cuts what a dead loop left."""
    return lambda: RedisStore(redis_server.url, prefix=prefix)


class TestContract(StoreContract):
    """Redis keeps the contract."""


def test_of_two_processes_each_key_goes_to_one(redis_server: RedisServer, prefix: str) -> None:
    """Two interpreters that claim the same 100 keys at once win each of them exactly once."""
    won = race_of_two_processes(
        "asyncpar.adapters.redis_store", "RedisStore", f"{redis_server.url!r}, prefix={prefix!r}"
    )
    assert sorted(won[0] + won[1]) == sorted(f"race-{number}" for number in range(100))


async def test_every_key_ends_by_itself(redis_server: RedisServer, prefix: str) -> None:
    """Claims and what is done carry their time in Redis, so that nothing has to be cleaned."""
    store = RedisStore(redis_server.url, prefix=prefix)
    await claim(store, b"held", b"a", 20_000)
    await claim(store, b"done", b"a", 20_000)
    await store.done(b"done", b"a", 900_000)
    client = Redis.from_url(redis_server.url)
    assert 10_000 < await client.pttl(prefix + "held") <= 20_000
    assert 800_000 < await client.pttl(prefix + "done") <= 900_000
    await client.aclose()
    await store.close()


async def test_a_given_client_is_used_and_left_open(redis_server: RedisServer, prefix: str) -> None:
    """Whoever made the client closes it; it may also decode its answers."""
    client = Redis.from_url(redis_server.url, decode_responses=True)
    store = RedisStore(client, prefix=prefix)
    assert await claim(store, b"k", b"a") is NEW
    await store.close()
    assert await client.ping()
    assert await claim(store, b"j", b"a") is NEW
    await client.aclose()


async def test_connections_are_bounded(redis_server: RedisServer, prefix: str) -> None:
    """50 claims at once over at most 2 connections all get their answer."""
    store = RedisStore(redis_server.url, prefix=prefix, max_connections=2, client_name=prefix)
    answers = await asyncio.gather(*(claim(store, b"k%d" % number, b"a") for number in range(50)))
    client = Redis.from_url(redis_server.url)
    clients = await client.client_list()
    await client.aclose()
    await store.close()
    assert set(answers) == {NEW}
    assert len([one for one in clients if one["name"] == prefix]) == 2


async def test_scripts_that_the_server_forgot_are_sent_again(redis_server: RedisServer, prefix: str) -> None:
    """A restart or SCRIPT FLUSH empties the server's cache of scripts; nobody notices."""
    store = RedisStore(redis_server.url, prefix=prefix)
    await claim(store, b"k", b"a")
    client = Redis.from_url(redis_server.url)
    await client.script_flush()
    await client.aclose()
    assert await claim(store, b"j", b"a") is NEW
    await store.close()


async def test_a_server_that_is_down_is_an_error_without_the_password(
    redis_server: RedisServer, prefix: str
) -> None:
    """The error says where and what; when the server is back the same store works."""
    store = RedisStore(redis_server.url, prefix=prefix)
    await claim(store, b"k", b"a")
    redis_server.kill()
    steps = (store.claim(b"k", b"a", 1), store.done(b"k", b"a", 1), store.release(b"k", b"a"))
    for step in steps:
        with pytest.raises(
            DeduplicationStoreError, match=f"Redis at 127.0.0.1:{redis_server.port}/0"
        ) as raised:
            await asyncio.wait_for(step, 5)
        assert redis_server.password not in str(raised.value)
    redis_server.start()
    assert await claim(store, b"k", b"b") is NEW
    await store.close()


async def test_a_frozen_server_costs_a_bounded_time_and_no_answer_is_mixed_up(
    redis_server: RedisServer, prefix: str
) -> None:
    """Claims fail after store_timeout_ms; once it thaws, late answers reach nobody else's question."""
    store = RedisStore(redis_server.url, prefix=prefix, max_connections=4)
    deduplicate = Deduplicate(key=lambda r: r.key, ttl_ms=LONG_MS, store=store, store_timeout_ms=200)
    called: list[Call] = []

    async def handle(made: Call) -> Outcome:
        called.append(made)
        return SUCCESS

    await deduplicate(call(key=b"warm"), handle)
    await claim(store, b"theirs", b"b")
    redis_server.pause()
    started = time.monotonic()
    frozen = await asyncio.gather(*(deduplicate(call(key=b"k%d" % n), handle) for n in range(8)))
    assert time.monotonic() - started < 2
    assert {type(outcome.error) for outcome in frozen} == {DeduplicationStoreError}
    assert len(called) == 1
    redis_server.resume()
    for _ in range(5):
        assert (await store.claim(b"theirs", b"c", 1)).lease_left_ms > 1_000
        assert await store.done(b"mine", b"a", LONG_MS) is True
    await deduplicate.close()


async def test_a_cancelled_claim_ends_at_once_whatever_the_client_makes_of_it() -> None:
    """redis-py loses a cancellation now and then (on Python 3.11); its caller is let go all the same."""
    entered, let_go = asyncio.Event(), asyncio.Event()

    class Deaf(Redis):
        def register_script(self, script: Any) -> Any:
            async def run(keys: Any, args: Any) -> Any:
                entered.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    await let_go.wait()
                raise ConnectionError("nobody is to hear this")

            return run

    claiming = asyncio.ensure_future(RedisStore(Deaf()).claim(b"k", b"a", LONG_MS))
    await asyncio.wait_for(entered.wait(), 5)
    claiming.cancel()
    done, _ = await asyncio.wait({claiming}, timeout=5)
    assert done
    assert claiming.cancelled()
    let_go.set()


async def test_a_handler_that_succeeded_while_redis_fell_is_done(
    redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Failing it would run it again for certain: it counts as done, and a warning says what may follow."""
    store = RedisStore(redis_server.url, prefix=prefix)
    deduplicate = Deduplicate(key=lambda r: r.key, ttl_ms=LONG_MS, store=store)

    async def handle(made: Call) -> Outcome:
        redis_server.kill()
        return SUCCESS

    assert (await deduplicate(call(), handle)).verdict is Verdict.SUCCESS
    assert "was not told how the record ended" in caplog.text
    await deduplicate.close()


async def test_an_app_passes_over_what_another_life_of_it_has_done(
    redis_server: RedisServer, prefix: str
) -> None:
    """Sent twice, and once more to the next process: handled once."""
    handled: list[str] = []

    async def life(*bodies: str) -> list[Any]:
        store = RedisStore(redis_server.url, prefix=prefix)
        deduplicate = Deduplicate(key=lambda r: r.header("id"), ttl_ms=LONG_MS, store=store)
        app = App(group="billing", middlewares=[deduplicate])

        @app.topic("orders", name="bill")
        async def bill(order: str) -> None:
            handled.append(order)

        async with TestApp(app) as kafka:
            for body in bodies:
                await kafka.send("orders", body, key="k", headers={"id": body})
            await kafka.settled()
            outcomes = [one.outcome for one in kafka.handled]
        await deduplicate.close()
        return outcomes

    assert await life("one", "one", "two") == ["success", "skipped", "success"]
    assert await life("two", "three") == ["skipped", "success"]
    assert handled == ["one", "two", "three"]
