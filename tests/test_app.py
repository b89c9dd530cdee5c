"""The app: handlers in, a running consumer out; embedding, lifespan, middlewares, health and failures."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Annotated, Any

import pytest

from asyncpar import App, Call, Context, Header, Key, Outcome, Record, Retry, Verdict, topic
from asyncpar.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    EngineError,
    PortInUseError,
    SettingError,
)
from asyncpar.middleware import CallNext
from asyncpar.records import Committed, TopicPartition
from asyncpar.status import PartitionStatus
from tests.runtime.fakes import FakeConsumer, log, until

T0 = TopicPartition("t", 0)


def make(consumer: FakeConsumer, **values: Any) -> App:
    """An app over one consumer in memory, without HTTP."""
    settings: dict[str, Any] = {
        "http_port": 0,
        "commit_interval_ms": 50,
        "max_revoke_grace_ms": 200,
        **values,
    }
    return App("shop", group="g", consumers=lambda group: consumer, **settings)


def partition(app: App) -> PartitionStatus:
    """The status of the only partition."""
    return app.status().groups[0].partitions[0]


async def test_an_embedded_app_is_entered_once() -> None:
    """A second `async with app` is refused and leaves the app running, also before anything has connected."""
    app = make(FakeConsumer(log("t", *"abc")))

    @app.topic("t")
    async def handle(value: bytes) -> None: ...

    async with app:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="runs already"):
                await app.__aenter__()
            with pytest.raises(ConfigurationError, match="runs already"):
                await app.run()
        assert app.status().groups
    entering = [asyncio.create_task(app.__aenter__()) for _ in range(2)]
    await asyncio.wait(entering, timeout=10)
    assert [type(task.exception()) for task in entering] == [type(None), ConfigurationError]
    await app.__aexit__(None, None, None)


async def test_an_app_runs_its_handlers_until_the_end_and_returns() -> None:
    """`run(drain_and_exit=True)` handles what is there, commits it and returns."""
    consumer = FakeConsumer(log("t", *"abc"))
    app = make(consumer)
    seen: list[bytes] = []

    @app.topic("t")
    async def handle(value: bytes) -> None:
        seen.append(value)

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert sorted(seen) == [b"a:0", b"b:1", b"c:2"]
    assert consumer.stored[T0] == Committed(3, "")


async def test_handlers_get_what_their_signatures_ask_for() -> None:
    """Payload, record, context with the lifespan's state, key and header, by annotation."""
    consumer = FakeConsumer(log("t", "k"))
    first = consumer.logs[T0][0]
    consumer.logs[T0] = [type(first)(0, b"k", b'{"amount": 3}', [("tenant", b"x"), ("tenant", b"acme")])]

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, str]]:
        yield {"db": "open"}

    app = App(group="g", consumers=lambda group: consumer, lifespan=lifespan, http_port=0)
    got: dict[str, object] = {}

    @app.topic("t", name="bill")
    async def handle(
        order: dict[str, int],
        record: Record,
        context: Context,
        key: Annotated[str, Key],
        tenant: Annotated[str, Header("tenant")],
    ) -> None:
        got.update(order=order, place=(record.topic, record.partition, record.offset), key=key, tenant=tenant)
        got.update(state=context.state, attempt=record.attempt, handler=context.handler)

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert got == {
        "order": {"amount": 3},
        "place": ("t", 0, 0),
        "key": "k",
        "tenant": "acme",
        "state": {"db": "open"},
        "attempt": 1,
        "handler": "bill",
    }


async def test_plain_functions_run_in_threads_side_by_side() -> None:
    """`def` handlers run in threads of the app's own, as many together as they have slots."""
    import threading

    consumer = FakeConsumer(log("t", *"abc"))
    app = make(consumer)
    together = threading.Barrier(3, timeout=5)
    names: list[str] = []

    @app.topic("t", concurrency=3, name="work")
    def handle(value: bytes) -> None:
        together.wait()
        names.append(threading.current_thread().name)

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert len(set(names)) == 3
    assert all(name.startswith("asyncpar-work") for name in names)


async def test_middlewares_wrap_each_attempt_the_first_one_outermost() -> None:
    """They see the call and its outcome, can change it, and what they raise is a failed attempt."""
    consumer = FakeConsumer(log("t", "a", "b"))
    trace: list[object] = []

    async def outer(call: Call, call_next: CallNext) -> Outcome:
        trace.append(("in", call.handler, call.records[0].offset, call.attempt))
        outcome = await call_next(call)
        trace.append(("out", outcome.verdict))
        return outcome

    async def forgiving(call: Call, call_next: CallNext) -> Outcome:
        outcome = await call_next(call)
        return Outcome(Verdict.SKIPPED) if isinstance(outcome.error, KeyError) else outcome

    app = App(group="g", consumers=lambda group: consumer, middlewares=[outer, forgiving], http_port=0)
    failures = [ValueError("once")]

    @app.topic("t", order="partition", name="h", retry=Retry(base_ms=1, max_ms=1))
    async def handle(record: Record) -> None:
        if record.offset == 0 and failures:
            raise failures.pop()
        if record.offset == 1:
            raise KeyError("forgiven")

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert trace == [
        ("in", "h", 0, 1),
        ("out", Verdict.FAILED),
        ("in", "h", 0, 2),
        ("out", Verdict.SUCCESS),
        ("in", "h", 1, 1),
        ("out", Verdict.SKIPPED),
    ]


async def test_a_middleware_that_returns_something_else_fails_the_record_with_its_name() -> None:
    """Forgetting to return the outcome is a failure that names the middleware, never a silent success."""
    consumer = FakeConsumer(log("t", "a"))

    async def forgetful(call: Call, call_next: CallNext) -> Outcome:
        await call_next(call)
        return None  # type: ignore[return-value]

    app = App(group="g", consumers=lambda group: consumer, middlewares=[forgetful], http_port=0)

    @app.topic("t", retry=Retry(attempts=1))
    async def handle(value: bytes) -> None:
        return None

    async with app:
        await until(lambda: partition(app).state == "halted")
        assert "forgetful" in str(partition(app).halt_reason)


async def test_a_custom_key_function_and_the_keyless_policies_decide_the_order() -> None:
    """order= by value; keyless="partition" puts records without a key in line; "error" halts."""
    consumer = FakeConsumer(log("t", *"aabb"))
    consumer.logs[T0] = [type(r)(r.offset, None, r.value) for r in consumer.logs[T0]]
    app = make(consumer)
    running = 0
    most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    @app.topic("t", order=lambda topic, raw: raw.value[:1])
    async def by_value(value: bytes) -> None:
        await work()

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert most == 2

    most = 0
    app = make(FakeConsumer(consumer.logs))

    @app.topic("t", keyless="partition")
    async def in_line(value: bytes) -> None:
        await work()

    await asyncio.wait_for(app.run(drain_and_exit=True), 10)
    assert most == 1

    app = make(FakeConsumer(consumer.logs))

    @app.topic("t", keyless="error")
    async def refuses(value: bytes) -> None:
        await work()

    async with app:
        await until(lambda: partition(app).state == "halted")
        assert "has no key" in str(partition(app).halt_reason)


async def test_async_with_runs_in_a_task_of_its_own_and_stops_with_a_full_drain() -> None:
    """The host enters in one task and may leave in another; what runs ends before the exit returns."""
    consumer = FakeConsumer(log("t", "a"))
    app = make(consumer)
    ended = False

    @app.topic("t")
    async def handle(value: bytes) -> None:
        nonlocal ended
        await asyncio.sleep(0.05)
        ended = True

    await asyncio.create_task(app.__aenter__())
    await until(lambda: app.status().ready and partition(app).running == 1)
    await asyncio.create_task(app.__aexit__(None, None, None))
    assert ended
    assert consumer.stored[T0] == Committed(1, "")
    assert not app.status().ready


async def test_lifespan_runs_the_app_while_the_host_lives() -> None:
    """`FastAPI(lifespan=app.lifespan)`: a context manager that takes the host."""
    consumer = FakeConsumer(log("t", "a"))
    app = make(consumer)

    @app.topic("t")
    async def handle(value: bytes) -> None:
        return None

    async with app.lifespan(object()):
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
    assert consumer.stopped


async def test_a_start_that_fails_raises_in_the_host() -> None:
    """An unreachable broker is the host's exception, not a background log line."""
    app = make(FakeConsumer(log("t"), start_error=BrokerUnreachableError("nobody at x:1")))

    @app.topic("t")
    async def handle(value: bytes) -> None:
        return None

    with pytest.raises(BrokerUnreachableError):
        await app.__aenter__()


async def test_a_fatal_failure_is_heard_shown_and_raised_and_the_host_is_not_cancelled() -> None:
    """on_fatal is called, readiness is red, wait() raises, and so does the exit."""
    consumer = FakeConsumer(log("t", "a"))
    heard: list[BaseException] = []
    app = App(group="g", consumers=lambda group: consumer, on_fatal=heard.append, http_port=0)

    @app.topic("t")
    async def handle(value: bytes) -> None:
        return None

    async def host() -> None:
        async with app:
            consumer.fetch_errors.append(RuntimeError("a defect"))
            with pytest.raises(EngineError, match="a defect"):
                await asyncio.wait_for(app.wait(), 10)
            assert len(heard) == 1
            assert any("a defect" in reason for reason in app.status().not_ready)

    with pytest.raises(EngineError, match="a defect"):
        await host()


async def test_the_hosts_own_error_is_not_replaced_by_the_apps() -> None:
    """A body that raises itself keeps its exception when the app has failed too."""

    async def host() -> None:
        async with make(consumer_that_breaks()) as broken:
            with pytest.raises(EngineError):
                await asyncio.wait_for(broken.wait(), 10)
            raise ValueError("the body's own")

    with pytest.raises(ValueError, match="the body's own"):
        await host()


def consumer_that_breaks() -> FakeConsumer:
    """Its first fetch kills the poller."""
    return FakeConsumer(log("t", "a"), fetch_errors=[RuntimeError("a defect")])


@pytest.fixture(autouse=True)
def _handlers_for_apps_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps made by `make` that declare nothing get a handler, so that only what is tested is wrong."""
    original = App.groups

    def groups(self: App) -> Any:
        if not self.handlers and self.name == "shop":

            @self.topic("t")
            async def handle(value: bytes) -> None:
                return None

        return original(self)

    monkeypatch.setattr(App, "groups", groups)


async def test_an_app_runs_once_at_a_time_and_again_after_its_end() -> None:
    """A second run while one is under way is refused; afterwards it is fine."""
    consumer = FakeConsumer(log("t", "a"))
    app = make(consumer)
    async with app:
        with pytest.raises(ConfigurationError, match="runs already"):
            await app.run()
    await asyncio.wait_for(app.run(drain_and_exit=True), 10)


async def test_several_groups_have_a_consumer_each_and_one_failure_stops_all() -> None:
    """Two groups run side by side; when one fails, the other stops cleanly and the error is raised."""
    good, bad = FakeConsumer(log("t", "a")), FakeConsumer(log("u", "a"))
    app = App(consumers=lambda group: good if group == "good" else bad, http_port=0)

    @app.topic("t", group="good")
    async def one(value: bytes) -> None:
        return None

    @app.topic("u", group="bad")
    async def two(value: bytes) -> None:
        return None

    running = asyncio.create_task(app.run())
    await until(lambda: good.stored.get(T0) == Committed(1, ""))
    bad.fetch_errors.append(RuntimeError("a defect"))
    with pytest.raises(EngineError, match="a defect"):
        await asyncio.wait_for(running, 10)
    assert good.stopped
    assert bad.stopped


async def test_a_cancelled_run_still_drains_and_commits() -> None:
    """The host cancels the task of run(): what is done is committed before it ends."""
    consumer = FakeConsumer(log("t", "a"))
    app = make(consumer)
    running = asyncio.create_task(app.run())
    await until(lambda: bool(app.status().groups) and app.status().groups[0].state == "joined")
    await until(lambda: app.status().groups[0].handlers[0].succeeded == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert consumer.stored[T0] == Committed(1, "")
    assert consumer.stopped


async def test_retry_halted_needs_a_partition_that_is_ours() -> None:
    """An unknown partition is a KeyError that names it."""
    async with make(FakeConsumer(log("t", "a"))) as app:
        with pytest.raises(KeyError, match=r"other\[3\]"):
            app.retry_halted("other", 3)
        await until(lambda: bool(app.status().groups[0].partitions))
        with pytest.raises(ValueError, match="not halted"):
            app.retry_halted("t", 0)


async def test_a_taken_port_is_refused_when_it_was_chosen_and_only_warned_of_by_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """http_port given: PortInUseError. The default one taken: one warning, no server, the app runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)):
            await make(FakeConsumer(log("t", "a")), http_port=port).run(drain_and_exit=True)
        from asyncpar.settings_sources import Loaded

        monkeypatch.setattr(Loaded, "is_explicit", lambda self, name: False)
        await asyncio.wait_for(make(FakeConsumer(log("t", "a")), http_port=port).run(drain_and_exit=True), 10)
    assert any("health and metrics are not served" in record.getMessage() for record in caplog.records)


async def test_metrics_and_health_are_served_while_the_app_runs() -> None:
    """/metrics, /livez and /readyz answer on loopback, and stop with the app."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    consumer = FakeConsumer(log("t", "a"))
    async with make(consumer, http_port=port) as app, httpx.AsyncClient() as client:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        base = f"http://127.0.0.1:{app.http_port}"
        assert (await client.get(f"{base}/livez")).status_code == 200
        assert (await client.get(f"{base}/readyz")).status_code == 200
        metrics = (await client.get(f"{base}/metrics")).text
    assert 'asyncpar_committed_offset{group="g",partition="0",topic="t"} 1.0' in metrics
    assert app.http_port is None


async def test_include_takes_modules_names_and_functions_and_counts_each_once() -> None:
    """Only functions that the module defines itself are taken; the same function twice is one handler."""
    module = ModuleType("shop_handlers")

    @topic("a")
    async def mine(value: bytes) -> None:
        return None

    @topic("b")
    async def imported(value: bytes) -> None:
        return None

    mine.__module__ = "shop_handlers"
    vars(module).update(mine=mine, imported=imported)
    app = App(group="g")
    app.include(module)
    app.include(mine)
    assert [spec.topics for spec in app.handlers] == [("a",)]
    app.include(imported)
    assert len(app.handlers) == 2
    with pytest.raises(ConfigurationError, match="no function decorated"):
        app.include(ModuleType("empty"))
    with pytest.raises(ConfigurationError, match="not decorated"):
        app.include(print)


def test_an_unknown_setting_is_refused_with_a_suggestion() -> None:
    """A typo in App(...) names the near word."""
    with pytest.raises(SettingError, match="max_in_flight"):
        App(group="g", max_in_fligth=3)


def test_the_front_door_gives_what_it_lists_and_nothing_else() -> None:
    """Every name of __all__ can be had; an unknown one is an AttributeError."""
    import asyncpar

    for name in asyncpar.__all__:
        assert getattr(asyncpar, name) is not None
    assert set(asyncpar.__all__) <= set(dir(asyncpar))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        asyncpar.nothing  # noqa: B018
