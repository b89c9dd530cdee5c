"""asyncpar: run Kafka records in parallel, in order per key, and lose none.

The front door: what users import. Names load when first used, so that `import asyncpar` is cheap
and a handler module does not pull in the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpar.app import App as App
    from asyncpar.context import Context as Context
    from asyncpar.context import Header as Header
    from asyncpar.context import Key as Key
    from asyncpar.context import extend as extend
    from asyncpar.context import heartbeat as heartbeat
    from asyncpar.deduplication import Deduplicate as Deduplicate
    from asyncpar.deduplication import MemoryStore as MemoryStore
    from asyncpar.errors import AsyncparError as AsyncparError
    from asyncpar.errors import ConfigurationError as ConfigurationError
    from asyncpar.errors import DecodeError as DecodeError
    from asyncpar.errors import Permanent as Permanent
    from asyncpar.errors import Retryable as Retryable
    from asyncpar.errors import RetryAfter as RetryAfter
    from asyncpar.errors import Skip as Skip
    from asyncpar.events import LifecycleEvent as LifecycleEvent
    from asyncpar.middleware import Call as Call
    from asyncpar.policies import Breaker as Breaker
    from asyncpar.policies import DeadLetterBudget as DeadLetterBudget
    from asyncpar.policies import PoisonKeys as PoisonKeys
    from asyncpar.policies import RateLimit as RateLimit
    from asyncpar.policies import Retry as Retry
    from asyncpar.records import Outcome as Outcome
    from asyncpar.records import RawRecord as RawRecord
    from asyncpar.records import Record as Record
    from asyncpar.records import Verdict as Verdict
    from asyncpar.topics import topic as topic

__version__ = "0.1.0"

_HOMES = {
    "App": "asyncpar.app",
    "AsyncparError": "asyncpar.errors",
    "Call": "asyncpar.middleware",
    "ConfigurationError": "asyncpar.errors",
    "Context": "asyncpar.context",
    "Deduplicate": "asyncpar.deduplication",
    "MemoryStore": "asyncpar.deduplication",
    "DecodeError": "asyncpar.errors",
    "Header": "asyncpar.context",
    "Key": "asyncpar.context",
    "LifecycleEvent": "asyncpar.events",
    "Outcome": "asyncpar.records",
    "RawRecord": "asyncpar.records",
    "Record": "asyncpar.records",
    "RateLimit": "asyncpar.policies",
    "PoisonKeys": "asyncpar.policies",
    "DeadLetterBudget": "asyncpar.policies",
    "Breaker": "asyncpar.policies",
    "Retry": "asyncpar.policies",
    "Permanent": "asyncpar.errors",
    "RetryAfter": "asyncpar.errors",
    "Retryable": "asyncpar.errors",
    "Skip": "asyncpar.errors",
    "Verdict": "asyncpar.records",
    "heartbeat": "asyncpar.context",
    "extend": "asyncpar.context",
    "topic": "asyncpar.topics",
}

__all__ = [
    "App",
    "AsyncparError",
    "Breaker",
    "Call",
    "ConfigurationError",
    "Context",
    "DeadLetterBudget",
    "DecodeError",
    "Deduplicate",
    "Header",
    "Key",
    "LifecycleEvent",
    "MemoryStore",
    "Outcome",
    "Permanent",
    "PoisonKeys",
    "RateLimit",
    "RawRecord",
    "Record",
    "Retry",
    "RetryAfter",
    "Retryable",
    "Skip",
    "Verdict",
    "__version__",
    "extend",
    "heartbeat",
    "topic",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'asyncpar' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
