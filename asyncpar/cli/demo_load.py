"""The demo's load: a thread that produces records with skewed keys at a steady rate.

What lives here: the producer, its rate and its limit. What never does: topics and handlers. Called by
`demo.py`. Always: it runs in a thread of its own, so that the event loop belongs to the handlers; it
produces no further than `MAX_BACKLOG` ahead of them, because the embedded broker drops what is too much
for it, read or not.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from asyncpar.cli.demo_ledger import Ledger

MAX_BACKLOG = 5_000
"""Records sent and not handled yet; more are not produced until some are."""
FLUSH_SECONDS = 10.0
"""How long the broker may take to answer for the last records."""
_TICK_SECONDS = 0.01
_BURST_SECONDS = 0.1
"""A late tick makes up for at most this long; what is missed beyond it is not produced later."""


class Load:
    """Produces until `stop()`. The n-th busiest of `keys` gets 1/n of what the busiest one gets (Zipf)."""

    def __init__(
        self, bootstrap_servers: str, topic: str, ledger: Ledger, *, keys: Sequence[str], rate: int
    ) -> None:
        """`rate` in records a second. Nothing is sent before `start()`."""
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._ledger = ledger
        self._keys = keys
        self._weights = list(accumulate(1 / (rank + 1) for rank in range(len(keys))))
        self._rate = rate
        self._stopping = threading.Event()
        # A daemon: a broker that is gone must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="asyncpar-demo-load", daemon=True)
        self.failure: KafkaException | None = None
        """What ended the load before it was stopped."""
        self.is_held_back = False
        """Whether the backlog is at its limit."""

    def start(self) -> None:
        """Begin to produce."""
        self._thread.start()

    async def stop(self) -> None:
        """Produce nothing more, and wait up to `FLUSH_SECONDS` for the broker's last answers."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, FLUSH_SECONDS + 1)

    @property
    def is_running(self) -> bool:
        """Whether the thread lives: until the last answer came, or nobody waits for it any more."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            producer = Producer(
                {
                    "bootstrap.servers": self._bootstrap_servers,
                    "client.id": "asyncpar-demo",
                    # Without it, a retried request could change the order in which the broker stores a key.
                    "enable.idempotence": True,
                    "linger.ms": 5,
                    "log_level": 0,
                }
            )
            self._produce(producer)
            self.is_held_back = False
            producer.flush(FLUSH_SECONDS)
        except KafkaException as error:
            self.failure = error

    def _produce(self, producer: Producer) -> None:
        before, owed = time.monotonic(), 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            owed = min(owed + (now - before) * self._rate, max(1.0, self._rate * _BURST_SECONDS))
            before = now
            room = MAX_BACKLOG - self._ledger.counts().backlog
            self.is_held_back = room < owed
            batch = max(0, min(int(owed), room))
            for key in random.choices(self._keys, cum_weights=self._weights, k=batch):
                self._send(producer, key)
            owed -= batch
            producer.poll(0)
            self._stopping.wait(_TICK_SECONDS)

    def _send(self, producer: Producer, key: str) -> None:
        number = self._ledger.send(key)
        answered = partial(self._answered, key, number)
        producer.produce(self._topic, b'{"number": %d}' % number, key.encode(), on_delivery=answered)

    def _answered(self, key: str, number: int, error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if error is not None or partition is None or offset is None:
            self._ledger.refused(key, number)
        else:
            self._ledger.acknowledged(key, number, partition, offset)
