"""From a fault of the series to what it does to members, proxies and brokers; true when it really struck.

What lives here: one method per kind. What never does: when (`round.py`), how (`crew.py`, `tcp_proxy.py`,
`cluster.py`). Called by `round.py`. Always: what begins a fault also ends it, cancelled or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos.cluster import ChaosBroker, ChaosCluster
from tests.chaos.crew import Crew, CrewMember
from tests.chaos.faults import Fault
from tests.chaos.tcp_proxy import CALM, TcpProxy, Weather

FEWEST, MOST = 2, 5
"""How many members a group has, at least and at most; kill and term may take the last but one."""


class Striker:
    """Strikes one crew on one cluster."""

    def __init__(self, cluster: ChaosCluster, crew: Crew) -> None:
        self._cluster = cluster
        self._crew = crew
        self._kinds: dict[str, Callable[[Fault], Awaitable[bool]]] = {
            "kill": self._kill,
            "freeze": self._stand,
            "nap": self._stand,
            "starve": self._starve,
            "term": self._term,
            "join": self._join,
            "cut": self._cut,
            "refuse": self._refuse,
            "delay": self._worsen,
            "slow link": self._worsen,
            "half-open": self._worsen,
            "stalled requests": self._worsen,
            "stalled answers": self._worsen,
            "broker kill": self._kill_broker,
            "broker restart": self._restart_broker,
            "broker pause": self._pause_broker,
            "rolling restart": self._roll,
            "coordinator kill": self._depose,
            "disk full": self._fill_disk,
        }

    async def strike(self, fault: Fault) -> bool:
        """Do it to its end; False when it met nobody."""
        return await self._kinds[fault.kind](fault)

    # -- members -----------------------------------------------------------------------------

    def _victim(self, fault: Fault) -> CrewMember | None:
        free = self._crew.free()
        return free[int(fault.luck * len(free))] if free else None

    async def _kill(self, fault: Fault) -> bool:
        victim = self._victim(fault)
        if victim is None or len(self._crew.members) < FEWEST:
            return False
        self._crew.kill(victim)
        return True

    async def _term(self, fault: Fault) -> bool:
        victim = self._victim(fault)
        if victim is None or len(self._crew.members) < FEWEST:
            return False
        await self._crew.end(victim)
        return True

    async def _stand(self, fault: Fault) -> bool:
        victim = self._victim(fault)
        if victim is None:
            return False
        await self._crew.stand(victim, fault.seconds)
        return True

    async def _starve(self, fault: Fault) -> bool:
        victim = self._victim(fault)
        if victim is None:
            return False
        await self._crew.starve(victim, fault.seconds)
        return True

    async def _join(self, _: Fault) -> bool:
        if len(self._crew.members) >= MOST:
            return False
        self._crew.hire()
        return True

    # -- the network -------------------------------------------------------------------------

    async def _proxies(self, fault: Fault) -> Sequence[TcpProxy]:
        """One in eight faults meets the way to all brokers."""
        brokers = self._cluster.brokers
        if fault.luck < 1 / 8:
            return [broker.proxy for broker in brokers]
        return [(await self._target(fault)).proxy]

    async def _target(self, fault: Fault) -> ChaosBroker:
        brokers = self._cluster.brokers
        coordinator = await self._cluster.coordinator() if fault.is_aimed else None
        return coordinator or brokers[int(fault.luck * len(brokers))]

    async def _cut(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        return sum(proxy.cut(fault.share) for proxy in proxies) > 0

    async def _refuse(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        met = sum(proxy.links for proxy in proxies)
        try:
            for proxy in proxies:
                await proxy.refuse()
            await asyncio.sleep(fault.seconds)
        finally:
            for proxy in proxies:
                await proxy.heal()
        return met > 0

    async def _worsen(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        try:
            for proxy in proxies:
                proxy.turn(_weather(fault))
            await asyncio.sleep(fault.seconds)
            return any(proxy.met for proxy in proxies)
        finally:
            for proxy in proxies:
                proxy.turn(CALM)

    # -- brokers -----------------------------------------------------------------------------

    async def _kill_broker(self, fault: Fault) -> bool:
        await self._cluster.kill(await self._target(fault), fault.seconds)
        return True

    async def _restart_broker(self, fault: Fault) -> bool:
        await self._cluster.restart(await self._target(fault))
        return True

    async def _pause_broker(self, fault: Fault) -> bool:
        await self._cluster.pause(await self._target(fault), fault.seconds)
        return True

    async def _roll(self, _: Fault) -> bool:
        for broker in self._cluster.brokers:
            await self._cluster.restart(broker)
        return True

    async def _depose(self, fault: Fault) -> bool:
        coordinator = await self._cluster.coordinator()
        return coordinator is not None and await self._cluster.depose(coordinator, fault.seconds)

    async def _fill_disk(self, fault: Fault) -> bool:
        return await self._cluster.fill_disk(await self._target(fault))


def _weather(fault: Fault) -> Weather:
    match fault.kind:
        case "delay":
            return Weather(delay_seconds=0.03 + 0.4 * fault.strength, share=fault.share)
        case "slow link":
            return Weather(bytes_per_second=2_000 + 30_000 * fault.strength, share=fault.share)
        case "stalled requests":
            return Weather(stalled=frozenset({"requests"}), share=fault.share)
        case "stalled answers":
            return Weather(stalled=frozenset({"answers"}), share=fault.share)
    return Weather(is_dark=True, share=fault.share)
