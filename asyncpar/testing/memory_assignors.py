"""How a group's leader shares partitions out: range, round robin, and a cooperative one.

Pure functions. Never here: members' lives. Called by `memory_member` when its member leads. Always:
a partition goes to one member at most, and to a member that subscribed to its topic.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from asyncpar.records import TopicPartition

Protocol = Literal["range", "roundrobin", "cooperative"]


class Wish(NamedTuple):
    """What a member joins with: the topics it wants, and (cooperative only) the partitions it holds."""

    topics: frozenset[str]
    owned: frozenset[TopicPartition] = frozenset()


Plan = dict[str, frozenset[TopicPartition]]
"""Partitions by member id."""


def assign(protocol: Protocol, members: Mapping[str, Wish], counts: Mapping[str, int]) -> Plan:
    """Share the partitions of the members' topics out; `counts` says how many each topic has."""
    shares = _ASSIGNORS[protocol](members, counts)
    return {member: frozenset(shares.get(member, ())) for member in members}


_Shares = Mapping[str, Iterable[TopicPartition]]


def _partitions(members: Mapping[str, Wish], counts: Mapping[str, int]) -> list[TopicPartition]:
    topics = frozenset[str]().union(*(wish.topics for wish in members.values()))
    return [TopicPartition(topic, at) for topic in sorted(topics) for at in range(counts.get(topic, 0))]


def _round_robin(members: Mapping[str, Wish], counts: Mapping[str, int]) -> _Shares:
    """All partitions in order, to all members in turn, passing over those without the topic."""
    shares: defaultdict[str, list[TopicPartition]] = defaultdict(list)
    turns = itertools.cycle(sorted(members))
    for tp in _partitions(members, counts):
        shares[next(member for member in turns if tp.topic in members[member].topics)].append(tp)
    return shares


def _range(members: Mapping[str, Wish], counts: Mapping[str, int]) -> _Shares:
    """Per topic: neighbouring partitions to each member in order, the first ones get one more."""
    shares: defaultdict[str, list[TopicPartition]] = defaultdict(list)
    for topic in sorted({tp.topic for tp in _partitions(members, counts)}):
        takers = sorted(member for member, wish in members.items() if topic in wish.topics)
        each, extra = divmod(counts[topic], len(takers))
        begin = 0
        for at, member in enumerate(takers):
            end = begin + each + (at < extra)
            shares[member] += [TopicPartition(topic, partition) for partition in range(begin, end)]
            begin = end
    return shares


def _cooperative(members: Mapping[str, Wish], counts: Mapping[str, int]) -> _Shares:
    """Everyone keeps what it holds up to a fair share; what is held above it goes to nobody this time.

    Its holder gives it back and joins again, and only then it is shared out: a partition never has
    two owners. One that two members claim to hold is taken from both.
    """
    partitions = _partitions(members, counts)
    claims: defaultdict[TopicPartition, list[str]] = defaultdict(list)
    for member, wish in members.items():
        for tp in wish.owned:
            claims[tp].append(member)
    shares: dict[str, list[TopicPartition]] = {member: [] for member in members}
    each, extra = divmod(len(partitions), len(members))
    for member in sorted(members, key=lambda name: (-len(members[name].owned), name)):
        held = [tp for tp in partitions if claims.get(tp) == [member] and tp.topic in members[member].topics]
        fair = each + 1 if extra and len(held) > each else each
        extra -= fair - each
        shares[member] = held[:fair]
    for tp in partitions:
        takers = [member for member, wish in members.items() if tp.topic in wish.topics]
        if tp not in claims:
            shares[min(takers, key=lambda name: (len(shares[name]), name))].append(tp)
    return shares


_ASSIGNORS: dict[Protocol, Callable[[Mapping[str, Wish], Mapping[str, int]], _Shares]] = {
    "range": _range,
    "roundrobin": _round_robin,
    "cooperative": _cooperative,
}
