"""Which signatures are understood, what they are called with, and what is refused at start."""

from __future__ import annotations

import asyncio
import functools
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from asyncpar.context import Context, Header, Key
from asyncpar.errors import DecodeError, HandlerError, TombstoneError
from asyncpar.records import RawRecord, Record
from asyncpar.signatures import CallPlan, plan_call
from asyncpar.topics import specs_of, topic

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypes

STATE = object()


class Order(BaseModel):
    id: int


@dataclass
class Raw:
    offset: int = 7
    key: bytes | None = b"k"
    value: bytes | None = b'{"id": 1}'
    headers: Sequence[tuple[str, bytes]] = field(default_factory=tuple)
    timestamp: int = 123
    timestamp_type: int = 1


RECORD = Record("orders", 3, 7, b"k", b'{"id": 1}', (), 123, 1, 2, 5)


def plan_of(function: Callable[..., object], **arguments: Any) -> CallPlan:
    """The plan of a function under @topic("orders", ...)."""
    spec = specs_of(topic("orders", **arguments)(function))[0]  # what was declared last comes first
    return plan_call(spec, group="billing")


def arguments_of(function: Callable[..., object], raw: Raw | None = None, **arguments: Any) -> Any:
    """Positional and keyword arguments for one record."""
    return plan_of(function, **arguments).bind(STATE)("orders", 3, raw or Raw(), 2, 5)


def result_of(function: Callable[..., Any], raw: Raw | None = None, **arguments: Any) -> Any:
    """What a handler returns when it is called as planned."""
    args, kwargs = arguments_of(function, raw, **arguments)
    return function(*args, **kwargs)


def test_a_payload_alone() -> None:
    """The most common shape."""

    def handler(order: Order) -> object:
        return order

    plan = plan_of(handler)
    assert result_of(handler) == Order(id=1)
    assert (plan.raw_only, plan.accepts_none, plan.skips_tombstones, plan.is_async_decoder) == (False,) * 4


def test_a_payload_and_a_record() -> None:
    """The second most common shape; attempt and generation are those of the call."""

    def handler(order: Order, record: Record) -> object:
        return order, record

    assert result_of(handler) == (Order(id=1), RECORD)


def test_a_record_alone_takes_tombstones() -> None:
    """Without a payload there is nothing to decode."""

    def handler(record: Record) -> object:
        return record

    assert result_of(handler) == RECORD
    assert result_of(handler, Raw(value=None)).value is None
    assert plan_of(handler).accepts_none


def test_nothing_at_all() -> None:
    """A handler that only wants to know that something came."""

    def handler() -> object:
        return "called"

    assert result_of(handler) == "called"


def test_everything_at_once_in_any_order() -> None:
    """Position does not matter: annotations decide."""

    def handler(
        ctx: Context,
        trace: Annotated[str, Header("trace")],
        order: Order,
        key: Annotated[str, Key],
        record: Record,
    ) -> object:
        return ctx, trace, order, key, record

    ctx, *others = result_of(handler, Raw(headers=[("trace", b"t1")]))
    assert others == [
        "t1",
        Order(id=1),
        "k",
        Record("orders", 3, 7, b"k", b'{"id": 1}', (("trace", b"t1"),), 123, 1, 2, 5),
    ]
    assert (ctx.state, ctx.handler, ctx.group, ctx.attempt) == (
        STATE,
        f"{__name__}.test_everything_at_once_in_any_order.<locals>.handler",
        "billing",
        2,
    )
    assert "orders[3] offset 7" in repr(ctx)


def test_keyword_only_parameters() -> None:
    """Also the payload may be keyword-only."""

    def handler(*, record: Record, order: Order, key: Annotated[bytes, Key()]) -> object:
        return order, record, key

    assert result_of(handler) == (Order(id=1), RECORD, b"k")
    assert arguments_of(handler)[0] == ()


def test_positional_only_parameters_and_defaults_between() -> None:
    """A default in front of a later position is passed explicitly; trailing ones are left out."""

    def handler(
        order: Order, /, dry_run: bool = False, record: Record | None = None, times: int = 3
    ) -> object:
        return order, dry_run, record, times

    assert result_of(handler) == (Order(id=1), False, RECORD, 3)
    args, kwargs = arguments_of(handler)
    assert (len(args), kwargs) == (3, {})


def test_a_handler_without_a_payload_may_have_keyword_only_defaults() -> None:
    """After `*` a default can only be meant as one."""

    def handler(*, times: int = 3) -> object:
        return times

    assert result_of(handler) == 3


def test_unrecognised_parameters_keep_their_default() -> None:
    """Also keyword-only ones, also beside a record."""

    def handler(record: Record, debug: bool = False, *, times: int = 3) -> object:
        return debug, times

    assert result_of(handler) == (False, 3)


@pytest.mark.parametrize("annotation", [bytes, bytes | None, Any, object], ids=str)
def test_raw_only_is_known(annotation: Any) -> None:
    """The runtime may call such a handler with the value itself."""

    def handler(body: annotation, times: int = 3) -> object:
        return body

    handler.__annotations__["body"] = annotation
    plan = plan_of(handler)
    assert plan.raw_only
    assert plan.accepts_none is (annotation is not bytes)
    value = bytes(bytearray(b"abc"))
    assert result_of(handler, Raw(value=value)) is value


def test_no_annotation_is_the_raw_value() -> None:
    """The first bare parameter takes bytes, None for a tombstone."""

    def handler(body):  # type: ignore[no-untyped-def]
        return body

    plan = plan_of(handler)
    assert plan.raw_only
    assert plan.accepts_none
    assert result_of(handler, Raw(value=None)) is None


def test_raw_only_is_false_for_everything_else() -> None:
    """A second argument, a keyword or a decoder needs the bound builder."""

    def with_record(body: bytes, record: Record) -> None: ...
    def by_keyword(*, body: bytes) -> None: ...
    def text(body: str) -> None: ...
    def decoded(body: bytes) -> None: ...

    assert not plan_of(with_record).raw_only
    assert not plan_of(by_keyword).raw_only
    assert not plan_of(text).raw_only
    assert not plan_of(decoded, decoder=lambda _topic, _raw: b"x").raw_only


@pytest.mark.parametrize("shape", ["payload", "payload, record", "keyword", "raw"])
def test_a_tombstone_without_none_in_the_annotation_is_an_error(shape: str) -> None:
    """Every shape raises the same error, which names the parameter."""

    def payload(order: Order) -> None: ...
    def both(order: Order, record: Record) -> None: ...
    def keyword(*, order: Order) -> None: ...
    def raw(order: bytes) -> None: ...

    shapes: dict[str, Callable[..., object]] = {
        "payload": payload,
        "payload, record": both,
        "keyword": keyword,
        "raw": raw,
    }
    with pytest.raises(TombstoneError, match="parameter order"):
        arguments_of(shapes[shape], Raw(value=None))


def test_skipping_tombstones_is_told_to_the_runtime() -> None:
    """`tombstones="skip"` holds for every handler whose annotation does not ask for None."""

    def order(order: Order) -> None: ...
    def record(record: Record) -> None: ...
    def bare(body):  # type: ignore[no-untyped-def]
        ...

    def optional(order: Order | None) -> None: ...

    for handler in (order, record, bare):
        assert plan_of(handler, tombstones="skip").skips_tombstones
    with pytest.raises(HandlerError, match="parameter order: takes None, yet"):
        plan_of(optional, tombstones="skip")
    assert not plan_call(specs_of(record)[0].override(tombstones="error"), group="g").skips_tombstones


def test_the_last_of_several_headers_wins() -> None:
    """Producers that add a header again mean the new value."""

    def handler(body: bytes, trace: Annotated[bytes, Header("trace")]) -> object:
        return trace

    assert result_of(handler, Raw(headers=(("trace", b"1"), ("other", b"3"), ("trace", b"2")))) == b"2"


def test_a_missing_header_or_key() -> None:
    """The default, else None where it is allowed, else undecodable."""

    def optional(
        body: bytes, a: Annotated[str | None, Header("a")], k: Annotated[bytes | None, Key]
    ) -> object:
        return a, k

    def default(
        body: bytes,
        a: Annotated[str | None, Header("a")] = "none",
        n: Annotated[int, Header("n")] = 3,
        k: Annotated[str, Key] = "nobody",
    ) -> object:
        return a, n, k

    def header(body: bytes, a: Annotated[str, Header("a")]) -> None: ...
    def key(body: bytes, k: Annotated[str, Key]) -> None: ...

    missing = Raw(key=None)
    assert result_of(optional, missing) == (None, None)
    assert result_of(default, missing) == ("none", 3, "nobody")
    assert result_of(default, Raw(headers=[("n", b"5")])) == ("none", 5, "k")
    with pytest.raises(DecodeError, match="parameter a: the record has no header 'a'; give"):
        arguments_of(header, missing)
    with pytest.raises(DecodeError, match="parameter k: the record has no key; give"):
        arguments_of(key, missing)


def test_a_header_without_a_value_counts_as_missing() -> None:
    """Kafka allows null there; it must not crash a decoder."""

    def handler(body: bytes, a: Annotated[str | None, Header("a")]) -> object:
        return a

    null: Any = [("a", None)]
    assert result_of(handler, Raw(headers=null)) is None


def test_keys_and_headers_are_decoded_by_their_type() -> None:
    """Numbers from text, metadata of pydantic kept, failures are DecodeErrors of that parameter."""

    def handler(n: Annotated[int, Header("n"), Field(gt=3)], order: Order) -> object:
        return n

    assert result_of(handler, Raw(headers=[("n", b"5")])) == 5
    for wrong in (b"3", b"x", b"\xff"):
        with pytest.raises(DecodeError, match="parameter n"):
            arguments_of(handler, Raw(headers=[("n", wrong)]))


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_random_bytes_raise_nothing_but_decode_errors(value: bytes, key: bytes, header: bytes) -> None:
    """Arguments of a poisonous record fail in one way only."""

    def handler(order: Order, k: Annotated[int, Key], h: Annotated[str, Header("h")]) -> None: ...

    problem = ""
    try:
        arguments_of(handler, Raw(key=key, value=value, headers=[("h", header)]))
    except DecodeError as error:
        problem = str(error)
    assert "\n" not in problem


def test_a_decoder_makes_the_payload_whatever_the_annotation() -> None:
    """Avro, Protobuf and registries come in this way; the annotation is only read for its None."""

    def decoder(topic: str, raw: RawRecord) -> object:
        return topic, raw.offset

    def handler(order: types.SimpleNamespace, record: Record) -> object:
        return order

    def optional(order: types.SimpleNamespace | None) -> object:
        return order

    assert result_of(handler, decoder=decoder) == ("orders", 7)
    with pytest.raises(TombstoneError):
        arguments_of(handler, Raw(value=None), decoder=decoder)
    assert result_of(optional, Raw(value=None), decoder=decoder) is None


def test_a_failing_decoder_is_a_decode_error() -> None:
    """Its own DecodeError passes through; all else is chained, its text is not repeated."""

    def raises(topic: str, raw: RawRecord) -> object:
        raise KeyError("secret")

    def refuses(topic: str, raw: RawRecord) -> object:
        raise DecodeError("schema 7 is unknown")

    async def coroutine() -> None: ...

    def handler(order: object) -> None: ...

    with pytest.raises(DecodeError, match="parameter order: the decoder raised KeyError") as caught:
        arguments_of(handler, decoder=raises)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "secret" not in str(caught.value)
    with pytest.raises(DecodeError, match="schema 7 is unknown"):
        arguments_of(handler, decoder=refuses)
    with pytest.raises(DecodeError, match="declare it with `async def`"):
        arguments_of(handler, decoder=lambda _topic, _raw: coroutine())


async def test_an_async_decoder_is_awaited() -> None:
    """The same rules, in the worker's loop."""

    async def decoder(topic: str, raw: RawRecord) -> object:
        await asyncio.sleep(0)
        if raw.offset == 0:
            raise KeyError("secret")
        if raw.offset == 1:
            raise DecodeError("schema 7 is unknown")
        return topic, raw.offset

    def handler(order: types.SimpleNamespace, *, record: Record) -> None: ...

    plan = plan_of(handler, decoder=decoder)
    assert plan.is_async_decoder
    bound = plan.bind_async(STATE)
    assert await bound("orders", 3, Raw(), 2, 5) == ((("orders", 7),), {"record": RECORD})
    with pytest.raises(DecodeError, match="the decoder raised KeyError"):
        await bound("orders", 3, Raw(offset=0), 2, 5)
    with pytest.raises(DecodeError, match="schema 7 is unknown"):
        await bound("orders", 3, Raw(offset=1), 2, 5)
    with pytest.raises(TombstoneError):
        await bound("orders", 3, Raw(value=None), 2, 5)


async def test_an_async_decoder_is_not_asked_for_a_tombstone() -> None:
    """None is passed on where the annotation allows it."""

    async def decoder(topic: str, raw: RawRecord) -> object:
        raise AssertionError

    def handler(order: types.SimpleNamespace | None) -> None: ...

    bound = plan_of(handler, decoder=decoder).bind_async(STATE)
    assert await bound("orders", 3, Raw(value=None), 2, 5) == ((None,), {})


async def test_a_cancelled_decoder_stays_cancelled() -> None:
    """A revoke cancels the worker: that is no undecodable record."""
    started = asyncio.Event()

    async def decoder(topic: str, raw: RawRecord) -> object:
        started.set()
        return await asyncio.Event().wait()

    def handler(order: object) -> None: ...

    bound = plan_of(handler, decoder=decoder).bind_async(STATE)
    task = asyncio.ensure_future(bound("orders", 3, Raw(), 2, 5))
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


def test_the_two_binds_refuse_each_others_plans() -> None:
    """A coroutine taken for arguments would be a confusing failure at the first record."""

    async def decoder(topic: str, raw: RawRecord) -> object: ...

    def decoded(order: object) -> None: ...
    def plain(order: object) -> None: ...

    with pytest.raises(TypeError, match="use bind_async"):
        plan_of(decoded, decoder=decoder).bind(STATE)
    with pytest.raises(TypeError, match="use bind"):
        plan_of(plain).bind_async(STATE)


def test_a_wrapped_handler_is_read_through_its_wrapper() -> None:
    """functools.wraps keeps the signature; the wrapper is what runs."""

    def handler(order: Order, *, record: Record) -> object:
        return order

    @functools.wraps(handler)
    def timed(*args: Any, **kwargs: Any) -> object:
        return "timed", handler(*args, **kwargs)

    assert result_of(timed) == ("timed", Order(id=1))


def test_annotations_that_are_objects_or_nested_strings_work() -> None:
    """With and without `from __future__ import annotations`, also inside of generics."""

    def handler(order, record) -> object:  # type: ignore[no-untyped-def]
        return order, record

    handler.__annotations__ = {"order": Optional["Order"], "record": Record, "return": "Nowhere"}
    assert result_of(handler) == (Order(id=1), RECORD)
    assert plan_of(handler).accepts_none


def test_a_return_annotation_need_not_resolve() -> None:
    """Only parameters are read."""

    def handler(order: Order) -> OnlyForTypes: ...  # type: ignore[empty-body]

    assert plan_of(handler).accepts_none is False


# Deliberately wrong handlers; each is refused when the app starts.
def _two_payloads(order: Order, customer: dict[str, str]) -> None: ...
def _star(order: Order, *rest: bytes) -> None: ...
def _stars(order: Order, **rest: bytes) -> None: ...
def _unresolvable(order: OnlyForTypes) -> None: ...
def _nonsense(order: Order, x: "not a type") -> None: ...  # type: ignore[valid-type]  # noqa: F722
def _bare_key(order: Order, key: Key) -> None: ...
def _bare_header(order: Order, trace: Header) -> None: ...
def _nameless_header(order: Order, trace: Annotated[str, Header]) -> None: ...
def _empty_header(order: Order, trace: Annotated[str, Header("")]) -> None: ...
def _two_markers(order: Order, trace: Annotated[str, Header("a"), Key]) -> None: ...
def _outer_none(order: Order, trace: Annotated[str, Header("a")] | None) -> None: ...
def _default_payload(body: bytes | None = None) -> None: ...
def _undecodable(order: types.SimpleNamespace) -> None: ...
def _undecodable_header(order: Order, trace: Annotated[types.SimpleNamespace, Header("a")]) -> None: ...
def _method(self, order: Order) -> None: ...  # type: ignore[no-untyped-def]
def _only_none(order: None) -> None: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (_two_payloads, r"parameter customer: 'order' takes the payload already; annotate it with Annotated"),
        (_star, r"parameter \*rest"),
        (_stars, r"parameter \*\*rest"),
        (_unresolvable, r"parameter order: annotation 'OnlyForTypes' cannot be resolved: .*TYPE_CHECKING"),
        (_nonsense, "parameter x: annotation"),
        (_bare_key, r"parameter key: say which type .*Annotated\[str, Key\]"),
        (_bare_header, r'parameter trace: say which type .*Header\("name"\)'),
        (_nameless_header, "parameter trace: Header needs a name"),
        (_empty_header, "parameter trace: Header needs a name"),
        (_two_markers, "parameter trace: has two markers"),
        (_outer_none, r"parameter trace: put the None inside"),
        (_default_payload, "parameter body: has a default, so that it is no payload; remove"),
        (_undecodable, "parameter order: SimpleNamespace cannot be decoded"),
        (_undecodable_header, "parameter trace: SimpleNamespace cannot be decoded"),
        (_method, "parameter self: a method cannot handle records"),
        (_only_none, "parameter order: None is no type"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_signatures_fail_at_start_with_the_fix(handler: Callable[..., object], message: str) -> None:
    """One line: which handler, which parameter, what to write."""
    with pytest.raises(HandlerError, match=message) as caught:
        plan_of(handler)
    text = str(caught.value)
    assert text.startswith(f"handler {__name__}.{handler.__name__}, parameter ")
    assert "\n" not in text


def test_a_decoder_without_a_payload_parameter_is_refused() -> None:
    """Its work would be thrown away."""

    def handler(record: Record) -> None: ...

    with pytest.raises(HandlerError, match="decoder= has no parameter to fill"):
        plan_of(handler, decoder=lambda _topic, _raw: 1)


def test_a_second_payload_with_the_marker_it_was_told_works() -> None:
    """The fix that the message names is a fix."""

    def handler(order: Order, customer: Annotated[str, Key]) -> object:
        return customer

    assert result_of(handler) == "k"


def test_a_signature_that_cannot_be_read_is_refused() -> None:
    """A broken `__signature__` is the user's mistake, told like one."""

    def handler(order: Order) -> None: ...

    handler.__signature__ = 3  # type: ignore[attr-defined]
    with pytest.raises(HandlerError, match="signature cannot be read"):
        plan_of(handler)


def test_the_optional_spellings_of_record_are_the_record() -> None:
    """A default of None helps unit tests; the engine always passes the record."""

    def handler(order: Order, record: typing.Optional[Record] = None, ctx: Context | None = None) -> object:  # noqa: UP045
        return record, ctx is not None

    assert result_of(handler) == (RECORD, True)
