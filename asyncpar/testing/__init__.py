"""What asyncpar proves itself with, and what users test their handlers with.

Shipped with the library, imported by nothing of it. Names load when first used, so that the pytest plugin
costs nothing in a project that does not use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpar.records import TopicPartition as TopicPartition
    from asyncpar.testing.app import TestApp as TestApp
    from asyncpar.testing.checker_letters import letter_of as letter_of
    from asyncpar.testing.checkers import Fault as Fault
    from asyncpar.testing.checkers import Final as Final
    from asyncpar.testing.checkers import Letter as Letter
    from asyncpar.testing.checkers import Report as Report
    from asyncpar.testing.checkers import Rules as Rules
    from asyncpar.testing.checkers import check as check
    from asyncpar.testing.history import Event as Event
    from asyncpar.testing.history import History as History
    from asyncpar.testing.history import HistoryFile as HistoryFile
    from asyncpar.testing.history import handling as handling
    from asyncpar.testing.history import read as read
    from asyncpar.testing.memory_broker import DISCONNECT as DISCONNECT
    from asyncpar.testing.memory_broker import LOST_ANSWER as LOST_ANSWER
    from asyncpar.testing.memory_broker import MemoryBroker as MemoryBroker
    from asyncpar.testing.memory_topics import RecordPlace as RecordPlace
    from asyncpar.testing.recording import RecordingConsumer as RecordingConsumer
    from asyncpar.testing.unsettled import HaltedError as HaltedError
    from asyncpar.testing.unsettled import UnsettledError as UnsettledError
    from asyncpar.testing.witness import Handled as Handled

_HOMES = {
    "DISCONNECT": "testing.memory_broker",
    "Event": "testing.history",
    "Fault": "testing.checkers",
    "Final": "testing.checkers",
    "Handled": "testing.witness",
    "HaltedError": "testing.unsettled",
    "History": "testing.history",
    "HistoryFile": "testing.history",
    "LOST_ANSWER": "testing.memory_broker",
    "Letter": "testing.checkers",
    "MemoryBroker": "testing.memory_broker",
    "RecordPlace": "testing.memory_topics",
    "RecordingConsumer": "testing.recording",
    "Report": "testing.checkers",
    "Rules": "testing.checkers",
    "TestApp": "testing.app",
    "TopicPartition": "records",
    "UnsettledError": "testing.unsettled",
    "check": "testing.checkers",
    "handling": "testing.history",
    "letter_of": "testing.checker_letters",
    "read": "testing.history",
}

__all__ = [
    "DISCONNECT",
    "LOST_ANSWER",
    "Event",
    "Fault",
    "Final",
    "HaltedError",
    "Handled",
    "History",
    "HistoryFile",
    "Letter",
    "MemoryBroker",
    "RecordPlace",
    "RecordingConsumer",
    "Report",
    "Rules",
    "TestApp",
    "TopicPartition",
    "UnsettledError",
    "check",
    "handling",
    "letter_of",
    "read",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'asyncpar.testing' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"asyncpar.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
