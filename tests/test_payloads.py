"""Every decoder, and what each says when bytes do not fit."""

from __future__ import annotations

import enum
import json
import logging
import sys
import typing
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NewType, NotRequired, Union

import msgspec
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from asyncpar.errors import DecodeError, HandlerError, TombstoneError
from asyncpar.payloads import RAW, accepts_none, decoder_for, is_raw, text_decoder_for

WHERE = "handler bill, parameter order"
SECRET = "4111-1111-1111-1111"
CustomerId = NewType("CustomerId", str)
Body = NewType("Body", bytes)


class Line(BaseModel):
    price: int


class Order(BaseModel):
    id: int
    lines: list[Line] = []


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    card: str = ""

    @field_validator("card")
    @classmethod
    def _refuse(cls, card: str) -> str:
        if card.startswith("bad"):
            raise ValueError(f"no such card: {card}")
        if card.startswith("4"):
            raise KeyError(card)
        return card


@dataclass
class Point:
    x: int
    y: float = 0.0


class Old(typing.TypedDict):
    id: int
    note: NotRequired[str]


class OldNested(typing.TypedDict, total=False):
    inner: Old
    many: list[Old]
    tagged: Annotated[Old, Field(description="x")]


class Modern(typing_extensions.TypedDict):
    id: int


class Struct(msgspec.Struct):
    id: int
    tags: list[str] = []


class Color(enum.Enum):
    RED = "red"


JSON_ANNOTATIONS: list[Any] = [
    dict,
    list,
    dict[str, Any],
    dict[str, int],
    list[Order],
    Order,
    Strict,
    Point,
    Old,
    OldNested,
    Modern,
    Struct,
    list[Struct],
    int,
    float,
    bool,
    datetime,
    uuid.UUID,
    Color,
    Literal["a", "b"],
    int | str,
    tuple[int, str],
    Annotated[int, Field(gt=3)],
]
ANNOTATIONS: list[Any] = [
    *JSON_ANNOTATIONS,
    str,
    bytes,
    CustomerId,
    Body,
    Annotated[str, Field(max_length=3)],
    Annotated[bytes, Field(max_length=3)],
    Order | None,
    str | None,
]
DECODERS = [decoder_for(annotation, where=WHERE) for annotation in ANNOTATIONS]
TEXT_DECODERS = [text_decoder_for(annotation, where=WHERE) for annotation in ANNOTATIONS]


def decode(annotation: object, value: bytes | None) -> object:
    """One decode by a fresh decoder."""
    return decoder_for(annotation, where=WHERE)(value)


@pytest.mark.parametrize("annotation", [Any, object, bytes | None, Body | None], ids=str)
def test_raw_payloads_are_not_wrapped(annotation: object) -> None:
    """Bytes that may be None are the sentinel itself, which a worker need not call."""
    assert decoder_for(annotation, where=WHERE) is RAW
    assert is_raw(RAW)
    assert RAW(None) is None


@pytest.mark.parametrize("annotation", [bytes, Body], ids=str)
def test_bytes_are_passed_on_and_a_tombstone_is_refused(annotation: object) -> None:
    """The same object comes back; only None needs the call."""
    decoder = decoder_for(annotation, where=WHERE)
    value = bytes(bytearray(b"abc"))
    assert is_raw(decoder)
    assert decoder(value) is value
    with pytest.raises(TombstoneError):
        decoder(None)


def test_every_other_decoder_is_not_raw() -> None:
    """A worker that skipped one of these would hand over bytes."""
    raw = {str(a) for a, d in zip(ANNOTATIONS, DECODERS, strict=True) if is_raw(d)}
    assert raw == {str(bytes), str(Body)}


@given(st.text())
def test_text_round_trips(text: str) -> None:
    """str, its NewTypes and optional str are UTF-8."""
    for annotation in (str, CustomerId, str | None):
        assert decode(annotation, text.encode()) == text


@given(
    st.dictionaries(st.text(), st.one_of(st.integers(-(2**70), 2**70), st.text(), st.none(), st.booleans()))
)
def test_json_objects_round_trip(value: dict[str, object]) -> None:
    """What json writes, a dict reads back."""
    encoded = json.dumps(value).encode()
    assert decode(dict, encoded) == value
    assert decode(dict[str, Any], encoded) == value


@given(st.integers(-(2**60), 2**60), st.lists(st.integers(-(2**60), 2**60), max_size=5))
def test_models_round_trip(number: int, prices: list[int]) -> None:
    """Models, dataclasses, TypedDicts and Structs read what was written."""
    order = Order(id=number, lines=[Line(price=price) for price in prices])
    assert decode(Order, order.model_dump_json().encode()) == order
    assert decode(Point, json.dumps(asdict(Point(number))).encode()) == Point(number)
    assert decode(Old, b'{"id": %d}' % number) == {"id": number}
    assert decode(Modern, b'{"id": %d}' % number) == {"id": number}
    struct = Struct(number, [str(price) for price in prices])
    assert decode(Struct, msgspec.json.encode(struct)) == struct
    assert decode(list[Struct], msgspec.json.encode([struct])) == [struct]


def _problem(decoder: Callable[[bytes], object], value: bytes) -> str:
    """What a decoder says of `value`; any other exception is the test's failure."""
    try:
        decoder(value)
    except DecodeError as error:
        return str(error)
    return ""


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_decode_errors(value: bytes) -> None:
    """A poisonous record must never look like an engine's failure."""
    for decoder in (*DECODERS, *TEXT_DECODERS):
        assert "\n" not in _problem(decoder, value)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "lines", "price", "x", "inner", "card", "tags"]), inner)
    ),
    max_leaves=8,
)


@given(_JSON)
def test_random_json_raises_nothing_but_decode_errors(value: object) -> None:
    """As random bytes, past the parser."""
    encoded = json.dumps(value).encode()
    for decoder in DECODERS:
        assert "\n" not in _problem(decoder, encoded)


@pytest.mark.parametrize("value", [b"[" * 100_000, b"9" * 5000, b'{"id":' + b"9" * 5000 + b"}"], ids=len)
def test_hostile_json_raises_decode_errors(value: bytes) -> None:
    """Deep nesting and huge numbers stop at the parser's own limits."""
    for annotation, decoder in zip(ANNOTATIONS, DECODERS, strict=True):
        if annotation in JSON_ANNOTATIONS and annotation is not float:
            with pytest.raises(DecodeError):
                decoder(value)


@pytest.mark.parametrize("annotation", [Order, str, dict, Struct, Point, Old, int, bytes], ids=str)
def test_none_needs_an_annotation_that_allows_it(annotation: Any) -> None:
    """A tombstone is None for `X | None`, and an error of its own that names both fixes otherwise."""
    with pytest.raises(TombstoneError, match=r'parameter order: .*`\| None`.*tombstones="skip"'):
        decode(annotation, None)
    assert decode(annotation | None, None) is None
    assert not accepts_none(annotation)
    assert accepts_none(annotation | None)


def test_an_optional_payload_is_decoded_like_the_payload() -> None:
    """`| None` changes nothing for values; JSON null is a None as well."""
    assert decode(Order | None, b'{"id": 1}') == Order(id=1)
    assert decode(Struct | None, b'{"id": 1}') == Struct(1)
    assert decode(Order | None, b"null") is None
    assert decode(str | None, b"null") == "null"
    assert decode(Annotated[str, Field(max_length=4)] | None, b"null") == "null"
    assert accepts_none(Annotated[int | None, Field()])


def test_old_typed_dicts_work_wherever_they_are_reached() -> None:
    """Before 3.12 pydantic refuses typing.TypedDict; here it works at the top, in lists and in fields."""
    assert decode(Old, b'{"id": 1, "note": "x"}') == {"id": 1, "note": "x"}
    assert decode(list[Old], b'[{"id": 1}]') == [{"id": 1}]
    assert decode(Old | int, b'{"id": 1}') == {"id": 1}
    assert decode(OldNested, b"{}") == {}
    nested = {"inner": {"id": 1}, "many": [{"id": 2}], "tagged": {"id": 3}}
    assert decode(OldNested, json.dumps(nested).encode()) == nested
    with pytest.raises(DecodeError, match="missing at id"):
        decode(Old, b"{}")


def test_metadata_of_pydantic_is_checked_on_text_and_bytes() -> None:
    """`Annotated[str, Field(...)]` stays text; it does not become JSON."""
    short = Annotated[str, Field(max_length=3)]
    assert decode(short, b"abc") == "abc"
    assert decode(Annotated[bytes, Field(max_length=3)], b"abc") == b"abc"
    with pytest.raises(DecodeError, match="string too long"):
        decode(short, b"abcd")
    with pytest.raises(DecodeError, match="not UTF-8 at byte 1"):
        decode(short, b"a\xff")


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Order, b'{"id": 1, "lines": [{}]}', "does not fit Order: missing at lines.0.price"),
        (Order, b'{"id": "x"}', "does not fit Order: int parsing at id"),
        (Order, b"{", "does not fit Order: json invalid"),
        (dict, b"[]", "does not fit dict: dict type"),
        (str, b"ab\xff", "not UTF-8 at byte 2"),
        (Struct, b'{"id": "x"}', r"does not fit Struct: Expected `int`, got `str` - at `\$.id`"),
        (Struct, b"{}", "Object missing required field `id`"),
        (Struct, b"{", "does not fit Struct"),
    ],
    ids=str,
)
def test_a_message_names_handler_type_and_first_problem(annotation: Any, value: bytes, message: str) -> None:
    """One short line: where, which type, what, at which field."""
    with pytest.raises(DecodeError, match=message) as caught:
        decode(annotation, value)
    assert str(caught.value).startswith(WHERE)


class Tagged(msgspec.Struct, tag_field="kind"):
    id: int


class StructOfColor(msgspec.Struct):
    color: Color


def _leaks(decoder: Callable[[bytes], object], value: bytes) -> str:
    """Everything that a log line with the traceback would show."""
    with pytest.raises(DecodeError) as caught:
        decoder(value)
    formatter = logging.Formatter()
    return formatter.formatException((caught.type, caught.value, caught.tb))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, SECRET.encode()),
        (Order, b'{"id": "%s"}' % SECRET.encode()),
        (Strict, b'{"card": "bad %s"}' % SECRET.encode()),
        (str, b"\xff" + SECRET.encode()),
        (Annotated[str, Field(max_length=3)], SECRET.encode()),
        (Literal["a"], b'"%s"' % SECRET.encode()),
        (Color, b'"%s"' % SECRET.encode()),
        (Struct, b'{"id": "%s"}' % SECRET.encode()),
        (StructOfColor, b'{"color": "%s"}' % SECRET.encode()),
        (Tagged, b'{"kind": "%s", "id": 1}' % SECRET.encode()),
        (Struct, b"\xff" + SECRET.encode()),
    ],
    ids=str,
)
def test_neither_message_nor_traceback_shows_the_payload(annotation: Any, value: bytes) -> None:
    """Payloads may be secrets; what the libraries quote of them must not reach a log."""
    source = _leaks(decoder_for(annotation, where=WHERE), value)
    assert SECRET not in source
    assert "During handling" not in source


def test_what_a_validator_of_the_user_raises_is_a_chained_decode_error() -> None:
    """An exception that pydantic passes through is still only an undecodable record."""
    with pytest.raises(DecodeError, match="reading Strict raised KeyError") as caught:
        decode(Strict, b'{"card": "4"}')
    assert isinstance(caught.value.__cause__, KeyError)


class Raising(msgspec.Struct):
    id: int

    def __post_init__(self) -> None:
        raise KeyError(self.id)


def test_what_a_struct_of_the_user_raises_is_a_chained_decode_error() -> None:
    """What its hooks raise passes through msgspec, too."""
    with pytest.raises(DecodeError, match="reading Raising raised KeyError"):
        decode(Raising, b'{"id": 1}')


def test_an_alias_is_the_type_behind_it() -> None:
    """`type Text = str` is text, not JSON."""
    alias: Any = typing_extensions.TypeAliasType("alias", str)
    assert decode(alias, b"x") == "x"


def test_msgspec_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra nothing imports it."""
    monkeypatch.delitem(sys.modules, "msgspec")
    assert decode(list[Order], b'[{"id": 1}]') == [Order(id=1)]
    assert "msgspec" not in sys.modules


class Unfinished(BaseModel):
    later: NotDefinedAnywhere  # type: ignore[name-defined]  # noqa: F821


class OldTree(typing.TypedDict):
    children: list[OldTree]


class Plain:
    pass


class StructOfPlain(msgspec.Struct):
    plain: Plain
    unknown: Callable[[], int]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Plain, "Plain cannot be decoded"),
        pytest.param(
            OldTree,
            "OldTree cannot be decoded: Please use `typing_extensions.TypedDict`",
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes it from 3.12 on"),
        ),
        (Unfinished, "Unfinished cannot be decoded: .*NotDefinedAnywhere|not fully defined"),
        (bytearray, "use bytes"),
        (memoryview | None, "use bytes"),
        (bytes | str, "choose one type"),
        (bytes | Order | None, "choose one type"),
        (None, "no type for a payload"),
        (type(None), "no type for a payload"),
        (Annotated[str | None, Field(max_length=3)], "put the metadata on the type inside"),
        (Struct | StructOfPlain, "cannot be decoded"),
    ],
    ids=str,
)
def test_types_that_cannot_be_decoded_are_refused_at_start(annotation: object, message: str) -> None:
    """The message names handler, parameter and what to use instead."""
    with pytest.raises(HandlerError, match=message) as caught:
        decoder_for(annotation, where=WHERE)
    assert str(caught.value).startswith(WHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (int, b"12", 12),
        (int | None, b"12", 12),
        (float, b"1.5", 1.5),
        (bool, b"true", True),
        (str, b"12", "12"),
        (bytes, b"12", b"12"),
        (object, b"12", b"12"),
        (CustomerId, b"12", "12"),
        (uuid.UUID, b"00000000-0000-0000-0000-000000000001", uuid.UUID(int=1)),
        (datetime, b"2024-01-02T03:04:05", datetime(2024, 1, 2, 3, 4, 5)),  # noqa: DTZ001 - as it is written
        (Color, b"red", Color.RED),
        (Literal["a"], b"a", "a"),
        (dict, b'{"a": 1}', {"a": 1}),
        (list[int], b"[1]", [1]),
        (Order, b'{"id": 1}', Order(id=1)),
        (Order | None, b'{"id": 1}', Order(id=1)),
        (Point, b'{"x": 1}', Point(1)),
        (Old, b'{"id": 1}', {"id": 1}),
        (Struct, b'{"id": 1}', Struct(1)),
        (Annotated[int, Field(gt=3)], b"4", 4),
    ],
    ids=str,
)
def test_keys_and_headers_are_text_and_structures_are_json(
    annotation: Any, text: bytes, expected: object
) -> None:
    """A UUID or an enum in a header has no quotes; an object is JSON there as well."""
    assert text_decoder_for(annotation, where=WHERE)(text) == expected


def test_text_that_does_not_fit_is_a_decode_error() -> None:
    """Headers fail like payloads."""
    with pytest.raises(DecodeError, match="int parsing"):
        text_decoder_for(int, where=WHERE)(b"twelve")
    with pytest.raises(DecodeError, match="not UTF-8 at byte 0"):
        text_decoder_for(int, where=WHERE)(b"\xff")


def test_a_union_in_the_old_spelling_is_the_same() -> None:
    """Union and Optional of typing are unions, too."""
    assert accepts_none(Union[int, None])  # noqa: UP007 - the spelling is the point
    assert decode(typing.Optional[str], b"x") == "x"  # noqa: UP045 - the spelling is the point
