"""A test's history is judged: by which rules, as the handlers of a topic and the settings say.

Pure. Called by `TestApp.check`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from asyncpar.groups import DeclaredGroup, DeclaredHandler
from asyncpar.settings import Settings
from asyncpar.testing.checkers import Fault, Report, Rules, check
from asyncpar.testing.history import NO_PARTITION, Event
from asyncpar.testing.rig import takes


def judge(events: Sequence[Event], group: DeclaredGroup, settings: Settings) -> Report:
    """What the checkers say of one group; topics may be ordered differently, so each is judged by itself."""
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    for topic in dict.fromkeys(event.tp.topic for event in events if event.tp != NO_PARTITION):
        if not takes(group, topic):
            continue
        about = [event for event in events if event.tp.topic in (topic, NO_PARTITION.topic)]
        report = check(about, rules_for(group, topic, settings))
        blind = passes_over(group, topic)
        faults += [fault for fault in report.faults if not (blind and fault.check == "LOST")]
        counts.update(report.counts)
    return Report(tuple(faults), dict(counts))


def rules_for(group: DeclaredGroup, topic: str, settings: Settings) -> Rules:
    """The rules for one topic of `group`.

    Where handlers of the topic differ in their order, or order by a function, it is taken for none.
    """
    handlers = _handlers_of(group, topic)
    threads = [one.concurrency for one in handlers if one.spec.resolved_executor == "thread"]
    return Rules(
        order=_order(handlers),
        offset_reset="latest" if settings.offset_reset == "latest" else "earliest",
        slots=max(threads, default=1),
        session_timeout_ms=settings.session_timeout_ms,
        max_revoke_grace_ms=settings.max_revoke_grace_ms,
        shutdown_drain_timeout_ms=settings.shutdown_drain_timeout_ms,
        max_in_flight=settings.max_in_flight,
    )


def passes_over(group: DeclaredGroup, topic: str) -> bool:
    """True where records may be settled before any handler is called, which nobody sees."""
    return any(
        one.spec.unmatched == "skip"
        or (one.spec.on_decode_error == "skip" and (callable(one.spec.order) or one.spec.keyless == "error"))
        for one in _handlers_of(group, topic)
    )


def _order(handlers: Sequence[DeclaredHandler]) -> Literal["key", "partition", "unordered"]:
    orders = {one.spec.order for one in handlers}
    only = orders.pop() if len(orders) == 1 else None
    return only if isinstance(only, str) else "unordered"


def _handlers_of(group: DeclaredGroup, topic: str) -> list[DeclaredHandler]:
    """The topic's handlers; an exact name beats a pattern."""
    named = [one for one in group.handlers if topic in one.spec.topics]
    return named or [
        one for one in group.handlers if one.spec.pattern and re.fullmatch(one.spec.pattern, topic)
    ]
