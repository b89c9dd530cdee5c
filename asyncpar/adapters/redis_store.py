"""De-duplication over a Redis that all instances share (extra `redis`).

What lives here: `RedisStore`. What never does: when to claim and what an answer means
(`asyncpar/deduplication.py`). Made by users. Always: one key of Redis for each key, one script for each
step, so that each step is atomic, and the server's clock ends leases and memories.

Redis forgets what it is told to forget: an eviction policy other than `noeviction` (or a `volatile-*` one
that finds nothing else), a restart without persistence, or a failover to a replica that had not got the
last writes. What is lost so runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

try:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ConstantBackoff
    from redis.exceptions import RedisError
except ImportError as error:  # pragma: no cover - the tests run with it installed
    raise ImportError("RedisStore needs redis-py: pip install 'asyncpar[redis]'") from error

from asyncpar.deduplication import DeduplicationStoreError
from asyncpar.ports import Claim, Claimed

# The value is "h" (held) or "d" (done), and the owner. What is not there is neither, or its time is over.
_CLAIM = """
local value = redis.call('GET', KEYS[1])
if value == false or value == 'h' .. ARGV[1] then
    redis.call('SET', KEYS[1], 'h' .. ARGV[1], 'PX', ARGV[2])
    return {'new', 0}
end
if string.sub(value, 1, 1) == 'd' then
    return {'done', 0}
end
return {'held', redis.call('PTTL', KEYS[1])}
"""
_DONE = """
local value = redis.call('GET', KEYS[1])
if value ~= false and value ~= 'h' .. ARGV[1] and value ~= 'd' .. ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], 'd' .. ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == 'h' .. ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 0
"""
_CLOSE_SECONDS = 2.0


class RedisStore:
    """A `DeduplicationStore` on Redis 6 or newer, alone or behind Sentinel.

    `server` is a URL (`redis://`, `rediss://`, `unix://`) or a client that the caller made and closes, such
    as `Sentinel(...).master_for(...)`. Keys begin with `prefix`. For a URL, at most `max_connections` are
    opened, and `options` go to redis-py's connections. It connects at the first claim, and serves one event
    loop until `close()`. Every method but `close` raises DeduplicationStoreError, and has no time-out of
    its own.
    """

    def __init__(
        self,
        server: str | Redis,
        *,
        prefix: str = "asyncpar:done:",
        max_connections: int = 20,
        **options: Any,
    ) -> None:
        self._server = server
        self._prefix = prefix.encode()
        self._max_connections = max_connections
        self._options = options
        self._client = None if isinstance(server, str) else server
        self._asking: set[asyncio.Task[object]] = set()
        self._where = _place(server) if isinstance(server, str) else "the given client's server"

    async def claim(self, key: bytes, owner: bytes, lease_ms: int) -> Claimed:
        """See `DeduplicationStore`."""
        answer, left_ms = cast(Sequence[Any], await self._run(_CLAIM, key, owner, lease_ms))
        claim = Claim(answer.decode() if isinstance(answer, bytes) else answer)
        return Claimed(claim, max(0, int(left_ms)))

    async def done(self, key: bytes, owner: bytes, ttl_ms: int) -> bool:
        """See `DeduplicationStore`."""
        return bool(await self._run(_DONE, key, owner, ttl_ms))

    async def release(self, key: bytes, owner: bytes) -> None:
        """See `DeduplicationStore`."""
        await self._run(_RELEASE, key, owner)

    async def close(self) -> None:
        """Close the connections, unless the client was given. Never raises."""
        if not isinstance(self._server, str) or self._client is None:
            return
        client, self._client = self._client, None
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await client.aclose()
        except (RedisError, OSError):
            pass  # the server is gone, and the connections with it

    async def _run(self, script: str, key: bytes, *arguments: bytes | int) -> object:
        """What `script` answers. A caller that is cancelled is let go at once.

        Before Python 3.12 `asyncio.wait_for`, through which redis-py writes, loses a cancellation that
        comes just when the write ends; the caller would then wait for as long as redis-py does.
        """
        ask = self._ask(script, key, *arguments)
        asking = asyncio.get_running_loop().create_task(ask, name="asyncpar-redis")
        self._asking.add(asking)  # the loop itself holds no more than a weak reference
        asking.add_done_callback(self._asking.discard)
        try:
            await asyncio.wait({asking})
        except asyncio.CancelledError:
            asking.cancel()
            asking.add_done_callback(_heard)
            raise
        return asking.result()

    async def _ask(self, script: str, key: bytes, *arguments: bytes | int) -> object:
        if self._client is None:
            self._client = self._connect(str(self._server))
        run = self._client.register_script(script)
        try:
            return await run(keys=[self._prefix + key], args=list(arguments))
        except (RedisError, OSError) as error:
            message = f"Redis at {self._where}: {type(error).__name__}: {error}"
            raise DeduplicationStoreError(message) from error

    def _connect(self, url: str) -> Redis:
        # One more try at once: a connection may have died while it was idle. Every step can be repeated.
        options = {"retry": Retry(ConstantBackoff(0), 1), **self._options}
        pool = BlockingConnectionPool.from_url(
            url, max_connections=self._max_connections, timeout=None, **options
        )
        return Redis.from_pool(pool)


def _heard(asking: asyncio.Task[object]) -> None:
    """Take the answer that nobody waits for any more, so that asyncio does not complain about it."""
    if not asking.cancelled():
        asking.exception()


def _place(url: str) -> str:
    """Where `url` points, without what it says about credentials."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] + parts.path
