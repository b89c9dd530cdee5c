"""What a child logs comes out of the parent's loggers; a flood is bounded and holds nobody up."""

from __future__ import annotations

import logging
import os

import pytest

from asyncpar.executors.lane import ChildWork
from asyncpar.executors.lane_logs import present_levels
from tests.executors.lane_rig import Rig, batch, rig, wait_on_the_loop


@pytest.fixture
def child_logger() -> logging.Logger:
    """The logger that the handlers in the child use."""
    return logging.getLogger("tests.child")


async def test_lines_arrive_with_level_name_text_and_traceback(
    caplog: pytest.LogCaptureFixture, child_logger: logging.Logger
) -> None:
    """As if logged here, but for the process; what is no plain value in `extra` stays behind."""
    caplog.set_level(logging.INFO, child_logger.name)
    async with rig() as one:
        one.lane.send(batch(1, "log"))
        await one.reply()
    info, error = [record for record in caplog.records if record.name == child_logger.name]
    assert (info.levelname, info.message, info.process) == ("INFO", "three is 3", one.lane.pid)
    assert info.process != os.getpid()
    assert vars(info)["order"] == 7
    assert "thing" not in vars(info)
    assert (error.levelname, error.message) == ("ERROR", "it failed")
    assert (error.exc_text or "").endswith("ValueError: no")
    assert "ValueError: no" in caplog.text


async def test_levels_are_those_of_the_parent(
    caplog: pytest.LogCaptureFixture, child_logger: logging.Logger
) -> None:
    """A line below the level is not even sent; the next child follows a change."""
    for level, expected in (
        (logging.ERROR, ["it failed"]),
        (logging.DEBUG, ["not wanted", "three is 3", "it failed"]),
    ):
        caplog.clear()
        caplog.set_level(level, child_logger.name)
        async with rig() as one:
            one.lane.send(batch(1, "log"))
            await one.reply()
        assert [record.message for record in caplog.records if record.name == child_logger.name] == expected


async def test_what_a_process_logs_that_the_handler_forks_is_not_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would stand in the middle of the child's own lines."""
    async with rig() as one:
        one.lane.send(batch(1, "fork", "log"))
        assert (await one.reply()).run == 2
    assert "from elsewhere" not in caplog.text
    assert "it failed" in caplog.text


async def test_a_filter_that_fails_costs_a_line_and_no_reply(
    child_logger: logging.Logger, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the program's, and what it raises is shown; the child's word is heard all the same."""

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError(record.getMessage())

    child_logger.addFilter(refuse)
    try:
        async with rig() as one:
            one.lane.send(batch(1, "log"))
            assert (await one.reply()).run == 1
    finally:
        child_logger.removeFilter(refuse)
    assert "LookupError: it failed" in capsys.readouterr().err
    assert caplog.records == []


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_what_a_module_sets_up_at_import_is_replaced(
    start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own handlers are not for children: lines come here, and only here."""
    child = ChildWork("tests.executors.trivial_handler", "logs", "logs", "g")
    async with rig(child, start_method) as one:
        one.lane.send(batch(1, b""))
        await one.reply()
    assert caplog.messages == ["to the parent"]


def test_levels_are_read_from_all_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's, those that were set, and what is switched off for all."""
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.setattr(logging.root.manager, "disable", 7)
    monkeypatch.setattr(logging.getLogger("tests.levels"), "level", 15)
    disabled, levels = present_levels()
    assert disabled == 7
    assert levels[0] == ("", logging.ERROR)
    assert ("tests.levels", 15) in levels


def has_ended(one: Rig, number: int) -> bool:
    """The one job of batch `number` is over: the child stands behind it, or its reply is out."""
    found = one.lane.progress()
    return found is None or (found.number == number and found.index == 1)


async def test_a_flood_is_cut_and_holds_nobody_up(
    caplog: pytest.LogCaptureFixture, child_logger: logging.Logger
) -> None:
    """Although nothing is read the handler comes to its end; one warning says that lines are lost."""
    async with rig() as one:
        one.lane.send(batch(1, "flood"))
        await one.running()
        wait_on_the_loop(lambda: has_ended(one, 1), "the end of the flood")
        assert (await one.reply()).run == 1
        lines = [record for record in caplog.records if record.name == child_logger.name]
        assert [record.message.split()[1] for record in lines] == [
            str(number) for number in range(len(lines))
        ]
        assert 0 < len(lines) < 20_000
        one.lane.send(batch(2, "flood"))
        await one.running(2)
        wait_on_the_loop(lambda: has_ended(one, 2), "the end of the second flood")
        assert (await one.reply()).run == 1
        warnings = [record.message for record in caplog.records if record.name == "asyncpar.process"]
        assert len(warnings) == 1
        assert "lines are lost" in warnings[0]
