"""Real Kafka processes for tests: KRaft nodes started from Maven jars, to be killed, frozen and restarted.

What lives here: `KafkaBroker` (one node) and `KafkaCluster` (several). What never does: jars
(`kafka_jars.py`), topics, records, groups (`kafka_tools.py`) and pytest fixtures (`conftest.py`). Called by
`conftest.py` and by tests that build their own brokers. Always: sockets on 127.0.0.1 only, every wait
bounded, and no process outlives the test process, however that one dies.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.freezing import freeze
from tests.kafka_jars import BrokerUnavailable, java_command, java_version, kafka_home

__all__ = [
    "BrokerStartError",
    "BrokerUnavailable",
    "KafkaBroker",
    "KafkaCluster",
    "free_port",
    "kafka_home",
    "new_cluster_id",
]

LOOPBACK = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0

# The node dies with the thread that started it (that is how the kernel reads PR_SET_PDEATHSIG), so one thread
# that lives as long as the interpreter starts them all. The shim sets it after the fork and then becomes the
# node, under the same pid: no code of ours runs between fork and exec in a process with threads.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-starter")
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the test process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class BrokerStartError(RuntimeError):
    """A node ended or did not answer in time; the message holds the end of its log."""


def _archive_options(home: Path) -> list[str]:
    """Options for the class-data archive of this Java, which about halves a node's start.

    It is made once, by a node that starts and stops. A Java that cannot make one leaves an empty file, so
    that nobody tries again.
    """
    version = hashlib.sha256(java_version().encode()).hexdigest()[:16]
    archive = home / f"classes-{version}.jsa"
    if not archive.exists():
        building = home / f"building-{uuid.uuid4().hex}.jsa"
        node = KafkaBroker(java_options=[f"-XX:ArchiveClassesAtExit={building}"])
        try:
            node.start()
            node.stop(timeout_seconds=60)
            building.touch()
            building.replace(archive)
        finally:
            node.remove()
            building.unlink(missing_ok=True)
    return [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto"] if archive.stat().st_size else []


def free_port() -> int:
    """A TCP port that nobody listens on, below the range of outgoing connections.

    A client that retries against a dead broker would sooner or later be given a port of that range as its
    own, and the broker could not come back to it.
    """
    lowest = 32768
    with suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        port = random.randrange(10_000, max(lowest, 12_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise BrokerStartError(f"no free TCP port below {lowest} on {LOOPBACK} in 200 tries")


def new_cluster_id() -> str:
    """A cluster id as Kafka wants it: a UUID in 22 characters."""
    # A leading dash would be read as an option by the storage tool.
    return "a" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


class KafkaBroker:
    """One KRaft node (broker and controller) on 127.0.0.1, in a folder of its own.

    `overrides` are lines of server.properties, read again at each start. `directory` (default: a new
    temporary one) can lie on a small tmpfs. `client` holds librdkafka settings for the readiness check of a
    broker that wants credentials; `format_args` goes to the storage tool (`-S SCRAM...`); `java_options`
    replaces the class-data archive. `port` and `controller_port` are known before start(), so that
    overrides can name them.
    """

    def __init__(
        self,
        overrides: Mapping[str, str] | None = None,
        *,
        node_id: int = 1,
        directory: Path | None = None,
        client: Mapping[str, str] | None = None,
        format_args: Sequence[str] = (),
        java_options: Sequence[str] | None = None,
    ) -> None:
        self.overrides = dict(overrides or {})
        self.node_id = node_id
        self.port, self.controller_port = free_port(), free_port()
        self.cluster_id = new_cluster_id()
        self.voters = [self]
        self.directory = directory or Path(tempfile.mkdtemp(prefix="asyncpar-kafka-"))
        self.log_path = self.directory / "server.log"
        self._client = dict(client or {})
        self._format_args = list(format_args)
        self._java_options = java_options
        self._process: subprocess.Popen[bytes] | None = None
        _living.add(self)

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:<port>`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The node's process id; RuntimeError when it does not run."""
        if self._process is None or not self.is_running:
            raise RuntimeError(f"Kafka node {self.node_id} at {self.bootstrap} is down: call start() first")
        return self._process.pid

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Start the node and return when it answers a metadata request; BrokerStartError otherwise."""
        self.spawn()
        self.wait_ready(timeout_seconds=timeout_seconds)

    def spawn(self) -> None:
        """Start the process and do not wait: for nodes that need each other to become ready."""
        if self.is_running:
            raise RuntimeError(f"Kafka node {self.node_id} at {self.bootstrap} runs already")
        home = kafka_home()
        options = self._java_options
        if options is None:
            options = _archive_options(home)
        java = java_command(home, *options)
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        if not (self.directory / "data" / "meta.properties").exists():
            # Only the node itself may write the archive.
            self._format([part for part in java if "ArchiveClassesAtExit" not in part], properties)
        shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with self.log_path.open("ab") as log:
            self._process = _starter.submit(
                subprocess.Popen,
                [*shim, *java, "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for pytest, whose fixtures then stop the node
            ).result(timeout=30)

    def _format(self, java: list[str], properties: Path) -> None:
        command = [
            *java,
            "kafka.tools.StorageTool",
            "format",
            "-g",
            "-t",
            self.cluster_id,
            "-c",
            str(properties),
        ]
        command += self._format_args
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=START_TIMEOUT_SECONDS, check=False
        )
        if done.returncode:
            raise BrokerStartError(
                f"Kafka's storage tool failed in {self.directory}: {(done.stdout + done.stderr)[-1500:]}"
            )

    def _properties(self) -> dict[str, str]:
        copies = len(self.voters)
        in_sync = min(copies, 2)
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.node_id),
            "controller.quorum.voters": ",".join(
                f"{v.node_id}@{LOOPBACK}:{v.controller_port}" for v in self.voters
            ),
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{LOOPBACK}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.directory / "data"),
            "default.replication.factor": str(copies),
            "min.insync.replicas": str(in_sync),
            # On, so that a test can prove that asyncpar itself never creates a topic by asking for it.
            "auto.create.topics.enable": "true",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(in_sync),
            "group.min.session.timeout.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            # Short, so that a node killed and started again is let in, and leaders move, within seconds.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # Small: several nodes share one test machine.
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": "8388608",
            # Retention and compaction look at a topic soon after it was made.
            "log.initial.task.delay.ms": "500",
            "log.retention.check.interval.ms": "500",
            "log.cleaner.backoff.ms": "500",
            "log.segment.delete.delay.ms": "500",
            **self.overrides,
        }

    def wait_ready(
        self, nodes: Iterable[int] | None = None, timeout_seconds: float = START_TIMEOUT_SECONDS
    ) -> None:
        """Return when this node's metadata names the node ids `nodes` (default: its own) and each partition
        has a leader.

        A partition may lack a leader while other nodes of its cluster are down: then only the node ids count.
        """
        wanted = set(nodes or [self.node_id])
        whole = len(wanted) == len(self.voters)
        deadline = time.monotonic() + timeout_seconds
        admin: AdminClient | None = None
        while time.monotonic() < deadline:
            if not self.is_running:
                break
            if admin is None and self._accepts():
                admin = AdminClient({**self._client, "bootstrap.servers": self.bootstrap, "log_level": 0})
            if admin is not None and _is_complete(admin, wanted, whole):
                return
            time.sleep(0.05)
        raise BrokerStartError(self._why_not_ready(timeout_seconds))

    def _accepts(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _why_not_ready(self, timeout_seconds: float) -> str:
        code = self._process.poll() if self._process else None
        what = (
            f"did not become ready within {timeout_seconds:.0f} s"
            if code is None
            else f"ended with code {code}"
        )
        tail = self.log_path.read_text(errors="replace").splitlines()[-40:] if self.log_path.exists() else []
        return f"Kafka node {self.node_id} at {self.bootstrap} {what}; end of {self.log_path}:\n" + "\n".join(
            tail
        )

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """End the node in order (SIGTERM; SIGKILL after the timeout). Does nothing when it is down."""
        if self._process is None or not self.is_running:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: what a lost machine looks like, but for the page cache. Does nothing when it is down."""
        if self._process is not None and self.is_running:
            self._process.kill()
            self._process.wait(10)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        freeze(self.pid)

    def resume(self) -> None:
        """SIGCONT after pause()."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Stop in order if it runs, then start on the same ports and data; `overrides` are read again."""
        self.stop()
        self.start(timeout_seconds)

    def remove(self) -> None:
        """Kill the node and delete its folder."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        _living.discard(self)


def _is_complete(admin: AdminClient, wanted: set[int], whole: bool) -> bool:
    try:
        metadata = admin.list_topics(timeout=1)
    except KafkaException:
        return False
    if not wanted <= set(metadata.brokers):
        return False
    leaders = [part.leader for topic in metadata.topics.values() for part in topic.partitions.values()]
    return not whole or -1 not in leaders


class KafkaCluster:
    """`nodes`: n of them in one cluster; replication factor n, min.insync.replicas 2."""

    def __init__(self, n: int = 3, overrides: Mapping[str, str] | None = None) -> None:
        self.nodes = [KafkaBroker(overrides, node_id=number) for number in range(1, n + 1)]
        for node in self.nodes:
            node.voters = self.nodes
            node.cluster_id = self.nodes[0].cluster_id

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:<port>` of each node, joined by commas."""
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self, timeout_seconds: float = 2 * START_TIMEOUT_SECONDS) -> None:
        """Start the nodes that do not run; return when each of them knows all the others."""
        deadline = time.monotonic() + timeout_seconds
        for node in self.nodes:
            if not node.is_running:
                node.spawn()
        for node in self.nodes:
            node.wait_ready([other.node_id for other in self.nodes], max(deadline - time.monotonic(), 1.0))

    def stop(self) -> None:
        """SIGTERM to one node after the other; the last ones, left without a quorum, are killed."""
        majority = len(self.nodes) // 2 + 1
        running = [node for node in self.nodes if node.is_running]
        for node in running[: max(len(running) - majority + 1, 0)]:
            node.stop()
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every node."""
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        """Stop all, start all on the same ports and data."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Kill all nodes and delete their folders."""
        for node in self.nodes:
            node.remove()


_living: weakref.WeakSet[KafkaBroker] = weakref.WeakSet()


@atexit.register
def _remove_all() -> None:
    for node in list(_living):
        node.remove()
