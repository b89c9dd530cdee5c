"""A failing life, told: what the checkers say, and the events that led there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asyncpar.records import TopicPartition
from asyncpar.testing.arguments import counted
from asyncpar.testing.history import NO_PARTITION, Event
from asyncpar.testing.simulation.life import Outcome

MAX_LINES = 80
_LIFE_OF_A_MEMBER = frozenset({"join", "leave", "freeze", "thaw", "dead", "fault", "heal"})


def tell(outcome: Outcome) -> str:
    """Plan, verdict and trace of a life, for the person who has to find the cause."""
    plan = outcome.plan
    lines = [f"life {outcome.seed} failed:"]
    lines += [f"  {problem}" for problem in outcome.problems]
    lines.append(
        f"plan: {counted(plan.members, 'member')}, {dict(plan.partitions)}, "
        f"{counted(plan.records, 'record')}, {counted(plan.keys, 'key')}, "
        f"attempts {plan.attempts}, {plan.handler}, {plan.settings}, {plan.mix}, {plan.letters}, "
        f"{plan.children}"
        f"{', cooperative' if plan.cooperative else ''}{', static' if plan.static else ''}"
    )
    lines += [f"  {fault}" for fault in plan.faults]
    if outcome.culprits:
        lines.append("trace (seconds, member, event):")
        lines += [f"  {event}" for event in _led_to(outcome.events, outcome.culprits)]
    return "\n".join(lines)


def _led_to(events: Sequence[Event], culprits: Sequence[Event]) -> list[Event]:
    """The last events up to the culprits that share their partition, and their key where they have one."""
    until = max(event.at_ns for event in culprits)
    places = {event.tp for event in culprits} - {NO_PARTITION}
    keys = {event.key for event in culprits if event.key is not None}
    return list(_related(events, until, places, keys))[-MAX_LINES:]


def _related(
    events: Sequence[Event], until: int, places: set[TopicPartition], keys: set[bytes]
) -> Iterator[Event]:
    for event in events:
        if event.at_ns > until:
            continue
        of_key = not keys or event.key is None or event.key in keys
        if event.kind in _LIFE_OF_A_MEMBER or (event.tp in places and of_key):
            yield event
