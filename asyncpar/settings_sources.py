"""Where settings come from, and which source wins: command line, environment, env file, TOML, App, profile.

`load` reads the sources, takes for each knob the value of the strongest one, checks it and remembers
its origin. It reads only files that it is given (or `./asyncpar.toml`) and only variables that start
with `ASYNCPAR_`. Called by the runner and by an embedded App; never by the runtime.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dotenv.parser import parse_stream

from asyncpar.errors import SettingError
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_checks import check_names, checked, contradictions, nearest, parsed, suggestion
from asyncpar.settings_handlers import places

PREFIX = "ASYNCPAR_"
ENVIRONMENT_VARIABLE = "ASYNCPAR_ENV"
"""Names the table `[env.<name>]` of the TOML file that goes over its base."""
DEFAULT_TOML = Path("asyncpar.toml")
_RESERVED = (ENVIRONMENT_VARIABLE, "ASYNCPAR_REQUIRE_BROKER")
_RESERVED_PREFIX = "ASYNCPAR_TEST_"
_DEFAULT = "default"
_COMMAND_LINE = "command line"
_CODE = "App(...)"

PROFILES: Mapping[str, Mapping[str, object]] = {
    "low_latency": {
        "fetch_max_wait_ms": 50,
        "poll_batch_size": 100,
        "max_in_flight": 1_000,
        "commit_interval_ms": 200,
    },
    "high_throughput": {
        "fetch_min_bytes": 65_536,
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
        "poll_batch_size": 1_000,
        "max_in_flight": 20_000,
        "max_in_flight_bytes": 256 * 1024 * 1024,
        "commit_every": 10_000,
    },
    "resource_constrained": {
        "max_partition_fetch_bytes": 256 * 1024,
        "poll_batch_size": 100,
        "concurrency": 16,
        "max_in_flight": 500,
        "max_in_flight_bytes": 8 * 1024 * 1024,
    },
    "test": {
        "heartbeat_interval_ms": 100,
        "metadata_max_age_ms": 1_000,
        "startup_timeout_ms": 5_000,
        "fetch_max_wait_ms": 20,
        "poll_batch_size": 4,
        "max_in_flight": 16,
        "max_in_flight_bytes": 65_536,
        "retry_base_ms": 1,
        "retry_max_ms": 20,
        "commit_interval_ms": 50,
        "commit_every": 5,
        "max_revoke_grace_ms": 1_000,
        "shutdown_drain_timeout_ms": 5_000,
        "http_port": 0,
    },
}
"""Other defaults, by profile. `test` makes everything tiny, so that limits are met early."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings of a run, and where each one came from.

    `origins` has every knob; a knob nobody set has the origin `default`. `handlers` holds the TOML
    tables `[handlers."name"]` as written; the App checks and applies them; `handler_origins` says where each
    key of them stands. `warnings` are for the log.
    """

    settings: Settings
    origins: Mapping[str, str]
    handlers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    toml: Path | None = None
    handler_origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def handler_origin(self, handler: str, key: str = "") -> str:
        """Where the file says `key` of `handler`; without a key, where its table begins."""
        known = self.handler_origins.get(handler, {})
        where = known.get(key) or known.get("") or self.toml or "settings"
        return f'{where}, [handlers."{handler}"]'

    def is_explicit(self, name: str) -> bool:
        """True when somebody chose the value of knob `name`: it is neither default nor profile."""
        origin = self.origins[name]
        return origin != _DEFAULT and not origin.startswith("profile ")


@dataclass(frozen=True, slots=True)
class _Source:
    """One place that gives values. `label` names a knob's origin as its user knows it.

    `is_text`: strings are what a person typed for any type, not values of their own type.
    """

    values: Mapping[str, object]
    label: str
    is_text: bool = False

    def origin(self, name: str) -> str:
        return self.label.format(PREFIX + name.upper())


def load(
    *,
    cli: Mapping[str, object] = MappingProxyType({}),
    env: Mapping[str, str] = MappingProxyType({}),
    env_file: Path | None = None,
    toml: Path | None = None,
    app_values: Mapping[str, object] = MappingProxyType({}),
) -> Loaded:
    """The settings that hold, by precedence: `cli`, `env`, `env_file`, TOML, `app_values`, profile, default.

    Text in `cli` is parsed like a variable. `toml` defaults to `./asyncpar.toml` when that exists.
    Raises SettingError (one line: source, key, value, what is allowed) for what is unknown,
    malformed or contradictory, and for a file that cannot be read.
    """
    check_names(cli, _COMMAND_LINE)
    check_names(app_values, _CODE)
    file_env = read_env_file(env_file) if env_file is not None else {}
    environment = env.get(ENVIRONMENT_VARIABLE) or file_env.get(ENVIRONMENT_VARIABLE)
    path = toml if toml is not None else (DEFAULT_TOML if DEFAULT_TOML.is_file() else None)
    document = _Document.read(path) if path is not None else _Document("", {})
    given_in_code = {name: value for name, value in app_values.items() if value is not None}
    sources = [
        _Source(cli, _COMMAND_LINE, is_text=True),
        _Source(_from_variables(env), "variable {}", is_text=True),
        _Source(_from_variables(file_env), f"{_braced(env_file)}: {{}}", is_text=True),
        _Source(*document.of_environment(environment)),
        _Source(document.base(), _braced(path)),
        _Source(given_in_code, _CODE),
    ]
    values, origins = _strongest(sources)
    profile = values.get("profile")
    if isinstance(profile, str):
        for name, value in PROFILES[profile].items():
            if name not in values:
                values[name], origins[name] = value, f"profile {profile}"
    settings = _together(values, origins)
    warnings = _unknown_variables({**file_env, **env})
    found = places(document.name, document.text, environment)
    return Loaded(settings, origins, document.handlers(environment), warnings, path, found)


def _strongest(sources: Sequence[_Source]) -> tuple[dict[str, object], dict[str, str]]:
    """For each knob the first source's value, checked, and that source's name for it."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(KNOBS, _DEFAULT)
    for source in sources:
        for name, value in source.values.items():
            if name in values:
                continue
            origin = source.origin(name)
            is_text = source.is_text and isinstance(value, str)
            values[name] = parsed(name, str(value), origin) if is_text else checked(name, value, origin)
            origins[name] = origin
    return values, origins


def _together(values: dict[str, object], origins: Mapping[str, str]) -> Settings:
    """The settings as a whole; SettingError with the origins of the knobs that contradict each other."""
    provider = values.get("sasl_oauth_token_provider")
    if provider is not None:
        origin = origins["sasl_oauth_token_provider"]
        values["sasl_oauth_token_provider"] = _token_provider(provider, origin)
    settings = Settings.model_validate(values)
    for contradiction in contradictions(settings):
        places = ", ".join(f"{name} from {origins[name]}" for name in contradiction.knobs)
        raise SettingError(f"{contradiction.message} ({places})")
    return settings


def _token_provider(provider: object, origin: str) -> object:
    """The object that `module:object` names; any other object as it is. It must have `token`."""
    where = f"{origin}: sasl_oauth_token_provider"
    if isinstance(provider, str):
        module, colon, path = provider.partition(":")
        if not (module and colon and path):
            raise SettingError(f"{where} = {provider!r} is not allowed; give module:object")
        try:
            found: object = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
            provider = found() if isinstance(found, type) else found
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise SettingError(f"{where}: {module}:{path} cannot be used: {reason}") from error
    if not callable(getattr(provider, "token", None)):
        raise SettingError(f"{where}: {type(provider).__name__} has no token(); give it `async def token()`")
    return provider


def read_env_file(path: Path) -> dict[str, str]:
    """All variables of an env file, as written: nothing is expanded. Raises SettingError.

    Lines are `NAME=value`, optionally quoted or behind `export`; `#` starts a comment.
    """
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for binding in parse_stream(stream):
                if binding.error or (binding.key is not None and binding.value is None):
                    raise SettingError(f"{path}, line {binding.original.line}: write NAME=value")
                if binding.key is not None and binding.value is not None:
                    found[binding.key] = binding.value
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"env file {path} cannot be read: {_reason(error)}; check the path") from None
    return found


def _from_variables(variables: Mapping[str, str]) -> dict[str, object]:
    """The knobs among prefixed variables. An empty one counts as not set."""
    given = ((name, variables.get(PREFIX + name.upper())) for name in KNOBS)
    return {name: value for name, value in given if value}


def _unknown_variables(variables: Mapping[str, str]) -> tuple[str, ...]:
    """One warning for all prefixed variables that are no setting, or none."""
    known = {PREFIX + name.upper() for name in KNOBS}
    unknown = [
        f"{name}{_variable_meant(name)}"
        for name in sorted(variables)
        if name.startswith(PREFIX) and not name.startswith(_RESERVED_PREFIX)
        if name not in known and name not in _RESERVED
    ]
    if not unknown:
        return ()
    return (f"ignored, no such setting: {', '.join(unknown)}",)


def _variable_meant(name: str) -> str:
    # Without the prefix, which would make any two variables similar.
    near = nearest(name.removeprefix(PREFIX))
    return f"; did you mean {PREFIX}{near.upper()}?" if near else ""


@dataclass(frozen=True, slots=True)
class _Document:
    """An `asyncpar.toml`: settings, tables `[env.<name>]` over them, tables `[handlers."name"]`."""

    name: str
    tables: Mapping[str, object]
    text: str = ""

    @classmethod
    def read(cls, path: Path) -> _Document:
        """The file with every name in it checked. Raises SettingError."""
        try:
            text = path.read_text(encoding="utf-8-sig")
            document = cls(str(path), tomllib.loads(text), text)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{path} cannot be read: {_reason(error)}; check the path") from None
        except tomllib.TOMLDecodeError as error:
            raise SettingError(f"{path} is not TOML: {error}") from None
        document._check_table(document.tables, document.name, extra=("env", "handlers"))
        for environment, table in document._tables_in(document.tables, "env", document.name):
            document._check_table(table, f"{document.name} [env.{environment}]", extra=("handlers",))
        return document

    def base(self) -> dict[str, object]:
        """The settings that hold in every environment."""
        return {name: value for name, value in self.tables.items() if name not in ("env", "handlers")}

    def of_environment(self, environment: str | None) -> tuple[dict[str, object], str]:
        """The settings of `[env.<environment>]` and the label of that table."""
        table = self._environment(environment)
        values = {name: value for name, value in table.items() if name != "handlers"}
        return values, _braced(f"{self.name} [env.{environment}]")

    def handlers(self, environment: str | None) -> dict[str, dict[str, object]]:
        """The handlers' tables, those of the environment over those of the base."""
        merged: dict[str, dict[str, object]] = {}
        for table in (self.tables, self._environment(environment)):
            for name, values in self._tables_in(table, "handlers", self.name):
                merged.setdefault(name, {}).update(values)
        return merged

    def _environment(self, environment: str | None) -> Mapping[str, object]:
        tables = dict(self._tables_in(self.tables, "env", self.name))
        if environment is None or not tables:
            return {}
        if environment not in tables:
            near = suggestion(environment, tuple(tables)) or f"; there is {', '.join(tables)}"
            raise SettingError(
                f"{ENVIRONMENT_VARIABLE}={environment}: no [env.{environment}] in {self.name}{near}"
            )
        return tables[environment]

    @staticmethod
    def _check_table(table: Mapping[str, object], where: str, extra: tuple[str, ...]) -> None:
        for name, value in table.items():
            if isinstance(value, Mapping) and name not in extra and name not in KNOBS:
                known = (
                    '[env.name] and [handlers."name"]'
                    if "env" in extra
                    else 'only [env.name.handlers."name"]'
                )
                raise SettingError(f"{where}: there is no table [{name}]; there is {known}")
        check_names((name for name in table if name not in extra), where)
        list(_Document._tables_in(table, "handlers", where))

    @staticmethod
    def _tables_in(
        table: Mapping[str, object], key: str, where: str
    ) -> Iterator[tuple[str, Mapping[str, object]]]:
        """The tables `[key.name]` of `table`. SettingError for anything else below `key`."""
        below = table.get(key, {})
        if not isinstance(below, Mapping):
            raise SettingError(f'{where}: {key} is not a table; write [{key}."name"]')
        for name, values in below.items():
            if not isinstance(values, Mapping):
                raise SettingError(f'{where}: {key}.{name} is not a table; write [{key}."{name}"]')
            yield name, values


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"


def _braced(text: object) -> str:
    """`text` as a label without a place for the variable's name."""
    return str(text).replace("{", "{{").replace("}", "}}")
