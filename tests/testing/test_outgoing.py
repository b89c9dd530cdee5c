"""What a test sends, as bytes."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from asyncpar.testing.outgoing import header_pairs, key_bytes, payload


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Line:
    cents: Decimal
    colour: Colour


class Bill(BaseModel):
    lines: list[Line]


class Tag(msgspec.Struct, tag="tag"):
    name: str


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        ("\N{SNOWMAN}", "\N{SNOWMAN}".encode()),
        (None, None),
        (True, b"true"),
        (1.5, b"1.5"),
        ([1, None], b"[1,null]"),
        (datetime(2026, 1, 2, tzinfo=UTC), b'"2026-01-02T00:00:00Z"'),
        (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (Bill(lines=[Line(Decimal("2.50"), Colour.RED)]), b'{"lines":[{"cents":"2.50","colour":"red"}]}'),
        (Tag("x"), b'{"type":"tag","name":"x"}'),
        ({"tags": [Tag("x")]}, b'{"tags":[{"type":"tag","name":"x"}]}'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_payloads_by_their_type(value: Any, sent: bytes | None) -> None:
    """Bytes stay, text is UTF-8, None is a tombstone, and everything else is the JSON of its own library."""
    assert payload(value) == sent


def test_keys_and_headers_are_text_or_bytes() -> None:
    """Both forms of either; anything else is named in the error."""
    assert (key_bytes("a"), key_bytes(b"a"), key_bytes(None)) == (b"a", b"a", None)
    assert header_pairs({"a": "1"}) == header_pairs([("a", b"1")]) == [("a", b"1")]
    with pytest.raises(TypeError, match="header 'a' is text or bytes, not int"):
        header_pairs({"a": 1})  # type: ignore[dict-item]
