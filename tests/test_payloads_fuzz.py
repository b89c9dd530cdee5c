"""Hostile payloads, keys and headers: every outcome is a value of the type asked for, or a DecodeError."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import typing
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncpar.context import header_reader, key_reader
from asyncpar.errors import DecodeError
from asyncpar.payloads import decoder_for, text_decoder_for

WHERE = "handler bill, parameter order"
LONGEST_MESSAGE = 500
_MISSING = "missing"


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    id: int = 0
    next: Model | None = None
    tags: dict[str, int] = {}
    at: datetime.datetime | None = None


class Struct(msgspec.Struct, forbid_unknown_fields=True):
    id: int = 0
    next: Struct | None = None
    tags: dict[str, int] = {}
    at: datetime.datetime | None = None


@dataclasses.dataclass
class Data:
    id: int = 0
    next: Data | None = None
    tags: dict[str, float] = field(default_factory=dict)


class Old(typing.TypedDict, total=False):
    id: int
    tags: dict[str, int]


class Modern(typing_extensions.TypedDict):
    id: int
    next: typing_extensions.NotRequired[Modern]


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


STRUCTURES: list[Any] = [
    dict,
    dict[str, Any],
    dict[str, int],
    dict[int, float],
    dict[datetime.date, bool],
    list,
    list[Model],
    tuple[int, str],
    set[int],
    Model,
    Struct,
    list[Struct],
    dict[str, Struct],
    Data,
    Old,
    Modern,
    Model | None,
    Model | list[int],
]
SCALARS: list[Any] = [
    int,
    float,
    bool,
    decimal.Decimal,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    ipaddress.IPv4Address,
    complex,
    Colour,
    Literal["a", 1],
    int | str,
    Annotated[int, pydantic.Field(gt=3)],
]
TEXTS: list[Any] = [str, bytes, str | None, Annotated[str, pydantic.Field(max_length=3)]]
DECODERS: dict[str, Callable[[bytes], object]] = {
    f"{form.__name__} {annotation}": form(annotation, where=WHERE)
    for form in (decoder_for, text_decoder_for)
    for annotation in (*STRUCTURES, *SCALARS, *TEXTS)
}


def bounded(examples: int) -> settings:
    """The same examples in every run, and no more of them than the suite has time for."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def outcome(decode: Callable[[Any], object], value: Any) -> object:
    """What came of it: a value, or the DecodeError. What else is raised is the test's failure."""
    try:
        return decode(value)
    except DecodeError as error:
        message = str(error)
        assert message.startswith(WHERE)
        assert message.isprintable(), message
        assert len(message) < LONGEST_MESSAGE
        return error


def try_all(value: bytes) -> None:
    """`value` through every decoder; one that accepts text gives nothing that cannot be written again."""
    for name, decode in DECODERS.items():
        found = outcome(decode, value)
        if isinstance(found, str):
            assert found.encode() == value or name.endswith("int | str")


# -- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 200_000,
        b'{"next":' * 100_000,
        b'{"next":' * 100_000 + b"null" + b"}" * 100_000,
        b'{"next":' * 150 + b"null" + b"}" * 150,
        b'{"tags":' * 500 + b"{}" + b"}" * 500,
        b"9" * 100_000,
        b"-" + b"9" * 5_000,
        b'{"id":' + b"9" * 100_000 + b"}",
        b"1e999999999",
        b"0." + b"0" * 10_000 + b"1",
        b'"' + b"\\u0000" * 10_000 + b'"',
        b'"' + b"a" * 1_000_000 + b'"',
        b"[" + b"1," * 50_000 + b"1]",
        b'{"' + b"k" * 100_000 + b'": 1}',
        b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(5_000)) + b"}",
    ],
    ids=lambda value: f"{value[:12]!r} {len(value)}",
)
def test_huge_and_deep_values_stop_at_a_limit(value: bytes) -> None:
    """Nesting, digits and lengths beyond reason end as a value or as an error, nowhere else."""
    try_all(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"\x00",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"null",
        b"NaN",
        b"-Infinity",
        b'{"id": NaN}',
        b'{"tags": {"a": Infinity}}',
        b'{"id": 1e400}',
        b'{"id": 1, "id": "x"}',
        b'{"id": "x", "id": 1}',
        b'{"\\ud800": 1}',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'{"a": "\xed\xa0\x80"}',
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b'{"id": 1}{"id": 2}',
        b'{"id": 1} x',
        b'{"at": "0000-00-00T99:99:99Z"}',
        b'{"at": 99999999999999999999}',
        b"253402300800",
        b"P99999999999999999D",
        b"24:00:00",
        b"\xd9\xa1",
        b"1_000",
        b"0x10",
        b" 7 ",
        b"+7",
        b"(1+2j)",
        b"__import__('os')",
    ],
    ids=repr,
)
def test_odd_values_are_values_or_errors(value: bytes) -> None:
    """What other languages write, or what JSON leaves open, breaks no decoder."""
    try_all(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'{"\\u0000": "\\u2028"}', {"\x00": "\u2028"}),
    ],
)
def test_what_json_leaves_open_is_settled(value: bytes, expected: object) -> None:
    """Of two equal keys the last wins, long integers are exact, and control characters are text."""
    assert decoder_for(dict, where=WHERE)(value) == expected


def test_a_dict_takes_not_a_number() -> None:
    """NaN and Infinity, unknown to JSON, are floats in an untyped dict; typed integers refuse them."""
    found = decoder_for(dict, where=WHERE)(b'{"a": NaN, "b": -Infinity}')
    assert isinstance(found, dict)
    assert math.isnan(found["a"])
    assert found["b"] == -math.inf
    assert isinstance(outcome(DECODERS[f"decoder_for {dict[str, int]}"], b'{"a": NaN}'), DecodeError)


@pytest.mark.parametrize("annotation", [dict[str, int], Model, Data, Old, Modern, Struct], ids=str)
def test_the_names_of_a_payload_cannot_forge_a_log_line(annotation: Any) -> None:
    """Line breaks and a terminal's commands in the sender's field names do not get into the message."""
    names = {"tags": {"x\nERROR forged": "y"}, "x\n\x1b[31m\u2028": "y", "\u202egnp": "y"}
    decode = decoder_for(annotation, where=WHERE)
    for name, value in names.items():
        outcome(decode, json.dumps({"id": 1, name: value}).encode())


# -- by hypothesis -------------------------------------------------------------------------------

_NAMES = st.one_of(
    st.sampled_from(["id", "next", "tags", "at", "a", "1"]),
    st.text(max_size=6),
    st.text("\n\x1b\u2028", max_size=3),
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=8),
    st.datetimes().map(str),
    st.uuids().map(str),
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@bounded(150)
@given(st.binary(max_size=80))
def test_any_bytes(value: bytes) -> None:
    """Random bytes."""
    try_all(value)


@bounded(150)
@given(st.text(max_size=40), st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-32"]))
def test_any_text_in_any_encoding(text: str, encoding: str) -> None:
    """What producers of other encodings send."""
    try_all(text.encode(encoding, "replace"))


@bounded(200)
@given(_JSON, st.booleans())
def test_any_json(value: object, ascii_only: bool) -> None:
    """Well-formed JSON of the wrong shape, NaN and Infinity included."""
    try_all(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@bounded(150)
@given(_JSON, st.data())
def test_any_damaged_json(value: object, data: st.DataObject) -> None:
    """JSON that was cut off, or in which one byte was changed."""
    whole = bytearray(json.dumps(value).encode())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    try_all(bytes(whole))
    try_all(bytes(whole[:at]))


_NESTS = [(b'{"next":', b"}"), (b"[", b"]"), (b'{"tags":{"a":', b"}}"), (b'[{"next":', b"}]")]


@bounded(60)
@given(st.integers(1, 3_000), st.sampled_from(_NESTS))
def test_any_depth(depth: int, nest: tuple[bytes, bytes]) -> None:
    """The limit of depth is met softly, wherever it lies."""
    try_all(nest[0] * depth + b"null" + nest[1] * depth)


# -- keys and headers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """A record as a client delivers it, with nothing promised about its parts."""

    key: bytes | None = None
    headers: Sequence[tuple[Any, Any]] = ()
    offset: int = 0
    value: bytes | None = None
    timestamp: int = -1
    timestamp_type: int = 0


_TEXT_DECODERS = [
    text_decoder_for(annotation, where=WHERE) for annotation in (*SCALARS, *TEXTS, Model, Struct)
]


@bounded(200)
@given(st.one_of(st.none(), st.binary(max_size=40), st.text(max_size=10).map(str.encode)))
def test_any_key(key: bytes | None) -> None:
    """A key is missing, a value, or a DecodeError."""
    for decode in _TEXT_DECODERS:
        found = outcome(key_reader(decode, lambda: _MISSING), Raw(key=key))
        assert found is not None if key is not None else found == _MISSING


@bounded(200)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(["trace", "Trace", ""]), st.text(max_size=6), st.just("tr\udce4ce")),
            st.one_of(st.none(), st.binary(max_size=20)),
        ),
        max_size=6,
    )
)
def test_any_headers(headers: list[tuple[str, bytes | None]]) -> None:
    """The last header of the name counts; one without a value is missing; odd names harm nobody."""
    mine = [value for name, value in headers if name == "trace"]
    for decode in _TEXT_DECODERS:
        found = outcome(header_reader("trace", decode, lambda: _MISSING), Raw(headers=headers))
        if not mine or mine[-1] is None:
            assert found == _MISSING
        else:
            assert isinstance(found, DecodeError) or repr(found) == repr(decode(mine[-1]))
