"""Brokers to be struck: each behind a proxy that all members go through, with its log on a small disk.

What lives here: `ChaosCluster` and what can be done to one broker. What never does: the choice of what and
when (`striking.py`). Called by `round.py`. Always: brokers talk to each other, and tools to them, past the
proxies; every wait is bounded; `close` leaves no process, no port, no mount and no folder behind.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.chaos.small_disk import SmallDisk, why_no_disk
from tests.chaos.tcp_proxy import LOOPBACK, TcpProxy
from tests.kafka_broker import KafkaBroker, free_port

WHOLE_SECONDS = 60.0
_FULL_DISK_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_OFFSETS_TOPIC = "__consumer_offsets"

_FAST = {
    # A broker that is gone or frozen is noticed, and replaced as a leader, within about two seconds.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "300",
    "controller.quorum.election.timeout.ms": "1000",
    "controller.quorum.fetch.timeout.ms": "1500",
    "replica.lag.time.max.ms": "5000",
    "leader.imbalance.check.interval.seconds": "10",
    # Small, so that a coordinator that takes over has little to read and a small disk holds it all.
    "offsets.topic.segment.bytes": "4194304",
    "log.index.size.max.bytes": "1048576",
}


class WorldError(RuntimeError):
    """The cluster itself does not come back: that says nothing about asyncpar, and ends the round."""


class ChaosBroker:
    """One broker, its proxy, and its disk where there is one."""

    def __init__(self, number: int) -> None:
        self.node = KafkaBroker(_FAST, node_id=number)
        inner, outer = free_port(), free_port()
        self.proxy = TcpProxy(outer, inner)
        self.disk: SmallDisk | None = None
        self.node.overrides |= {
            "listeners": f"PLAINTEXT://{self.node.bootstrap},CLIENTS://{LOOPBACK}:{inner},"
            f"CONTROLLER://{LOOPBACK}:{self.node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.node.bootstrap},CLIENTS://{LOOPBACK}:{outer}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CLIENTS:PLAINTEXT",
        }

    def give_disk(self) -> None:
        """Put the log on a disk that can be filled; before the first start."""
        self.disk = SmallDisk(self.node.directory / "data")
        self.disk.mount()

    def remove(self) -> None:
        """Kill the broker, unmount its disk, delete its folder."""
        self.node.kill()
        if self.disk is not None:
            with suppress(OSError):
                self.disk.unmount()
        self.node.remove()


class ChaosCluster:
    """`size` brokers: replication `size`, min.insync.replicas 2 of 3."""

    def __init__(self, size: int = 3) -> None:
        self.brokers = [ChaosBroker(number) for number in range(1, size + 1)]
        self.no_disk = why_no_disk()
        """Why no disk can be filled here; None when they can."""
        nodes = [broker.node for broker in self.brokers]
        for node in nodes:
            node.voters, node.cluster_id = nodes, nodes[0].cluster_id

    @property
    def outside(self) -> str:
        """The bootstrap servers of members: the proxies."""
        return ",".join(f"{LOOPBACK}:{broker.proxy.port}" for broker in self.brokers)

    @property
    def inside(self) -> str:
        """The bootstrap servers of the producer and of tools, which no network fault meets."""
        return ",".join(broker.node.bootstrap for broker in self.brokers)

    async def start(self) -> None:
        """All brokers and proxies. Raises BrokerStartError, or OSError when a port was taken meanwhile."""
        if self.no_disk is None:
            for broker in self.brokers:
                broker.give_disk()
        for broker in self.brokers:
            await broker.proxy.start()
            await asyncio.to_thread(broker.node.spawn)
        everyone = [broker.node.node_id for broker in self.brokers]
        for broker in self.brokers:
            await asyncio.to_thread(broker.node.wait_ready, everyone)

    async def close(self) -> None:
        """Nothing is left."""
        for broker in self.brokers:
            await broker.proxy.stop()
            await asyncio.to_thread(broker.remove)

    async def heal(self) -> None:
        """The network is well, all brokers run, and every partition has all its copies in sync."""
        for broker in self.brokers:
            await broker.proxy.heal()
            if broker.disk is not None:
                broker.disk.free()
            if broker.node.is_running:
                broker.node.resume()
        await self.make_whole()

    async def make_whole(self) -> None:
        """Start the brokers that are down and wait until all copies are in sync; WorldError otherwise."""
        for broker in self.brokers:
            if not broker.node.is_running:
                await asyncio.to_thread(broker.node.spawn)
        deadline = time.monotonic() + WHOLE_SECONDS
        while not await asyncio.to_thread(self._is_whole):
            if time.monotonic() > deadline:
                raise WorldError(
                    f"the brokers did not come back within {WHOLE_SECONDS:.0f} s: {self._logs()}"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_whole(self) -> bool:
        size = len(self.brokers)
        for broker in self.brokers:
            # Each is asked for itself: what one of them knows the others may not have heard yet.
            metadata = _metadata(broker.node.bootstrap)
            if metadata is None or len(metadata.brokers) < size:
                return False
            parts = [part for topic in metadata.topics.values() for part in topic.partitions.values()]
            if any(part.leader < 0 or len(part.isrs) < min(size, len(part.replicas)) for part in parts):
                return False
        return True

    def _logs(self) -> str:
        return "; ".join(
            f"node {one.node.node_id} {'runs' if one.node.is_running else 'is down'}, log {one.node.log_path}"
            for one in self.brokers
        )

    def save_logs(self, folder: Path) -> None:
        """Copy the brokers' logs into `folder`."""
        for broker in self.brokers:
            if broker.node.log_path.exists():
                shutil.copy(broker.node.log_path, folder / f"broker-{broker.node.node_id}.log")

    async def coordinator(self) -> ChaosBroker | None:
        """The broker that coordinates the group; None while nobody says."""
        for broker in self.brokers:
            metadata = await asyncio.to_thread(_metadata, broker.node.bootstrap)
            topic = metadata and metadata.topics.get(_OFFSETS_TOPIC)
            if topic and topic.partitions:
                leader = topic.partitions[0].leader
                return next((one for one in self.brokers if one.node.node_id == leader), None)
        return None

    # -- what can be done to a broker --------------------------------------------------------

    async def kill(self, broker: ChaosBroker, seconds: float) -> None:
        """kill -9, and back after `seconds`."""
        await asyncio.to_thread(broker.node.kill)
        await asyncio.sleep(seconds)
        await self.make_whole()

    async def restart(self, broker: ChaosBroker) -> None:
        """Stopped in order, and back."""
        await asyncio.to_thread(broker.node.stop)
        await self.make_whole()

    async def pause(self, broker: ChaosBroker, seconds: float) -> None:
        """Frozen for `seconds`."""
        if not broker.node.is_running:
            raise WorldError(f"a broker ended by itself: {self._logs()}")
        broker.node.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            broker.node.resume()
        await self.make_whole()

    async def depose(self, broker: ChaosBroker, seconds: float) -> bool:
        """kill -9 of the coordinator, and back when another took over; whether one did."""
        await asyncio.to_thread(broker.node.kill)
        deadline = time.monotonic() + _FULL_DISK_SECONDS
        successor = None
        while time.monotonic() < deadline and successor in (None, broker):
            await asyncio.sleep(_LOOK_SECONDS)
            successor = await self.coordinator()
        await asyncio.sleep(seconds)
        await self.make_whole()
        return successor not in (None, broker)

    async def fill_disk(self, broker: ChaosBroker) -> bool:
        """No space for the log until the broker gives up; then space again, and back. Whether it gave up."""
        assert broker.disk is not None
        deadline = time.monotonic() + _FULL_DISK_SECONDS
        try:
            while broker.node.is_running and time.monotonic() < deadline:
                broker.disk.fill()
                await asyncio.sleep(_LOOK_SECONDS)
            gave_up = not broker.node.is_running
            await asyncio.to_thread(broker.node.kill)
        finally:
            broker.disk.free()
        await self.make_whole()
        return gave_up


def _metadata(bootstrap: str) -> Any:
    """What a broker knows of the cluster; None when it does not answer within a second."""
    try:
        return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=1)
    except KafkaException:
        return None
