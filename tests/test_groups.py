"""From declared handlers to groups: effective values, conflicts and subscriptions."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpar.errors import ConfigurationError, HandlerError, SettingError
from asyncpar.groups import DeclaredGroup, declare_groups
from asyncpar.settings_sources import load
from asyncpar.topics import Retry, TopicSpec, specs_of, topic


async def one(value: bytes) -> None:
    """A handler."""


async def two(value: bytes) -> None:
    """Another."""


def thread(value: bytes) -> None:
    """A plain one."""


def declare(
    *specs: TopicSpec, handlers: dict[str, dict[str, object]] | None = None, **values: Any
) -> list[DeclaredGroup]:
    """The groups under settings `values`."""
    import dataclasses

    loaded = load(app_values=values)
    return declare_groups(specs, dataclasses.replace(loaded, handlers=handlers or {}))


def spec(function: Any, *topics: str, **options: Any) -> TopicSpec:
    """What @topic puts on a copy of `function`."""
    import types

    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__annotations__ = function.__annotations__
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    return specs_of(topic(*topics, **options)(copy))[0]


def test_the_handlers_group_beats_the_apps_and_none_is_an_error() -> None:
    """@topic(group=) wins over the setting; without either one line says where to give it."""
    groups = declare(spec(one, "a"), spec(two, "a", group="own"), group="app")
    assert [(group.name, len(group.handlers)) for group in groups] == [("app", 1), ("own", 1)]
    with pytest.raises(ConfigurationError, match="--group"):
        declare(spec(one, "a"))


def test_no_handler_at_all_is_an_error() -> None:
    """An app without handlers says what to do."""
    with pytest.raises(ConfigurationError, match="@topic"):
        declare(group="g")


def test_two_handlers_for_one_topic_and_group_need_a_match_each() -> None:
    """Refused with both names; fine with match=, or in different groups."""
    with pytest.raises(HandlerError, match=r"topic a in group g .*one and .*two"):
        declare(spec(one, "a"), spec(two, "b", "a"), group="g")
    with pytest.raises(HandlerError, match="match="):
        declare(spec(one, "a", match=lambda topic, raw: True), spec(two, "a"), group="g")
    with pytest.raises(HandlerError, match="pattern"):
        declare(spec(one, pattern="a.*"), spec(two, pattern="a.*"), group="g")
    match = {"match": lambda topic, raw: True}
    assert len(declare(spec(one, "a", **match), spec(two, "a", **match), group="g")) == 1
    assert len(declare(spec(one, "a", group="x"), spec(two, "a", group="y"))) == 2


def test_two_functions_of_one_name_are_refused() -> None:
    """Metrics and settings tables go by the name."""
    with pytest.raises(HandlerError, match="same name"):
        declare(spec(one, "a", name="bill"), spec(two, "b", name="bill"), group="g")


def test_effective_values_go_from_table_to_decorator_to_settings_to_defaults() -> None:
    """Concurrency and retry of a handler by the most specific source that says something."""
    (group,) = declare(spec(one, "a"), spec(thread, "b"), group="g")
    assert group.handlers[0].concurrency == 100
    assert group.handlers[1].concurrency <= 32
    assert group.handlers[0].retry == Retry(None, 100, 30_000)
    (group,) = declare(spec(one, "a"), group="g", concurrency=7, retry_attempts=3)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (7, 3)
    own = spec(one, "a", concurrency=5, retry=Retry(attempts=2), name="bill")
    (group,) = declare(own, group="g", concurrency=7, retry_attempts=3)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (5, 2)
    table: dict[str, dict[str, object]] = {"bill": {"concurrency": 9, "attempts": 4}}
    (group,) = declare(own, group="g", concurrency=7, handlers=table)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (9, 4)
    with pytest.raises(SettingError, match="no handler has this name"):
        declare(own, group="g", handlers={"bil": {"concurrency": 9}})


def test_names_and_patterns_become_one_compiled_union() -> None:
    """Full matches only; names are literal; names alone need no pattern."""
    (group,) = declare(spec(one, "a.b", "c"), group="g")
    assert group.subscription.topics == {"a.b", "c"}
    assert group.subscription.pattern is None
    (group,) = declare(spec(one, "a.b"), spec(two, pattern="audit-.*|x"), group="g")
    pattern = group.subscription.pattern
    assert pattern is not None
    assert all(pattern.fullmatch(name) for name in ("a.b", "audit-1", "x"))
    assert not any(pattern.match(name) for name in ("aXb", "audit", "xy", "my-audit-1"))
