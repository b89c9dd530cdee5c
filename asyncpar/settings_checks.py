"""What may be written for a setting: known names, allowed values, and values that exclude each other.

Pure: takes names and values, returns or raises SettingError. Reads no file and no variable; called by
`settings_sources.py`, by `App(...)` for what code gives, and by the docs page.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from asyncpar.errors import SettingError
from asyncpar.settings import KNOBS, SECRETS, Settings

_NAMES_ELSEWHERE: Mapping[str, str] = {
    "auto_commit_interval_ms": "commit_interval_ms",
    "auto_offset_reset": "offset_reset",
    "group_id": "group",
    "instance_id": "group_instance_id",
    "max_concurrency": "concurrency",
    "max_poll_records": "poll_batch_size",
    "sasl_plain_password": "sasl_password",
    "sasl_plain_username": "sasl_username",
    "workers": "concurrency",
}
"""What Kafka clients and similar programs call the same thing."""


_SHOWN_CHARS = 60
_CREDENTIALS_OF: Mapping[str, tuple[str, ...]] = {
    "PLAIN": ("sasl_username", "sasl_password"),
    "SCRAM-SHA-256": ("sasl_username", "sasl_password"),
    "SCRAM-SHA-512": ("sasl_username", "sasl_password"),
    "OAUTHBEARER": ("sasl_oauth_token_provider",),
    "GSSAPI": (),
}
"""What each mechanism needs; it uses none of the others."""


class Contradiction(NamedTuple):
    """Two or more settings that cannot hold together, and the knobs that take part."""

    message: str
    knobs: tuple[str, ...]


def suggestion(name: str, known: Collection[str] = KNOBS) -> str:
    """`; did you mean x?` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: Collection[str] = KNOBS) -> str | None:
    """The known name that `name` is most like, or None."""
    plain = name.lower().replace("-", "_")
    elsewhere = _NAMES_ELSEWHERE.get(plain)
    if elsewhere in known:
        return elsewhere
    by_lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(plain, by_lowered, n=1, cutoff=0.6)
    return by_lowered[near[0]] if near else None


def check_names(values: Iterable[str], where: str = "App(...)") -> None:
    """Refuse the first name that is no setting. Raises SettingError that names `where`."""
    for name in values:
        if name not in Settings.model_fields:
            raise SettingError(f"{where}: unknown setting {name!r}{suggestion(name)}")


def checked(name: str, value: object, where: str) -> object:
    """`value` of knob `name` in its own type. Text of a variable or option is `parsed` instead.

    Raises SettingError, one line: source, key, value (not for secrets) and what is allowed.
    """
    return _validated(name, value, where, text=False)


def parsed(name: str, text: str, where: str) -> object:
    """The value that `text` (of a variable, an env file or the command line) stands for.

    Raises SettingError like `checked`.
    """
    if name != "client_options":
        return _validated(name, text, where, text=True)
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise SettingError(f'{where}: client_options is not allowed; give a JSON object: {{"name": value}}')
    return _validated(name, options, where, text=False)


def _validated(name: str, value: object, where: str, *, text: bool) -> object:
    try:
        if text:
            draft = Settings.model_validate_strings({name: value})
        else:
            draft = Settings.model_validate({name: value}, strict=True)
    except ValidationError as error:
        raise SettingError(f"{where}: {_refusal(name, value, error)}") from None
    return getattr(draft, name)


def _refusal(name: str, value: object, error: ValidationError) -> str:
    quoted = "this value" if name in SECRETS else _brief(value)
    detail = error.errors()[0]
    if detail["type"] == "value_error":
        return f"{name} = {quoted}: {detail['ctx']['error']}"
    hint = ""
    if isinstance(value, str) and value.startswith(("tcp://", "udp://")):
        hint = " (Kubernetes sets such variables for its services: enableServiceLinks: false stops it)"
    return f"{name} = {quoted} is not allowed; give {allowed(name)}{hint}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def allowed(name: str) -> str:
    """What a value of knob `name` may be, in words and with its unit."""
    info = Settings.model_fields[name]
    if name == "client_options":
        return "a table of client options"
    if name == "sasl_oauth_token_provider":
        return "an object with an async token() method, or module:object"
    choices = _choices(info.annotation)
    kinds = [getattr(part, "__origin__", part) for part in get_args(info.annotation) or (info.annotation,)]
    if int in kinds:
        return ", or ".join((_whole_number(name, info), *choices))
    if choices:
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    if bool in kinds:
        return "true or false"
    if name.endswith("file") or name == "log_config":
        return "the path of a file"
    return "text that is not empty"


def _whole_number(name: str, info: FieldInfo) -> str:
    unit = ""
    if name.endswith("_ms"):
        unit = " of milliseconds"
    elif name.endswith("_bytes"):
        unit = " of bytes"
    least, most = limits(info)
    return f"a whole number{unit} from {least} to {most}, without a unit"


def limits(info: FieldInfo) -> tuple[int | None, int | None]:
    """Least and greatest value that a numeric field takes."""
    bounds = [*info.metadata]
    for part in get_args(info.annotation):  # where a number is one choice among others
        for field in getattr(part, "__metadata__", ()):
            bounds += getattr(field, "metadata", ())
    least = next((item.ge for item in bounds if hasattr(item, "ge")), None)
    most = next((item.le for item in bounds if hasattr(item, "le")), None)
    return least, most


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found: tuple[str, ...] = ()
    for part in get_args(annotation):
        found = found or _choices(part)
    return found


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Every pair of settings that cannot hold together, the most likely mistakes first."""
    if settings.heartbeat_interval_ms * 3 > settings.session_timeout_ms:
        yield Contradiction(
            f"heartbeat_interval_ms {settings.heartbeat_interval_ms} is more than a third of "
            f"session_timeout_ms {settings.session_timeout_ms}: one lost heartbeat would end the membership; "
            "lower the first or raise the second",
            ("heartbeat_interval_ms", "session_timeout_ms"),
        )
    per_partition = settings.max_in_flight_per_partition
    if per_partition is not None and per_partition > settings.max_in_flight:
        yield Contradiction(
            f"max_in_flight_per_partition {per_partition} is more than max_in_flight "
            f"{settings.max_in_flight}; lower the first or raise the second",
            ("max_in_flight_per_partition", "max_in_flight"),
        )
    if settings.retry_base_ms > settings.retry_max_ms:
        yield Contradiction(
            f"retry_base_ms {settings.retry_base_ms} is more than retry_max_ms {settings.retry_max_ms}; "
            "lower the first or raise the second",
            ("retry_base_ms", "retry_max_ms"),
        )
    yield from _sasl_contradictions(settings)
    yield from _tls_contradictions(settings)


def _sasl_contradictions(settings: Settings) -> Iterator[Contradiction]:
    protocol, mechanism = settings.security_protocol, settings.sasl_mechanism
    credentials = ("sasl_mechanism", "sasl_username", "sasl_password", "sasl_oauth_token_provider")
    if not protocol.startswith("SASL"):
        for name in credentials:
            if getattr(settings, name) is not None:
                yield Contradiction(
                    f"{name} is given but security_protocol is {protocol}, which does not authenticate; "
                    "set security_protocol to SASL_SSL or SASL_PLAINTEXT",
                    (name, "security_protocol"),
                )
        return
    if mechanism is None:
        yield Contradiction(
            f"security_protocol is {protocol} but sasl_mechanism is not given; set it to "
            f"{allowed('sasl_mechanism')}",
            ("security_protocol", "sasl_mechanism"),
        )
        return
    needed = _CREDENTIALS_OF[mechanism]
    for name in credentials[1:]:
        missing = getattr(settings, name) is None
        if missing and name in needed:
            yield Contradiction(f"sasl_mechanism {mechanism} needs {name}; set it", ("sasl_mechanism", name))
        if not missing and name not in needed:
            yield Contradiction(
                f"{name} is given but sasl_mechanism {mechanism} does not use it; remove it",
                (name, "sasl_mechanism"),
            )


def _tls_contradictions(settings: Settings) -> Iterator[Contradiction]:
    protocol = settings.security_protocol
    if not protocol.endswith("SSL"):
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password"):
            if getattr(settings, name) is not None:
                yield Contradiction(
                    f"{name} is given but security_protocol is {protocol}, which does not encrypt; "
                    "set security_protocol to SSL or SASL_SSL",
                    (name, "security_protocol"),
                )
        return
    for name in ("ssl_keyfile", "ssl_key_password"):
        if getattr(settings, name) is not None and settings.ssl_certfile is None:
            yield Contradiction(
                f"{name} is given without ssl_certfile; set ssl_certfile to the client's certificate",
                (name, "ssl_certfile"),
            )
