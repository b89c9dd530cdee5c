"""From a handler's signature to the arguments of a call: decided once, at start, cheap per record.

`plan_call` reads the annotations and refuses what cannot work; the workers call what `CallPlan.bind`
returns, once per attempt. Nothing here runs a handler. Building the arguments raises DecodeError only.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeAlias

from asyncpar.context import Context, Header, Key, Reader, header_reader, key_reader, markers_of
from asyncpar.errors import DecodeError, HandlerError
from asyncpar.payloads import (
    PayloadDecoder,
    accepts_none,
    decoder_for,
    is_raw,
    text_decoder_for,
    tombstone,
)
from asyncpar.records import RawRecord, Record
from asyncpar.topic_checks import is_async_callable
from asyncpar.topics import Decoder, TopicSpec

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
Bound: TypeAlias = Callable[[str, int, RawRecord, int, int], Arguments]
"""`(topic, partition, raw, attempt, generation)` -> `(args, kwargs)`."""
AsyncBound: TypeAlias = Callable[[str, int, RawRecord, int, int], Awaitable[Arguments]]

_EMPTY = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NO_KWARGS: dict[str, object] = {}


class _Now(typing.NamedTuple):
    """One attempt on one record, for the sources that are not special-cased."""

    state: object
    topic: str
    partition: int
    raw: RawRecord
    attempt: int
    generation: int
    payload: object


_Source: TypeAlias = Callable[[_Now], object]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """How `spec.function` is called for one record.

    When `raw_only`, the sole argument is `raw.value` and a caller may pass it itself; for a None that
    `accepts_none` does not allow it calls what `bind` returned, which raises. When `skips_tombstones`,
    a record whose value is None is skipped before anything is bound.
    """

    spec: TopicSpec
    group: str
    is_async_decoder: bool
    """Bind with `bind_async`."""
    raw_only: bool
    accepts_none: bool
    """A record without a value can be passed on (also when no parameter takes the payload)."""
    skips_tombstones: bool
    _decode: PayloadDecoder | None
    """From the annotation; None when `decoder=` reads the payload, or nothing does."""
    _positional: tuple[_Source, ...]
    _keyword: tuple[tuple[str, _Source], ...]
    _where: str
    """Handler and payload parameter, for messages."""

    def bind(self, state: object) -> Bound:
        """What makes the arguments; `state` is what the lifespan yielded.

        The result raises DecodeError (TombstoneError for a missing value). TypeError for a plan whose
        decoder is async.
        """
        if self.is_async_decoder:
            raise TypeError(f"{self.spec.where} has an async decoder: use bind_async")
        quick = self._bind_quick()
        if quick is not None:
            return quick
        read, build = self._payload_reader(), self._builder(state)

        def bound(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> Arguments:
            return build(topic, partition, raw, attempt, generation, read(topic, raw))

        return bound

    def bind_async(self, state: object) -> AsyncBound:
        """As `bind`, for an async `decoder=`. TypeError for any other plan."""
        decoder = self.spec.decoder
        if not self.is_async_decoder or decoder is None:
            raise TypeError(f"{self.spec.where} has no async decoder: use bind")
        build, optional, where = self._builder(state), self.accepts_none, self._where

        async def bound(
            topic: str, partition: int, raw: RawRecord, attempt: int, generation: int
        ) -> Arguments:
            payload: object = None
            if raw.value is not None:
                try:
                    payload = await decoder(topic, raw)  # type: ignore[misc] # is_async_decoder
                except DecodeError:
                    raise
                except Exception as error:
                    raise DecodeError(f"{where}: the decoder raised {type(error).__name__}") from error
            elif not optional:
                raise tombstone(where)
            return build(topic, partition, raw, attempt, generation, payload)

        return bound

    def _bind_quick(self) -> Bound | None:
        """The common shapes without a source call per argument; None for all others."""
        decode = self._decode
        if self._keyword:
            return None
        if self._positional == (_record,):
            return lambda topic, partition, raw, attempt, generation: (
                (_make_record(topic, partition, raw, attempt, generation),),
                _NO_KWARGS,
            )
        if decode is not None and self._positional == (_payload,):
            return lambda _t, _p, raw, _a, _g: ((decode(raw.value),), _NO_KWARGS)
        if decode is not None and self._positional == (_payload, _record):
            return lambda topic, partition, raw, attempt, generation: (
                (decode(raw.value), _make_record(topic, partition, raw, attempt, generation)),
                _NO_KWARGS,
            )
        return None

    def _builder(self, state: object) -> Callable[[str, int, RawRecord, int, int, object], Arguments]:
        positional, keyword = self._positional, self._keyword

        def build(
            topic: str, partition: int, raw: RawRecord, attempt: int, generation: int, payload: object
        ) -> Arguments:
            now = _Now(state, topic, partition, raw, attempt, generation, payload)
            args = tuple([source(now) for source in positional])
            return args, {name: source(now) for name, source in keyword} if keyword else _NO_KWARGS

        return build

    def _payload_reader(self) -> Callable[[str, RawRecord], object]:
        decode, decoder = self._decode, self.spec.decoder
        if decode is not None:
            return lambda _topic, raw: decode(raw.value)
        if decoder is not None:
            return _sync_reader(decoder, self.accepts_none, self._where)
        return lambda _topic, _raw: None


def plan_call(spec: TopicSpec, *, group: str) -> CallPlan:
    """Read the signature of `spec.function`; `group` is what `Context.group` and `Call.group` will say.

    Parameters are recognised by annotation: Record, Context, `Annotated[..., Header("x")]`,
    `Annotated[..., Key]`. The first other one without a default is the payload. Others keep their
    defaults. Raises HandlerError for everything else, naming parameter and fix.
    """
    parameters = _parameters(spec)
    hints = {name: _resolve(spec, parameter) for name, parameter in parameters.items()}
    sources = {
        name: _recognised(spec, parameter, hints[name], group) for name, parameter in parameters.items()
    }
    payload = _payload_parameter(spec, parameters, sources, hints)
    decode: PayloadDecoder | None = None
    optional = True
    where = spec.where
    if payload is not None:
        where = _at(spec, payload)
        sources[payload] = _payload
        optional = accepts_none(hints[payload])
        if spec.decoder is None:
            decode = decoder_for(hints[payload], where=where)
    elif spec.decoder is not None:
        raise HandlerError(f"{where}: decoder= has no parameter to fill; add one for the payload")
    skips = spec.tombstones == "skip"
    if skips and payload is not None and optional and hints[payload] not in (Any, object):
        fix = "remove the None from the annotation, or leave tombstones= out"
        raise HandlerError(f'{where}: takes None, yet tombstones="skip" never passes it; {fix}')
    positional, keyword = _arrange(parameters, sources)
    return CallPlan(
        spec=spec,
        group=group,
        is_async_decoder=spec.decoder is not None and is_async_callable(spec.decoder),
        raw_only=decode is not None and is_raw(decode) and positional == (_payload,) and not keyword,
        accepts_none=optional,
        skips_tombstones=skips,
        _decode=decode,
        _positional=positional,
        _keyword=keyword,
        _where=where,
    )


def _at(spec: TopicSpec, name: str) -> str:
    return f"{spec.where}, parameter {name}"


def _refuse(spec: TopicSpec, name: str, problem: str) -> NoReturn:
    raise HandlerError(f"{_at(spec, name)}: {problem}")


def _parameters(spec: TopicSpec) -> dict[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(spec.function).parameters)
    except (NameError, TypeError, ValueError) as error:
        raise HandlerError(
            f"{spec.where}: its signature cannot be read: {error}; write it plainly"
        ) from error
    for position, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind in _VARIADIC:
            stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**"
            _refuse(
                spec, f"{stars}{name}", "nothing would be passed there; name each argument, with its type"
            )
        if position == 0 and name in ("self", "cls") and parameter.annotation is _EMPTY:
            _refuse(
                spec, name, "a method cannot handle records; move it out of the class (state: Context.state)"
            )
    return parameters


def _resolve(spec: TopicSpec, parameter: inspect.Parameter) -> Any:
    """The annotation as an object; `object` when there is none."""
    if parameter.annotation is _EMPTY:
        return object
    # Parameter by parameter, so that the message can name one and the return type need not resolve.
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    names = getattr(inspect.unwrap(spec.function), "__globals__", {})
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
    except Exception as error:
        text = str(parameter.annotation)
        fix = "import or define its names at module level, outside of `if TYPE_CHECKING`"
        raise HandlerError(
            f"{_at(spec, parameter.name)}: annotation {text!r} cannot be resolved: {error}; {fix}"
        ) from error


def _recognised(spec: TopicSpec, parameter: inspect.Parameter, hint: Any, group: str) -> _Source | None:
    """The source of a parameter whose annotation says what it is; None for any other."""
    inner = _without_none(hint)
    if inner is Record:
        return _record
    if inner is Context:
        return _context_source(spec.name, group)
    if inner is Key or inner is Header:
        word = "Key" if inner is Key else 'Header("name")'
        _refuse(spec, parameter.name, f"say which type it is read as: Annotated[str, {word}]")
    if inner is not hint and markers_of(inner):
        _refuse(spec, parameter.name, "put the None inside: Annotated[str | None, ...]")
    markers = markers_of(hint)
    if not markers:
        return None
    if len(markers) > 1:
        _refuse(spec, parameter.name, "has two markers; keep one Header or Key")
    marker = markers[0]
    rest = tuple(extra for extra in hint.__metadata__ if extra is not marker)
    wanted = Annotated[(hint.__origin__, *rest)] if rest else hint.__origin__
    where = _at(spec, parameter.name)
    if marker is Key or isinstance(marker, Key):
        missing = _missing(parameter, wanted, f"{where}: the record has no key")
        return _reader_source(key_reader(text_decoder_for(wanted, where=where), missing))
    if not isinstance(marker, Header) or not marker.name:
        _refuse(spec, parameter.name, 'Header needs a name: Annotated[str, Header("trace-id")]')
    missing = _missing(parameter, wanted, f"{where}: the record has no header {marker.name!r}")
    return _reader_source(header_reader(marker.name, text_decoder_for(wanted, where=where), missing))


def _without_none(hint: Any) -> Any:
    """`X` for `X | None`; anything else as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return members[0] if len(members) == 1 else hint


def _payload_parameter(
    spec: TopicSpec,
    parameters: dict[str, inspect.Parameter],
    sources: dict[str, _Source | None],
    hints: dict[str, Any],
) -> str | None:
    """The parameter that takes the payload. Raises HandlerError when that is not clear."""
    others = [parameter for name, parameter in parameters.items() if sources[name] is None]
    required = [parameter.name for parameter in others if parameter.default is _EMPTY]
    if len(required) > 1:
        fix = 'annotate it with Annotated[..., Header("name")], Annotated[..., Key], Record or Context'
        problem = f"{required[0]!r} takes the payload already; {fix}, or give it a default"
        _refuse(spec, required[1], problem)
    if required:
        return required[0]
    if not any(_without_none(hint) is Record for hint in hints.values()):
        for parameter in others:
            # As a payload it would be surprising, left alone it would lose every payload in silence.
            if parameter.kind in _POSITIONAL:
                fix = "remove its default, or make it keyword-only (after `*`) if it is none"
                _refuse(spec, parameter.name, f"has a default, so that it is no payload; {fix}")
    return None


def _arrange(
    parameters: dict[str, inspect.Parameter], sources: dict[str, _Source | None]
) -> tuple[tuple[_Source, ...], tuple[tuple[str, _Source], ...]]:
    """Sources by position and by name. A default before a later position is passed explicitly."""
    positional: list[_Source] = []
    keyword: list[tuple[str, _Source]] = []
    defaults: list[_Source] = []
    for name, parameter in parameters.items():
        source = sources[name]
        if parameter.kind not in _POSITIONAL:
            if source is not None:
                keyword.append((name, source))
        elif source is None:
            defaults.append(_constant(parameter.default))
        else:
            positional += [*defaults, source]
            defaults.clear()
    return tuple(positional), tuple(keyword)


def _make_record(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> Record:
    stamp, stamp_type, pairs = raw.timestamp, raw.timestamp_type, tuple(raw.headers)
    return Record(
        topic, partition, raw.offset, raw.key, raw.value, pairs, stamp, stamp_type, attempt, generation
    )


def _payload(now: _Now) -> object:
    return now.payload


def _record(now: _Now) -> object:
    return _make_record(now.topic, now.partition, now.raw, now.attempt, now.generation)


def _constant(value: object) -> _Source:
    return lambda _now: value


def _context_source(handler: str, group: str) -> _Source:
    return lambda now: Context(
        now.state,
        handler,
        group,
        now.attempt,
        topic=now.topic,
        partition=now.partition,
        offset=now.raw.offset,
    )


def _missing(parameter: inspect.Parameter, annotation: object, problem: str) -> Callable[[], object]:
    """What stands in for a key or a header that is not there."""
    if parameter.default is not _EMPTY:
        default = parameter.default
        return lambda: default
    if accepts_none(annotation):
        return lambda: None

    def refuse() -> NoReturn:
        raise DecodeError(f"{problem}; give the parameter a default or annotate with `| None`")

    return refuse


def _reader_source(read: Reader) -> _Source:
    return lambda now: read(now.raw)


def _sync_reader(decoder: Decoder, optional: bool, where: str) -> Callable[[str, RawRecord], object]:
    """`decoder=` for values, the tombstone rule for None."""

    def read(topic: str, raw: RawRecord) -> object:
        if raw.value is None:
            if optional:
                return None
            raise tombstone(where)
        try:
            payload = decoder(topic, raw)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"{where}: the decoder raised {type(error).__name__}") from error
        if isinstance(payload, types.CoroutineType):
            payload.close()
            raise DecodeError(f"{where}: the decoder returned a coroutine; declare it with `async def`")
        return payload

    return read
