"""What `@topic` accepts, refuses and leaves on a function."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, assert_type

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.errors import DecodeError, HandlerError
from asyncpar.policies import RateLimit, Retry
from asyncpar.records import RawRecord
from asyncpar.topics import OVERRIDABLE, TopicSpec, order_key_function, specs_of, topic


@dataclass
class Raw:
    offset: int = 7
    key: bytes | None = None
    value: bytes | None = b""
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    timestamp: int = 0
    timestamp_type: int = 0


async def _on_loop(body: bytes) -> int:
    return len(body)


def _in_thread(body: bytes) -> int:
    return len(body)


def spec_with(function: Callable[..., object] = _on_loop, **arguments: Any) -> TopicSpec:
    """One spec on a fresh function of the same kind."""
    copy: Any = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    names = () if "pattern" in arguments else ("orders",)
    return specs_of(topic(*names, **arguments)(copy))[0]


def test_the_function_comes_back_unchanged_and_keeps_its_type() -> None:
    """A handler stays callable in a unit test, typed as it was written."""

    async def bill(order: bytes, attempt: int = 1) -> str:
        return "billed"

    decorated = topic("orders", concurrency=5)(bill)
    assert decorated is bill
    assert_type(asyncio.run(decorated(b"", attempt=2)), str)


def test_a_bare_declaration_holds_the_defaults() -> None:
    """Nothing given: key order, the settings decide the rest, and `given` is empty."""
    spec = spec_with()
    assert (spec.topics, spec.pattern, spec.group) == (("orders",), None, None)
    assert (spec.order, spec.keyless, spec.unmatched) == ("key", "unordered", "halt")
    assert (spec.tombstones, spec.on_decode_error, spec.on_revoke) == ("error", "halt", "cancel")
    assert (spec.concurrency, spec.retry, spec.match, spec.decoder) == (None,) * 4
    assert spec.given == frozenset()


def test_the_default_name_is_module_and_qualified_name() -> None:
    """Without `name=` the handler is found by where it is written."""
    assert spec_with().name == f"{__name__}._on_loop"
    assert spec_with(name="bill").name == "bill"


def test_given_names_what_was_passed_also_when_it_equals_the_default() -> None:
    """Settings must not override what the user wrote, even where it repeats a default."""
    assert spec_with(order="key", concurrency=3).given == {"order", "concurrency"}
    assert spec_with(concurrency=None, retry=None).given == frozenset()


def test_the_signature_of_topic_shows_its_defaults() -> None:
    """Editors and `help()` show the real defaults, though `given` tells apart what was passed."""
    parameters = inspect.signature(topic).parameters
    assert parameters["order"].default == "key"
    assert parameters["on_revoke"].default == "cancel"


def test_the_defaults_of_topic_and_of_the_spec_are_the_same() -> None:
    """Two places state the defaults; they must not drift apart."""
    fields = TopicSpec.__dataclass_fields__
    for name, parameter in inspect.signature(topic).parameters.items():
        if name not in {"topics", "name"}:
            assert fields[name].default == parameter.default, name


def test_an_unknown_argument_is_a_type_error() -> None:
    """Python itself names the misspelt argument."""
    misspelt: Any = topic
    with pytest.raises(TypeError, match="concurency"):
        misspelt("orders", concurency=3)


def test_stacked_declarations_read_from_top_to_bottom() -> None:
    """Several @topic on one function give several specs, in the order they are written."""

    @topic("orders", group="a")
    @topic("refunds", group="b")
    async def bill(body: bytes) -> None: ...

    assert [spec.group for spec in specs_of(bill)] == ["a", "b"]
    assert bill.__asyncpar_topics__ == specs_of(bill)  # type: ignore[attr-defined]
    assert all(spec.function is bill for spec in specs_of(bill))


def test_a_plain_object_has_no_specs() -> None:
    """The runner may ask of anything that it finds in a module."""
    assert specs_of(_on_loop) == specs_of(3) == specs_of(Raw) == ()


def test_a_decorator_above_topic_is_refused_not_left_out() -> None:
    """functools.wraps copies the specs; running the inner function would skip the wrapper silently."""

    @topic("orders")
    async def bill(body: bytes) -> None: ...

    @functools.wraps(bill)
    async def timed(body: bytes) -> None:
        await bill(body)

    with pytest.raises(HandlerError, match="put @topic on top"):
        specs_of(timed)
    with pytest.raises(HandlerError, match="put @topic on top"):
        topic("refunds")(timed)


def test_topic_without_parentheses_says_what_to_write() -> None:
    """`@topic` alone hands the function over as a topic's name."""
    bare: Any = topic
    with pytest.raises(HandlerError, match=r'write @topic\("orders"'):
        bare(_on_loop)


def test_a_list_of_topics_is_refused_before_anything_is_decorated() -> None:
    """What is refused only once a function is there would let `@topic` alone swallow a handler."""
    several: Any = ["orders", "refunds"]
    with pytest.raises(HandlerError, match="got list"):
        topic(several)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "or ders", "orders*", "größe", "a" * 250, "orders\n"], ids=ascii
)
def test_illegal_topic_names_are_refused(name: str) -> None:
    """What Kafka would refuse is refused at the declaration."""
    with pytest.raises(HandlerError, match="no legal topic name"):
        topic(name)(fresh())


@given(st.text("abzABZ019._-", min_size=1, max_size=249).filter(lambda name: name not in {".", ".."}))
def test_legal_topic_names_are_accepted(name: str) -> None:
    """Every name that Kafka allows passes."""
    assert specs_of(topic(name)(fresh()))[0].topics == (name,)


def fresh() -> Callable[[bytes], object]:
    """A fresh function, so that specs do not pile up on one."""

    def handler(body: bytes) -> object: ...

    return handler


def test_a_declaration_names_a_topic_once_and_at_least_one() -> None:
    """No topic, one topic twice, a list of topics: each has its own message."""
    several: Any = ["orders", "refunds"]
    with pytest.raises(HandlerError, match="names no topic"):
        topic()(fresh())
    with pytest.raises(HandlerError, match="twice"):
        topic("orders", "orders")(fresh())
    with pytest.raises(HandlerError, match="each name an argument"):
        topic(several)(fresh())


def test_a_pattern_stands_alone_or_beside_names() -> None:
    """A pattern needs no name and excludes none."""
    assert spec_with(pattern="audit-.*").pattern == "audit-.*"
    both = specs_of(topic("orders", pattern="audit-.*")(fresh()))[0]
    assert (both.topics, both.pattern) == (("orders",), "audit-.*")


@pytest.mark.parametrize(
    "pattern",
    [
        "audit-(",
        "(?i)audit",
        "(?P<x>a)",
        "",
        re.compile("a"),
        3,
        # Numbers of groups change when patterns are joined.
        r"(a|b)-\1",
        r"(a)?-(?(1)b|c)",
        r"\\(a)\1",
    ],
    ids=repr,
)
def test_patterns_that_no_union_can_hold_are_refused(pattern: Any) -> None:
    """A group subscribes to one union of its patterns: each must compile as a part of it."""
    with pytest.raises(HandlerError, match="pattern="):
        spec_with(pattern=pattern)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "keys"}, "did you mean 'key'"),
        ({"order": None}, "order=None is unknown"),
        ({"keyless": "unorderd"}, "did you mean 'unordered'"),
        ({"unmatched": "drop"}, "known: halt, skip"),
        ({"tombstones": "skipp"}, "did you mean 'skip'"),
        ({"on_decode_error": "stop"}, "on_decode_error='stop' is unknown"),
        ({"on_revoke": ["keep"]}, "on_revoke="),
        ({"executor": "threads"}, "did you mean 'thread'"),
        ({"concurrency": 0}, "at least 1"),
        ({"concurrency": True}, "whole number"),
        ({"concurrency": 2.5}, "whole number"),
        ({"concurrency": 10**9}, "from 1 to 100000"),
        ({"timeout_ms": 10**30}, "timeout_ms=a number of more than 20 digits"),
        ({"dead_letter": True}, "dead_letter=True must be a topic, a suffix such as"),
        ({"retry_topics": [".retry.5s"]}, r"no suffix, but a whole name; write '.*\.retry\.5s'"),
        ({"order": "partition", "key_rate_limit": RateLimit(per_second=1)}, "or use rate_limit"),
        ({"retry": 5}, r"such as Retry\(attempts=5\)"),
        ({"group": ""}, "group="),
        ({"name": ""}, "name="),
        ({"name": 3}, "name="),
        ({"match": "orders"}, "match='orders' must be a function"),
        ({"decoder": 3}, "decoder=3 must be a function"),
        ({"task_per_record": 1}, "must be True or False"),
    ],
    ids=str,
)
def test_illegal_values_are_refused_with_the_fix(arguments: dict[str, Any], message: str) -> None:
    """Every argument is checked where it is written; the message names it."""
    with pytest.raises(HandlerError, match=message) as caught:
        spec_with(**arguments)
    assert "\n" not in str(caught.value)


def test_a_refused_declaration_leaves_nothing_on_the_function() -> None:
    """A half-declared handler must not be picked up."""
    function = fresh()
    with pytest.raises(HandlerError):
        topic("orders", concurrency=0)(function)
    assert specs_of(function) == ()


def test_order_and_match_must_be_synchronous_and_a_decoder_need_not() -> None:
    """The scheduler calls order and match; only the decoder runs in the worker."""

    async def function(topic: str, raw: RawRecord) -> bytes:
        return b""

    class Callable_:  # noqa: N801 - an object whose call is async
        async def __call__(self, topic: str, raw: RawRecord) -> bytes:
            return b""

    for asynchronous in (function, functools.partial(function), Callable_()):
        for argument in ("order", "match"):
            with pytest.raises(HandlerError, match="must be synchronous"):
                spec_with(**{argument: asynchronous})
        assert spec_with(decoder=asynchronous).decoder is asynchronous


def test_the_executor_follows_the_kind_of_function() -> None:
    """`async def` runs on the loop and `def` in a thread, said or not."""
    assert spec_with(_on_loop).resolved_executor == "async"
    assert spec_with(_on_loop, executor="async").resolved_executor == "async"
    assert spec_with(_in_thread).resolved_executor == "thread"
    assert spec_with(_in_thread, executor="thread").resolved_executor == "thread"
    assert spec_with(_in_thread, executor="process").resolved_executor == "process"


def test_an_executor_that_cannot_run_the_function_is_refused() -> None:
    """A coroutine function in a thread would never run; a plain one would block the loop."""
    with pytest.raises(HandlerError, match="cannot run `async def`"):
        spec_with(_on_loop, executor="thread")
    with pytest.raises(HandlerError, match='executor="process" cannot run `async def`'):
        spec_with(_on_loop, executor="process")
    with pytest.raises(HandlerError, match="cannot run a plain `def`"):
        spec_with(_in_thread, executor="async")
    with pytest.raises(HandlerError, match="task_per_record"):
        spec_with(_in_thread, task_per_record=True)
    with pytest.raises(HandlerError, match="not a process"):
        spec_with(_in_thread, executor="process", task_per_record=True)


def test_a_plain_wrapper_of_a_coroutine_function_must_say_what_it_is() -> None:
    """In a thread it would return a coroutine that nobody awaits, and the record would count as done."""

    @functools.wraps(_on_loop)
    def passes_on(body: bytes) -> Any:
        return _on_loop(body)

    with pytest.raises(HandlerError, match="wraps an `async def`"):
        topic("orders")(passes_on)
    assert specs_of(topic("orders", executor="thread")(passes_on))[0].resolved_executor == "thread"


def test_what_is_no_function_cannot_be_a_handler() -> None:
    """Partials, methods, objects, lambdas and generators each get one clear line."""

    class Shop:
        def bill(self, body: bytes) -> None: ...

        def __call__(self, body: bytes) -> None: ...

    def generator(body: bytes) -> Any:
        yield body

    async def async_generator(body: bytes) -> Any:
        yield body

    refused: dict[str, Any] = {
        "got a bound method": Shop().bill,
        "got a partial": functools.partial(_in_thread, b""),
        "got a Shop": Shop(),
        "got a type": Shop,
        "got a staticmethod": staticmethod(_in_thread),
        "lambda": lambda body: body,
        "remove its `yield`": generator,
        "generator": async_generator,
    }
    for message, target in refused.items():
        with pytest.raises(HandlerError, match=message):
            topic("orders")(target)


def test_override_changes_values_and_marks_them_as_given() -> None:
    """A handler's settings table is its own value, like the decorator's."""
    spec = spec_with(concurrency=5, retry=Retry(attempts=3, base_ms=50))
    changed = spec.override(concurrency=9, attempts=7, keyless="error", tombstones="skip")
    assert (changed.concurrency, changed.keyless, changed.tombstones) == (9, "error", "skip")
    assert changed.retry == Retry(attempts=7, base_ms=50)
    assert changed.given == {"concurrency", "retry", "keyless", "tombstones"}
    assert (spec.concurrency, spec.retry) == (5, Retry(attempts=3, base_ms=50))


def test_override_makes_a_retry_where_there_was_none() -> None:
    """Delays may come from the settings alone."""
    assert spec_with().override(base_ms=200, max_ms=400).retry == Retry(base_ms=200, max_ms=400)
    engine_wide = Retry(attempts=7, base_ms=1_000)
    assert spec_with().override(engine_wide, max_ms=9_000).retry == Retry(7, 1_000, 9_000)
    assert spec_with(retry=Retry(max_age_ms=500)).override(engine_wide, attempts=2).retry == Retry(
        2, max_age_ms=500
    )


def test_a_table_says_forever_where_code_says_none() -> None:
    """TOML has no None: without the word a limit of the decorator could be changed, but never be lifted."""
    limited = spec_with(retry=Retry(attempts=3, max_age_ms=60_000))
    assert limited.override(attempts="forever", max_age_ms="forever").retry == Retry(attempts=None)
    with pytest.raises(HandlerError, match=r'attempts=\'ever\' must be .* None \("forever" in settings\)'):
        limited.override(attempts="ever")
    with pytest.raises(HandlerError, match="base_ms='forever' must be a whole number"):
        limited.override(base_ms="forever")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concurency": 3}, "did you mean 'concurrency'"),
        ({"order": "key"}, "unknown setting 'order'"),
        ({"concurrency": "9"}, "whole number"),
        ({"attempts": 0}, "handler .*_on_loop: Retry: attempts=0"),
        ({"on_revoke": "kep"}, "did you mean 'keep'"),
    ],
    ids=str,
)
def test_override_checks_like_the_decorator(values: dict[str, object], message: str) -> None:
    """Keys and values of a settings table are refused with the handler's name."""
    with pytest.raises(HandlerError, match=message):
        spec_with().override(**values)


def test_every_overridable_setting_changes_the_spec() -> None:
    """A setting that did nothing would be a defect."""
    other = {
        "concurrency": 3,
        "attempts": 2,
        "base_ms": 5,
        "max_ms": 500,
        "backoff": "fixed",
        "max_age_ms": 60_000,
        "on": ["ConnectionError"],
        "not_on": ["asyncpar.errors.DecodeError"],
        "on_error": {"ValueError": "skip"},
        "timeout_ms": 1_000,
        "dead_letter": ".dlq",
        "dead_letter_payload": "metadata_only",
        "keyless": "error",
        "tombstones": "skip",
        "on_decode_error": "skip",
        "on_revoke": "keep",
        "unmatched": "skip",
    }
    assert other.keys() == OVERRIDABLE
    for key, value in other.items():
        assert spec_with().override(**{key: value}) != spec_with().override()


def test_a_spec_cannot_be_changed() -> None:
    """What was declared stays: specs are shared between apps and tests."""
    changeable: Any = spec_with()
    with pytest.raises(AttributeError):
        changeable.concurrency = 3


@pytest.mark.parametrize("order", ["key", "partition", "unordered"])
def test_the_words_need_no_order_function(order: str) -> None:
    """The scheduler reads `raw.key` itself; a call per record would only cost."""
    assert order_key_function(spec_with(order=order)) is None


@given(st.one_of(st.none(), st.binary(), st.text()))
def test_an_order_function_yields_bytes(key: bytes | str | None) -> None:
    """Bytes stay, str becomes UTF-8, None is keyless; text that UTF-8 cannot hold is undecodable."""
    function = order_key_function(spec_with(order=lambda _topic, _raw: key))
    assert function is not None
    assert function("orders", Raw()) == (key.encode() if isinstance(key, str) else key)


def test_an_order_function_gets_topic_and_raw_record() -> None:
    """The record itself knows no topic."""
    function = order_key_function(spec_with(order=lambda topic, raw: f"{topic}/{raw.offset}"))
    assert function is not None
    assert function("orders", Raw(offset=9)) == b"orders/9"


def test_an_order_function_that_fails_makes_the_record_undecodable() -> None:
    """Raising and returning nonsense are DecodeErrors; the cause is chained, its text is not repeated."""

    def raises(topic: str, raw: RawRecord) -> bytes:
        raise KeyError("secret")

    failing: dict[str, Any] = {
        "raised KeyError": raises,
        "returned int": lambda _topic, _raw: 3,
        "raised UnicodeEncodeError": lambda _topic, _raw: "\ud800",
    }
    for message, order in failing.items():
        function = order_key_function(spec_with(order=order))
        assert function is not None
        with pytest.raises(DecodeError, match=message) as caught:
            function("orders", Raw())
        assert "secret" not in str(caught.value)
        assert (caught.value.__cause__ is None) is message.startswith("returned")


@pytest.mark.parametrize("pattern", [r"(a|b)-\d+", r"a\\1", r"(?:a|b){1,2}"], ids=repr)
def test_groups_and_escapes_without_a_back_reference_are_fine(pattern: str) -> None:
    """Only what refers to a group by its number is refused."""
    assert spec_with(pattern=pattern).pattern == pattern
