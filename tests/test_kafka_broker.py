"""The real-Kafka fixture keeps its own promises: start, kill, freeze, restart, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import BrokerStartError, KafkaBroker, KafkaCluster
from tests.kafka_tools import Record


def read_all(bootstrap: str, topic: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """`count` records from the start of partition 0, as committed transactions left it, within 20 s."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none", "log_level": 0})
    deadline = time.monotonic() + 20
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        found: list[tuple[bytes | None, bytes | None]] = []
        while len(found) < count and time.monotonic() < deadline:
            found += [
                (message.key(), message.value()) for message in consumer.consume(count - len(found), 0.2)
            ]
        return found
    finally:
        consumer.close()


async def test_records_come_back_as_produced(broker: Broker, make_topic: TopicFactory) -> None:
    """What produce() reports is where the records are, with keys, tombstones and order kept."""
    topic = make_topic(partitions=1)
    records = [Record(b"a", b"1"), Record(b"b", None), Record(None, b"3", [("h", b"x")], partition=0)]
    places = await kafka_tools.produce(broker.bootstrap, topic, records)
    assert [place.offset for place in places] == [0, 1, 2]
    assert read_all(broker.bootstrap, topic, 3) == [(b"a", b"1"), (b"b", None), (None, b"3")]
    assert await kafka_tools.end_offsets(broker.bootstrap, topic) == {0: 3}


async def test_equal_keys_share_a_partition_in_order(broker: Broker, make_topic: TopicFactory) -> None:
    """A bulk of keyed records covers all partitions, each key in one of them and in the order produced."""
    topic = make_topic(partitions=4)
    places = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(20_000, keys=50))
    by_key: dict[bytes | None, list[tuple[int, int]]] = {}
    for place in places:
        by_key.setdefault(place.key, []).append((place.partition, place.offset))
    assert all(len({partition for partition, _ in found}) == 1 for found in by_key.values())
    assert all(found == sorted(found) for found in by_key.values())
    assert {place.partition for place in places} == {0, 1, 2, 3}


async def test_an_aborted_transaction_stays_invisible(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A read_committed reader sees the committed transaction only; offsets count both and their markers."""
    topic = make_topic()
    bootstrap = broker.bootstrap
    await kafka_tools.produce_transaction(bootstrap, topic, [Record(b"a", b"no")], group_id, commit=False)
    await kafka_tools.produce_transaction(bootstrap, topic, [Record(b"a", b"yes")], group_id, commit=True)
    assert read_all(bootstrap, topic, 1) == [(b"a", b"yes")]
    assert await kafka_tools.end_offsets(bootstrap, topic, read_committed=True) == {0: 4}


async def test_commits_are_read_back_with_metadata(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """committed() gives offset and metadata of each partition with a commit, nothing for a deleted group."""
    topic = make_topic(partitions=2)
    assert await kafka_tools.committed(broker.bootstrap, group_id, topic) == {}
    await commit(broker.bootstrap, group_id, topic, 1, 7, "naïve 漢")
    assert await kafka_tools.committed(broker.bootstrap, group_id, topic) == {1: (7, "naïve 漢")}
    assert await kafka_tools.group_members(broker.bootstrap, group_id) == {}
    await kafka_tools.delete_group(broker.bootstrap, group_id)
    assert await kafka_tools.committed(broker.bootstrap, group_id, topic) == {}
    await kafka_tools.delete_group(broker.bootstrap, group_id)


async def commit(bootstrap: str, group: str, topic: str, partition: int, offset: int, metadata: str) -> None:
    """Commit through aiokafka, as a consumer without group membership."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        await consumer.commit({place: (offset, metadata)})
    finally:
        await consumer.stop()


async def test_deleted_records_move_the_start(broker: Broker, make_topic: TopicFactory) -> None:
    """delete_records() moves the first offset; the end stays."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(10))
    assert await kafka_tools.delete_records(broker.bootstrap, topic, {0: 4}) == {0: 4}
    assert await kafka_tools.start_offsets(broker.bootstrap, topic) == {0: 4}
    assert await kafka_tools.end_offsets(broker.bootstrap, topic) == {0: 10}


async def test_topics_come_grow_and_go(broker: Broker, make_topic: TopicFactory) -> None:
    """Looking at topics creates none; partitions can be added; a topic can be deleted twice."""
    topic = make_topic(partitions=1, config={"cleanup.policy": "compact"})
    bootstrap = broker.bootstrap
    await kafka_tools.add_partitions(bootstrap, topic, 3)
    assert set(await kafka_tools.end_offsets(bootstrap, topic)) == {0, 1, 2}
    with pytest.raises(KafkaException, match="does not exist"):
        await kafka_tools.end_offsets(bootstrap, f"{topic}-none")
    assert f"{topic}-none" not in await kafka_tools.list_topics(bootstrap)
    await kafka_tools.delete_topics(bootstrap, [topic])
    await kafka_tools.delete_topics(bootstrap, [topic])
    assert topic not in await kafka_tools.list_topics(bootstrap)


async def test_kill_and_restart_keep_the_data(private_broker: KafkaBroker, make_topic: TopicFactory) -> None:
    """A node killed by SIGKILL comes back on the same address with its records."""
    topic = make_topic()
    address = private_broker.bootstrap
    await kafka_tools.produce(address, topic, [Record(b"a", b"1")])
    private_broker.kill()
    assert not private_broker.is_running
    private_broker.restart()
    assert private_broker.bootstrap == address
    assert read_all(address, topic, 1) == [(b"a", b"1")]


async def test_a_paused_broker_is_silent_until_resumed(
    own_broker: KafkaBroker, make_topic: TopicFactory
) -> None:
    """A frozen node accepts nothing within the bound; after resume() it goes on without a restart."""
    topic = make_topic()
    pid = own_broker.pid
    own_broker.pause()
    with pytest.raises((KafkaException, TimeoutError)):
        await kafka_tools.produce(own_broker.bootstrap, topic, [Record(b"a", b"1")], timeout_seconds=1)
    own_broker.resume()
    await kafka_tools.produce(own_broker.bootstrap, topic, [Record(b"a", b"2")])
    assert own_broker.pid == pid


@pytest.mark.broker
def test_a_node_that_cannot_start_says_why() -> None:
    """A wrong property ends in one error with the end of the node's log, within seconds."""
    node = KafkaBroker({"num.io.threads": "none"})
    try:
        with pytest.raises(BrokerStartError, match=r"num\.io\.threads"):
            node.start(timeout_seconds=30)
    finally:
        node.remove()
    assert not node.directory.exists()


@pytest.mark.broker
def test_a_node_dies_with_the_test_process(tmp_path: Path) -> None:
    """SIGKILL to the process that started a node ends the node too: nothing is left on the machine."""
    code = (
        "import sys, pathlib, tests.kafka_broker as kb\n"
        "node = kb.KafkaBroker(directory=pathlib.Path(sys.argv[1])); node.spawn()\n"
        "print(node.pid, flush=True); sys.stdin.read()\n"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs; a zombie that nobody has collected does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.broker
async def test_a_cluster_goes_on_without_one_of_three() -> None:
    """With one node killed the others lead all partitions and take acknowledged records; it can come back."""
    cluster = KafkaCluster(3)
    try:
        cluster.start()
        await kafka_tools.create_topic(cluster.bootstrap, "t", partitions=3)
        cluster.nodes[0].kill()
        records = [Record(b"a", b"1", partition=number) for number in range(3)]
        places = await kafka_tools.produce(cluster.bootstrap, "t", records)
        assert [place.offset for place in places] == [0, 0, 0]
        cluster.nodes[0].start()
        assert await kafka_tools.end_offsets(cluster.nodes[0].bootstrap, "t") == {0: 1, 1: 1, 2: 1}
    finally:
        cluster.remove()


async def test_an_idempotent_producer_outlives_a_restart(
    private_broker: KafkaBroker, make_topic: TopicFactory
) -> None:
    """Records sent while the broker is down arrive once it is back: all of them, once, in order."""
    topic = make_topic()
    private_broker.kill()
    records = kafka_tools.keyed(100, keys=1)
    sending = asyncio.create_task(
        kafka_tools.produce(private_broker.bootstrap, topic, records, idempotent=True)
    )
    await asyncio.to_thread(private_broker.start)
    places = await sending
    assert [place.offset for place in places] == list(range(100))
    assert await kafka_tools.end_offsets(private_broker.bootstrap, topic) == {0: 100}
