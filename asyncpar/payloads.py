"""Bytes to the annotated type: payloads, and the text of keys and headers.

A decoder is built once, at start, and called per record by the workers; `signatures.py` is the only
caller of the builders. A decoder raises DecodeError and nothing else. No message and no chained error
of a decoder of ours holds the payload: values may be secrets, so only the type, the kind of problem and
the location are told. What a user's own validator raised is chained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias, Union

from asyncpar.errors import DecodeError, HandlerError, TombstoneError

PayloadDecoder: TypeAlias = Callable[[bytes | None], object]
ValueDecoder: TypeAlias = Callable[[bytes], object]

_Form: TypeAlias = Literal["json", "text"]
_UNANNOTATED = (Any, object, None, type(None))
_BYTES_LIKE = (bytearray, memoryview)
_LOCATION_CHARS = 120
_MSGSPEC_LOCATION = re.compile(r" - at `([^`]*)`$")
_MSGSPEC_HARMLESS = ("Expected ", "Object missing required field ", "JSON is malformed")
_SUPPORTED = "bytes, str, JSON as dict, list, pydantic model, dataclass, TypedDict or msgspec Struct"


def _unchanged(value: bytes | None) -> bytes | None:
    return value


RAW: PayloadDecoder = _unchanged
"""The decoder of a payload that is taken as it is, None for a tombstone included."""


def is_raw(decoder: PayloadDecoder) -> bool:
    """True when `decoder` returns every value unchanged, so that it need not be called for one."""
    return decoder is RAW or isinstance(decoder, _RawValue)


def accepts_none(annotation: object) -> bool:
    """True when a payload with this annotation may be None: `X | None`, Any, object."""
    base = _base(annotation)
    return base in _UNANNOTATED or (_is_union(base) and type(None) in typing.get_args(base))


def decoder_for(annotation: object, *, where: str) -> PayloadDecoder:
    """The decoder of a payload; `where` names the handler and the parameter in messages.

    bytes, Any and object: the value itself. str: UTF-8, strict. Everything else: JSON, through msgspec
    when a Struct takes part and through pydantic otherwise. For None (a tombstone) the decoder returns
    None where the annotation allows it and raises TombstoneError where not; other values that do not
    fit raise DecodeError. Raises HandlerError for a type that cannot be decoded.
    """
    if _plain(annotation) in (None, type(None)):
        raise HandlerError(f"{where}: None is no type for a payload; use one of {_SUPPORTED}")
    decode = _value_decoder(annotation, where, "json")
    optional = accepts_none(annotation)
    if decode is None:
        return RAW if optional else _RawValue(where)
    if optional:
        return lambda value: None if value is None else decode(value)

    def decode_value(value: bytes | None) -> object:
        if value is None:
            raise tombstone(where)
        return decode(value)

    return decode_value


def text_decoder_for(annotation: object, *, where: str) -> ValueDecoder:
    """The decoder of a key or a header, which hold text rather than JSON: `12`, `true`, a UUID.

    As `decoder_for`, but that types which are no structures (numbers, dates, enums, ...) are read from
    their text without quotes. It is never called for None. Raises HandlerError.
    """
    decode = _value_decoder(annotation, where, "text")
    return RAW if decode is None else decode


def tombstone(where: str) -> TombstoneError:
    """What is raised for a record without a value, where the payload may not be None."""
    return TombstoneError(
        f'{where}: the record has no value; annotate with `| None`, or use tombstones="skip"'
    )


class _RawValue:
    """bytes as they are; a tombstone raises. A class, so that `is_raw` can tell it from the others."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __call__(self, value: bytes | None) -> bytes:
        if value is None:
            raise tombstone(self._where)
        return value


def _value_decoder(annotation: object, where: str, form: _Form) -> ValueDecoder | None:
    """How a value that is there is decoded; None when it is taken as it is."""
    plain = _plain(annotation)
    members = _members(plain)
    _check_members(annotation, members, where)
    only = _plain(members[0]) if len(members) == 1 else plain
    if only is bytes or only is Any or only is object:
        return None
    if only is str:
        return _text_decoder(where)
    if typing.get_origin(only) is Annotated and _base(only) in (bytes, str):
        return _constrained_decoder(only, where)
    if _has_struct(plain):
        return _msgspec_decoder(plain, where)
    is_json = form == "json" or any(_is_structure(member) for member in members)
    return _pydantic_decoder(plain, where, "json" if is_json else "text")


def _members(annotation: object) -> list[object]:
    """The types of a union but for None; of anything else, itself."""
    if not _is_union(annotation):
        return [annotation]
    return [arg for arg in typing.get_args(annotation) if arg is not type(None)]


def _check_members(annotation: object, members: list[object], where: str) -> None:
    """Refuse what leaves open how the bytes are read."""
    bases = [_base(member) for member in members]
    if any(base in _BYTES_LIKE for base in bases):
        raise HandlerError(f"{where}: {_name(annotation)} is not supported; use bytes")
    if len(members) > 1 and bytes in bases:
        raise HandlerError(f"{where}: {_name(annotation)} leaves open how to read the bytes; choose one type")
    if _is_union(bases[0]) and any(_base(inner) in (bytes, str) for inner in _members(bases[0])):
        fix = "put the metadata on the type inside: Annotated[str, ...] | None"
        raise HandlerError(f"{where}: {_name(annotation)} leaves open how to read the bytes; {fix}")


def _text_decoder(where: str) -> Callable[[bytes], str]:
    def decode(value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            start = error.start
        # Outside of the handler, so that the error, which holds the payload, is no context of this one.
        raise DecodeError(f"{where}: not UTF-8 at byte {start}")

    return decode


def _constrained_decoder(annotation: object, where: str) -> ValueDecoder:
    """Plain bytes or str with pydantic metadata, such as `Annotated[str, Field(max_length=3)]`: no JSON."""
    validate = _adapter(annotation, where).validate_python
    if _base(annotation) is bytes:
        return _checked(validate, _name(annotation), where)
    text = _text_decoder(where)
    check = _checked(validate, _name(annotation), where)
    return lambda value: check(text(value))


def _pydantic_decoder(annotation: object, where: str, form: _Form) -> ValueDecoder:
    adapter = _adapter(annotation, where)
    if form == "json":
        return _checked(adapter.validate_json, _name(annotation), where)
    text = _text_decoder(where)
    check = _checked(adapter.validate_strings, _name(annotation), where)
    return lambda value: check(text(value))


def _adapter(annotation: object, where: str) -> Any:
    """A pydantic TypeAdapter that is known to work."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    # A class with names that cannot be resolved yet builds, and fails at its first use only: so it is used.
    try:
        adapter: Any = TypeAdapter(_without_old_typed_dicts(annotation, ()))
        with contextlib.suppress(ValidationError):
            adapter.validate_json(b"{")
    except (PydanticUserError, NameError, TypeError) as error:
        # pydantic goes on with advice on its own API, which is not called here by the user.
        reason = str(error).partition("\n")[0].partition(". ")[0].partition(", then call")[0].rstrip(".")
        fix = f"use {_SUPPORTED}, or give decoder="
        raise HandlerError(f"{where}: {_name(annotation)} cannot be decoded: {reason}; {fix}") from error
    return adapter


def _checked(validate: Callable[[Any], object], name: str, where: str) -> Callable[[Any], object]:
    """`validate` with its failures as DecodeErrors that hold nothing of the payload."""
    from pydantic import ValidationError

    def decode(value: object) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            problem = _first_problem(error)
        except Exception as error:
            raise DecodeError(_foreign(where, name, error)) from error
        # Outside of the handler, so that the error, which quotes the payload, is no context of this one.
        raise DecodeError(f"{where}: does not fit {name}: {problem}")

    return decode


def _first_problem(error: Any) -> str:
    """Kind and location. pydantic's own message may quote the input or what a validator said of it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind = str(first["type"]).replace("_", " ")
    location = _shown(".".join(str(part) for part in first["loc"]))
    return f"{kind} at {location}" if location else kind


def _shown(location: str) -> str:
    """`location` for a log line: names in it may be the sender's, with line breaks or terminal commands."""
    return "".join(char if char.isprintable() else "?" for char in location[:_LOCATION_CHARS])


def _msgspec_decoder(annotation: object, where: str) -> ValueDecoder:
    import msgspec

    name = _name(annotation)
    try:
        read = msgspec.json.Decoder(annotation).decode
    except (TypeError, NameError) as error:
        reason = str(error).partition("\n")[0]
        fix = "use Structs of plain types, or give decoder="
        raise HandlerError(f"{where}: {name} cannot be decoded: {reason}; {fix}") from error

    def decode(value: bytes) -> object:
        try:
            return read(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = _msgspec_problem(str(error))
        except Exception as error:
            raise DecodeError(_foreign(where, name, error)) from error
        raise DecodeError(f"{where}: does not fit {name}: {problem}")

    return decode


def _msgspec_problem(message: str) -> str:
    """Kind and location; msgspec quotes the input in some messages, those are left out."""
    found = _MSGSPEC_LOCATION.search(message)
    if message.startswith(_MSGSPEC_HARMLESS):
        return message[: 2 * _LOCATION_CHARS]
    return f"invalid value at {_shown(found[1])}" if found else "invalid value"


def _foreign(where: str, name: str, error: Exception) -> str:
    """What is said when a validator of the user's raised; it is chained, as only its traceback helps."""
    return f"{where}: reading {name} raised {type(error).__name__}"


def _plain(annotation: object) -> object:
    """The type behind NewType and `type X = ...`."""
    while True:
        behind = getattr(annotation, "__supertype__", None)
        if behind is None and type(annotation).__name__ == "TypeAliasType":
            behind = getattr(annotation, "__value__", None)
        if behind is None:
            return annotation
        annotation = behind


def _base(annotation: object) -> object:
    """The type behind Annotated, NewType and aliases."""
    annotation = _plain(annotation)
    while typing.get_origin(annotation) is Annotated:
        annotation = _plain(typing.get_args(annotation)[0])
    return annotation


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _is_structure(annotation: object) -> bool:
    """True for what JSON writes as an object or an array."""
    base = _base(annotation)
    kind = typing.get_origin(base) or base
    if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields") or typing.is_typeddict(kind):
        return True
    return isinstance(kind, type) and issubclass(kind, (dict, list, tuple, set, frozenset))


def _has_struct(annotation: object) -> bool:
    """True when a msgspec Struct takes part. Who has one has imported msgspec already."""
    msgspec = sys.modules.get("msgspec")
    if msgspec is None:
        return False
    base = _base(annotation)
    kind = typing.get_origin(base) or base
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return True
    return any(_has_struct(arg) for arg in typing.get_args(base) if typing.get_origin(base) is not Literal)


def _without_old_typed_dicts(annotation: Any, inside: tuple[object, ...]) -> Any:
    """Python 3.11's own TypedDict, which pydantic refuses, as the one of typing_extensions.

    Reaches through generics and through fields of TypedDicts; a TypedDict inside of a model or a
    recursive one stays, and pydantic's message says what to import instead.
    """
    if sys.version_info >= (3, 12) or annotation in inside:
        return annotation
    if typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _modern_typed_dict(annotation, (*inside, annotation))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (None, Literal, Callable):
        return annotation
    if origin is Annotated:
        inner = _without_old_typed_dicts(args[0], inside)
        return annotation if inner is args[0] else Annotated[(inner, *annotation.__metadata__)]
    renewed = tuple(_without_old_typed_dicts(arg, inside) for arg in args)
    if all(new is old for new, old in zip(renewed, args, strict=True)):
        return annotation
    return Union[renewed] if _is_union(annotation) else origin[renewed]  # noqa: UP007 - members at run time


def _modern_typed_dict(annotation: Any, inside: tuple[object, ...]) -> Any:
    import typing_extensions

    fields: dict[str, Any] = {}
    for key, hint in typing.get_type_hints(annotation, include_extras=True).items():
        said = typing.get_origin(hint)
        required = said is typing.Required or (
            said is not typing.NotRequired and key in annotation.__required_keys__
        )
        bare = typing.get_args(hint)[0] if said in (typing.Required, typing.NotRequired) else hint
        renewed = _without_old_typed_dicts(bare, inside)
        fields[key] = typing.Required[renewed] if required else typing.NotRequired[renewed]
    make: Any = typing_extensions.TypedDict
    return make(annotation.__name__, fields)


def _name(annotation: object) -> str:
    """A type as one writes it, shortened."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return str(annotation).replace("typing.", "")[:_LOCATION_CHARS]
