"""What a test gives to `TestApp`: each mistake is one clear line."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpar import topic
from asyncpar.errors import ConfigurationError
from asyncpar.testing import TestApp
from asyncpar.testing.arguments import check_seconds, check_whole_number, counted


@topic("orders")
async def bill() -> None: ...


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"partitions": {"orders": 0}}, "partitions has 0 for topic 'orders'; give a whole number from 1"),
        ({"partitions": {"orders": -2}}, "partitions has -2"),
        ({"partitions": {"orders": "3"}}, "partitions has '3'"),
        ({"partitions": {"orders": True}}, "partitions has True"),
        ({"partitions": {7: 1}}, "partitions has 7, which is no topic's name"),
        ({"partitions": 3}, r'partitions = 3 is not allowed; .*: partitions={"orders": 3}'),
        (
            {"broker": "localhost:9092"},
            "broker = 'localhost:9092' is no MemoryBroker; .*: bootstrap_servers=",
        ),
        ({"toml": 3}, "toml = 3 is not allowed; give the path of a file"),
        ({"env": "CI"}, "env = 'CI' is not allowed; give variables by name, such as os.environ"),
        ({"unsettled": "warn"}, "unsettled = 'warn' is not allowed; give 'raise' or 'ignore'"),
    ],
)
def test_a_wrong_argument_is_said(options: dict[str, Any], text: str) -> None:
    """Which argument, what was given, and what to give: before anything starts."""
    with pytest.raises(ConfigurationError, match=rf"TestApp\(...\): {text}"):
        TestApp(bill, **options)


async def test_a_misspelt_topic_among_partitions_is_said() -> None:
    """It would leave the topic that was meant with one partition; a topic of another name is made."""
    with pytest.raises(
        ConfigurationError, match="topic 'ordrs', which no handler reads; did you mean 'orders'"
    ):
        async with TestApp(bill, partitions={"ordrs": 4}):
            pass
    async with TestApp(bill, partitions={"ordrs": 4, "orders": 2, "invoices": 1}) as kafka:
        assert kafka.broker.partition_counts() == {"orders": 2, "ordrs": 4, "invoices": 1}


def test_numbers_are_checked() -> None:
    """Wrong types are TypeErrors, what is out of range is a ValueError; None is nothing."""
    check_whole_number("at", None)
    check_seconds("wait", None)
    check_seconds("wait", 0.5)
    with pytest.raises(TypeError, match="at is a whole number of apples, not 1.5"):
        check_whole_number("at", 1.5, " of apples")
    with pytest.raises(ValueError, match="at is a whole number from 0, not -1"):
        check_whole_number("at", -1)
    with pytest.raises(TypeError, match="wait is a number of seconds, not True"):
        check_seconds("wait", value=True)
    with pytest.raises(ValueError, match="wait is a number of seconds from 0, not nan"):
        check_seconds("wait", float("nan"))


def test_one_is_not_many() -> None:
    """Only other numbers than 1 have an s."""
    assert [counted(number, "topic") for number in (0, 1, 2)] == ["0 topics", "1 topic", "2 topics"]
