"""From declared handlers to groups: effective values, conflicts and subscriptions."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpar.deduplication import Deduplicate
from asyncpar.errors import ConfigurationError, HandlerError, SettingError
from asyncpar.executors.app_executors import AppExecutors
from asyncpar.groups import DeclaredGroup, build_handlers, check_leases, declare_groups
from asyncpar.policies import Breaker, DeadLetterBudget, PoisonKeys, RateLimit, Retry
from asyncpar.runtime.handlers import Admissions, Handler
from asyncpar.settings_sources import load
from asyncpar.topics import TopicSpec, specs_of, topic


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
    assert group.handlers[0].retry == Retry()
    (group,) = declare(spec(one, "a"), group="g", concurrency=7, retry_attempts=3)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (7, 3)
    own = spec(one, "a", concurrency=5, retry=Retry(attempts=2), name="bill")
    (group,) = declare(own, group="g", concurrency=7, retry_attempts=3)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (5, 2)
    table: dict[str, dict[str, object]] = {"bill": {"concurrency": 9, "attempts": 4}}
    (group,) = declare(own, group="g", concurrency=7, handlers=table)
    assert (group.handlers[0].concurrency, group.handlers[0].retry.attempts) == (9, 4)
    with pytest.raises(SettingError, match="no handler has this name; did you mean 'bill'"):
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


def rules_of(group: DeclaredGroup) -> list[Handler]:
    """What the runtime gets of its handlers."""
    return build_handlers(group, None, (), AppExecutors())


def test_dead_letters_change_the_default_of_attempts() -> None:
    """5 with them, for ever without; a value that is written wins in both cases."""
    retry = Retry(attempts=None)
    group = declare(
        spec(one, "a"),
        spec(two, "b", dead_letter="b.dead", dead_letter_payload="metadata_only"),
        spec(one, "c", dead_letter=".dlq", retry=retry, name="c"),
        spec(two, "d", dead_letter=".dlq", retry_topics=["d.retry.5s", "d.retry.2m"], name="d"),
        group="g",
    )[0]
    a, b, c, d = rules_of(group)
    assert [one.rules.attempts for one in (a, b, c, d)] == [None, 5, None, 1]
    assert [one.dead_letter for one in (a, b, c, d)] == [None, "b.dead", ".dlq", ".dlq"]
    assert [one.metadata_only for one in (a, b, c, d)] == [False, True, False, False]
    assert d.retry_topics == (("d.retry.5s", 5.0), ("d.retry.2m", 120.0))
    assert d.takes("d.retry.5s")
    assert d.admissions == Admissions(), "a gate, for the due times of its retry topics"
    assert group.subscription.topics == {"a", "b", "c", "d", "d.retry.5s", "d.retry.2m"}


def test_settings_give_time_outs_and_dead_letters_to_handlers_without_their_own() -> None:
    """The handler's own value wins."""
    own = spec(two, "b", timeout_ms=50, dead_letter="mine")
    (group,) = declare(spec(one, "a"), own, group="g", timeout_ms=1_000, dead_letter=".dlq")
    assert [one.timeout_seconds for one in rules_of(group)] == [1.0, 0.05]
    assert [one.dead_letter for one in rules_of(group)] == [".dlq", "mine"]


def test_a_handler_may_have_no_dead_letters_although_the_settings_give_some() -> None:
    """False in the decorator, or in its table; then it tries for ever, and halts."""
    in_table: dict[str, dict[str, object]] = {"a": {"dead_letter": False}}
    for mine, tables in ((spec(one, "a", dead_letter=False), {}), (spec(one, "a", name="a"), in_table)):
        (group,) = declare(mine, spec(two, "b"), handlers=tables, group="g", dead_letter=".dlq")
        assert [one.dead_letter for one in rules_of(group)] == [None, ".dlq"]
        assert [one.rules.attempts for one in rules_of(group)] == [None, 5]


def test_forever_is_for_ever_also_beside_dead_letters() -> None:
    """By the setting and by the handler's table; where neither says it, dead letters make it 5."""
    values = {"group": "g", "dead_letter": ".dlq"}
    table: dict[str, dict[str, object]] = {"a": {"attempts": "forever"}}
    for handlers, more, attempts in (
        (table, {}, None),
        ({}, {"retry_attempts": "forever"}, None),
        ({}, {}, 5),
    ):
        (group,) = declare(spec(one, "a", name="a"), handlers=handlers, **values, **more)
        assert rules_of(group)[0].rules.attempts == attempts


def test_a_table_that_changes_one_value_of_a_retry_leaves_the_others_to_the_settings() -> None:
    """Of a handler that declares none."""
    table: dict[str, dict[str, object]] = {"a": {"max_ms": 9_000}}
    values = {"retry_attempts": 7, "retry_base_ms": 1_000}
    (group,) = declare(spec(one, "a", name="a"), handlers=table, group="g", **values)
    rules = rules_of(group)[0].rules
    assert (rules.attempts, rules.base_ms, rules.max_ms) == (7, 1_000, 9_000)


def test_a_breaker_stands_beside_nothing_that_gives_records_up_in_an_outage() -> None:
    """`on_blocked="dead_letter"`, and an age that passes while it is open, are refused with the fix."""
    guarded = spec(one, "a", breaker=Breaker(), dead_letter=".dlq")
    with pytest.raises(HandlerError, match='set on_blocked to "warn" or "cancel", or leave breaker= out'):
        declare(guarded, group="g", on_blocked="dead_letter")
    declare(guarded, group="g", on_blocked="dead_letter", max_blocking_duration_ms=0)
    declare(guarded, group="g", on_blocked="cancel")
    aging = spec(one, "a", breaker=Breaker(max_open_ms=30_000), retry=Retry(max_age_ms=30_000))
    with pytest.raises(HandlerError, match="max_age_ms=30000 is not above its breaker's max_open_ms=30000"):
        declare(aging, group="g")
    declare(spec(one, "a", breaker=Breaker(), retry=Retry(max_age_ms=3_600_000)), group="g")


def test_what_a_declaration_says_about_failures_reaches_the_runtime() -> None:
    """Each part of it, and nothing where nothing is said."""
    (group,) = declare(spec(one, "a"), group="g")
    (plain,) = rules_of(group)
    assert (plain.admissions, plain.timeout_seconds) == (None, None)
    policies = {
        "breaker": Breaker(open_ms=7),
        "dead_letter_budget": DeadLetterBudget(share=0.5),
        "poison_keys": PoisonKeys(failures=2),
        "rate_limit": RateLimit(per_second=3, burst=1),
        "key_rate_limit": RateLimit(per_second=1, burst=1),
    }
    retry = Retry(backoff="fixed", base_ms=1, max_age_ms=60_001, on=OSError, not_on=(PermissionError,))
    on_error = {ValueError: "dead_letter"}
    full = spec(one, "a", dead_letter=".dlq", retry=retry, on_error=on_error, delayed=True, **policies)
    (group,) = declare(full, group="g")
    (handler,) = rules_of(group)
    assert handler.admissions == Admissions(
        breaker=policies["breaker"],
        budget=policies["dead_letter_budget"],
        poison=policies["poison_keys"],
        rate=policies["rate_limit"],
        key_rate=policies["key_rate_limit"],
        honours_delays=True,
    )
    rules = handler.rules
    assert (rules.backoff, rules.max_age_ms, rules.on, rules.not_on) == (
        "fixed",
        60_001,
        (OSError,),
        (PermissionError,),
    )
    assert (rules.on_error, rules.dead_letter) == (on_error, True)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"poison_keys": PoisonKeys()}, "poison_keys"),
        ({"dead_letter_budget": DeadLetterBudget()}, "dead_letter_budget"),
        ({"on_error": {ValueError: "dead_letter"}}, r"on_error\[ValueError\]"),
    ],
)
def test_what_needs_dead_letters_is_refused_without_a_topic_for_them(
    options: dict[str, Any], name: str
) -> None:
    """At start, with what to add; fine with the setting."""
    with pytest.raises(HandlerError, match=rf"{name} needs a topic for dead letters; add dead_letter="):
        declare(spec(one, "a", **options), group="g")
    assert declare(spec(one, "a", **options), group="g", dead_letter=".dlq")


def test_a_pattern_never_matches_what_its_handler_writes_to() -> None:
    """Else a dead letter would be handled, fail, and go round for ever."""
    options = {"dead_letter": ".dlq", "retry_topics": ("orders.retry.5s",)}
    (group,) = declare(spec(one, pattern="orders.*", **options), group="g")
    pattern = group.subscription.pattern
    assert pattern is not None
    assert pattern.fullmatch("orders.eu")
    assert pattern.fullmatch("orders.retry.5s")  # by name, not by the pattern
    assert not pattern.fullmatch("orders.eu.dlq")
    (handler,) = rules_of(group)
    assert handler.takes("orders.eu")
    assert not handler.takes("orders.eu.dlq")


def test_a_time_out_above_a_lease_is_refused() -> None:
    """Two calls on one key could overlap."""
    (group,) = declare(spec(one, "a", timeout_ms=2_000), group="g")
    guard = Deduplicate(key=lambda record: record.key, ttl_ms=1_000, lease_ms=1_999)
    with pytest.raises(HandlerError, match="timeout_ms=2000 is above a middleware's lease_ms=1999"):
        check_leases([group], [guard])
    check_leases([group], [Deduplicate(key=lambda record: record.key, ttl_ms=1_000, lease_ms=2_000)])


@pytest.mark.parametrize(
    ("topics", "options", "dead_letter"),
    [
        (("a",), {}, "a"),
        (("a", "a.dlq"), {}, ".dlq"),
        (("a",), {"retry_topics": ["a.retry.5s"]}, "a.retry.5s"),
    ],
)
def test_dead_letters_never_lead_to_where_they_come_from(
    topics: tuple[str, ...], options: dict[str, Any], dead_letter: str
) -> None:
    """Neither by the decorator nor by the setting: they would go round for ever."""
    with pytest.raises(
        HandlerError, match="leads to a topic that it reads|has another use|is a topic that it reads"
    ):
        declare(spec(one, *topics, dead_letter=dead_letter, **options), group="g")
    with pytest.raises(HandlerError, match="leads to a topic that it reads"):
        declare(spec(one, *topics, **options), group="g", dead_letter=dead_letter)


def test_a_limit_by_key_needs_an_order() -> None:
    """Without one no key is known: the knob would do nothing."""
    with pytest.raises(HandlerError, match="key_rate_limit needs an order"):
        spec(one, "a", order="unordered", key_rate_limit=RateLimit(per_second=1, burst=1))
