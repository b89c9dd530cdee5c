"""What a tool other than asyncpar does to a group without members: it commits where it likes.

Called by tests that begin from such a commit. With aiokafka, because librdkafka's Python client adds a zero
byte to the metadata.
"""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata


async def commit(bootstrap: str, group: str, topic: str, offset: int, metadata: str = "") -> None:
    """Commit `offset` and `metadata` for partition 0 of `topic`."""
    place = TopicPartition(topic, 0)
    client = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await client.start()
    try:
        client.assign([place])
        await client.commit({place: OffsetAndMetadata(offset, metadata)})
    finally:
        await client.stop()
