"""What every store of de-duplication must do, whatever it stands on.

What lives here: the contract as tests (subclassed next to each store), a race of two processes, and the
handler's side of a middleware. What never does: servers (`store_servers.py`). Always: a wait for a lease to
end asks again until it has, for a bounded time.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from asyncpar.deduplication import Deduplicate, KeyHeldError
from asyncpar.middleware import Call
from asyncpar.ports import Claim, DeduplicationStore
from asyncpar.records import SUCCESS, Outcome, Record, Verdict

ROOT = Path(__file__).parent.parent
NEW, DONE, HELD = Claim.NEW, Claim.DONE, Claim.HELD
LONG_MS = 30_000
SHORT_MS = 60

MakeStore = Callable[[], DeduplicationStore]


def call(offset: int = 0, key: bytes = b"k", handler: str = "billing.bill") -> Call:
    """The first attempt of a handler on one record."""
    return Call(handler, (Record("orders", 3, offset, key, b"v"),), 1)


async def claim(store: DeduplicationStore, key: bytes, owner: bytes, lease_ms: int = LONG_MS) -> Claim:
    return (await asyncio.wait_for(store.claim(key, owner, lease_ms), 10)).claim


async def claim_in_the_end(store: DeduplicationStore, key: bytes, owner: bytes) -> None:
    """Claim `key` as soon as whoever has it does not have it any more."""
    async with asyncio.timeout(10):
        while await claim(store, key, owner) is not NEW:  # noqa: ASYNC110 - it is a server that knows
            await asyncio.sleep(0.005)


class StoreContract:
    """Subclasses have a fixture `make`: stores that share what they remember, with clients of their own."""

    async def test_a_key_is_claimed_once_and_done_is_remembered(self, make: MakeStore) -> None:
        """Another owner is refused with the rest of the lease, and after the end told that it is done."""
        store, other = make(), make()
        assert await claim(store, b"k", b"a") is NEW
        refused = await other.claim(b"k", b"b", LONG_MS)
        assert refused.claim is HELD
        assert LONG_MS / 2 < refused.lease_left_ms <= LONG_MS
        assert await store.done(b"k", b"a", LONG_MS) is True
        assert await other.claim(b"k", b"b", LONG_MS) == (DONE, 0)
        assert await claim(other, b"other", b"b") is NEW

    async def test_each_step_can_be_repeated_by_its_owner(self, make: MakeStore) -> None:
        """A client that got no answer asks again, and gets the same one."""
        store = make()
        assert [await claim(store, b"k", b"a") for _ in range(2)] == [NEW, NEW]
        assert [await store.done(b"k", b"a", LONG_MS) for _ in range(2)] == [True, True]
        assert await claim(store, b"k", b"a") is DONE
        for _ in range(2):
            assert await claim(store, b"j", b"a") is NEW
            await store.release(b"j", b"a")
            await store.release(b"j", b"a")

    async def test_a_released_key_is_free_at_once(self, make: MakeStore) -> None:
        """A failure gives the key back; nobody but the owner can."""
        store, other = make(), make()
        assert await claim(store, b"k", b"a") is NEW
        await other.release(b"k", b"b")
        assert await claim(other, b"k", b"b") is HELD
        await store.release(b"k", b"a")
        assert await claim(other, b"k", b"b") is NEW

    async def test_what_is_done_cannot_be_released_or_done_by_another(self, make: MakeStore) -> None:
        """A release that comes late, by the owner or anybody, leaves the key done."""
        store, other = make(), make()
        await claim(store, b"k", b"a")
        await store.done(b"k", b"a", LONG_MS)
        await store.release(b"k", b"a")
        await other.release(b"k", b"b")
        assert await other.done(b"k", b"b", 1) is False
        assert await claim(store, b"k", b"c") is DONE

    async def test_a_lease_that_ran_out_is_another_owners_to_take(self, make: MakeStore) -> None:
        """What the first owner says after that changes nothing."""
        store, other = make(), make()
        assert await claim(store, b"k", b"a", SHORT_MS) is NEW
        await claim_in_the_end(other, b"k", b"b")
        await store.release(b"k", b"a")
        assert await claim(store, b"k", b"c") is HELD
        assert await store.done(b"k", b"a", LONG_MS) is False
        assert await claim(store, b"k", b"c") is HELD
        assert await other.done(b"k", b"b", LONG_MS) is True
        assert await store.done(b"k", b"a", 1) is False
        assert await claim(store, b"k", b"c") is DONE

    async def test_a_late_end_counts_while_nobody_took_the_key_over(self, make: MakeStore) -> None:
        """A handler that outlived its lease alone has done its work all the same."""
        store, other = make(), make()
        await claim(store, b"k", b"a", SHORT_MS)
        await claim_in_the_end(other, b"k", b"b")
        await other.release(b"k", b"b")
        assert await store.done(b"k", b"a", LONG_MS) is True
        assert await claim(other, b"k", b"b") is DONE

    async def test_what_is_done_is_forgotten_after_its_time(self, make: MakeStore) -> None:
        """After ttl_ms the key is new again."""
        store, other = make(), make()
        await claim(store, b"k", b"a")
        await store.done(b"k", b"a", SHORT_MS)
        await claim_in_the_end(other, b"k", b"b")

    async def test_of_many_that_race_for_a_key_one_gets_it(self, make: MakeStore) -> None:
        """20 keys, 12 owners each, over two clients."""
        stores = [make(), make()]
        keys = [b"key-%d" % number for number in range(20)]
        answers = await asyncio.gather(
            *(claim(stores[n % 2], key, b"owner-%d" % n) for n in range(12) for key in keys)
        )
        for number in range(len(keys)):
            of_key = answers[number :: len(keys)]
            assert sorted(answer.value for answer in of_key) == ["held"] * 11 + ["new"]

    async def test_two_instances_handle_each_key_once(self, make: MakeStore) -> None:
        """Records delivered to two instances at once, some failing at first: one success for each key."""
        succeeded: list[bytes] = []
        failed: set[bytes] = set()

        async def handle(made: Call) -> Outcome:
            key = made.records[0].key
            assert key is not None
            await asyncio.sleep(0.001)
            if key not in failed and key[-1] % 3 == 0:
                failed.add(key)
                return Outcome(Verdict.FAILED, ValueError("once"))
            succeeded.append(key)
            return SUCCESS

        async def deliver(instance: Deduplicate, key: bytes) -> Outcome:
            while True:
                outcome = await instance(call(key=key), handle)
                if outcome.ok:
                    return outcome
                await asyncio.sleep(0.005 if isinstance(outcome.error, KeyHeldError) else 0)

        instances = [Deduplicate(key=lambda r: r.key, ttl_ms=LONG_MS, store=make()) for _ in "ab"]
        keys = [b"key-%d" % number for number in range(30)]
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(deliver(instance, key) for instance in instances for key in keys)), 30
        )
        assert sorted(succeeded) == sorted(keys)
        assert sorted(o.verdict.value for o in outcomes) == ["skipped"] * 30 + ["success"] * 30

    def test_a_closed_store_serves_the_next_event_loop(self, make: MakeStore) -> None:
        """An app that is run a second time in one process finds its store usable, also by many at once."""
        store = make()

        async def life(owner: bytes) -> set[Claim]:
            try:
                keys = [owner + b"%d" % number for number in range(40)]
                return set(await asyncio.gather(*(claim(store, key, owner) for key in keys)))
            finally:
                await store.close()
                await store.close()

        assert [asyncio.run(life(owner)) for owner in (b"a", b"b")] == [{NEW}, {NEW}]


RACER = """
import asyncio, sys
from tests.store_contract import racer
from {module} import {name}
asyncio.run(racer({name}({arguments})))
"""


async def racer(store: DeduplicationStore) -> None:
    """One process of the race: claim 100 keys when told to, write those won."""
    await store.claim(b"warm-up-%d" % time.time_ns(), b"x", LONG_MS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    owner = b"%d" % time.time_ns()
    won = []
    for first in range(0, 100, 5):
        keys = [b"race-%d" % number for number in range(first, first + 5)]
        answers = await asyncio.gather(*(claim(store, key, owner) for key in keys))
        won += [key.decode() for key, answer in zip(keys, answers, strict=True) if answer is NEW]
    sys.stdout.write(" ".join(won))
    sys.stdout.flush()
    await store.close()


def race_of_two_processes(module: str, name: str, arguments: str) -> list[list[str]]:
    """Two fresh interpreters claim the same 100 keys at the same time; what each of them won."""
    code = RACER.format(module=module, name=name, arguments=arguments)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate(timeout=30)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=10)
