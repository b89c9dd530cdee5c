"""The tables `[handlers."name"]` of a settings file: what they may say, and where in the file they say it.

Pure. Never here: their values (`topics.TopicSpec.override` checks and applies them). Read by
`settings_sources`, the banner and the docs page of settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class HandlerKey(NamedTuple):
    """One key of a table: what it says, what it may be, and the engine-wide setting that it beats."""

    says: str
    allowed: str
    knob: str | None = None


_OR_FOREVER = 'a whole number from 1, or `"forever"` for no limit'
_ERRORS = 'names of exceptions, such as `["ConnectionError", "httpx.TimeoutException"]`'

HANDLER_KEYS: Mapping[str, HandlerKey] = {
    "concurrency": HandlerKey("calls at a time", "a whole number from 1", "concurrency"),
    "timeout_ms": HandlerKey("how long a call may run", "a whole number from 1", "timeout_ms"),
    "attempts": HandlerKey("total runs of a record, the first one included", _OR_FOREVER, "retry_attempts"),
    "base_ms": HandlerKey("the first pause before a retry", "a whole number from 1", "retry_base_ms"),
    "max_ms": HandlerKey("the longest pause", "a whole number from 1", "retry_max_ms"),
    "backoff": HandlerKey(
        "how pauses grow",
        "`fixed`, `linear`, `exponential`, `exp_full_jitter` or `exp_equal_jitter`",
    ),
    "max_age_ms": HandlerKey("no attempt begins later after the first failure", _OR_FOREVER),
    "on": HandlerKey("only these exceptions are tried again", _ERRORS),
    "not_on": HandlerKey("these exceptions are given up at once", _ERRORS),
    "on_error": HandlerKey(
        "what becomes of a record, by its exception",
        'a table such as `{LookupError = "skip"}`; `retry`, `skip`, `dead_letter` or `halt`',
    ),
    "dead_letter": HandlerKey(
        "where a record goes that is given up",
        "a topic, a suffix such as `.dlq`, or `false` for none",
        "dead_letter",
    ),
    "dead_letter_payload": HandlerKey("what a dead letter holds", "`full` or `metadata_only`"),
    "keyless": HandlerKey("what orders records without a key", "`unordered`, `partition` or `error`"),
    "unmatched": HandlerKey("a record that no `match=` takes", "`halt` or `skip`"),
    "tombstones": HandlerKey("a record without a value", "`error` or `skip`"),
    "on_decode_error": HandlerKey("a record that cannot be decoded", "`halt` or `skip`"),
    "on_revoke": HandlerKey("calls that run when their partition is taken away", "`cancel` or `keep`"),
}
"""Every key that a table may have."""

_HEADER = re.compile(
    r"""^\s*\[\s*(?:env\s*\.\s*(?P<env>[\w-]+|"[^"]*"|'[^']*')\s*\.\s*)?"""
    r"""handlers\s*\.\s*(?P<name>[\w-]+|"[^"]*"|'[^']*')\s*\]"""
)
_KEY = re.compile(r"^\s*(?P<key>[\w-]+)\s*=")


def places(file: str, text: str, environment: str | None) -> dict[str, dict[str, str]]:
    """Where `text` says what of which handler: by its name and the key, `asyncpar.toml line 8`.

    Under the key "" the line of the table itself. An environment's lines win over the base's. What is written
    otherwise than in tables with a header of their own, or for another environment, is left out.
    """
    found: dict[str, dict[str, str]] = {}
    base: dict[str, dict[str, str]] = {}
    here: dict[str, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is not None:
            env, name = header["env"], header["name"].strip("\"'")
            mine = env is None or env.strip("\"'") == environment
            here = (base if env is None else found).setdefault(name, {}) if mine else None
            if here is not None:
                here[""] = f"{file} line {number}"
        elif line.lstrip().startswith("["):
            here = None
        elif here is not None and (key := _KEY.match(line)) is not None:
            here[key["key"]] = f"{file} line {number}"
    return {name: {**base.get(name, {}), **found.get(name, {})} for name in {**base, **found}}
