"""Logs of `asyncpar run`: text for people, JSON for collectors, secrets redacted in both.

Configures the root logger once, before the run; libraries and handlers log as usual. An app that
configured logging itself keeps its handlers unless a log setting was chosen. Never imported by the engine.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import logging.config
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncpar.errors import SettingError
from asyncpar.settings import Settings, is_secret_name, secret_values
from asyncpar.settings_sources import Loaded

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MARK = "***"
_SHORTEST_SECRET = 4
"""Shorter secrets are not searched for: they would black out ordinary words."""
LOOKUP_FAILED = "Group Coordinator Request failed: %s"
"""What aiokafka logs as an error whenever it does not learn the group's coordinator, also if it asks on."""
_CLIENT_LOGGER = "aiokafka"
_COORDINATOR_LOGGER = "aiokafka.consumer.group_coordinator"
_REPEAT_SECONDS = 10.0
_MOST_SAID = 200
_NUMBER = re.compile(r"\d+")
_LOOKUP_SECONDS = 10.0
"""How long failing lookups are ordinary: a fresh cluster makes its topic of offsets at the first join."""
_CREDENTIALS = re.compile(
    r"""(?P<name>\b\w*(?:password|passwd|passphrase|secret|api_key|access_token)["']?\s*[=:]\s*)"""
    r"""(?:"[^"]*"|'[^']*'|[^\s,;)}\]]+)""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(?P<name>Bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?P<name>://[^\s:/@]*:)[^\s/@]+(?=@)")


class SecretFilter(logging.Filter):
    """Takes secrets out of records: known values, `password=...`, bearer tokens, passwords in URLs.

    Sits on handlers, so that it sees what child loggers send; it changes the record for all handlers.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        # The longest first: a secret may contain another one.
        known = sorted({s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact `record` in place: message, exception and extra fields. Always True."""
        message = record.getMessage()
        redacted = self.redacted(message)
        if redacted != message:
            record.msg, record.args = redacted, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.redacted(record.exc_text)
        for name, value in _extras(record):
            setattr(record, name, _MARK if is_secret_name(name) else self._redacted_value(value))
        return True

    def redacted(self, text: str) -> str:
        """`text` without secrets."""
        if self._known is not None:
            text = self._known.sub(_MARK, text)
        for pattern in (_CREDENTIALS, _BEARER, _URL_PASSWORD):
            text = pattern.sub(rf"\g<name>{_MARK}", text)
        return text

    def _redacted_value(self, value: object) -> object:
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, Mapping):
            return {
                key: _MARK if is_secret_name(str(key)) else self._redacted_value(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._redacted_value(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.redacted(str(value))


class LookupFilter(logging.Filter):
    """Lowers the client's failed lookups of a coordinator to DEBUG while they are those of a start.

    Those that go on for longer than `_LOOKUP_SECONDS`, or that the client does not repeat, stay errors. Sits
    on the client's logger.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first = self._last = -_LOOKUP_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record that is lowered below what is logged."""
        error = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if record.msg != LOOKUP_FAILED or not getattr(error, "retriable", False):
            return True
        now = time.monotonic()
        if now - self._last > _LOOKUP_SECONDS:
            self._first = now
        self._last = now
        if now - self._first > _LOOKUP_SECONDS:
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def quiet_first_lookups() -> None:
    """Put a `LookupFilter` on the client's logger, in place of an earlier one."""
    logger = logging.getLogger(_COORDINATOR_LOGGER)
    for earlier in [each for each in logger.filters if isinstance(each, LookupFilter)]:
        logger.removeFilter(earlier)
    logger.addFilter(LookupFilter())


class RepeatFilter(logging.Filter):
    """Lets the client say the same thing once in `_REPEAT_SECONDS`, with how often it did meanwhile.

    That is the field `repeated`. While no broker answers the client logs tens of lines a second, each with
    another number in it: what asyncpar says of the outage would drown. The same thing is what the same line
    of the client's code logs with other numbers in it. Sits on handlers, one each; warnings and worse only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int, str], tuple[float, int]] = {}
        """When each was let through last, and how often not since then."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a repetition."""
        if record.levelno < logging.WARNING or record.name.partition(".")[0] != _CLIENT_LOGGER:
            return True
        now = time.monotonic()
        key = (record.pathname, record.lineno, _NUMBER.sub("#", record.getMessage()))
        if len(self._said) > _MOST_SAID:
            self._said = {one: said for one, said in self._said.items() if now - said[0] < _REPEAT_SECONDS}
        said_at, more = self._said.get(key, (-_REPEAT_SECONDS, 0))
        if now - said_at < _REPEAT_SECONDS:
            self._said[key] = said_at, more + 1
            return False
        self._said[key] = now, 0
        if more:
            record.repeated = more
        return True


class TextFormatter(logging.Formatter):
    """`2030-01-31T12:00:00.123Z INFO    asyncpar.runtime: message key=value`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback's lines when there is one."""
        extras = "".join(f" {name}={value}" for name, value in _extras(record))
        head = f"{_timestamp(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{extras}"
        return "\n".join((head, *_exception(self, record)))


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: ts, level, logger, message, the extra fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; values that JSON does not know are written as text."""
        fields: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _extras(record):
            fields[name if name not in fields else f"extra_{name}"] = value
        trace = list(_exception(self, record))
        if trace:
            fields["exception"] = "\n".join(trace)
        return json.dumps(fields, ensure_ascii=False, default=str)


def _extras(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(record).items() if name not in _STANDARD]


def _timestamp(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> Iterator[str]:
    if record.exc_text:
        yield record.exc_text
    elif record.exc_info:
        yield formatter.formatException(record.exc_info)
    if record.stack_info:
        yield formatter.formatStack(record.stack_info)


def configure(loaded: Loaded) -> None:
    """Set up logging for a run on stderr. Raises SettingError when `log_config` cannot be used."""
    settings = loaded.settings
    root = logging.getLogger()
    if settings.log_config is not None:
        _apply_file(Path(settings.log_config))
    elif not root.handlers or loaded.is_explicit("log_level") or loaded.is_explicit("log_format"):
        _apply(settings, root)
    quiet_first_lookups()
    # Else `warnings.warn` writes to stderr beside the log, whatever its form.
    logging.captureWarnings(True)
    secret_filter = SecretFilter(secret_values(settings))
    for handler in _handlers():
        if settings.log_level != "debug":
            handler.addFilter(RepeatFilter())
        handler.addFilter(secret_filter)


def _apply(settings: Settings, root: logging.Logger) -> None:
    level = settings.log_level.upper()
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    for earlier in tuple(root.handlers):
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    # The client reports each step of each rebalance at INFO; what matters of it, asyncpar says itself.
    logging.getLogger("aiokafka").setLevel(level if level == "DEBUG" else max(root.level, logging.WARNING))


def _apply_file(path: Path) -> None:
    where = f"log_config {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        config: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingError(f"{where} cannot be read: {error}; give a .toml or .json file") from None
    if not isinstance(config, dict):
        raise SettingError(f"{where} is not a table; see logging.config.dictConfig for its form")
    config = {"version": 1, "disable_existing_loggers": False, **config}
    try:
        logging.config.dictConfig(config)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise SettingError(f"{where} is refused by logging.config.dictConfig: {reason}; correct it") from None


def _handlers() -> set[logging.Handler]:
    """Every handler of every logger there is."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    return {handler for each in loggers if isinstance(each, logging.Logger) for handler in each.handlers}
