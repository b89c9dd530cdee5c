"""Settings of handlers in child processes: what reaches the bridge, what each changes, what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from asyncpar.errors import SettingError
from asyncpar.executors.app_executors import AppExecutors
from asyncpar.executors.process_bridge import ProcessBridge
from asyncpar.executors.process_rules import BridgeRules
from asyncpar.groups import DeclaredHandler, build_handlers, declare_groups
from asyncpar.settings import usable_cores
from asyncpar.settings_sources import load
from asyncpar.topics import specs_of
from tests import handlers_in_children as handlers
from tests.cli.program import Ended, asyncpar, write
from tests.runtime.bridge_group import BridgeGroup
from tests.runtime.fakes import log
from tests.testing.virtually import now, until, virtually

RULES = {
    "worker_pool_size": ("lanes", 3),
    "process_batch_size": ("batch_size", 7),
    "process_queue_size": ("queue_size", 11),
    "max_batch_wait_ms": ("max_batch_wait_ms", 0),
    "max_tasks_per_child": ("max_tasks_per_child", 5),
    "timeout_ms": ("timeout_ms", 900),
}


def declared(
    table: dict[str, object] | None = None, process_lifespan: Any = None, **given: Any
) -> DeclaredHandler:
    """`do` as it is declared: options of @topic (those that it has), settings, and a table of its own."""
    [spec] = specs_of(handlers.do)
    options = {name: given.pop(name) for name in ("concurrency", "own_timeout_ms") if name in given}
    if "own_timeout_ms" in options:
        options["timeout_ms"] = options.pop("own_timeout_ms")
    settings = {"concurrency": given.pop("general_concurrency")} if "general_concurrency" in given else {}
    loaded = load(app_values={"group": "g", **settings, **given})
    loaded = dataclasses.replace(loaded, handlers={} if table is None else {spec.name: table})
    [group] = declare_groups([dataclasses.replace(spec, **options)], loaded, process_lifespan)
    return group.handlers[0]


def rules(**given: Any) -> BridgeRules:
    children = declared(**given).children
    assert children is not None
    return children.rules


# -- what reaches the bridge ---------------------------------------------------------------------


def test_defaults_use_all_cores_and_limit_no_time() -> None:
    """As many children as cores that may be used, batches of 64, no time-out, no replacement."""
    assert rules() == BridgeRules(usable_cores(), 64, 2048, 5, None, None)
    children = declared().children
    assert children is not None
    assert children.start_method == "forkserver"
    assert children.work.timeout_ms is None
    assert children.work.lifespan is None


@pytest.mark.parametrize("setting", RULES)
def test_each_setting_reaches_its_rule_and_no_other(setting: str) -> None:
    """One setting, one rule; all others stay as they are."""
    name, value = RULES[setting]
    assert rules(**{setting: value}) == dataclasses.replace(rules(), **{name: value})


def test_the_start_method_and_the_lifespan_reach_the_children() -> None:
    """What a child is started with and what it enters first."""
    children = declared(process_start_method="spawn", process_lifespan=handlers.model).children
    assert children is not None
    assert children.start_method == "spawn"
    assert children.work.lifespan == "tests.handlers_in_children:model"


def test_a_handlers_own_time_out_beats_the_setting_in_both_halves() -> None:
    """The parent watches by it, and a heartbeat asks for it anew; the table beats both."""
    for given, expected in (
        ({"timeout_ms": 900}, 900),
        ({"timeout_ms": 900, "own_timeout_ms": 400}, 400),
        ({"timeout_ms": 900, "own_timeout_ms": 400, "table": {"timeout_ms": 200}}, 200),
    ):
        children = declared(**given).children  # type: ignore[arg-type]
        assert children is not None
        assert (children.rules.timeout_ms, children.work.timeout_ms) == (expected, expected)


def test_slots_are_what_the_children_need_unless_the_handler_says() -> None:
    """Two batches for each child, at most the queue; only a `concurrency` of the handler's own counts."""
    two = {"worker_pool_size": 2, "process_batch_size": 8}
    assert declared(**two).concurrency == 32
    assert declared(**two, process_queue_size=20).concurrency == 20
    assert declared(**two, general_concurrency=3).concurrency == 32
    assert declared(**two, concurrency=3).concurrency == 3
    assert declared(**two, table={"concurrency": 5}).concurrency == 5


def test_the_runtime_leaves_the_time_to_the_bridge() -> None:
    """A cancellation at the time-out counted from the hand-over would end records that never ran."""
    [spec] = specs_of(handlers.do)
    [group] = declare_groups([spec], load(app_values={"group": "g", "timeout_ms": 900}))

    async def build() -> None:
        [built] = build_handlers(group, None, (), AppExecutors())
        assert built.timeout_seconds is None
        assert isinstance(built.bridge, ProcessBridge)
        assert built.executor == "process"

    asyncio.run(build())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("worker_pool_size", 0),
        ("process_batch_size", 0),
        ("process_queue_size", 0),
        ("max_batch_wait_ms", -1),
        ("max_tasks_per_child", 0),
        ("process_start_method", "fork"),
    ],
)
def test_values_that_make_no_sense_are_refused(setting: str, value: object) -> None:
    """By the setting's name."""
    with pytest.raises(SettingError, match=setting):
        load(app_values={"group": "g", setting: value})


# -- what each changes ---------------------------------------------------------------------------


def group_of(records: int, **given: Any) -> BridgeGroup:
    """`records` records of keys of their own, with the rules and slots that settings give."""
    handler = declared(**given)
    assert handler.children is not None
    values = {"concurrency": handler.concurrency}
    return BridgeGroup(log("t", *(f"k{at}" for at in range(records))), handler.children.rules, values)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_as_many_run_at_a_time_as_there_are_children(lanes: int) -> None:
    """`worker_pool_size`: what runs at a time, and what it all takes."""

    @virtually
    async def test() -> None:
        group = group_of(12, worker_pool_size=lanes)
        for offset in range(12):
            group.seconds[offset] = 1.0
        async with group:
            began = now()
            await until(lambda: group.committed() == 12)
            assert 12 / lanes <= now() - began < 12 / lanes + 2
            await group.stop()
        most = max(
            sum(other.start <= one.start and one.start < (other.end or 0) for other in group.spans)
            for one in group.spans
        )
        assert most == lanes

    test()


@pytest.mark.parametrize("size", [1, 5, 64])
def test_no_batch_is_larger_than_the_setting(size: int) -> None:
    """`process_batch_size`: under load batches grow to it, and not beyond."""

    @virtually
    async def test() -> None:
        group = group_of(400, worker_pool_size=1, process_batch_size=size)
        group.seconds.default_factory = lambda: 0.0001  # type: ignore[attr-defined]
        async with group:
            await until(lambda: group.committed() == 400)
            await group.stop()
        assert max(group.bridge.statistics.batch_sizes) == size

    test()


@pytest.mark.parametrize(("size", "most"), [(3, 3), (2048, 128)])
def test_no_more_records_are_with_the_bridge_than_the_setting_says(size: int, most: int) -> None:
    """`process_queue_size`: bounded by it, and by two batches for each child."""

    @virtually
    async def test() -> None:
        group = group_of(300, worker_pool_size=1, process_queue_size=size)
        group.gates[0] = asyncio.Event()
        async with group:
            await until(lambda: group.started == [0])
            await asyncio.sleep(1)
            assert len(group.pool.busy()) == most
            group.gates[0].set()
            await until(lambda: group.committed() == 300)
            await group.stop()

    test()


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_handlers_own_concurrency_bounds_what_is_with_its_children(concurrency: int) -> None:
    """`concurrency=`: with one, only one of two children ever works."""

    @virtually
    async def test() -> None:
        group = group_of(20, worker_pool_size=2, concurrency=concurrency)
        group.seconds.default_factory = lambda: 0.1  # type: ignore[attr-defined]
        async with group:
            await until(lambda: len(group.started) > 3)
            assert len(group.pool.busy()) == concurrency
            assert group.bridge.statistics.busy == min(concurrency, 2)
            await until(lambda: group.committed() == 20)
            await group.stop()

    test()


@pytest.mark.parametrize("wait_ms", [0, 400])
def test_records_wait_for_their_batch_as_long_as_the_setting_says(wait_ms: int) -> None:
    """`max_batch_wait_ms`: while the child is busy; 0 sends what there is."""

    @virtually
    async def test() -> None:
        group = group_of(4, worker_pool_size=1, process_batch_size=2, max_batch_wait_ms=wait_ms)
        group.gates[1] = asyncio.Event()
        async with group:
            await until(lambda: group.started == [0, 1])
            pending = [group.bridge.statistics.pending]
            for _ in range(22):  # not so long that what waits behind a long record is called back
                await asyncio.sleep(0.02)
                pending.append(group.bridge.statistics.pending)
            waited = sum(pending) * 0.02
            assert waited == pytest.approx(wait_ms / 1000, abs=0.05)
            group.gates[1].set()
            await until(lambda: group.committed() == 4)
            await group.stop()

    test()


@pytest.mark.parametrize(("most", "recycled"), [(None, 0), (10, 4)])
def test_children_are_replaced_after_so_many_records(most: int | None, recycled: int) -> None:
    """`max_tasks_per_child`: and no record waits for it or fails."""

    @virtually
    async def test() -> None:
        group = group_of(50, worker_pool_size=1, process_batch_size=1, max_tasks_per_child=most)
        group.seconds.default_factory = lambda: 0.03  # type: ignore[attr-defined]
        async with group:
            await until(lambda: group.committed() == 50)
            assert group.bridge.statistics.recycled >= recycled
            assert (group.bridge.statistics.recycled > 0) == (recycled > 0)
            await group.stop()
        assert len(group.started) == 50

    test()


@pytest.mark.parametrize(("timeout_ms", "attempts"), [(None, [1]), (500, [1, 2])])
def test_a_record_is_ended_at_its_time(timeout_ms: int | None, attempts: list[int]) -> None:
    """`timeout_ms`: the first run takes a second, the second one does not."""

    @virtually
    async def test() -> None:
        group = group_of(2, worker_pool_size=1, timeout_ms=timeout_ms)
        group.seconds[1] = 1.0
        async with group:
            await until(lambda: 1 in group.started)
            group.seconds[1] = 0.001
            await until(lambda: group.committed() == 2)
            await group.stop()
        assert group.attempts[1] == attempts

    test()


# -- refused before the start --------------------------------------------------------------------

BROKEN = {
    "is made inside of a function": """
def make():
    @topic("images", group="g", executor="process")
    def resize(body: bytes) -> None: ...
    return resize
resize = make()
""",
    "cannot run `async def`": """
@topic("images", group="g", executor="process")
async def resize(body: bytes) -> None: ...
""",
    "put @topic on top": """
app = App(group="g")
def timed(function):
    @functools.wraps(function)
    def inner(body: bytes) -> None: function(body)
    return inner
@timed
@app.topic("images", executor="process")
def resize(body: bytes) -> None: ...
""",
    "use the name once": """
app = App(group="g")
@app.topic("images", executor="process")
def resize(body: bytes) -> None: ...
def resize(body: bytes) -> None: ...
""",
    "process_lifespan is a nullcontext": """
app = App(group="g", process_lifespan=contextlib.nullcontext())
@app.topic("images", executor="process")
def resize(body: bytes) -> None: ...
""",
}
"""What the line says, and the module that it says it of."""
IMPORTS = "import contextlib, functools, multiprocessing\nfrom asyncpar import App, topic\n"


def run(folder: Path, code: str, **variables: str) -> Ended:
    """`asyncpar run` of a module with `code`, where no broker is."""
    app = write(folder, {"app": IMPORTS + code})
    return asyncpar(app, "run", "app", "--bootstrap-servers", "127.0.0.1:9", **variables)


@pytest.mark.parametrize("problem", BROKEN)
def test_what_a_child_cannot_import_is_one_line_and_exit_code_2(problem: str, tmp_path: Path) -> None:
    """`asyncpar run` says what is wrong with which handler, before it looks for a broker."""
    ended = run(tmp_path, BROKEN[problem])
    assert ended.code == 2
    [line] = ended.errors
    assert problem in line and "resize" in line
    assert "Traceback" not in ended.err


def test_a_child_that_fails_at_its_start_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """The module works here and not in a child: what it raised there, before any broker is asked."""
    code = """
if multiprocessing.parent_process() is not None:
    raise RuntimeError("no GPU in here")
@topic("images", group="g", executor="process")
def resize(body: bytes) -> None: ...
"""
    ended = run(tmp_path, code, ASYNCPAR_PROCESS_START_METHOD="spawn")
    assert ended.code == 2, ended.err
    [line] = ended.errors
    assert "handler app.resize" in line and "RuntimeError: no GPU in here" in line
