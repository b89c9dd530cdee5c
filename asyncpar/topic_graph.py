"""Where records that failed lead to among the handlers of one app: what goes round for ever is refused.

Pure. Called by `groups.py` with the effective values of all handlers, of all groups. Never here: one
handler's own words (`topic_checks.py`), and other apps, of which nothing is known. Patterns lead nowhere:
they never match a topic that the app itself writes (`written_by`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from asyncpar.errors import HandlerError
from asyncpar.runtime.letters import dead_letter_topic, dead_letter_topics


class Way(NamedTuple):
    """What one handler reads, and where it sends what fails."""

    handler: str
    group: str
    topics: tuple[str, ...]
    pattern: str | None
    retry_topics: tuple[str, ...]
    dead_letter: str | None

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.handler} in group {self.group}"


class Step(NamedTuple):
    """Dead letters of the records of `source`, and whose."""

    source: str
    target: str
    way: Way


def check_ways(ways: Sequence[Way]) -> None:
    """Raises HandlerError for retry topics of two groups, or with foreign records, and for circles."""
    _check_retry_topics(ways)
    steps = [
        Step(topic, dead_letter_topic(way.dead_letter, topic), way)
        for way in ways
        if way.dead_letter is not None
        for topic in way.topics
    ]
    for step in steps:
        if circle := _circle(step, steps):
            names = " -> ".join([circle[0].source, *(f"{one.target} (of {one.way.where})" for one in circle)])
            raise HandlerError(
                f"handler {step.way.handler}: its dead letters would go round for ever: {names}; "
                "give the dead letters of one of them a topic that no handler of this app reads"
            )


def _check_retry_topics(ways: Sequence[Way]) -> None:
    owners: dict[str, Way] = {}
    for way in ways:
        for topic in way.retry_topics:
            other = owners.setdefault(topic, way)
            if other.group != way.group:
                raise HandlerError(
                    f"retry topic {topic} belongs to {other.where} and to {way.where}: each group would run "
                    "what failed in the other one, too; give each handler retry topics of its own"
                )
    for way in ways:
        for topic in () if way.dead_letter is None else dead_letter_topics(way.dead_letter, way.topics):
            if topic in owners:
                raise HandlerError(
                    f"handler {way.handler}: its dead letters go to {topic}, a retry topic of "
                    f"{owners[topic].where}, which would run them; give them a topic of their own"
                )


def _circle(first: Step, steps: Sequence[Step]) -> list[Step]:
    """The way from `first` back to where it begins; [] when there is none."""
    paths, seen = [[first]], {first}
    while paths:
        path = paths.pop()
        if path[-1].target == first.source:
            return path
        onward = [step for step in steps if step.source == path[-1].target and step not in seen]
        seen.update(onward)
        paths += [[*path, step] for step in onward]
    return []


def written_by(ways: Sequence[Way]) -> list[str]:
    """Regular expressions of all topics that the app writes to: its retry topics and dead letters."""
    found = {re.escape(topic) for way in ways for topic in way.retry_topics}
    for way in ways:
        if way.dead_letter is not None:
            found.update(map(re.escape, dead_letter_topics(way.dead_letter, way.topics)))
            if way.pattern is not None and way.dead_letter.startswith("."):
                found.add(f"(?:{way.pattern}){re.escape(way.dead_letter)}")
    return sorted(found)
