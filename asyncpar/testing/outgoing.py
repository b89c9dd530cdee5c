"""What a test sends, as bytes: payloads by their type, keys and headers as text or bytes.

Pure. Called by `TestApp.send`. Always: the inverse of what a handler's annotation reads, so that a test
sends the very object that its handler gets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic_core import PydanticSerializationError, to_json

Text: TypeAlias = str | bytes
Headers: TypeAlias = Mapping[str, Text] | Iterable[tuple[str, Text]]


def payload(value: object) -> bytes | None:
    """`value` as a record's value: bytes as they are, str as UTF-8, None a tombstone, all else as JSON.

    JSON is made of dicts, lists, numbers, dates, dataclasses, pydantic models and msgspec Structs. TypeError
    for what none of it knows.
    """
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if _is_struct(value):
        import msgspec

        return msgspec.json.encode(value)
    try:
        return to_json(value, fallback=_inner)
    except PydanticSerializationError as error:
        raise TypeError(
            f"{_kind(value)} cannot be sent ({error}); give bytes, str, None or what JSON can hold"
        ) from None


def _inner(value: Any) -> object:
    """A Struct inside of something else, in plain types."""
    if not _is_struct(value):
        raise PydanticSerializationError(f"it holds {_kind(value)}")
    import msgspec

    return msgspec.to_builtins(value)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _is_struct(value: object) -> bool:
    # Who has a Struct has imported msgspec already.
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and isinstance(value, msgspec.Struct)


def key_bytes(key: Text | None) -> bytes | None:
    """A key; TypeError for anything but text, bytes and None."""
    return None if key is None else _encoded(key, "a key")


def header_pairs(headers: Headers) -> Sequence[tuple[str, bytes]]:
    """Headers, from a mapping or from pairs (which may repeat a name)."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(name, _encoded(value, f"header {name!r}")) for name, value in pairs]


def _encoded(value: Text, what: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise TypeError(f"{what} is text or bytes, not {type(value).__name__}")
