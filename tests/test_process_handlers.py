"""Handlers with `executor="process"` in real child processes, whole: `TestApp` over a broker in memory."""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncpar import App, Record, Retry
from asyncpar.errors import (
    HandlerError,
    HandlerTimeoutError,
    Permanent,
    RemoteHandlerError,
    RetryAfter,
    WorkerDiedError,
)
from asyncpar.headers import ATTEMPTS, ERROR_MESSAGE, ERROR_TYPE, REASON
from asyncpar.testing import HaltedError, TestApp
from asyncpar.topics import specs_of
from tests import handlers_in_children as handlers

ONE_CHILD: dict[str, Any] = {"worker_pool_size": 1}
SOON = Retry(attempts=2, base_ms=1, max_ms=5)


def app_of(function: Any, process_lifespan: Any = None, **options: Any) -> App:
    """An app with `function`, declared with other options than where it is defined."""
    app = App(group="shop", process_lifespan=process_lifespan)
    [spec] = specs_of(function)
    app._add([replace(spec, **options)])
    return app


def with_letters(app: App) -> list[Record]:
    """The dead letters of `app`, as they come."""
    letters: list[Record] = []

    @app.topic("deeds.dlq", name="letters")
    async def read(record: Record) -> None:
        letters.append(record)

    return letters


def lines(journal: Path) -> list[dict[str, Any]]:
    """What children wrote down."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def deed(kafka: TestApp, value: str, journal: Path | None = None, key: str = "k") -> None:
    """One record for `do`."""
    headers = {} if journal is None else {"journal": str(journal)}
    await kafka.send("deeds", value, key=key, headers=headers)


# -- what a handler gets -------------------------------------------------------------------------


async def test_a_handler_in_a_child_gets_what_it_asks_for(journal: Path) -> None:
    """The payload as its model, the key, a header, the record's place, the state of its own process."""
    async with TestApp(app_of(handlers.keep, handlers.model), **ONE_CHILD) as kafka:
        order = handlers.Order(customer="alice", cents=250)
        await kafka.send("orders", order, key="alice", headers={"journal": str(journal)})
        await kafka.settled()
        kafka.check()
    [line] = lines(journal)
    assert line["pid"] != os.getpid()
    assert line["state"] == f"model of {line['pid']}"
    del line["pid"], line["ppid"], line["at"], line["state"]
    assert line == {
        "order": {"customer": "alice", "cents": 250},
        "customer": "alice",
        "place": ["orders", 0, 0],
        "attempt": 1,
        "group": "shop",
    }
    assert [(one.outcome, one.attempt) for one in kafka.handled] == [("success", 1)]


async def test_a_payload_that_does_not_fit_halts_with_what_the_child_said(journal: Path) -> None:
    """It is decoded in the child, and is no attempt."""
    async with TestApp(handlers.keep, **ONE_CHILD, unsettled="ignore") as kafka:
        await kafka.send("orders", {"customer": "alice"}, key="alice", headers={"journal": str(journal)})
        with pytest.raises(HaltedError, match="cents"):
            await kafka.settled()
    assert [one.outcome for one in kafka.handled] == ["undecodable"]
    assert lines(journal) == []


async def test_logs_of_a_child_are_the_parents(caplog: pytest.LogCaptureFixture) -> None:
    """With their logger's name, level, text and extras."""
    with caplog.at_level(logging.INFO, "shop"):
        async with TestApp(handlers.do, **ONE_CHILD) as kafka:
            await deed(kafka, "log")
            await kafka.settled()
    [line] = [record for record in caplog.records if record.name == "shop.images"]
    assert (line.levelno, line.getMessage()) == (logging.WARNING, "thumbnail of a cat made")
    assert line.bytes == 17  # type: ignore[attr-defined]


# -- how it ends ---------------------------------------------------------------------------------


async def test_what_a_handler_raises_in_a_child_is_shown_with_its_name_and_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the failure, in the log, and as what halted the partition."""
    app = app_of(handlers.do, retry=Retry(attempts=1))
    async with TestApp(app, **ONE_CHILD, unsettled="ignore") as kafka:
        await deed(kafka, "out of stock")
        with pytest.raises(HaltedError, match="OutOfStockError: no bolts, 0 left") as caught:
            await kafka.settled()
    [error] = kafka.errors
    assert isinstance(error, RemoteHandlerError)
    assert error.ancestors[:2] == ("tests.handlers_in_children.OutOfStockError", "builtins.LookupError")
    assert 'raise OutOfStockError("bolts", 0)' in error.traceback_text
    assert caught.value.__cause__ is error
    assert 'raise OutOfStockError("bolts", 0)' in caplog.text


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({}, 3),
        ({"not_on": handlers.OutOfStockError}, 1),
        ({"not_on": LookupError}, 1),
        ({"on": LookupError}, 3),
        ({"on": (ValueError, OSError)}, 1),
    ],
    ids=["by default", "not on it", "not on its base", "on its base", "on others"],
)
async def test_retry_rules_match_what_was_raised_in_a_child(options: dict[str, Any], attempts: int) -> None:
    """By its class and its bases, as they do for what is raised here."""
    app = app_of(handlers.do, retry=Retry(attempts=3, base_ms=1, max_ms=5, **options))
    async with TestApp(app, **ONE_CHILD, unsettled="ignore") as kafka:
        await deed(kafka, "out of stock")
        await kafka.settled(raise_on_halt=False)
    assert [one.attempt for one in kafka.handled] == list(range(1, attempts + 1))


async def test_on_error_passes_over_what_a_child_raised() -> None:
    """`on_error={LookupError: "skip"}`: done at once."""
    async with TestApp(app_of(handlers.do, on_error={LookupError: "skip"}), **ONE_CHILD) as kafka:
        await deed(kafka, "out of stock")
        await kafka.settled()
    assert len(kafka.handled) == 1


async def test_skip_retry_after_and_permanent_mean_the_same_in_a_child(journal: Path) -> None:
    """A skip is done, a RetryAfter waits for its own time, a Permanent is tried no more."""
    async with TestApp(
        app_of(handlers.do, retry=Retry(attempts=5)), **ONE_CHILD, unsettled="ignore"
    ) as kafka:
        await deed(kafka, "skip")
        await deed(kafka, "retry after, then ok", journal)
        await deed(kafka, "permanent")
        with pytest.raises(HaltedError, match="never heard of it"):
            await kafka.settled()
    assert kafka.committed("deeds") == 2
    assert [one.outcome for one in kafka.handled] == ["skipped", "failed", "success", "failed"]
    first, second = lines(journal)
    assert second["at"] - first["at"] > 0.29
    assert [type(error) for error in kafka.errors] == [RetryAfter, Permanent]


async def test_a_dead_letter_says_what_was_raised_in_the_child() -> None:
    """Its headers name the user's class and message, not what carried them here."""
    app = app_of(handlers.do, retry=SOON, dead_letter=".dlq")
    letters = with_letters(app)
    async with TestApp(app, **ONE_CHILD) as kafka:
        await deed(kafka, "out of stock")
        await kafka.settled()
    [letter] = letters
    found = dict(letter.headers)
    assert found[ERROR_TYPE] == b"tests.handlers_in_children.OutOfStockError"
    assert found[ERROR_MESSAGE] == b"no bolts, 0 left"
    assert (found[REASON], found[ATTEMPTS]) == (b"exhausted", b"2")


async def test_a_record_that_kills_its_child_twice_is_a_dead_letter_that_says_how() -> None:
    """After two attempts, however many are left; records of other keys are done."""
    app = app_of(handlers.do, retry=Retry(attempts=10, base_ms=1), dead_letter=".dlq")
    letters = with_letters(app)
    async with TestApp(app, **ONE_CHILD) as kafka:
        await deed(kafka, "ok", key="a")
        await deed(kafka, "crash", key="b")
        await deed(kafka, "ok", key="c")
        await kafka.settled(20)
        kafka.check()
    [letter] = letters
    found = dict(letter.headers)
    assert found[ERROR_TYPE] == b"asyncpar.errors.WorkerDiedError"
    assert found[ERROR_MESSAGE].count(b"killed by SIGABRT") == 2
    assert (found[REASON], found[ATTEMPTS]) == (b"permanent", b"2")
    assert [type(error) for error in kafka.errors] == [WorkerDiedError] * 2


async def test_a_heartbeat_in_a_child_keeps_it_alive() -> None:
    """It works for longer than its time-out and says so."""
    async with TestApp(app_of(handlers.do, timeout_ms=500, retry=Retry(attempts=1)), **ONE_CHILD) as kafka:
        await deed(kafka, "beat")
        await kafka.settled()
    assert [one.outcome for one in kafka.handled] == ["success"]


async def test_a_record_that_hangs_in_a_child_is_ended_and_runs_again(journal: Path) -> None:
    """By `timeout_ms`, in another child."""
    async with TestApp(app_of(handlers.do, timeout_ms=300, retry=SOON), **ONE_CHILD) as kafka:
        await deed(kafka, "hang, then ok", journal)
        await kafka.settled()
        kafka.check()
    assert [type(error) for error in kafka.errors] == [HandlerTimeoutError]
    assert len({line["pid"] for line in lines(journal)}) == 2


async def test_what_was_not_run_is_no_failure_to_those_who_watch(journal: Path) -> None:
    """A child dies in the middle of a batch: one failure is seen, and one success of each record."""
    app = app_of(handlers.do, retry=SOON)
    async with TestApp(app, **ONE_CHILD) as kafka:
        await deed(kafka, "ok", key="warm")
        await kafka.settled()
        for at in range(40):
            await deed(
                kafka, "crash, then ok" if at == 20 else "ok", journal if at == 20 else None, key=f"k{at}"
            )
        await kafka.settled(20)
        kafka.check()
    outcomes = [one.outcome for one in kafka.handled]
    assert outcomes.count("failed") == 1
    assert outcomes.count("success") == 41


# -- settings ------------------------------------------------------------------------------------


async def test_as_many_children_work_side_by_side_as_the_setting_says(journal: Path) -> None:
    """`worker_pool_size`: three records in three children at a time."""
    async with TestApp(handlers.nap, worker_pool_size=3) as kafka:
        for at in range(3):
            await kafka.send("naps", "0.5", key=f"k{at}", headers={"journal": str(journal)})
        await kafka.settled()
        [status] = kafka.app.status().groups[0].handlers
        assert status.children == 3
    assert [line["what"] for line in lines(journal)] == ["start"] * 3 + ["end"] * 3
    assert len({line["pid"] for line in lines(journal)}) == 3


async def test_killed_idle_children_hold_nothing_up(journal: Path) -> None:
    """With -9, all of them, between two records: the next ones are done in others, as first attempts."""
    turns: list[set[int]] = []
    async with TestApp(handlers.nap, worker_pool_size=2) as kafka:
        for turn in range(2):
            for key in "ab":
                await kafka.send("naps", "0.2", key=key, headers={"journal": str(journal)})
            await kafka.settled()
            turns.append({line["pid"] for line in lines(journal)[4 * turn :]})
            for pid in turns[-1]:
                os.kill(pid, signal.SIGKILL)
    assert all(turns)
    assert turns[0].isdisjoint(turns[1])
    assert [(one.outcome, one.attempt) for one in kafka.handled] == [("success", 1)] * 4


async def test_a_child_is_replaced_after_as_many_records_as_the_setting_says(journal: Path) -> None:
    """`max_tasks_per_child`: nobody fails for it."""
    async with TestApp(handlers.nap, **ONE_CHILD, process_batch_size=1, max_tasks_per_child=5) as kafka:
        for turn in range(1, 200):  # its first child serves until there is another one
            for at in range(10):
                await kafka.send("naps", "0.01", key=f"k{at}", headers={"journal": str(journal)})
            await kafka.settled()
            starts = [line["pid"] for line in lines(journal) if line["what"] == "start"]
            assert len(starts) == 10 * turn
            if len(set(starts)) > 1:
                break
    assert 5 <= starts.count(starts[0]) < len(starts)
    assert {one.outcome for one in kafka.handled} == {"success"}


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_children_are_made_as_the_setting_says(method: str, journal: Path) -> None:
    """`process_start_method`: a spawned child is ours, one of the fork server's is its."""
    async with TestApp(handlers.nap, **ONE_CHILD, process_start_method=method) as kafka:
        await kafka.send("naps", "0", headers={"journal": str(journal)})
        await kafka.settled(20)
    assert (lines(journal)[0]["ppid"] == os.getpid()) == (method == "spawn")


async def test_batches_are_no_larger_than_the_setting_says() -> None:
    """`process_batch_size`: 1 sends each record by itself."""
    largest: dict[int, int] = {}
    for size in (1, 16):
        async with TestApp(handlers.do, **ONE_CHILD, process_batch_size=size) as kafka:
            for at in range(200):
                await deed(kafka, "ok", key=f"k{at}")
            await kafka.settled(20)
            sizes = {
                int(sample.labels[-1])
                for family in kafka.app.metrics().families
                if family.metric.name == "process_pool_batches_total"
                for sample in family.samples
            }
            largest[size] = max(sizes)
    assert largest[1] == 1
    assert 1 < largest[16] <= 16


# -- refused at the start ------------------------------------------------------------------------


async def test_a_lifespan_that_fails_in_the_children_keeps_the_app_from_starting() -> None:
    """With the reason, in one line."""
    app = app_of(handlers.do, no_lifespan)
    with pytest.raises(HandlerError, match="process_lifespan .*no_lifespan raised TypeError") as caught:
        async with TestApp(app, **ONE_CHILD):
            raise AssertionError("it must not start")
    assert "\n" not in str(caught.value)


def no_lifespan() -> Any:
    """No context manager at all."""
    return 7


def test_a_handler_that_a_child_cannot_import_is_refused_before_the_start() -> None:
    """`App.groups()` says so, with what to do; no child and no broker is needed."""
    app = App(group="shop")

    @app.topic("t", executor="process")
    def local(value: bytes) -> None:
        raise AssertionError

    with pytest.raises(HandlerError, match="is made inside of a function, .*move it into its module"):
        app.groups()
