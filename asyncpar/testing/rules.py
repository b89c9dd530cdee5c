"""A test's history is judged: by which rules, as the handlers of a topic and the settings say.

Pure. Called by `TestApp.check`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from asyncpar.groups import DeclaredGroup, DeclaredHandler
from asyncpar.runtime.letters import dead_letter_topic
from asyncpar.settings import Settings
from asyncpar.testing.checkers import Fault, Letter, Report, Rules, check
from asyncpar.testing.history import NO_PARTITION, Event
from asyncpar.testing.rig import takes

LettersIn = Callable[[Collection[str], str, str], Sequence[Letter] | None]
"""The dead letters in some topics, of a group, of records of a topic; None: they are not known."""


def judge(events: Sequence[Event], group: DeclaredGroup, settings: Settings, letters_in: LettersIn) -> Report:
    """What the checkers say of one group; topics may be ordered differently, so each is judged by itself."""
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    for topic in dict.fromkeys(event.tp.topic for event in events if event.tp != NO_PARTITION):
        if not takes(group, topic):
            continue
        letters = _letters(events, group, topic, letters_in)
        rules = rules_for(group, topic, settings, letters)
        written = {(letter.tp, letter.offset) for letter in letters or ()}
        about = [
            event
            for event in events
            if event.tp.topic in (topic, NO_PARTITION.topic)
            or (event.kind == "send" and (event.tp, event.offset) in written)
        ]
        report = check(about, rules)
        blind = passes_over(group, topic)
        faults += [fault for fault in report.faults if not (blind and fault.check == "LOST")]
        counts.update(report.counts)
    return Report(tuple(faults), dict(counts))


def _letters(
    events: Sequence[Event], group: DeclaredGroup, topic: str, letters_in: LettersIn
) -> Sequence[Letter] | None:
    """The dead letters of records of `topic`; None where they cannot be judged.

    What travelled through a retry topic names the topic where it was read first. Of an offset that two
    records had, as a log was cut, nobody knows which payload a letter should have.
    """
    handlers = _handlers_of(group, topic)
    topics = {dead_letter_topic(one.dead_letter, topic) for one in handlers if one.dead_letter is not None}
    if not topics or any(one.spec.retry_topics for one in handlers):
        return None
    letters = letters_in(topics, group.name, topic)
    if letters is None:
        return None
    sent = Counter((event.tp, event.offset) for event in events if event.kind == "send")
    return [
        one if sent[one.origin, one.origin_offset] == 1 else one._replace(is_intact=True) for one in letters
    ]


def rules_for(
    group: DeclaredGroup, topic: str, settings: Settings, letters: Sequence[Letter] | None = None
) -> Rules:
    """The rules for one topic of `group`, with its dead letters where they are known.

    Where handlers of the topic differ in their order, or order by a function, it is taken for none.
    """
    handlers = _handlers_of(group, topic)
    threads = [one.concurrency for one in handlers if one.spec.resolved_executor == "thread"]
    of_letters = {} if letters is None else _of_letters(handlers, letters)
    return Rules(
        **of_letters,
        order=_order(handlers),
        offset_reset="latest" if settings.offset_reset == "latest" else "earliest",
        slots=max(threads, default=1),
        session_timeout_ms=settings.session_timeout_ms,
        max_revoke_grace_ms=settings.max_revoke_grace_ms,
        shutdown_drain_timeout_ms=settings.shutdown_drain_timeout_ms,
        max_in_flight=settings.max_in_flight,
    )


def _of_letters(handlers: Sequence[DeclaredHandler], letters: Sequence[Letter]) -> dict[str, Any]:
    """The rules on dead letters; of handlers that share a topic no rule of one is every one's."""
    if len(handlers) > 1:
        return {"letters": letters}
    (handler,) = handlers
    poison, budget = handler.spec.poison_keys, handler.spec.dead_letter_budget
    is_fixed = budget is not None and not budget.share
    return {
        "letters": letters,
        "attempts": handler.attempts,
        "poison_failures": None if poison is None else poison.failures,
        "letter_budget": budget.at_least if budget is not None and is_fixed else None,
        "letter_window_ms": budget.window_ms if budget is not None and is_fixed else None,
    }


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
