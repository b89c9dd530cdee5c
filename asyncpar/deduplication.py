"""De-duplication: a record whose key was done before is passed over instead of handled again.

What lives here: `Deduplicate`, a middleware around each attempt, and `MemoryStore`, for one process. What
never does: connections (`adapters/redis_store.py`, `adapters/sql_store.py`). Given to an app by users, in
`App(middlewares=[...])`. Always: a key is claimed before its handler runs, and without an answer from the
store no handler runs.

What is promised, with a store that all instances share and that loses nothing:

- While a key is remembered (`ttl_ms` from the end of its handler), its handler is not called for it again.
- Two instances do not run the handler on one key at the same time, for as long as a run ends within
  `lease_ms`.

What is not: exactly once. What a handler does and the note that it was done are two steps. A crash, or a
store that fails, between the two leaves the record to run again once the lease is over. A handler must bear
that, or write its own note in the same transaction as its work.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from asyncpar.errors import AsyncparError, ConfigurationError, Retryable, RetryAfter
from asyncpar.middleware import Call, CallNext
from asyncpar.ports import Claim, Claimed, DeduplicationStore
from asyncpar.records import Outcome, Record, Verdict

KeyFunction = Callable[[Record], str | bytes | None]

SHORTEST_WAIT_MS = 50
LONGEST_WAIT_MS = 5_000
"""Between these lies the wait for a key that somebody else holds: leases end early when their owners do."""

_LONGEST_MS = 10 * 365 * 86_400_000
_LAST_WORDS_SECONDS = 0.3  # a cancelled handler has half a second before it counts as a straggler

_log = logging.getLogger("asyncpar.deduplication")


class DeduplicationStoreError(AsyncparError, Retryable):
    """The store did not answer, or refused. A failed attempt; no handler was called."""


class KeyHeldError(RetryAfter):
    """Somebody else works on the key, or died within its lease. No handler was called; it is no attempt."""

    is_free = True


class Deduplicate:
    """A middleware that calls the handler only for keys that are not done yet.

    `key(record)` names what must happen once; None: this record is not de-duplicated. Each handler has its
    own keys; `name` tells apart what shares a store beyond that: services, groups, or two `Deduplicate` of
    one app whose handlers have the same name. A done key is remembered for `ttl_ms`. A claim is good for
    `lease_ms`, which must be longer than any run of a handler: after that another instance may run the same
    key. A store that has not answered after `store_timeout_ms` counts as down. Without a `store` it is a
    `MemoryStore`, which knows this process only and forgets when it ends.

    A key that is done: the record is skipped. A key that another owner holds: a failed attempt
    (`KeyHeldError`) that costs nothing, again when the lease is over, at least 50 ms and at most 5 s from
    now. A store that fails before the handler: a failed attempt (`DeduplicationStoreError`). One that fails
    after the handler succeeded: the record is done, because failing it would run it again for certain; it
    is logged, and runs again if it is delivered again.

    Raises ConfigurationError for a `key` that is no function, and for times that are no whole number of
    milliseconds from 1 to ten years.
    """

    def __init__(
        self,
        *,
        key: KeyFunction,
        ttl_ms: int,
        store: DeduplicationStore | None = None,
        lease_ms: int = 60_000,
        store_timeout_ms: int = 2_000,
        name: str = "",
    ) -> None:
        given: object = key
        if not callable(given) or isinstance(given, type):
            raise ConfigurationError(
                f"Deduplicate: key={key!r} must be a function of the record that returns its key, such as "
                "lambda record: record.key"
            )
        for knob, value in (
            ("ttl_ms", ttl_ms),
            ("lease_ms", lease_ms),
            ("store_timeout_ms", store_timeout_ms),
        ):
            if type(value) is not int or not 1 <= value <= _LONGEST_MS:
                raise ConfigurationError(
                    f"Deduplicate: {knob}={value!r} must be a whole number of milliseconds, "
                    f"from 1 to {_LONGEST_MS}"
                )
        self._key = key
        self._ttl_ms = ttl_ms
        self.lease_ms = lease_ms
        """How long a claim is good for: no call may run longer."""
        self._timeout_s = store_timeout_ms / 1000
        self._name = name
        self._store = MemoryStore() if store is None else store
        # A store in memory answers at once: spare each record its timers.
        self._bound_s = None if isinstance(self._store, MemoryStore) else self._timeout_s
        self._background: set[asyncio.Task[None]] = set()
        self._missed = 0

    async def __call__(self, call: Call, call_next: CallNext) -> Outcome:
        """Claim, call, and note how it ended. Raises TypeError or ValueError for a key that is none."""
        (record,) = call.records
        key = self._store_key(call, record)
        if key is None:
            return await call_next(call)
        owner = secrets.token_bytes(16)
        try:
            claimed = await self._claim(key, owner, record)
        except DeduplicationStoreError as error:
            return Outcome(Verdict.FAILED, error)
        if claimed.claim is Claim.DONE:
            return Outcome(Verdict.SKIPPED)
        if claimed.claim is Claim.HELD:
            return Outcome(Verdict.FAILED, _held(record, claimed.lease_left_ms))
        try:
            outcome = await call_next(call)
        except (Exception, asyncio.CancelledError):
            await self._last_words(self._release(key, owner, record))
            raise
        await self._settle(partial(self._done if outcome.ok else self._release, key, owner, record))
        return outcome

    async def close(self) -> None:
        """Wait for what is being noted, no longer than `store_timeout_ms`, and close the store."""
        if self._background:
            await asyncio.wait(self._background, timeout=self._timeout_s)
        await self._store.close()

    def _store_key(self, call: Call, record: Record) -> bytes | None:
        """What the store knows the record by: 32 bytes, however long the key is and whatever it says."""
        key = self._key(record)
        if key is None:
            return None
        if isinstance(key, str):
            key = key.encode("utf-8", "surrogatepass")
        if not isinstance(key, bytes):
            raise TypeError(
                f"{_where(record)}: Deduplicate(key=...) returned {type(key).__name__}: "
                "return str, bytes or None"
            )
        if not key:
            raise ValueError(
                f"{_where(record)}: Deduplicate(key=...) returned an empty key, which all records without "
                "one would share: return None for a record that is not to be de-duplicated"
            )
        digest = hashlib.sha256()
        for part in (self._name.encode(), call.group.encode(), call.handler.encode()):
            digest.update(
                len(part).to_bytes(8, "big") + part
            )  # the lengths keep ("ab", "c") and ("a", "bc") apart
        digest.update(key)
        return digest.digest()

    async def _claim(self, key: bytes, owner: bytes, record: Record) -> Claimed:
        try:
            async with asyncio.timeout(self._bound_s):
                return await self._store.claim(key, owner, self.lease_ms)
        except asyncio.CancelledError:
            await self._last_words(self._release(key, owner, record))
            raise
        except Exception as error:
            # The claim may have been stored all the same, and would keep the record waiting for a whole
            # lease.
            self._in_background(self._release(key, owner, record))
            raise DeduplicationStoreError(
                f"{_where(record)}: the handler was not called, because the de-duplication store could not "
                f"be asked: {self._brief(error)}"
            ) from error

    async def _done(self, key: bytes, owner: bytes, record: Record) -> None:
        try:
            async with asyncio.timeout(self._bound_s):
                is_ours = await self._store.done(key, owner, self._ttl_ms)
        except Exception as error:  # noqa: BLE001 - the handler succeeded, whatever a store raises
            self._missed_one(error, record)
            return
        self._answered()
        if not is_ours:
            _log.warning(
                "%s: the handler ran for longer than lease_ms=%d, and its key was taken over meanwhile: "
                "it may have run twice; make lease_ms longer than any run",
                _where(record),
                self.lease_ms,
            )

    async def _release(self, key: bytes, owner: bytes, record: Record) -> None:
        try:
            async with asyncio.timeout(self._bound_s):
                await self._store.release(key, owner)
        except Exception as error:  # noqa: BLE001 - the lease runs out by itself
            self._missed_one(error, record)
            return
        self._answered()

    async def _settle(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take a step that may be repeated: once more, out of reach, when a cancellation interrupts it."""
        try:
            await step()
        except asyncio.CancelledError:
            await self._last_words(step())
            raise

    async def _last_words(self, step: Coroutine[Any, Any, None]) -> None:
        """Let `step` go on whatever happens to the caller, and wait for it for a moment."""
        with suppress(asyncio.CancelledError):  # the caller is about to raise the first one
            await asyncio.wait({self._in_background(step)}, timeout=_LAST_WORDS_SECONDS)

    def _in_background(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(step, name="asyncpar-deduplicate")
        self._background.add(task)  # the loop itself holds no more than a weak reference
        task.add_done_callback(self._background.discard)
        return task

    def _missed_one(self, error: Exception, record: Record) -> None:
        self._missed += 1
        if self._missed == 1:
            _log.warning(
                "%s: the de-duplication store was not told how the record ended: %s; until it answers again, "
                "records that were done may run again when they are delivered again, and failed ones wait "
                "for their lease of %d ms to end",
                _where(record),
                self._brief(error),
                self.lease_ms,
            )

    def _answered(self) -> None:
        if self._missed:
            _log.info("the de-duplication store answers again; it was not told of %d records", self._missed)
            self._missed = 0

    def _brief(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout_s:g} s"
        return (
            str(error) if isinstance(error, DeduplicationStoreError) else f"{type(error).__name__}: {error}"
        )


def _held(record: Record, lease_left_ms: int) -> KeyHeldError:
    wait_ms = min(max(lease_left_ms, SHORTEST_WAIT_MS), LONGEST_WAIT_MS)
    return KeyHeldError(
        f"{_where(record)}: the key is being handled elsewhere, or its owner died; "
        f"its lease ends in {lease_left_ms} ms at the latest, asked again in {wait_ms} ms",
        delay_ms=wait_ms,
    )


def _where(record: Record) -> str:
    return f"{record.topic}[{record.partition}] offset {record.offset}"


class MemoryStore:
    """Keys of one process, `max_keys` at most; about 250 bytes each.

    When it is full, the key that was done longest ago is forgotten, also before its time. A claim is never
    forgotten before its lease ends: with `max_keys` claims alive, the next one raises
    DeduplicationStoreError. `clock` gives monotonic seconds. Raises ConfigurationError for a `max_keys`
    below 1.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        if type(max_keys) is not int or max_keys < 1:
            raise ConfigurationError(f"MemoryStore: max_keys={max_keys!r} must be a whole number, 1 or more")
        self._max_keys = max_keys
        self._clock = clock
        # Owner, and the second at which the entry ends; the oldest entry comes first.
        self._claims: dict[bytes, tuple[bytes, float]] = {}
        self._done: dict[bytes, tuple[bytes, float]] = {}

    def __len__(self) -> int:
        """How many keys it holds, claimed and done."""
        return len(self._claims) + len(self._done)

    async def claim(self, key: bytes, owner: bytes, lease_ms: int) -> Claimed:
        """See `DeduplicationStore`. Raises DeduplicationStoreError when it is full of claims."""
        now = self._clock()
        done = self._done.get(key)
        if done is not None:
            if done[1] > now:
                return Claimed(Claim.DONE)
            del self._done[key]
        held = self._claims.get(key)
        if held is not None and held[0] != owner and held[1] > now:
            return Claimed(Claim.HELD, math.ceil((held[1] - now) * 1000))
        self._claims.pop(key, None)
        self._make_room(now)
        self._claims[key] = (owner, now + lease_ms / 1000)
        return Claimed(Claim.NEW)

    async def done(self, key: bytes, owner: bytes, ttl_ms: int) -> bool:
        """See `DeduplicationStore`."""
        now = self._clock()
        for entries in (self._claims, self._done):
            entry = entries.get(key)
            if entry is not None and entry[0] != owner and entry[1] > now:
                return False
        self._claims.pop(key, None)
        self._done.pop(key, None)
        self._make_room(now)
        self._done[key] = (owner, now + ttl_ms / 1000)
        return True

    async def release(self, key: bytes, owner: bytes) -> None:
        """See `DeduplicationStore`."""
        held = self._claims.get(key)
        if held is not None and held[0] == owner:
            del self._claims[key]

    async def close(self) -> None:
        """Forget everything."""
        self._claims.clear()
        self._done.clear()

    def _make_room(self, now: float) -> None:
        """Room for one key more. Two of those that ended go each time, so that it also shrinks."""
        for entries in (self._claims, self._done):
            for _ in range(2):
                oldest = next(iter(entries), None)
                if oldest is None or entries[oldest][1] > now:
                    break
                del entries[oldest]
        if len(self) < self._max_keys:
            return
        if self._done:
            del self._done[next(iter(self._done))]
            return
        for key in [key for key, (_, ends) in self._claims.items() if ends <= now]:
            del self._claims[key]
        if len(self) >= self._max_keys:
            raise DeduplicationStoreError(
                f"MemoryStore: all of max_keys={self._max_keys} keys are being handled; make max_keys larger "
                "than the number of records that run at once"
            )
