"""What Context says and logs, and what the markers hold."""

from __future__ import annotations

import logging

import pytest

from asyncpar import context as context_module
from asyncpar.context import Context, Header, Key, extend, heartbeat, markers_of


def test_a_context_can_be_made_by_a_unit_test() -> None:
    """A handler's test needs a state and nothing of the engine."""
    context = Context(state={"db": 1})
    assert (context.state, context.attempt, context.handler, context.group) == ({"db": 1}, 1, "", "")


def test_lines_carry_where_the_record_came_from(caplog: pytest.LogCaptureFixture) -> None:
    """Each line has handler, group, topic, partition, offset and attempt as fields."""
    context = Context(None, "bill", "billing", 3, topic="orders", partition=2, offset=40)
    with caplog.at_level(logging.INFO, logger="asyncpar.handler"):
        context.logger.info("charged %s", 5)
    (line,) = caplog.records
    found = {
        name: getattr(line, name) for name in ("handler", "group", "topic", "partition", "offset", "attempt")
    }
    assert found == {
        "handler": "bill",
        "group": "billing",
        "topic": "orders",
        "partition": 2,
        "offset": 40,
        "attempt": 3,
    }
    assert line.getMessage() == "charged 5"


def test_a_line_keeps_its_own_extra(caplog: pytest.LogCaptureFixture) -> None:
    """The standard adapter drops it before Python 3.13."""
    context = Context(None, "bill", topic="orders")
    with caplog.at_level(logging.INFO, logger="asyncpar.handler"):
        context.logger.info("charged", extra={"amount": 5, "topic": "mine"})
    (line,) = caplog.records
    assert (vars(line)["amount"], vars(line)["topic"], vars(line)["handler"]) == (5, "mine", "bill")


def test_the_logger_is_made_once() -> None:
    """Many lines in one call cost one adapter."""
    context = Context()
    assert context.logger is context.logger


def test_the_repr_hides_the_state() -> None:
    """State holds pools and credentials; a log line that shows a context must not."""
    context = Context("secret", "bill", topic="orders", partition=1, offset=4)
    assert repr(context) == "<Context of bill, orders[1] offset 4, attempt 1>"


def test_markers_are_values() -> None:
    """Equal markers are equal, so that annotations compare."""
    assert Header("x") == Header("x") != Header("y")
    assert Key() == Key()
    assert markers_of(int) == []


def test_outside_of_a_call_there_is_nothing_to_extend(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test may call a handler as it is; one line says so, once. What is no time is refused."""
    monkeypatch.setattr(context_module, "_warned", set())
    for _ in range(3):
        heartbeat()
        extend(5)
    assert [line.partition(" does nothing here")[0] for line in caplog.messages] == [
        "asyncpar.heartbeat()",
        "asyncpar.extend()",
    ]
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="at least 1"):
            extend(bad)  # type: ignore[arg-type]
