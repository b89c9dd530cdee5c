"""`asyncpar bench` on a broker in memory: what it measures, what it leaves alone, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asyncpar import App, Deduplicate, Record, Retry, headers
from asyncpar.assembly import client_config
from asyncpar.cli import bench_run
from asyncpar.cli.bench import bench, stdout_alone
from asyncpar.cli.bench_report import Findings, duration
from asyncpar.cli.bench_run import Bench
from asyncpar.cli.bench_setup import (
    NO_GROUP,
    BenchRequest,
    Place,
    announcement,
    bench_groups,
    bench_settings,
    check_writes,
)
from asyncpar.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    DrainIncompleteError,
    EngineError,
    UnknownTopicError,
)
from asyncpar.records import Committed, TopicPartition
from asyncpar.settings_sources import load
from asyncpar.testing import MemoryBroker
from tests import handlers_in_children
from tests.cli.program import ROOT, asyncpar, write

FAST = {"http_port": 0, "fetch_max_wait_ms": 20, "heartbeat_interval_ms": 100, "metadata_max_age_ms": 1000}
BOUND_SECONDS = 20
PAGE = ROOT / "docs" / "bench.md"


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


class World:
    """A broker with 4 partitions of orders, and benches of apps on it."""

    def __init__(self, records: int = 0, keys: int = 20) -> None:
        self.broker = MemoryBroker()
        self.broker.create_topic("orders", 4)
        self.removed: list[str] = []
        self.warnings: list[str] = []
        self.found: list[Findings] = []
        for number in range(records):
            self.broker.send("orders", b"%d" % number, b"k%d" % (number % keys))

    def bench(self, app: App, **asked: Any) -> Bench:
        self.request = BenchRequest("shop:app", **asked)
        self.request.check()
        loaded = bench_settings(load(app_values={**FAST, **app.given_settings}), self.request)
        app.configure(loaded)
        self.names = bench_groups(app.groups(), self.request.group)
        config = client_config(loaded.settings)
        place = Place(self.broker.consumers("m", config), self.broker.producers("p", config), self.remove)
        return Bench(app, loaded, self.request, self.names, place, self.found.append, self.warnings.append)

    async def remove(self, group: str) -> None:
        assert not self.broker.group(group).members
        self.removed.append(group)

    async def run(self, app: App, **asked: Any) -> Findings:
        one = self.bench(app, **asked)
        until_end = self.request.ends_with_the_topics
        await asyncio.wait_for(one.run(drain_and_exit=until_end, on_started=nothing), BOUND_SECONDS)
        return self.found[0]


def nothing() -> None:
    """Of no interest here: the app has started."""


def billing(seconds: float = 0.0, **values: Any) -> App:
    """An app whose handler takes `seconds`, and fails for values that end with 7 if it has dead letters."""
    app = App(group="billing")

    @app.topic("orders", name="bill", retry=Retry(base_ms=1, max_ms=2), **values)
    async def bill(order: bytes) -> None:
        await asyncio.sleep(seconds)
        if values.get("dead_letter") and order.endswith(b"7"):
            raise ValueError("no")

    return app


async def test_all_that_is_there_is_measured_in_a_group_that_is_removed() -> None:
    """The app's own group is not touched; each record counts once, and the key with the most is found."""
    world = World(records=300, keys=10)
    for _ in range(100):
        world.broker.send("orders", b"x", b"busy")
    found = await world.run(billing())
    assert (found.records, found.ended_by) == (400, "the present end of the topics")
    [handler] = found.handlers
    assert (handler.handler, handler.executor, handler.slots, handler.failed_calls) == (
        "bill",
        "async",
        100,
        0,
    )
    assert handler.handler_seconds.number == 400
    assert handler.busiest is not None
    assert (handler.busiest.key, handler.busiest.records, handler.busiest.share) == ("busy", 100, 0.25)
    assert handler.busiest.rate_bound == pytest.approx(4 / handler.handler_seconds.mean, rel=0.01)
    assert handler.latency is None
    assert found.rate > 0
    group = world.names["billing"]
    assert group.startswith("asyncpar-bench-")
    assert world.removed == [group]
    assert sum(at.offset for at in world.broker.committed(group).values()) == 400
    assert world.broker.committed("billing") == {}
    assert world.warnings == []


async def test_a_group_that_is_named_goes_on_from_where_it_has_committed() -> None:
    """It commits for that group, which stays."""
    world = World()
    for number in range(10):
        world.broker.send("orders", b"%d" % number, partition=0)
    world.broker.store_offsets("billing", {TopicPartition("orders", 0): Committed(4, "")})
    found = await world.run(billing(), group="billing")
    assert found.records == 6
    assert world.removed == []
    assert world.broker.committed("billing")[TopicPartition("orders", 0)].offset == 10


async def test_slots_that_are_all_busy_are_the_limit() -> None:
    """With more keys than slots, records wait for a slot; what to change is said."""
    found = await World(records=400, keys=40).run(billing(0.01, concurrency=4))
    [group] = found.groups
    assert group.verdict is not None
    assert (group.verdict.limit, group.verdict.who) == ("slots", "bill")
    lines = "\n".join(found.as_lines())
    assert "what limits it: slots: all 4 of bill were busy" in lines
    assert "what to change: raise concurrency of bill" in lines


async def test_one_key_is_the_limit_when_slots_are_free() -> None:
    """One after another, whatever the slots."""
    found = await World(records=60, keys=1).run(billing(0.01))
    [group] = found.groups
    assert group.verdict is not None
    assert group.verdict.limit == "keys"
    assert "the busiest, k0, has 100.00% of the records of bill" in group.because


async def test_it_ends_after_so_many_records() -> None:
    """Exactly these count, though others run; the rest is left."""
    found = await World(records=500).run(billing(0.001), records=120)
    assert (found.records, found.ended_by) == (120, "--records 120")


async def test_it_ends_after_so_long_and_measures_latency_of_what_is_written_meanwhile() -> None:
    """From the intended time, where the record says it; from the timestamp where it does not."""
    world = World(records=50)
    one = world.bench(billing(0.001), start="latest", seconds=1.0)
    running = asyncio.create_task(one.run(drain_and_exit=False, on_started=nothing))
    while not running.done():
        await asyncio.sleep(0.01)
        late = [(headers.INTENDED, b"%d" % (time.time() * 1000 - 30))]
        world.broker.send("orders", b"a", b"alice", late)
        world.broker.send("orders", b"b", b"bob")
    await asyncio.wait_for(running, BOUND_SECONDS)
    [handler] = world.found[0].handlers
    assert world.found[0].ended_by == "--seconds 1"
    assert handler.latency is not None
    assert handler.age is not None
    assert handler.latency.p50 > 0.03
    assert handler.age.p50 < handler.latency.p50
    assert handler.busiest is not None
    assert handler.busiest.key in {"alice", "bob"}
    assert {"k1", "k2"} & {handler.busiest.key} == set()
    lines = "\n".join(world.found[0].as_lines())
    assert "latency from intended send to done: mean" in lines
    assert "latency from timestamp to done, where no intended time is said: mean" in lines


@pytest.mark.parametrize("for_real", [False, True])
async def test_dead_letters_are_written_only_for_real(for_real: bool) -> None:
    """They are counted in either case, and the topic need not be there when nothing is written."""
    world = World(records=40)
    if for_real:
        world.broker.create_topic("orders.dlq", 1)
    found = await world.run(billing(dead_letter=".dlq"), for_real=for_real)
    assert (found.records, found.handlers[0].left) == (36, {"dead_letter": 4})
    assert found.handlers[0].failed_calls == 20
    if for_real:
        assert world.broker.log(TopicPartition("orders.dlq", 0)).end == 4
    assert "dead letters: 4" in "\n".join(found.as_lines())


async def test_a_stop_tells_what_was_measured_so_far() -> None:
    """As Ctrl-C does; what ends while the app stops does not count."""
    world = World(records=2000, keys=200)
    app, many = App(group="billing"), asyncio.Event()

    @app.topic("orders", name="bill", concurrency=10)
    async def bill(order: bytes) -> None:
        await asyncio.sleep(0.005)
        if one._meter.done >= 50:
            many.set()

    one = world.bench(app)
    running = asyncio.create_task(one.run(drain_and_exit=True, on_started=nothing))
    await asyncio.wait_for(many.wait(), BOUND_SECONDS)
    one.stop()
    done = one._meter.done
    await asyncio.wait_for(running, BOUND_SECONDS)
    assert (world.found[0].records, world.found[0].ended_by) == (done, "a signal")
    assert one.unfinished() == ()
    assert len(world.removed) == 1


async def test_nothing_handled_is_an_error_that_says_what_to_do() -> None:
    """An empty topic, and a handler that only fails."""
    with pytest.raises(EngineError, match=r"handled \(ended by the present end of the topics\); write some"):
        await World().run(billing())
    world = World()
    world.broker.send("orders", b"7")
    with pytest.raises(EngineError, match="1 call failed and none ended well, 1 record would have left"):
        await world.run(billing(dead_letter=".dlq", on_error={ValueError: "dead_letter"}))
    assert world.found == []
    assert len(world.removed) == 1
    with pytest.raises(EngineError, match="no --group: billing has committed what there is"):
        await World().run(billing(), group="billing")


async def test_a_halted_partition_ends_with_what_was_measured_and_the_error() -> None:
    """The rest was measured all the same."""
    world, app = World(records=20), App(group="billing")

    @app.topic("orders", name="bill", on_error={ValueError: "halt"})
    async def bill(order: bytes) -> None:
        if order == b"19":
            raise ValueError("no")

    with pytest.raises(DrainIncompleteError):
        await world.run(app)
    assert world.found[0].records == 19
    assert len(world.removed) == 1


async def test_partitions_that_have_halted_are_no_good_end_of_a_timed_bench() -> None:
    """Else handlers that stopped at their first failure would have kept up with everything."""
    world, app = World(records=20), App(group="billing")

    @app.topic("orders", name="bill", on_error={ValueError: "halt"})
    async def bill(order: bytes) -> None:
        if order == b"19":
            raise ValueError("no")

    with pytest.raises(DrainIncompleteError, match=r"halted before the end: orders\["):
        await world.run(app, seconds=0.5)
    assert world.found[0].records == 19


async def test_a_group_that_cannot_be_removed_is_named() -> None:
    """It is a warning: the bench is worth as much."""
    world = World(records=5)
    one = world.bench(billing())

    async def remove(group: str) -> None:
        raise BrokerUnreachableError("nobody answers")

    one._place = one._place._replace(remove_group=remove)
    await asyncio.wait_for(one.run(drain_and_exit=True, on_started=nothing), BOUND_SECONDS)
    assert world.found[0].records == 5
    [warning] = world.warnings
    assert f"group {world.names['billing']} of the bench was not removed (nobody answers)" in warning


async def test_what_ends_the_app_ends_the_bench() -> None:
    """Nothing is told, and no group is removed that was never there."""
    world = World()
    world.broker.delete_topic("orders")
    with pytest.raises(UnknownTopicError):
        await world.run(billing())
    assert (world.found, world.removed) == ([], [])


async def test_a_group_that_was_there_is_removed_when_another_one_fails_at_its_start() -> None:
    """The one that failed never connected: there is nothing of it to remove."""
    world, app = World(), App()
    app.topic("orders", group="one", name="first")(_handler())
    app.topic("nowhere", group="two", name="second")(_handler())
    with pytest.raises(UnknownTopicError):
        await world.run(app)
    assert world.removed == [world.names["one"]]


async def test_a_partition_that_stays_opening_does_not_keep_it_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The seconds count from then on, and it is said."""
    monkeypatch.setattr(bench_run, "_OPENING_SECONDS", 0.2)
    world = World(records=5)
    world.broker.fail("OffsetFetch", "COORDINATOR_LOAD_IN_PROGRESS", times=10_000)
    with pytest.raises(EngineError, match=r"no record was handled \(ended by --seconds 0\.1\)"):
        await world.run(billing(), seconds=0.1)
    assert world.warnings == [
        "not every partition is open 0.2 s after the start: --seconds and latency count from now on"
    ]


async def test_handlers_in_threads_groups_and_orders_of_their_own() -> None:
    """Each group has a stand-in; an order by partition, and none, are said as such; middlewares run."""
    world, seen = World(records=40), list[str]()

    async def noting(call: Any, call_next: Any) -> Any:
        seen.append(call.group)
        return await call_next(call)

    app = App(middlewares=[noting])

    @app.topic("orders", group="one", name="first", order="partition")
    def first(order: bytes) -> None: ...

    @app.topic("orders", group="two", name="second", order="unordered")
    async def second(record: Record) -> None: ...

    found = await world.run(app)
    assert found.records == 80
    first_found, second_found = found.handlers
    assert (first_found.executor, second_found.executor) == ("thread", "async")
    assert first_found.busiest is not None
    assert first_found.busiest.key == "(partition)"
    assert second_found.busiest is None
    assert world.removed == [world.names["one"], world.names["two"]]
    assert world.names["two"] == f"{world.names['one']}-2"
    assert set(seen) == {"one", "two"}
    lines = "\n".join(found.as_lines())
    assert "busiest key: none, its records run in no order" in lines
    assert "what limits group one: " in lines


async def test_handlers_in_child_processes_are_judged_by_what_they_take_there(tmp_path: Path) -> None:
    """The call has the way there and back in it; the bounds go by the children and their own time."""
    world, app = World(), App(group="shop", worker_pool_size=1)
    app.include(handlers_in_children.keep)
    order = b'{"customer": "alice", "cents": 1}'
    for number in range(300):
        journal = [("journal", str(tmp_path / "journal").encode())]
        world.broker.send("orders", order, b"k%d" % (number % 50), journal)
    found = await world.run(app)
    [handler] = found.handlers
    assert (handler.executor, handler.slots, handler.records) == ("process", 1, 300)
    assert handler.slots_rate_bound > 1 / handler.handler_seconds.mean
    text = "\n".join(found.as_lines())
    assert "with the way to its child process" in text
    assert handler.child_seconds is not None
    assert 0 < handler.child_seconds < handler.handler_seconds.mean
    assert f"in the child itself: mean {duration(handler.child_seconds)}" in text
    assert "calls running or on the way" in text


async def test_how_far_it_is_stands_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, written over and over, and taken away at the end."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    await World(records=200, keys=1).run(billing(0.002))
    text = terminal.getvalue()
    assert re.search(r" s  \d+ done  \d+/s  \d+ in flight  \d+ not done", text)
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")


async def test_what_comes_after_the_last_record_is_not_measured() -> None:
    """With --seconds beyond the end of the topics: the verdict is that of the time before."""
    found = await World(records=400, keys=400).run(billing(0.05, concurrency=20), seconds=3)
    [group] = found.groups
    assert found.ended_by == "--seconds 3"
    assert group.verdict is not None
    assert group.verdict.limit == "slots"
    assert found.handlers[0].slots_used > 10


async def test_a_bench_that_waits_for_calls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many still run after its end, and for how long it waits for them."""
    monkeypatch.setattr("asyncpar.cli.bench_run._LONG_DRAIN_SECONDS", 0.02)
    world, app, release, started = World(records=11, keys=11), App(group="billing"), asyncio.Event(), []

    @app.topic("orders")
    async def bill(order: bytes) -> None:
        if order != b"10":
            started.append(order)
            await release.wait()

    one = world.bench(app)
    running = asyncio.create_task(one.run(drain_and_exit=True, on_started=nothing))
    async with asyncio.timeout(BOUND_SECONDS):
        while len(started) < 10 or not one._meter.done:  # noqa: ASYNC110 - the handler's own affair
            await asyncio.sleep(0.01)
        one.stop()
        while not world.warnings:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        release.set()
        await running
    [warning] = world.warnings
    assert warning.startswith("waiting up to 30 s (shutdown_drain_timeout_ms) for 10 calls to end")


async def test_a_mean_far_from_the_median_is_said() -> None:
    """As where a few records take most of the time."""
    found = await World(records=200).run(billing())
    found.windows, found.rate, found.records, found.seconds = [90.0, 100.0, 110.0], 100.0, 1000, 5.0
    assert "(median of 3 windows, 90 to 110; 200 in the mean)" in found.as_lines()[1]
    found.seconds = 9.0
    assert "in the mean" not in found.as_lines()[1]


def test_what_handlers_print_leaves_stdout_to_the_json() -> None:
    """Through Python, by a reference that was taken before, and as a child process does."""
    code = """
import subprocess, sys
from asyncpar.cli.bench import stdout_alone
earlier = sys.stdout
with stdout_alone() as stdout:
    print("one")
    print("two", file=earlier)
    subprocess.run([sys.executable, "-c", "print('three')"], check=True)
    print("the object", file=stdout)
print("later")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "the object\nlater\n"
    assert sorted(ran.stderr.split()) == ["one", "three", "two"]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_json_without_anywhere_to_write_it_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `>&-`: before anything is read."""
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(ConfigurationError, match="needs stdout, and stderr"), stdout_alone():
        pytest.fail("it went on")


async def test_findings_are_json() -> None:
    """One object that programs can read, with the figures that people see."""
    found = await World(records=30).run(billing())
    read = json.loads(json.dumps(found.as_json()))
    assert read["records"] == 30
    assert read["handlers"][0]["handler_seconds"]["p99"] > 0
    assert read["groups"][0]["read_as"].startswith("asyncpar-bench-")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00000123, "1.23 us"), (0.01234, "12.3 ms"), (1.2345, "1.234 s"), (90.0, "90 s")]
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    """From microseconds to minutes."""
    assert duration(seconds) == text


# -- what is refused, and said -------------------------------------------------------------------


def test_what_contradicts_itself_is_refused() -> None:
    """Each with what to do instead."""
    with pytest.raises(ConfigurationError, match="group billing begins where it has committed"):
        BenchRequest("shop", group="billing", start="earliest").check()
    with pytest.raises(ConfigurationError, match="add --seconds or --records"):
        BenchRequest("shop", start="latest").check()
    BenchRequest("shop", start="latest", records=1).check()
    app = App()
    for group in ("one", "two"):
        app.topic("orders", group=group, name=group)(_handler())
    app.configure(load(app_values=app.given_settings))
    with pytest.raises(ConfigurationError, match=r"several groups \(one, two\)"):
        bench_groups(app.groups(), "three")


def _handler() -> Any:
    async def handle(order: bytes) -> None: ...

    return handle


def test_what_could_lose_records_of_the_app_needs_to_be_meant() -> None:
    """Notes of de-duplication in any case; dead letters that are not written, for a group that goes on."""
    app = billing(dead_letter=".dlq")
    app.configure(load(app_values=app.given_settings))
    groups = app.groups()
    deduplicate = [Deduplicate(key=lambda record: record.key, ttl_ms=1000)]
    with pytest.raises(ConfigurationError, match="the app de-duplicates"):
        check_writes(groups, deduplicate, BenchRequest("shop"))
    with pytest.raises(ConfigurationError, match="given up by bill would be lost to it"):
        check_writes(groups, [], BenchRequest("shop", group="billing"))
    check_writes(groups, [], BenchRequest("shop"))
    check_writes(groups, deduplicate, BenchRequest("shop", group="billing", for_real=True))


def test_a_group_of_its_own_begins_where_it_is_told_whatever_the_app_says() -> None:
    """A named group begins as the app says; in neither the bench takes the place of a static member."""
    loaded = load(app_values={"offset_reset": "error", "group_instance_id": "one"})
    own = bench_settings(loaded, BenchRequest("shop", start="latest", seconds=1)).settings
    assert (own.offset_reset, own.group_instance_id) == ("latest", None)
    named = bench_settings(loaded, BenchRequest("shop", group="billing")).settings
    assert (named.offset_reset, named.group_instance_id) == ("error", None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {},
            [
                "to the present end of its topics",
                "from the earliest record, as group new",
                "are counted and not",
            ],
        ),
        ({"seconds": 5, "records": 9}, ["for 5 s or until 9 records are done, whichever is first"]),
        (
            {"start": "latest", "seconds": 5},
            [
                "from now on, as group new",
                "its offsets are not touched: where the log names it below, it means new",
            ],
        ),
        (
            {"group": "new", "for_real": True},
            ["as group new, from where it has committed", "bill are written"],
        ),
    ],
)
def test_what_will_happen_is_said_before(asked: dict[str, Any], says: list[str]) -> None:
    """What is read, as whom, to which end; that handlers run for real; what is written."""
    app = billing(dead_letter=".dlq", retry_topics=["orders.retry.5s"])
    app.configure(load(app_values=app.given_settings))
    lines = announcement(app.groups(), {"billing": "new"}, app.settings, BenchRequest("shop", **asked))
    text = "\n".join(lines)
    assert "the handlers run for real" in text
    assert "dead letters and records for retry topics of bill" in text
    for words in says:
        assert words in text


def test_an_app_without_a_group_is_not_given_one_in_words() -> None:
    """There are no offsets of its own to speak of."""
    app = App()
    app.topic("orders", name="bill")(_handler())
    app.configure(load(app_values={"group": NO_GROUP}))
    names = bench_groups(app.groups(), None)
    lines = announcement(app.groups(), names, app.settings, BenchRequest("shop"))
    assert lines[1].endswith(f"as group {names[NO_GROUP]}, which is deleted afterwards")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "there is no module nowhere"),
        (("shop", "--set", "concurency=5"), "did you mean concurrency?"),
        (("shop", "--group", "other"), "given up by bill would be lost to it"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """Nothing is connected, nothing else is printed."""
    handler = '@topic("orders", name="bill", dead_letter=".dlq")\ndef bill(order: bytes): ...\n'
    write(tmp_path, {"shop": f"from asyncpar import topic\n{handler}"})
    ended = asyncpar(tmp_path, "bench", *arguments)
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert says in ended.errors[0]


def test_the_page_names_every_option() -> None:
    """Each option of both commands is on the page, and each option on the page exists."""
    from asyncpar.cli.produce import produce

    params = [*bench.params, *produce.params]
    options = {name for param in params for name in param.opts if name.startswith("--")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8")))
    assert named == options


def test_commands_on_the_page_are_accepted() -> None:
    """Each command line of the page can be parsed."""
    from asyncpar.cli.produce import produce

    commands = {"bench": bench, "produce": produce}
    lines = re.findall(r"^\$ asyncpar (\w+) (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    for name, arguments in lines:
        words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", arguments)]
        commands[name].make_context(name, words)
