"""Waiting for the apps of a test: which records are still open, and who holds which partitions.

Lives here: `Waiting`. Never here: words (`unsettled`), sending. Called by `TestApp`. Always: every wait is
bounded, and ends at once with the error that ended an app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from asyncpar.app import App
from asyncpar.records import TopicPartition
from asyncpar.status import AppStatus
from asyncpar.testing.cluster import Cluster
from asyncpar.testing.rig import Rig, takes
from asyncpar.testing.unsettled import Open, forgotten, halted, held, partition_status, unassigned, unsettled
from asyncpar.testing.witness import Handled

_LOOK_SECONDS = 0.005

Statuses = Mapping[App, AppStatus]


class Waiting:
    """For `rigs` on `cluster`, whose attempts are in `handled`."""

    def __init__(self, rigs: Sequence[Rig], cluster: Cluster, handled: Sequence[Handled]) -> None:
        self._rigs = rigs
        self._cluster = cluster
        self._handled = handled

    def check_alive(self) -> None:
        """Raise what ended an app, if one has ended."""
        for rig in self._rigs:
            rig.check_alive()

    def statuses(self) -> Statuses:
        """Of each app, as it is now."""
        return {rig.app: rig.app.status() for rig in self._rigs}

    # -- records -----------------------------------------------------------------------------

    async def settled(self, timeout_s: float, *, raise_on_halt: bool) -> None:
        """See `TestApp.settled`."""
        loop = asyncio.get_running_loop()
        deadline, blocked = loop.time() + timeout_s, 0.0
        while True:
            self.check_alive()
            statuses = self.statuses()
            places = self._open(statuses, raise_on_halt=raise_on_halt, pass_over_halted=True)
            if not places:
                return
            if loop.time() >= deadline:
                raise unsettled(places, timeout_s, self._handled, blocked_s=blocked)
            blocked = max(blocked, await _pause())

    def check_settled(self, before: Statuses) -> None:
        """After the end: raise what is not done, with the reasons of `before`; others may do the rest."""
        places = [
            (place, status)
            for place, status in self._open(before, raise_on_halt=False, pass_over_halted=False)
            if not self._cluster.has_members(place.group)
        ]
        if places:
            raise forgotten(places, self._handled)

    def _open(
        self, statuses: Statuses, *, raise_on_halt: bool, pass_over_halted: bool
    ) -> list[tuple[Open, AppStatus]]:
        """What is open, once per group and partition; what has halted is raised or passed over."""
        found: dict[tuple[str, TopicPartition], tuple[Open, AppStatus]] = {}
        stopped: set[tuple[str, TopicPartition]] = set()
        for rig in self._rigs:
            status = statuses[rig.app]
            for place in self._first_open(rig):
                partition = partition_status(status, place.group, place.tp)
                if pass_over_halted and partition is not None and partition.halt_reason is not None:
                    if raise_on_halt:
                        raise halted(partition, self._handled)
                    stopped.add((place.group, place.tp))
                # Of several members the one that has the partition knows the reason.
                if (place.group, place.tp) not in found or partition is not None:
                    found[place.group, place.tp] = place, status
        return [one for where, one in found.items() if where not in stopped]

    def _first_open(self, rig: Rig) -> list[Open]:
        return [
            Open(group.name, tp, offset)
            for group in rig.groups
            for topic in self._cluster.topics_sent_to()
            if takes(group, topic)
            for tp, offset in self._cluster.first_open(group.name, topic, rig.settings)
        ]

    # -- partitions --------------------------------------------------------------------------

    async def assigned(self, at_least: int, timeout_s: float) -> list[TopicPartition]:
        """See `TestApp.assigned`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self.check_alive()
            statuses = self.statuses()
            members = [(rig, group.name) for rig in self._rigs for group in rig.groups]
            parts = {(rig, group): held(statuses[rig.app], group) for rig, group in members}
            if all(len(tps) >= at_least for tps in parts.values()):
                return sorted({tp for tps in parts.values() for tp in tps})
            if loop.time() >= deadline:
                rig, group = min(members, key=lambda one: len(parts[one]))
                events = self._cluster.histories.of(group).events
                raise unassigned(group, rig.member(group), statuses[rig.app], events, at_least, timeout_s)
            await _pause()


async def _pause() -> float:
    """Let the others run for a moment; returns for how many seconds too long they kept the loop."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(_LOOK_SECONDS)
    return loop.time() - before - _LOOK_SECONDS
