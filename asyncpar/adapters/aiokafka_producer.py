"""The producer on aiokafka: what `asyncpar.ports.Producer` asks for, over aiokafka's network client.

Called by the runtime, on the event loop. The parts: `aiokafka_producer_batching` decides what is sent when,
`aiokafka_producer_lane` keeps one partition in order and free of duplicates, `aiokafka_producer_topics` knows
the leaders, `aiokafka_producer_wire` speaks to the brokers. Never here: anything that they do.
"""

from __future__ import annotations

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer_batching import BatchingProducer
from asyncpar.adapters.aiokafka_producer_wire import KafkaWire


class AiokafkaProducer(BatchingProducer):
    """`asyncpar.ports.Producer` over aiokafka. Single-use: start once, stop once.

    `config` says how to reach the cluster, as for a consumer; what is about groups and fetches has no meaning
    here. Its `client_id` shows up at the brokers with `-producer` behind it. Nothing connects before `start`.
    """

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(KafkaWire(config), config.metadata_max_age_ms / 1000)
