"""The docs page of all settings, written from the settings themselves.

`python -m asyncpar.cli.settings_page` prints `docs/settings.md`; a test compares the two.
Nothing about a knob is written here.
"""

from __future__ import annotations

from pydantic.fields import FieldInfo

from asyncpar.settings import KNOBS, SECTIONS, shown
from asyncpar.settings_checks import allowed, limits
from asyncpar.settings_handlers import HANDLER_KEYS
from asyncpar.settings_sources import ENVIRONMENT_VARIABLE, PREFIX, PROFILES

_INTRODUCTION = f"""\
# Settings

<!-- Written by `python -m asyncpar.cli.settings_page > docs/settings.md`. Do not edit. -->

Every knob below is engine-wide. A handler's own value wins over any of them: the one in its
[table](#a-handlers-own-settings) `[handlers."name"]`, else the one in its decorator. For the rest the
strongest source that gives a value wins:

1. the command line (`--group billing`, or `--set commit_every=500` for any knob),
2. the environment (`{PREFIX}COMMIT_EVERY=500`),
3. the env file (`--env-file`),
4. the table `[env.<name>]` of `asyncpar.toml`, where `{ENVIRONMENT_VARIABLE}` is `<name>`,
5. the base of `asyncpar.toml`,
6. the code (`App(commit_every=500)`),
7. the profile,
8. the default.

Durations are whole milliseconds and sizes whole bytes, without a unit; names say which. An empty variable
counts as not set. An unknown name is refused in a TOML file, on the command line and in code; an unknown
`{PREFIX}*` variable is ignored with one warning, because orchestrators set such variables on their own.
`{ENVIRONMENT_VARIABLE}` and `{PREFIX}TEST_*` are reserved. Variables without the prefix are never read.

```toml
group = "billing"
commit_interval_ms = 500

[env.production]
bootstrap_servers = "kafka-1:9092,kafka-2:9092"
profile = "high_throughput"

[handlers."billing.bill"]
concurrency = 20
```

`asyncpar run billing --check` prints, without a broker, which settings differ from their defaults, what each
handler was given, and where each value came from.

## A handler's own settings

A table `[handlers."name"]` of `asyncpar.toml` holds for one handler; one of `[env.<name>.handlers."name"]`
goes over it, key by key. The name is `name=` of its decorator, else module and function, such as
`billing.bill`: in quotes, since it has a dot. The table wins over the decorator, and the decorator over the
engine-wide setting in the last column. What is not listed stands in the decorator only; there are no
variables for handlers. A name that no handler has, a key that is not listed and a value that is not allowed
are refused, with the line of the file.

{{handler_keys}}

The keys from `attempts` to `not_on` change the handler's `Retry`, or the engine-wide values where it has
none.

```toml
[handlers."billing.bill"]
timeout_ms = 5000
attempts = 8
not_on = ["ValueError", "json.JSONDecodeError"]
on_error = {{ LookupError = "skip" }}
dead_letter = ".dlq"

[env.production.handlers."billing.bill"]
concurrency = 200
```
"""


def page() -> str:
    """The page as Markdown, with a newline at its end."""
    parts = [_INTRODUCTION.replace("{handler_keys}", _handler_keys())]
    for section in SECTIONS:
        title = section.__name__.removesuffix("Settings")
        parts.append(f"## {title}\n\n{section.__doc__}\n")
        parts.extend(_entry(name, info) for name, info in section.model_fields.items())
    parts.append(_profiles())
    return "\n".join(parts)


def _entry(name: str, info: FieldInfo) -> str:
    extremes = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    least, most = limits(info)
    default = f"none: {extremes['unset']}" if info.default is None else f"`{shown(name, info.default)}`"
    lines = [f"### `{name}`", "", str(info.description), "", f"- Default: {default}."]
    lines.append(f"- Allowed: {allowed(name)}.")
    if extremes.get("low"):
        lines.append(f"- Low{f' ({least})' if least is not None else ''}: {extremes['low']}.")
    if extremes.get("high"):
        lines.append(f"- High{f' ({most})' if most is not None else ''}: {extremes['high']}.")
    return "\n".join((*lines, ""))


def _handler_keys() -> str:
    rows = ["| key | says | allowed | beats |", "|---|---|---|---|"]
    for name, key in HANDLER_KEYS.items():
        beats = "-" if key.knob is None else f"[`{key.knob}`](#{key.knob})"
        rows.append(f"| `{name}` | {key.says} | {key.allowed} | {beats} |")
    return "\n".join(rows)


def _profiles() -> str:
    head = ["## Profiles", "", "Defaults that a profile changes; a dash means the ordinary default.", ""]
    touched = [name for name in KNOBS if any(name in profile for profile in PROFILES.values())]
    rows = [f"| knob | {' | '.join(PROFILES)} |", f"|---|{'---|' * len(PROFILES)}"]
    for name in touched:
        cells = (str(profile.get(name, "-")) for profile in PROFILES.values())
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join((*head, *rows, ""))


if __name__ == "__main__":
    print(page(), end="")
