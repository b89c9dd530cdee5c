"""`TestApp`: an app in a test, in memory and on a real Kafka."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, Field

from asyncpar import App, Call, Context, Header, Key, Outcome, Record, Retry, Verdict, topic
from asyncpar.errors import (
    AuthorizationError,
    BrokerUnreachableError,
    ConfigurationError,
    DecodeError,
    DrainIncompleteError,
    HandlerTimeoutError,
    SettingError,
    UnknownTopicError,
)
from asyncpar.middleware import CallNext
from asyncpar.records import TopicPartition
from asyncpar.testing import (
    DISCONNECT,
    LOST_ANSWER,
    HaltedError,
    Handled,
    History,
    MemoryBroker,
    TestApp,
    UnsettledError,
)
from tests.conftest import Broker

ORDERS = TopicPartition("orders", 0)


class Model(BaseModel):
    customer: str
    day: date
    total: int = Field(alias="cents")


@dataclass
class Click:
    page: str
    milliseconds: int = 0


class Profile(TypedDict):
    name: str


class Point(msgspec.Struct, rename="camel"):
    is_far: bool
    near_to: list[str] = []


def outcomes(kafka: TestApp) -> list[tuple[int, int, str]]:
    """Offset, attempt and outcome of everything that was handled."""
    return [(one.offset, one.attempt, one.outcome) for one in kafka.handled]


def collecting(annotation: Any, **options: Any) -> tuple[App, list[Any]]:
    """An app with one handler of `orders`, and the payloads that it got."""
    app, got = App(group="billing"), []

    async def handle(value: Any) -> None:
        got.append(value)

    handle.__annotations__["value"] = annotation
    app.topic("orders", **options)(handle)
    return app, got


# -- payloads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (bytes, b"\x00\xff"),
        (str, "tea \N{SNOWMAN}"),
        (dict[str, int], {"tea": 1}),
        (list[str], ["a", "b"]),
        (int, 7),
        (Model, Model(customer="ada", day=date(2026, 1, 2), cents=250)),
        (list[Model], [Model(customer="ada", day=date(2026, 1, 2), cents=250)]),
        (Click, Click("/home", 12)),
        (Profile, {"name": "Ada"}),
        (Point, Point(is_far=True, near_to=["x"])),
        (dict[str, Point], {"a": Point(is_far=False)}),
        (Click | None, None),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
async def test_a_handler_gets_the_object_that_was_sent(annotation: Any, value: Any) -> None:
    """What a test sends arrives as what the signature asks for, whatever kind of payload it is."""
    app, got = collecting(annotation)
    async with TestApp(app) as kafka:
        await kafka.send("orders", value)
        await kafka.settled()
    assert got == [value]


async def test_keys_headers_partition_and_time_arrive() -> None:
    """They are given as text or bytes, headers as a mapping or as pairs that may repeat a name."""
    app, got = App(group="billing"), []

    @app.topic("orders")
    async def bill(
        value: str, key: Annotated[str, Key], tenant: Annotated[str, Header("tenant")], record: Record
    ) -> None:
        got.append((value, key, tenant, record.partition, record.timestamp, len(record.headers)))

    async with TestApp(app, partitions={"orders": 4}) as kafka:
        place = await kafka.send(
            "orders", "x", key="ada", headers={"tenant": b"acme"}, partition=3, timestamp_ms=99
        )
        await kafka.send("orders", "y", key=b"ada", headers=[("tenant", "a"), ("tenant", "b")], partition=3)
        await kafka.settled()
    assert place == ("orders", 3, 0)
    assert got[0] == ("x", "ada", "acme", 3, 99, 1)
    assert got[1][:4] == ("y", "ada", "b", 3)
    assert got[1][5] == 2


async def test_what_cannot_be_sent_is_refused() -> None:
    """A payload that JSON cannot hold, a key that is no text and a partition that is not there."""
    app, _ = collecting(bytes)
    async with TestApp(app) as kafka:
        with pytest.raises(TypeError, match="an object cannot be sent"):
            await kafka.send("orders", object())
        with pytest.raises(TypeError, match="a dict cannot be sent.*it holds an object"):
            await kafka.send("orders", {"a": object()})
        with pytest.raises(TypeError, match="a key is text or bytes, not int"):
            await kafka.send("orders", b"", key=1)  # type: ignore[arg-type]
        with pytest.raises(UnknownTopicError, match="has no partition 7: it has 1"):
            await kafka.send("orders", b"", partition=7)
        with pytest.raises(TypeError, match="partition is a whole number, not '3'"):
            await kafka.send("orders", b"", partition="3")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="timestamp_ms is a whole number of milliseconds since 1970"):
            await kafka.send("orders", b"", timestamp_ms="now")  # type: ignore[arg-type]


# -- topics --------------------------------------------------------------------------------------


async def test_a_topic_that_nobody_reads_is_refused() -> None:
    """A misspelt topic would settle at once and prove nothing; one that is named is had all the same."""
    app, got = collecting(bytes)
    async with TestApp(app, partitions={"invoices": 1}) as kafka:
        with pytest.raises(ConfigurationError, match="no handler reads topic 'ordrs'; did you mean 'orders'"):
            await kafka.send("ordrs", b"")
        await kafka.send("invoices", b"")
        await kafka.settled()
    assert got == []


async def test_a_topic_of_a_pattern_is_made_when_it_is_sent_to() -> None:
    """A pattern has no topics at the start: the first record makes one, and it is handled."""
    got: list[str] = []

    @topic(pattern="audit-.*")
    async def audit(record: Record) -> None:
        got.append(record.topic)

    async with TestApp(audit, metadata_max_age_ms=100) as kafka:
        await kafka.send("audit-logins", b"")
        await kafka.settled()
        assert kafka.committed("audit-logins", group="test") == 1
    assert got == ["audit-logins"]


async def test_a_topic_that_is_too_small_is_refused() -> None:
    """`partitions` is what the test needs: a topic with fewer is an error."""
    app, _ = collecting(bytes)
    broker = MemoryBroker()
    broker.create_topic("orders", 2)
    with pytest.raises(ConfigurationError, match="'orders' exists and has 2 partitions, not 4"):
        async with TestApp(app, broker=broker, partitions={"orders": 4}):
            pass


async def test_new_topics_are_read_from_their_beginning() -> None:
    """Also with `offset_reset` latest or error: what a test sends is handled."""
    for reset in ("latest", "error"):
        app, got = collecting(str)
        async with TestApp(app, offset_reset=reset) as kafka:
            await kafka.send("orders", reset)
            await kafka.settled()
        assert got == [reset]


# -- failures ------------------------------------------------------------------------------------


async def test_retries_are_seen() -> None:
    """A record that fails twice and then succeeds: three attempts, two errors, one commit."""
    app = App(group="billing")

    @app.topic("orders", name="bill")
    async def bill(context: Context) -> None:
        if context.attempt < 3:
            raise ValueError(f"attempt {context.attempt}")

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"", key="ada")
        await kafka.settled()
        assert kafka.committed("orders", 0) == 1
    assert outcomes(kafka) == [(0, 1, "failed"), (0, 2, "failed"), (0, 3, "success")]
    assert [str(error) for error in kafka.errors] == ["attempt 1", "attempt 2"]
    last = kafka.handled[-1]
    assert last == Handled("billing", "bill", "orders", 0, 0, b"ada", 3, "success")
    assert kafka.check().is_ok


async def test_a_halt_is_raised_with_what_the_handler_raised() -> None:
    """The message names place, handler and error; the handler's own traceback is chained to it."""
    app = App(group="billing")

    @app.topic("orders", name="bill", retry=Retry(attempts=2, base_ms=1))
    async def bill(value: str) -> None:
        if value == "bad":
            raise ZeroDivisionError("no money")

    async with TestApp(app) as kafka:
        await kafka.send("orders", "good")
        await kafka.settled()
        await kafka.send("orders", "bad")
        with pytest.raises(HaltedError) as caught:
            await kafka.settled()
        await kafka.settled(raise_on_halt=False)
    assert str(caught.value) == (
        "orders[0] halted in group billing, offset 1: failed 2 times in handler bill: "
        "ZeroDivisionError: no money"
    )
    cause = caught.value.__cause__
    assert cause is kafka.errors[-1]
    assert cause is not None
    assert cause.__traceback__ is not None


async def test_a_decode_error_halts() -> None:
    """A payload that does not fit is not retried: the halt says why, and DecodeError is its cause."""
    app, got = collecting(Click)
    async with TestApp(app) as kafka:
        await kafka.send("orders", {"page": 7})
        with pytest.raises(HaltedError, match=r"orders\[0\] halted .*could not be decoded") as caught:
            await kafka.settled()
    assert isinstance(caught.value.__cause__, DecodeError)
    assert outcomes(kafka) == [(0, 1, "undecodable")]
    assert got == []


async def test_a_halt_before_any_handler_is_raised_too() -> None:
    """A record that no handler is called for has no error to chain; the reason is in the message."""
    app, _ = collecting(bytes, keyless="error")
    async with TestApp(app) as kafka:
        await kafka.send("orders", b"")
        with pytest.raises(HaltedError, match="has no key") as caught:
            await kafka.settled()
    assert caught.value.__cause__ is None


async def test_records_that_are_passed_over_are_settled() -> None:
    """Tombstones, undecodable and unmatched records that a setting skips: done, and not lost."""
    app, got = collecting(Click, tombstones="skip", on_decode_error="skip")

    @app.topic("fruits", match=lambda topic, raw: raw.key == b"pear", unmatched="skip")
    async def fruits(value: bytes) -> None:
        got.append(value)

    async with TestApp(app) as kafka:
        await kafka.send("orders", None)
        await kafka.send("orders", b"{")
        await kafka.send("fruits", b"", key="fig")
        await kafka.settled()
        assert kafka.committed("orders") == 2
    assert sorted(outcomes(kafka)) == [(0, 1, "skipped"), (1, 1, "undecodable")]
    assert got == []
    assert kafka.check().is_ok


# -- what is not settled -------------------------------------------------------------------------


async def test_the_time_out_says_what_still_runs() -> None:
    """A handler that hangs is named, with its place; the drain at the end gives it up."""
    app, entered = App(group="billing"), asyncio.Event()

    @app.topic("orders", name="bill")
    async def bill() -> None:
        entered.set()
        await asyncio.Event().wait()

    async def live() -> None:
        async with kafka:
            await kafka.send("orders", b"")
            await asyncio.wait_for(entered.wait(), 5)
            with pytest.raises(UnsettledError, match=r"orders\[0\] offset 0: running in handler bill for"):
                await kafka.settled(timeout_s=0.1)

    kafka = TestApp(app, shutdown_drain_timeout_ms=50)
    with pytest.raises(DrainIncompleteError):
        await live()
    assert outcomes(kafka) == [(0, 1, "cancelled")]
    assert kafka.errors == []


async def test_the_time_out_says_what_waits_for_a_retry() -> None:
    """The default retries for ever: the message counts the attempts and says how the last one failed."""
    app = App(group="billing")

    @app.topic("orders", "refunds", name="bill", retry=Retry(base_ms=60_000, max_ms=60_000))
    async def bill() -> None:
        raise ValueError("no")

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"")
        with pytest.raises(UnsettledError) as caught:
            await kafka.settled(timeout_s=0.2)
    assert str(caught.value).startswith("not settled after 0.2 s: orders[0] offset 0: waiting for a retry in")
    assert str(caught.value).endswith("1 attempt failed, the last with ValueError: no")
    assert caught.value.__cause__ is kafka.errors[0]


async def test_the_time_out_says_what_is_not_committed() -> None:
    """Handled, but the coordinator does not take the commit."""
    app, got = collecting(str)
    async with TestApp(app, shutdown_drain_timeout_ms=50) as kafka:
        kafka.broker.fail("OffsetCommit", "COORDINATOR_LOAD_IN_PROGRESS", times=2)
        await kafka.send("orders", "x")
        with pytest.raises(UnsettledError, match="done, but not committed: group billing has committed 0"):
            await kafka.settled(timeout_s=0.2)
        await kafka.settled()
    assert got == ["x"]


async def test_the_time_out_says_what_is_not_fetched() -> None:
    """The broker went down before the record was fetched; after it is up again, all is well."""
    app, got = collecting(str)
    async with TestApp(app) as kafka:
        await kafka.send("orders", "x")
        await kafka.settled()
        await kafka.send("orders", "y")
        kafka.broker.down()
        with pytest.raises(UnsettledError, match=r"orders\[0\] offset 1: "):
            await kafka.settled(timeout_s=0.05)
        kafka.broker.up()
        await kafka.settled()
    assert got == ["x", "y"]


async def test_only_some_of_many_partitions_are_listed() -> None:
    """The message stays one line: the first three partitions, and how many more."""
    app = App(group="billing")

    @app.topic("orders", retry=Retry(base_ms=60_000, max_ms=60_000))
    async def bill() -> None:
        raise ValueError

    async with TestApp(app, partitions={"orders": 5}) as kafka:
        for number in range(5):
            await kafka.send("orders", b"", partition=number)
        with pytest.raises(UnsettledError, match="; and 2 more partitions$"):
            await kafka.settled(timeout_s=0.1)


async def test_injected_failures_are_overcome() -> None:
    """Lost requests and answers, a moved coordinator and a kicked member: every record is handled."""
    app, got = collecting(str)
    async with TestApp(app, session_timeout_ms=1_000, heartbeat_interval_ms=50) as kafka:
        kafka.broker.fail("Fetch", DISCONNECT, times=2)
        kafka.broker.fail("OffsetCommit", LOST_ANSWER)
        await kafka.send("orders", "a", key="k")
        await kafka.settled()
        kafka.broker.move_coordinator("billing")
        await kafka.send("orders", "b", key="k")
        await kafka.settled()
        (member,) = kafka.broker.group("billing").members
        kafka.broker.kick("billing", member)
        await kafka.send("orders", "c", key="k")
        await kafka.settled()
    # The kicked member may have handled the last one without a chance to commit it.
    assert list(dict.fromkeys(got)) == ["a", "b", "c"]
    assert kafka.check().counts["handled"] == 3


# -- apps ----------------------------------------------------------------------------------------


async def test_several_groups_each_handle_and_commit() -> None:
    """Each has its own commits and its own history; what is asked of one has to name it."""
    app = App(group="billing")

    @app.topic("orders", "refunds")
    async def bill() -> None: ...

    @app.topic("orders", group="mailing")
    async def mail() -> None: ...

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"")
        await kafka.settled()
        with pytest.raises(ConfigurationError, match="give group=, one of billing, mailing"):
            kafka.committed("orders")
        with pytest.raises(ConfigurationError, match="use history_of, with billing or mailing"):
            _ = kafka.history
        assert kafka.committed("orders", group="mailing") == kafka.committed("orders", group="billing") == 1
        assert kafka.committed("refunds") == 0
        with pytest.raises(ConfigurationError, match="no group 'mailing' reads topic 'refunds'; .* billing"):
            kafka.committed("refunds", group="mailing")
        with pytest.raises(ConfigurationError, match="there is no group 'mail' in this test; .*'mailing'"):
            kafka.history_of("mail")
    assert sorted(one.group for one in kafka.handled) == ["billing", "mailing"]
    assert kafka.check().counts["handled"] == 2
    starts = [event for event in kafka.history_of("mailing").events if event.kind == "start"]
    assert len(starts) == 1


async def test_a_plain_function_runs_in_a_thread() -> None:
    """As in production, and its failures are seen like any other's."""
    threads: list[str] = []

    @topic("orders", concurrency=2)
    def bill(context: Context) -> None:
        threads.append(threading.current_thread().name)
        if context.attempt == 1:
            raise OSError("busy")

    async with TestApp(bill) as kafka:
        await kafka.send("orders", b"")
        await kafka.settled()
    assert outcomes(kafka) == [(0, 1, "failed"), (0, 2, "success")]
    assert all(name.startswith("asyncpar-") for name in threads)
    assert kafka.check().is_ok


async def test_lifespan_state_and_middlewares_take_part() -> None:
    """State is made and closed by the app's lifespan; a middleware decides about a failure."""
    told: list[str] = []

    @asynccontextmanager
    async def prices(_: App) -> AsyncIterator[dict[str, int]]:
        told.append("open")
        yield {"tea": 250}
        told.append("closed")

    async def forgive(call: Call, call_next: CallNext) -> Outcome:
        outcome = await call_next(call)
        if isinstance(outcome.error, KeyError):
            told.append(f"no {outcome.error}")
            return Outcome(Verdict.SKIPPED)
        return outcome

    app = App(group="sales", lifespan=prices, middlewares=[forgive])

    @app.topic("sales", retry=Retry(attempts=1))
    async def sell(article: str, context: Context) -> None:
        told.append(f"{article} {context.state[article]}")

    async with TestApp(app) as kafka:
        await kafka.send("sales", "tea", key="x")
        await kafka.send("sales", "gold", key="x")
        await kafka.settled()
    assert told == ["open", "tea 250", "no 'gold'", "closed"]
    assert outcomes(kafka) == [(0, 1, "success"), (1, 1, "skipped")]
    assert kafka.check().is_ok


async def test_what_handlers_send_is_waited_for() -> None:
    """A record that a handler sends is settled as well: nothing is open between the two."""
    app, got = App(group="billing"), []

    @app.topic("orders")
    async def bill(value: str) -> None:
        await kafka.send("bills", f"bill for {value}")

    @app.topic("bills")
    async def pay(value: str) -> None:
        got.append(value)

    async with TestApp(app) as kafka:
        await kafka.send("orders", "tea")
        await kafka.settled()
    assert got == ["bill for tea"]


async def test_modules_functions_and_lists_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's bare functions, a module's app with what belongs to it, several of all kinds, a name."""
    got: list[str] = []

    def module(name: str, **values: object) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(values)
        return made

    def handler(name: str, of: str, declare: Callable[..., Any] = topic) -> Any:
        async def handle() -> None:
            got.append(name)

        handle.__qualname__, handle.__module__ = name, of
        return declare(name)(handle)

    one, other = App(group="one"), App(group="other")
    bare = module("bare", handle=handler("a", "bare"))
    with_app = module("with_app", app=one, also=one, handle=handler("b", "with_app", one.topic))
    handler("c", "c", other.topic)
    async with TestApp([bare, with_app, other, one, handler("d", "d")]) as kafka:
        for name in "abcd":
            await kafka.send(name, b"")
        await kafka.settled()
        assert kafka.app is one
    assert sorted(got) == ["a", "b", "c", "d"]
    assert {one.handler: one.group for one in kafka.handled} == {
        "bare.a": "test",
        "with_app.b": "one",
        "c.c": "other",
        "d.d": "test",
    }
    with pytest.raises(ConfigurationError, match=r"two has several apps.*two\.app or two\.other"):
        TestApp(module("two", app=one, other=other))
    with pytest.raises(ConfigurationError, match=r"handle in left carry @topic but are not part of its app"):
        TestApp(module("left", app=one, handle=handler("handle", "left")))
    with pytest.raises(ConfigurationError, match="it is not decorated with @topic"):
        TestApp(print)
    with pytest.raises(ConfigurationError, match=r"TestApp\('bare'\): no module of that name is imported"):
        TestApp("bare")
    monkeypatch.setitem(sys.modules, "bare", bare)
    async with TestApp("bare") as kafka:
        await kafka.send("a", b"")
        await kafka.settled()
    assert got[-1] == "a"
    with pytest.raises(ConfigurationError, match="no handler"):
        async with TestApp(App(group="empty")):
            pass


async def test_two_apps_share_a_broker_as_members_of_a_group() -> None:
    """Partitions are divided and taken over, each record is handled once, and the history is one."""
    (first, got), (second, got_too) = collecting(int), collecting(int)
    broker = MemoryBroker()
    async with TestApp(first, broker=broker, partitions={"orders": 2}) as kafka:
        for number in range(10):
            await kafka.send("orders", number, key=f"k{number}")
        await kafka.settled()
        async with TestApp(second, broker=broker) as other:
            (mine,) = await other.assigned()
            assert await kafka.assigned() == sorted({ORDERS, TopicPartition("orders", 1)} - {mine})
            for number in range(10, 20):
                await other.send("orders", number, partition=number % 2)
            await asyncio.gather(kafka.settled(), other.settled())
            assert kafka.history is other.history
        assert len(await kafka.assigned(2)) == 2
    assert sorted(got + got_too) == list(range(20))
    assert got_too
    assert kafka.check().counts["duplicates"] == 0


async def test_what_a_broker_held_before_is_the_apps_to_begin_with() -> None:
    """As in production `offset_reset` decides; what is there is part of the history."""
    broker, recorder = MemoryBroker(), History()
    broker.recorder = recorder
    broker.create_topic("orders")
    broker.send("orders", b"old")
    app, got = collecting(str)
    async with TestApp(app, broker=broker) as kafka:
        await kafka.settled()
        await kafka.send("orders", "new")
        await kafka.settled()
        assert kafka.broker is broker
    assert got == ["old", "new"]
    assert kafka.check().counts["handled"] == 2
    assert [event.offset for event in recorder.events if event.kind == "send"] == [0, 1]


# -- lifecycle -----------------------------------------------------------------------------------


async def test_a_lifespan_that_raises_is_raised_at_the_start() -> None:
    """`async with TestApp(app)` raises what the app raises, and leaves the app usable."""
    is_broken = True

    @asynccontextmanager
    async def lifespan(_: App) -> AsyncIterator[None]:
        if is_broken:
            raise OSError("no database")
        yield

    app = App(group="billing", lifespan=lifespan)
    app.topic("orders")(collecting(bytes)[0].handlers[0].function)
    with pytest.raises(OSError, match="no database"):
        async with TestApp(app):
            pytest.fail("it started")
    is_broken = False
    async with TestApp(app) as kafka:
        await kafka.send("orders", b"")
        await kafka.settled()


async def test_the_end_of_an_engine_is_raised_while_waiting() -> None:
    """An error that ends the app ends `settled` at once, with the same error; so does the app's stop."""
    app, _ = collecting(bytes)

    async def live() -> None:
        async with TestApp(app) as kafka:
            kafka.broker.fail("OffsetCommit", "GROUP_AUTHORIZATION_FAILED")
            await kafka.send("orders", b"")
            await kafka.settled()

    with pytest.raises(AuthorizationError):
        await live()
    async with TestApp(app) as kafka:
        app.stop()
        await asyncio.wait_for(app.wait(), 5)
        with pytest.raises(ConfigurationError, match="the app of group billing was stopped"):
            await kafka.settled()


async def test_an_engine_that_ends_fails_a_test_that_did_not_wait() -> None:
    """Without a call of `settled` the end of the block raises it."""
    app, _ = collecting(bytes)

    async def live() -> None:
        async with TestApp(app) as kafka:
            kafka.broker.fail("OffsetCommit", "GROUP_AUTHORIZATION_FAILED")
            await kafka.send("orders", b"")
            with pytest.raises(AuthorizationError):
                await asyncio.wait_for(app.wait(), 5)

    with pytest.raises(AuthorizationError):
        await live()


async def test_it_is_of_use_inside_its_block_only() -> None:
    """Before and after it sending is refused; it runs once at a time, and so does its app."""
    app, _ = collecting(bytes)
    kafka = TestApp(app)
    with pytest.raises(ConfigurationError, match="does not run"):
        await kafka.send("orders", b"")
    async with kafka:
        with pytest.raises(ConfigurationError, match="once at a time"):
            await kafka.__aenter__()
        with pytest.raises(ConfigurationError, match="of group billing runs in a TestApp already: two memb"):
            async with TestApp(app):
                pass
        await kafka.send("orders", b"")
        await kafka.settled()
    with pytest.raises(ConfigurationError, match="does not run"):
        await kafka.settled()
    assert kafka.committed("orders") == 1


def test_it_runs_on_asyncio_only() -> None:
    """Without an asyncio loop, as on trio, the error says so."""
    app, _ = collecting(bytes)
    with pytest.raises(ConfigurationError, match="asyncio only"):
        TestApp(app).__aenter__().send(None)


async def test_there_is_nothing_to_see_before_the_start() -> None:
    """What looks at a run refuses where there was none: a check of nothing would be green."""
    app, _ = collecting(bytes)
    kafka = TestApp(app)
    with pytest.raises(ConfigurationError, match=r"has not run: use check\(\) inside or after"):
        kafka.check()
    with pytest.raises(ConfigurationError, match="has not run: use history inside or after"):
        _ = kafka.history
    with pytest.raises(ConfigurationError, match="has not run"):
        kafka.history_of("billing")
    with pytest.raises(ConfigurationError, match="has not run"):
        kafka.committed("orders")


async def test_a_commit_is_asked_of_what_there_is() -> None:
    """A misspelt topic and a partition that the topic does not have are said, with what there is."""
    app, _ = collecting(bytes)
    async with TestApp(app, partitions={"orders": 2}) as kafka:
        assert kafka.committed("orders", 1) == 0
        with pytest.raises(ConfigurationError, match="no handler reads topic 'ordrs'; did you mean 'orders'"):
            kafka.committed("ordrs")
        with pytest.raises(ConfigurationError, match="no partition 2: it has 2, and the first is 0"):
            kafka.committed("orders", 2)
        with pytest.raises(TypeError, match="partition is a whole number"):
            kafka.committed("orders", "0")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="timeout_s is a number of seconds"):
            await kafka.settled("3")  # type: ignore[arg-type]


async def test_a_broken_guarantee_fails_the_check() -> None:
    """`check` is an assertion: it raises what the checkers found."""
    app, _ = collecting(bytes)
    async with TestApp(app) as kafka:
        await kafka.send("orders", b"")
        await kafka.settled()
        kafka.history.note("commit", kafka.history.events[-1].member, ORDERS, 7)
    with pytest.raises(AssertionError, match="COMMIT"):
        kafka.check()


# -- settings ------------------------------------------------------------------------------------


async def test_the_surroundings_are_not_read_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Environment and asyncpar.toml do not change a test that does not name them."""
    monkeypatch.setenv("ASYNCPAR_MAX_IN_FLIGHT", "3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asyncpar.toml").write_text("max_in_flight = 4\npoll_batch_size = 2\n")
    app, _ = collecting(bytes)
    async with TestApp(app):
        assert (app.settings.max_in_flight, app.settings.poll_batch_size) == (16, 4)
    for toml in (tmp_path / "asyncpar.toml", "asyncpar.toml"):
        async with TestApp(app, env={"ASYNCPAR_MAX_IN_FLIGHT": "5"}, toml=toml):
            assert (app.settings.max_in_flight, app.settings.poll_batch_size) == (5, 2)
            assert app.loaded.origins["max_in_flight"] == "variable ASYNCPAR_MAX_IN_FLIGHT"


async def test_settings_of_test_app_profile_and_production() -> None:
    """A test's own come first, then the app's; of the app's nothing that belongs to production is used."""
    app = App(
        "shop",
        retry_base_ms=500,
        max_in_flight=99,
        max_in_flight_per_partition=40,
        http_port=8080,
        bootstrap_servers="kafka.example.org:9092",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="shop",
        sasl_password="secret",
        group_instance_id=None,
    )
    app.topic("orders")(collecting(bytes)[0].handlers[0].function)
    before = app.given_settings
    async with TestApp(app, max_in_flight=50, commit_every=1) as kafka:
        settings = app.settings
        assert (settings.max_in_flight, settings.commit_every, settings.commit_interval_ms) == (50, 1, 50)
        assert (settings.retry_base_ms, settings.retry_max_ms) == (500, 30_000)
        assert (settings.http_port, app.http_port) == (0, None)
        assert settings.security_protocol == "PLAINTEXT"
        assert settings.group == "test"
        assert app.loaded.origins["max_in_flight"] == "command line"
        assert (settings.heartbeat_interval_ms, settings.startup_timeout_ms) == (100, 5_000)
        assert app.loaded.origins["heartbeat_interval_ms"] == "profile test"
        await kafka.send("orders", b"")
        await kafka.settled()
    assert app.given_settings == before
    assert app.settings.http_port == 8080


def test_wrong_settings_are_said_at_once() -> None:
    """Unknown names, impossible values, contradictions, and a broker twice."""
    app, _ = collecting(bytes)
    with pytest.raises(SettingError, match=r"TestApp\(...\): unknown setting 'max_inflight'"):
        TestApp(app, max_inflight=3)
    with pytest.raises(SettingError, match=r"TestApp\(...\): max_in_flight = 0 is not allowed"):
        TestApp(app, max_in_flight=0)
    with pytest.raises(SettingError, match="more than a third"):
        TestApp(app, heartbeat_interval_ms=3_000, session_timeout_ms=1_000)
    with pytest.raises(ConfigurationError, match="not both"):
        TestApp(app, broker=MemoryBroker(), bootstrap_servers="localhost:9092")


# -- the same on a real Kafka --------------------------------------------------------------------


async def live(app_of: Callable[[App], TestApp]) -> TestApp:
    """One test, for any cluster: two groups, retries, typed payloads, a halt."""
    # Names of its own only because all of this suite shares one cluster.
    name = f"testapp-{uuid.uuid4().hex[:8]}"
    app, got = App(group="billing"), []

    @app.topic(name, retry=Retry(attempts=3, base_ms=1, max_ms=5))
    async def bill(click: Click, context: Context, customer: Annotated[str, Key]) -> None:
        if context.attempt == 1 or click.page == "/bad":
            raise ValueError(click.page)
        got.append((customer, click))

    @app.topic(name, group="mailing", order="unordered")
    async def mail(click: Click) -> None: ...

    for _ in range(2):  # the second time there are records of the first
        async with app_of(app) as kafka:
            places = [await kafka.send(name, Click("/home", number), key="ada") for number in range(5)]
            await kafka.settled()
            assert kafka.committed(name, places[-1].partition, group="billing") == places[-1].offset + 1
            assert got == [("ada", Click("/home", number)) for number in range(5)]
            assert [one.attempt for one in kafka.handled if one.group == "billing"] == [1, 2] * 5
            assert kafka.check().counts["handled"] == 10
            got.clear()
    async with app_of(app) as kafka:
        await kafka.send(name, Click("/bad"), key="ada")
        with pytest.raises(HaltedError, match="failed 3 times") as caught:
            await kafka.settled()
        assert isinstance(caught.value.__cause__, ValueError)
    assert kafka.check().is_ok
    return kafka


async def test_one_test_in_memory() -> None:
    """The test below, in memory."""
    await live(TestApp)


async def test_the_same_test_on_a_real_kafka(broker: Broker) -> None:
    """The same code, records of earlier tests left alone; only the broker's faults are missing."""
    kafka = await live(lambda app: TestApp(app, bootstrap_servers=broker.bootstrap))
    with pytest.raises(ConfigurationError, match="on a real Kafka"):
        _ = kafka.broker


async def test_topics_are_made_on_a_real_kafka(broker: Broker) -> None:
    """With the partitions asked for, and for a pattern when a record is sent; one too small is refused."""
    name = f"testapp-{uuid.uuid4().hex[:8]}"
    got: list[tuple[str, int]] = []

    @topic(name, pattern=f"{name}-.*")
    async def note(record: Record) -> None:
        got.append((record.topic, record.partition))

    async with TestApp(note, bootstrap_servers=broker.bootstrap, partitions={name: 3}) as kafka:
        await kafka.send(name, b"", partition=2)
        await kafka.send(f"{name}-late", b"")
        await kafka.settled()
        with pytest.raises(UnknownTopicError, match="has no partition 3: it has 3"):
            await kafka.send(name, b"", partition=3)
    assert sorted(got) == [(name, 2), (f"{name}-late", 0)]
    with pytest.raises(ConfigurationError, match="has 3 partitions, not 4"):
        async with TestApp(note, bootstrap_servers=broker.bootstrap, partitions={name: 4}):
            pass


async def test_a_kafka_that_is_not_there_is_said() -> None:
    """The address is in the message, and what else one can do."""
    app, _ = collecting(bytes)
    with pytest.raises(BrokerUnreachableError, match="no broker answers at 127.0.0.1:9: start one") as caught:
        async with TestApp(app, bootstrap_servers="127.0.0.1:9"):
            pass
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    for address in ("127.0.0.1:99999", "a b", "localhost:"):
        with pytest.raises(ConfigurationError, match="give host:port, or several by commas"):
            TestApp(app, bootstrap_servers=address)


async def test_dead_letters_and_retry_topics_work_without_a_broker() -> None:
    """Their topics are there, what left counts as done, and it can be read like anything else."""
    app = App(group="billing")
    letters: list[Record] = []
    runs: list[str] = []

    @app.topic("orders", retry_topics=["orders.retry.10ms"], dead_letter=".dlq")
    async def bill(record: Record) -> None:
        runs.append(record.topic)
        raise ValueError("never")

    @app.topic("orders.dlq", name="letters")
    async def read(record: Record) -> None:
        letters.append(record)

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"1", key=b"k")
        await kafka.settled()
        kafka.check()
    assert runs == ["orders", "orders.retry.10ms"]
    (letter,) = letters
    assert (letter.key, letter.value) == (b"k", b"1")
    assert letter.header("x-asyncpar-reason") == b"exhausted"


# -- what rules pass over, end and hold ----------------------------------------------------------


async def test_what_on_error_passes_over_is_skipped() -> None:
    """It counts as skipped, in the status and for the test, with what was raised; and it is not lost."""
    app = App(group="billing")

    @app.topic("orders", on_error={LookupError: "skip"})
    async def bill(value: bytes) -> None:
        raise KeyError("no such customer")

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"x", key="k")
        await kafka.settled()
        (handler,) = app.status().groups[0].handlers
    assert (handler.skipped, handler.failed) == (1, 0)
    assert outcomes(kafka) == [(0, 1, "skipped")]
    assert [type(error) for error in kafka.errors] == [KeyError]
    assert kafka.check().is_ok


async def test_a_time_out_is_a_failure_with_a_name() -> None:
    """Not a cancellation like those of a stop; rules on TimeoutError match it."""
    app = App(group="billing")

    @app.topic("orders", timeout_ms=10, retry=Retry(not_on=TimeoutError), dead_letter=".dlq")
    async def bill(value: bytes) -> None:
        await asyncio.Event().wait()

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"x", key="k")
        await kafka.settled()
    assert outcomes(kafka) == [(0, 1, "failed")]
    (error,) = kafka.errors
    assert isinstance(error, HandlerTimeoutError)
    assert "cancelled at its timeout_ms" in str(error)


async def test_a_halt_that_was_asked_to_go_on_is_the_past() -> None:
    """`retry_halted()`, then `settled()`: what was mended is waited for."""
    app, broken = App(group="billing"), [True]

    @app.topic("orders", retry=Retry(attempts=1))
    async def bill(value: bytes) -> None:
        if broken:
            raise OSError("down")

    async with TestApp(app) as kafka:
        await kafka.send("orders", b"x")
        with pytest.raises(HaltedError):
            await kafka.settled()
        with pytest.raises(HaltedError):
            await kafka.settled()
        app.retry_halted("orders", 0)
        with pytest.raises(HaltedError, match="failed once"):
            await kafka.settled()
        broken.clear()
        app.retry_halted("orders", 0)
        (why,) = app.status().not_ready
        assert why.startswith("orders[0] is halted: it goes on as soon as")
        await kafka.settled()
    assert outcomes(kafka) == [(0, 1, "failed"), (0, 1, "failed"), (0, 1, "success")]
