"""A Kafka broker inside this process: librdkafka's mock cluster, out of the confluent-kafka wheel.

What lives here: starting it and making topics. What never does: anything about a real cluster. Called by
`asyncpar demo`. It speaks Kafka's protocol over TCP on the loopback interface, so the client in front of it
is the real one. Its limits:

- a group's first join takes 3 s, and every later rebalance about a session timeout;
- a commit while the group rebalances is refused, where a real broker takes it;
- a topic has 4 partitions, always, and is made by asking for it;
- a partition keeps 5 MiB or 100,000 batches and drops the oldest, read or not;
- an empty fetch waits its full `fetch_max_wait_ms`, also when records arrive meanwhile;
- no TLS, no SASL, no rights, nothing on disk, no transactions worth the name.

So it shows asyncpar at work, and never stands in where a real broker is what is being tested.
"""

from __future__ import annotations

from confluent_kafka import KafkaException, Producer

from asyncpar.errors import BrokerUnreachableError

_ANSWER_SECONDS = 10.0
FETCH_MAX_WAIT_MS = 50
"""What a consumer should set, because an empty fetch is not woken up."""


class MockCluster:
    """One broker that lives until `close()`. All methods block for milliseconds: call them in a thread."""

    def __init__(self) -> None:
        """Start it. Raises BrokerUnreachableError when it does not answer within 10 s."""
        # The cluster belongs to the client that was asked for it and ends with it.
        self._host: Producer | None = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        try:
            brokers = self._host.list_topics(timeout=_ANSWER_SECONDS).brokers.values()
        except KafkaException as error:
            raise BrokerUnreachableError(
                f"the embedded mock cluster does not answer ({error.args[0].str()}); "
                "start again, or name a real cluster with --bootstrap-servers"
            ) from error
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def create_topic(self, name: str) -> int:
        """Make a topic and return the number of its partitions. RuntimeError after `close()`."""
        if self._host is None:
            raise RuntimeError("the mock cluster is closed")
        return len(self._host.list_topics(name, timeout=_ANSWER_SECONDS).topics[name].partitions)

    def close(self) -> None:
        """End it, and all records with it."""
        self._host = None
