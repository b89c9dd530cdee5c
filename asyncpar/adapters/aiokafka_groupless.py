"""aiokafka's network client for what is in no group: connecting it, and nothing that it would do by itself.

Lives here: options, the first contact, its errors. Never here: requests. The base of the dead-letter
producer's wire and of the reader. Always: the client's own metadata task, which would ask for all topics,
does not run: whoever needs a topic asks for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from asyncpar.adapters.aiokafka_bootstrap import reach_a_server, unreachable, unusable
from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import one_line
from asyncpar.adapters.aiokafka_network import ClientNetwork
from asyncpar.adapters.aiokafka_security import security_options
from asyncpar.adapters.aiokafka_shape import check_client


async def _nothing_more() -> None:
    pass


class GrouplessClient:
    """A connection to the cluster of `config`; `suffix` tells its client id from the consumer's."""

    def __init__(self, config: ClientConfig, suffix: str) -> None:
        self._config = dataclasses.replace(config, client_id=config.client_id + suffix)
        self._client: Any = None
        """None: it reached nobody yet, and there is nothing to close."""
        self._network: ClientNetwork

    async def _connect(
        self, role: str, silence: str, try_out: Callable[[], Awaitable[None]] = _nothing_more
    ) -> None:
        """Reach a server, learn the brokers, and await `try_out`, all within `startup_timeout_ms`.

        `role` is what connects, `silence` what did not happen when the time is over. Raises
        BrokerUnreachableError, AuthenticationError, ConfigurationError, and what `try_out` does.
        """
        check_client()
        config, security = self._config, security_options(self._config)
        deadline = time.monotonic() + config.startup_timeout_ms / 1000
        known = inspect.signature(AIOKafkaClient.__init__).parameters
        options = {name: value for name, value in config.client_options.items() if name in known}
        options.update(
            bootstrap_servers=config.bootstrap_servers,
            client_id=config.client_id,
            request_timeout_ms=config.request_timeout_ms,
            **security,
        )
        server = await reach_a_server(config, security, deadline)
        self._client = AIOKafkaClient(**options)
        self._network = ClientNetwork(self._client, lambda: None)
        self._network.bootstrap_from(*server)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._client.bootstrap()
                await self._end_metadata_task()
                await try_out()
        except TimeoutError as err:
            raise unreachable(config, silence) from err
        except (KafkaError, ValueError) as err:  # SCRAM raises ValueErrors
            raise unusable(config, f"connecting {role}: {one_line(err)}") from err

    async def _end_metadata_task(self) -> None:
        task = self._client._sync_task
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        """Close all connections and wait until they are."""
        if self._client is not None:
            await self._network.close()

    def abort(self) -> None:
        """Cut the sockets that are left."""
        if self._client is not None:
            self._network.abort()
