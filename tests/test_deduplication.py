"""De-duplication: what the middleware makes of a store's answers, and the store in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import pytest

from asyncpar import App, Record, Retry
from asyncpar.deduplication import Deduplicate, DeduplicationStoreError, KeyHeldError, MemoryStore
from asyncpar.errors import ConfigurationError, DecodeError, Retryable, RetryAfter
from asyncpar.middleware import Call, CallNext, compose
from asyncpar.ports import Claim, Claimed
from asyncpar.records import SUCCESS, Outcome, Verdict
from asyncpar.testing import TestApp
from tests.store_contract import DONE, HELD, LONG_MS, NEW, MakeStore, StoreContract, call, claim

FAILED = Outcome(Verdict.FAILED, ValueError("no"))


class TestMemoryContract(StoreContract):
    """The store in memory keeps the contract."""

    @pytest.fixture
    def make(self) -> MakeStore:
        """One store: what shares a process shares it."""
        store = MemoryStore()
        return lambda: store


class Handler:
    """The inner end of the chain: answers one outcome after another, then successes."""

    def __init__(self, *outcomes: Outcome | BaseException) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0
        self.running = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def __call__(self, made: Call) -> Outcome:
        self.calls += 1
        self.running.set()
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else SUCCESS
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class FakeStore:
    """Answers `claimed`, notes what it is told, and fails or hangs in the steps named."""

    def __init__(self, claimed: Claimed = Claimed(Claim.NEW)) -> None:  # noqa: B008 - immutable
        self.claimed = claimed
        self.told: list[tuple[str, bytes, bytes]] = []
        self.fails: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def _step(self, name: str, key: bytes, owner: bytes) -> None:
        self.entered.set()
        if name in self.fails:
            raise self.fails[name]
        if name in self.hangs:
            await self.may_go_on.wait()
        self.told.append((name, key, owner))

    async def claim(self, key: bytes, owner: bytes, lease_ms: int) -> Claimed:
        await self._step("claim", key, owner)
        return self.claimed

    async def done(self, key: bytes, owner: bytes, ttl_ms: int) -> bool:
        await self._step("done", key, owner)
        return True

    async def release(self, key: bytes, owner: bytes) -> None:
        await self._step("release", key, owner)

    async def close(self) -> None:
        self.told.append(("close", b"", b""))

    @property
    def steps(self) -> list[str]:
        return [name for name, _, _ in self.told]


def deduplicate(store: Any = None, **values: Any) -> Deduplicate:
    given: dict[str, Any] = {"key": lambda r: r.key, "ttl_ms": LONG_MS, "store": store, **values}
    return Deduplicate(**given)


async def in_time(work: Awaitable[Any], seconds: float = 5) -> Any:
    return await asyncio.wait_for(work, seconds)


async def cancelled(task: asyncio.Task[Any]) -> float:
    """Cancel `task`; the seconds that it took to end as cancelled."""
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(task)
    return time.monotonic() - started


# -- done, failed, held --------------------------------------------------------------------------


async def test_a_key_that_was_done_is_skipped() -> None:
    """The second record with the key counts as done, and its handler is not called."""
    guard, handler = deduplicate(), Handler()
    assert (await guard(call(1), handler)).verdict is Verdict.SUCCESS
    assert await guard(call(2), handler) == Outcome(Verdict.SKIPPED)
    assert handler.calls == 1


@pytest.mark.parametrize("failure", [FAILED, Outcome(Verdict.UNDECODABLE, DecodeError("no"))])
async def test_a_failed_attempt_gives_the_key_back(failure: Outcome) -> None:
    """The next attempt runs at once; the outcome is handed on as it is."""
    guard, handler = deduplicate(), Handler(failure)
    assert await guard(call(), handler) is failure
    assert (await guard(call(), handler)).verdict is Verdict.SUCCESS
    assert handler.calls == 2


async def test_what_the_handler_skips_is_done() -> None:
    """A record that was passed over on purpose is not asked about again."""
    guard, handler = deduplicate(), Handler(Outcome(Verdict.SKIPPED))
    for _ in range(2):
        assert (await guard(call(), handler)).verdict is Verdict.SKIPPED
    assert handler.calls == 1


async def test_a_record_without_a_key_is_not_deduplicated() -> None:
    """None from the key function: the store is not asked at all."""
    store, handler = FakeStore(Claimed(Claim.DONE)), Handler()
    guard = deduplicate(store, key=lambda record: None)
    for _ in range(2):
        assert await guard(call(), handler) is SUCCESS
    assert (handler.calls, store.told) == (2, [])


@pytest.mark.parametrize(("left_ms", "wait_ms"), [(0, 50), (49, 50), (1_234, 1_234), (60_000, 5_000)])
async def test_a_key_that_is_held_elsewhere_is_a_failure_that_comes_back(left_ms: int, wait_ms: int) -> None:
    """RetryAfter what is left of the lease, from 50 ms to 5 s; nothing of the other owner's is touched."""
    store, handler = FakeStore(Claimed(Claim.HELD, left_ms)), Handler()
    outcome = await deduplicate(store)(call(7), handler)
    assert outcome.verdict is Verdict.FAILED
    assert isinstance(outcome.error, KeyHeldError)
    assert isinstance(outcome.error, RetryAfter)
    assert outcome.error.delay_ms == wait_ms
    assert str(outcome.error).startswith("orders[3] offset 7: the key is being handled elsewhere")
    assert (handler.calls, store.steps) == (0, ["claim"])


async def test_every_claim_has_an_owner_of_its_own() -> None:
    """Owners are random, so that what one attempt says late means nothing to the next."""
    store = FakeStore()
    guard = deduplicate(store)
    for _ in range(3):
        await guard(call(), Handler())
    assert store.steps == ["claim", "done"] * 3
    owners = [owner for _, _, owner in store.told]
    assert owners[0::2] == owners[1::2]
    assert len({*owners}) == 3
    assert {len(owner) for owner in owners} == {16}


async def test_lease_and_memory_have_their_times() -> None:
    """lease_ms bounds a claim, ttl_ms what is remembered."""
    now = [100.0]
    guard = deduplicate(MemoryStore(clock=lambda: now[0]), ttl_ms=2_000, lease_ms=500)
    stuck, handler = Handler(), Handler()
    stuck.gate = asyncio.Event()
    task = asyncio.ensure_future(guard(call(), stuck))
    await in_time(stuck.running.wait())
    now[0] += 0.4
    held = await guard(call(), handler)
    assert isinstance(held.error, KeyHeldError)
    assert held.error.delay_ms == 100
    now[0] += 0.2
    assert await guard(call(), handler) is SUCCESS
    now[0] += 1.9
    assert (await guard(call(), handler)).verdict is Verdict.SKIPPED
    now[0] += 0.2
    assert await guard(call(), handler) is SUCCESS
    await cancelled(task)


async def test_a_run_longer_than_its_lease_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """When somebody took the key over meanwhile, a warning says that it may have run twice."""
    now = [100.0]
    guard = deduplicate(MemoryStore(clock=lambda: now[0]), lease_ms=500)
    slow = Handler()
    slow.gate = asyncio.Event()
    task = asyncio.ensure_future(guard(call(1), slow))
    await in_time(slow.running.wait())
    now[0] += 1
    assert await guard(call(2), Handler()) is SUCCESS
    slow.gate.set()
    assert await in_time(task) is SUCCESS
    (warning,) = caplog.messages
    assert warning.startswith("orders[3] offset 1: the handler ran for longer than lease_ms=500")


# -- keys ----------------------------------------------------------------------------------------


async def stored_key(made: Call, **values: Any) -> bytes:
    store = FakeStore()
    await deduplicate(store, **values)(made, Handler())
    return store.told[0][1]


async def test_handlers_and_names_have_keys_of_their_own() -> None:
    """Nobody's record hides another handler's; where one name ends and the next begins makes a difference."""
    keys = [
        await stored_key(call()),
        await stored_key(call(handler="billing.other")),
        await stored_key(call(key=b"j")),
        await stored_key(call(), name="shop"),
        await stored_key(dataclasses.replace(call(), group="others")),
        await stored_key(call(handler="b"), name="a"),
        await stored_key(call(handler=""), name="ab"),
        await stored_key(call(handler="ab")),
        await stored_key(call(handler="a", key=b"bk")),
        await stored_key(call(handler="a" * 1_000, key=b"k" * 100_000)),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}


async def test_the_same_text_is_the_same_key_wherever_the_record_is() -> None:
    """As str or as bytes, at any place and in any attempt; also text that is not valid Unicode."""
    first = await stored_key(call(1, b"k"))
    assert first == await stored_key(call(2), key=lambda record: "k")
    assert first == await stored_key(Call("billing.bill", (Record("late", 0, 9, b"k", None),), 5))
    assert await stored_key(call(), key=lambda record: "\ud800") != first


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("", ValueError, "empty key, which all records without one would share: return None"),
        (b"", ValueError, "empty key"),
        (7, TypeError, "returned int: return str, bytes or None"),
    ],
)
async def test_what_is_no_key_fails_the_attempt(key: Any, error: type[Exception], message: str) -> None:
    """An empty key would make all records without one duplicates of each other, and lose them."""
    store, handler = FakeStore(), Handler()
    with pytest.raises(error, match=message):
        await deduplicate(store, key=lambda record: key)(call(), handler)
    assert (handler.calls, store.told) == (0, [])


@pytest.mark.parametrize("key", ["payment_id", str, None])
def test_a_key_that_is_no_function_is_refused(key: Any) -> None:
    """At once, and not by every record that comes; a class is no function of a record's key either."""
    with pytest.raises(ConfigurationError, match="Deduplicate: key=.* must be a function of the record"):
        Deduplicate(key=key, ttl_ms=1_000)


@pytest.mark.parametrize("knob", ["ttl_ms", "lease_ms", "store_timeout_ms"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, 10**12])
def test_times_that_are_none_are_refused(knob: str, value: Any) -> None:
    """The message names the knob and what it may be."""
    with pytest.raises(ConfigurationError, match=f"Deduplicate: {knob}=.* whole number of milliseconds"):
        deduplicate(**{knob: value})


# -- a store that fails --------------------------------------------------------------------------


async def test_without_an_answer_to_the_claim_no_handler_runs() -> None:
    """A failed attempt that may pass; a claim that was stored all the same is given back."""
    store, handler = FakeStore(), Handler()
    store.fails["claim"] = OSError("connection refused")
    guard = deduplicate(store)
    outcome = await guard(call(7), handler)
    assert outcome.verdict is Verdict.FAILED
    assert isinstance(outcome.error, DeduplicationStoreError)
    assert isinstance(outcome.error, Retryable)
    assert str(outcome.error) == (
        "orders[3] offset 7: the handler was not called, because the de-duplication store could not "
        "be asked: OSError: connection refused"
    )
    await guard.close()
    assert (handler.calls, store.steps) == (0, ["release", "close"])


async def test_a_store_that_is_silent_counts_as_down_after_its_time() -> None:
    """store_timeout_ms bounds every question."""
    store, handler = FakeStore(), Handler()
    store.hangs = {"claim"}
    outcome = await in_time(deduplicate(store, store_timeout_ms=30)(call(), handler))
    assert isinstance(outcome.error, DeduplicationStoreError)
    assert str(outcome.error).endswith("no answer within 0.03 s")
    assert handler.calls == 0


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_success_that_cannot_be_noted_stays_a_success(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The work is done; one warning for the outage, one line with the count when the store answers again."""
    caplog.set_level(logging.INFO)
    store = FakeStore()
    if how == "fails":
        store.fails["done"] = OSError("gone")
    else:
        store.hangs = {"done"}
    guard = deduplicate(store, store_timeout_ms=30)
    for offset in range(3):
        assert await in_time(guard(call(offset), Handler())) is SUCCESS
    assert len(caplog.messages) == 1
    assert "offset 0: the de-duplication store was not told how the record ended" in caplog.messages[0]
    store.fails.clear()
    store.hangs.clear()
    for offset in range(2):
        await guard(call(offset), Handler())
    assert caplog.messages[1:] == ["the de-duplication store answers again; it was not told of 3 records"]


async def test_a_failure_that_cannot_be_noted_stays_a_failure() -> None:
    """The handler's own error is what counts; the wait for the store is bounded."""
    store = FakeStore()
    store.hangs = {"release"}
    assert await in_time(deduplicate(store, store_timeout_ms=30)(call(), Handler(FAILED))) is FAILED


# -- cancellation --------------------------------------------------------------------------------


async def test_a_cancelled_handler_gives_its_key_back() -> None:
    """It is free when the cancellation arrives at the caller: the next instance can run it at once."""
    store, handler = FakeStore(), Handler()
    handler.gate = asyncio.Event()
    task = asyncio.ensure_future(deduplicate(store)(call(), handler))
    await in_time(handler.running.wait())
    await cancelled(task)
    assert store.steps == ["claim", "release"]


async def test_a_middleware_further_in_that_raises_gives_the_key_back() -> None:
    """Its error goes on as it is."""
    store = FakeStore()
    with pytest.raises(KeyError):
        await deduplicate(store)(call(), Handler(KeyError("k")))
    assert store.steps == ["claim", "release"]


async def test_a_cancelled_claim_is_given_back() -> None:
    """Nobody knows whether it was stored."""
    store, handler = FakeStore(), Handler()
    store.hangs = {"claim"}
    task = asyncio.ensure_future(deduplicate(store)(call(), handler))
    await in_time(store.entered.wait())
    await cancelled(task)
    assert (handler.calls, store.steps) == (0, ["release"])


@pytest.mark.parametrize(("outcome", "step"), [(SUCCESS, "done"), (FAILED, "release")])
async def test_what_a_cancellation_interrupts_is_noted_all_the_same(outcome: Outcome, step: str) -> None:
    """Cancelled between the handler's end and the note: it is noted again, and no done key is released."""
    store, handler = FakeStore(), Handler(outcome)
    store.hangs = {step}
    guard = deduplicate(store)
    task = asyncio.ensure_future(guard(call(), handler))
    await in_time(handler.running.wait())
    await in_time(_until_waiting(task))
    store.hangs = set()
    await cancelled(task)
    assert store.steps == ["claim", step]


async def _until_waiting(task: asyncio.Task[Any]) -> None:
    """Until `task` waits for something that only others can end."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_cancelled_handler_waits_for_a_silent_store_for_a_moment_only() -> None:
    """A second cancellation ends even that; the release itself goes on, and close() waits for it."""
    store = FakeStore()
    store.hangs = {"release"}
    guard = deduplicate(store)
    for cancel_twice in (False, True):
        handler = Handler()
        handler.gate = asyncio.Event()
        task = asyncio.ensure_future(guard(call(), handler))
        await in_time(handler.running.wait())
        if cancel_twice:
            task.cancel()
            await _until_waiting(task)
        took = await cancelled(task)
        assert took < (0.25 if cancel_twice else 2)
    assert store.steps == ["claim", "claim"]
    store.may_go_on.set()
    await in_time(guard.close())
    assert store.steps[2:] == ["release", "release", "close"]


async def test_closing_does_not_wait_for_ever() -> None:
    """A store that stays silent, also when it is cancelled, holds an app's end up by store_timeout_ms."""

    class Deaf(FakeStore):
        async def release(self, key: bytes, owner: bytes) -> None:
            while not self.may_go_on.is_set():
                with suppress(asyncio.CancelledError):
                    await self.may_go_on.wait()

    store = Deaf()
    store.hangs = {"claim"}
    guard = deduplicate(store, store_timeout_ms=30)
    await in_time(guard(call(), Handler()))
    await in_time(guard.close())
    assert store.steps == ["close"]
    store.may_go_on.set()


# -- in memory -----------------------------------------------------------------------------------


async def test_a_full_store_forgets_what_was_done_longest_ago() -> None:
    """Never more than max_keys; claims are kept."""
    store = MemoryStore(max_keys=3)
    await claim(store, b"held", b"a")
    for key in (b"1", b"2", b"3"):
        await claim(store, key, b"a")
        await store.done(key, b"a", LONG_MS)
        assert len(store) <= 3
    assert await claim(store, b"held", b"b") is HELD
    assert await claim(store, b"3", b"b") is DONE
    assert await claim(store, b"2", b"b") is DONE
    assert await claim(store, b"1", b"b") is NEW


async def test_a_store_full_of_claims_takes_no_more() -> None:
    """A claim is never forgotten before its lease ends: the next key is a failed attempt."""
    now = [100.0]
    store = MemoryStore(max_keys=2, clock=lambda: now[0])
    await claim(store, b"1", b"a", 5_000)
    await claim(store, b"2", b"a", 1_000)
    guard, handler = deduplicate(store), Handler()
    outcome = await guard(call(), handler)
    assert isinstance(outcome.error, DeduplicationStoreError)
    assert "all of max_keys=2 keys are being handled" in str(outcome.error)
    assert handler.calls == 0
    now[0] += 2
    assert await guard(call(), handler) is SUCCESS
    assert await claim(store, b"1", b"b") is HELD


async def test_a_late_end_counts_when_the_next_owners_lease_has_ended_too() -> None:
    """Nobody holds the key any more, and its work was done."""
    now = [100.0]
    store = MemoryStore(clock=lambda: now[0])
    for owner in (b"a", b"b"):
        assert await claim(store, b"k", owner, 1_000) is NEW
        now[0] += 2
    assert await store.done(b"k", b"a", LONG_MS) is True
    assert await claim(store, b"k", b"c") is DONE


async def test_what_has_ended_goes_by_itself() -> None:
    """A store that was full of things long past shrinks while it is used."""
    now = [100.0]
    store = MemoryStore(clock=lambda: now[0])
    for number in range(100):
        await claim(store, b"done%d" % number, b"a")
        await store.done(b"done%d" % number, b"a", 1_000)
        await claim(store, b"held%d" % number, b"a", 1_000)
    assert len(store) == 200
    now[0] += 2
    for number in range(60):
        await claim(store, b"new%d" % number, b"a")
    assert len(store) == 60


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    """At least one key."""
    with pytest.raises(ConfigurationError, match="max_keys="):
        MemoryStore(max_keys=value)


# -- in an app -----------------------------------------------------------------------------------


async def test_an_app_handles_each_key_once_for_each_handler() -> None:
    """Duplicates are skipped in both handlers, failures are tried again, and what has no key runs always."""
    seen: list[tuple[str, str]] = []
    guard = Deduplicate(key=lambda record: record.header("id"), ttl_ms=LONG_MS)
    app = App(group="billing", middlewares=[guard])

    @app.topic("orders", retry=Retry(attempts=3, base_ms=1))
    async def bill(order: str) -> None:
        seen.append(("bill", order))
        if order == "shaky" and seen.count(("bill", order)) == 1:
            raise ConnectionError(order)

    @app.topic("parcels")
    async def send(order: str) -> None:
        seen.append(("send", order))

    async with TestApp(app) as kafka:
        for order in ("one", "shaky", "one", "shaky"):
            await kafka.send("orders", order, key="k", headers={"id": order})
        for _ in range(2):
            await kafka.send("parcels", "one", key="k", headers={"id": "one"})
            await kafka.send("parcels", "none", key="k")
        await kafka.settled()
        outcomes = {topic: [] for topic in ("orders", "parcels")}  # type: dict[str, list[str]]
        for one in kafka.handled:
            outcomes[one.topic].append(one.outcome)
    await guard.close()
    assert outcomes["orders"] == ["success", "failed", "success", "skipped", "skipped"]
    assert outcomes["parcels"] == ["success", "success", "skipped", "success"]
    assert seen.count(("send", "one")) == 1


async def test_an_app_waits_for_a_key_that_runs_elsewhere() -> None:
    """One key in two partitions at the same time: the second is asked again, and skipped in the end."""
    gate, calls = asyncio.Event(), []
    guard = Deduplicate(key=lambda record: record.header("id"), ttl_ms=LONG_MS, lease_ms=1_000)
    app = App(group="billing", middlewares=[guard])

    @app.topic("orders", retry=Retry(base_ms=1))
    async def bill(record: Record) -> None:
        calls.append(record.partition)
        await gate.wait()

    async with TestApp(app, partitions={"orders": 2}) as kafka:
        for partition in (0, 1):
            await kafka.send("orders", "one", key="k", headers={"id": "x"}, partition=partition)
        async with asyncio.timeout(5):
            while not kafka.errors:  # noqa: ASYNC110 - the app has no event for it
                await asyncio.sleep(0.005)
        assert isinstance(kafka.errors[0], KeyHeldError)
        gate.set()
        await kafka.settled()
    assert len(calls) == 1
    assert sorted(one.outcome for one in kafka.handled if one.outcome != "failed") == ["skipped", "success"]


def test_it_composes_with_other_middlewares() -> None:
    """As an object among functions."""

    async def plain(made: Call, call_next: CallNext) -> Outcome:
        return await call_next(made)

    async def run() -> list[Verdict]:
        handler = Handler()
        chain = compose([plain, deduplicate(), plain], handler)
        return [(await chain(call())).verdict for _ in range(2)]

    assert asyncio.run(run()) == [Verdict.SUCCESS, Verdict.SKIPPED]
