"""Waiting in a test: for the partitions of members, and for what was sent when the test forgets to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncpar import App, Retry
from asyncpar.errors import AuthorizationError
from asyncpar.records import TopicPartition
from asyncpar.testing import HaltedError, MemoryBroker, TestApp, UnsettledError
from tests.conftest import Broker

ROOT = Path(__file__).parents[2]
ORDERS = TopicPartition("orders", 0)


def app_of(handle: Callable[..., object], **options: object) -> App:
    """An app of group billing with `handle` for the topic orders."""
    app = App(group="billing")
    app.topic("orders", name="bill", **options)(handle)  # type: ignore[arg-type]
    return app


def idle() -> App:
    """An app whose handler does nothing."""

    async def bill() -> None: ...

    return app_of(bill)


# -- partitions ----------------------------------------------------------------------------------


async def test_a_second_member_gets_partitions_soon() -> None:
    """The first one hears of it at its next heartbeat, which is not far in a test."""
    broker = MemoryBroker()
    async with TestApp(idle(), broker=broker, partitions={"orders": 2}) as first:
        assert len(await first.assigned()) == 2
        begin = time.monotonic()
        async with TestApp(idle(), broker=broker) as second:
            assert len(await second.assigned()) == 1
        assert len(await first.assigned(2)) == 2
        assert time.monotonic() - begin < 2


async def test_two_members_in_one_test_app() -> None:
    """A list of apps of one group is a group of so many members."""
    async with TestApp([idle(), idle()], partitions={"orders": 3}) as kafka:
        assert len(await kafka.assigned()) == 3


async def test_two_members_in_one_test_app_on_a_real_kafka(broker: Broker) -> None:
    """There each TestApp has groups of its own; the members of one share its partitions all the same."""
    name = f"testapp-{uuid.uuid4().hex[:8]}"

    def member() -> App:
        app = App(group="billing")

        @app.topic(name)
        async def bill() -> None: ...

        return app

    members = [member(), member()]
    async with TestApp(members, bootstrap_servers=broker.bootstrap, partitions={name: 2}) as kafka:
        assert len(await kafka.assigned()) == 2
        for partition in range(2):
            await kafka.send(name, b"", partition=partition)
        await kafka.settled()
    assert len(kafka.handled) == 2


async def test_a_member_without_partitions_is_told_who_has_them() -> None:
    """Who holds what, and how to have more of them; the wait is bounded."""
    broker = MemoryBroker()
    async with TestApp(idle(), broker=broker), TestApp(idle(), broker=broker) as second:
        with pytest.raises(UnsettledError) as caught:
            await second.assigned(timeout_s=0.5)
    assert str(caught.value).startswith("not assigned after 0.5 s: member billing-2 of group billing is ")
    assert "reads 0 partitions, not 1; " in str(caught.value)
    assert "billing-1 holds orders[0]" in str(caught.value)
    assert "billing-2 holds none" in str(caught.value)


async def test_the_end_of_an_app_ends_the_wait_for_partitions() -> None:
    """The error that ended it is raised at once, not a time-out."""

    async def live() -> None:
        async with TestApp(idle()) as kafka:
            kafka.broker.fail("OffsetCommit", "GROUP_AUTHORIZATION_FAILED")
            await kafka.send("orders", b"")
            await kafka.assigned(2)

    with pytest.raises(AuthorizationError):
        await live()


# -- forgotten -----------------------------------------------------------------------------------


async def test_a_forgotten_halt_fails_the_test() -> None:
    """A test that sends and does not wait is not green when the partition has halted."""
    halted = asyncio.Event()

    async def bill() -> None:
        halted.set()
        raise ZeroDivisionError("no money")

    async def live(**options: object) -> None:
        async with TestApp(app_of(bill, retry=Retry(attempts=1)), **options) as kafka:  # type: ignore[arg-type]
            await kafka.send("orders", b"")
            await asyncio.wait_for(halted.wait(), 5)

    with pytest.raises(
        HaltedError, match=r"the block ended.*orders\[0\] halted, offset 0.*await kafka"
    ) as found:
        await live()
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    await live(unsettled="ignore")


async def test_a_forgotten_record_fails_the_test() -> None:
    """Also one that waits for a retry; what the handler raised is the cause."""

    async def bill() -> None:
        raise OSError("busy")

    async def live() -> None:
        async with TestApp(app_of(bill, retry=Retry(base_ms=60_000, max_ms=60_000))) as kafka:
            await kafka.send("orders", b"")
            async with asyncio.timeout(5):
                while not kafka.errors:  # noqa: ASYNC110 - a list tells nobody
                    await asyncio.sleep(0.005)

    with pytest.raises(UnsettledError, match="waiting for a retry in handler bill") as found:
        await live()
    assert not isinstance(found.value, HaltedError)
    assert isinstance(found.value.__cause__, OSError)


async def test_who_waits_in_another_way_is_left_alone() -> None:
    """What is done when all has stopped was settled, whoever waited for it."""
    done = asyncio.Event()

    async def bill() -> None:
        done.set()

    async with TestApp(app_of(bill), commit_interval_ms=60_000, commit_every=1_000) as kafka:
        await kafka.send("orders", b"")
        await asyncio.wait_for(done.wait(), 5)
    assert kafka.committed("orders") == 1


async def test_who_has_heard_of_it_is_not_told_again() -> None:
    """After `settled()` the end of the block is quiet, also where it raised; a new send begins anew."""

    async def bill(value: str) -> None:
        raise ValueError(value)

    async def live(*, again: bool) -> None:
        async with TestApp(app_of(bill, retry=Retry(attempts=1))) as kafka:
            await kafka.send("orders", "bad")
            with pytest.raises(HaltedError):
                await kafka.settled()
            if again:
                await kafka.send("orders", "worse")

    await live(again=False)
    with pytest.raises(HaltedError, match="the block ended"):
        await live(again=True)


async def test_the_tests_own_error_comes_first() -> None:
    """Where the body raises, that is what is to be seen."""

    async def live() -> None:
        async with TestApp(idle()) as kafka:
            kafka.broker.fail("Fetch", "DISCONNECT", times=1_000)
            await kafka.send("orders", b"")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await live()


async def test_what_others_can_still_do_is_not_forgotten() -> None:
    """A member that leaves hands its records on to those that stay."""
    broker = MemoryBroker()
    async with TestApp(idle(), broker=broker) as first:
        async with TestApp(idle(), broker=broker) as second:
            await second.send("orders", b"")
        await first.settled()


# -- a loop that does not run --------------------------------------------------------------------


async def test_a_blocked_loop_is_said() -> None:
    """A handler that blocks it leaves no time to commit, nor to see it: the message says which of both."""

    async def bill() -> None:
        time.sleep(0.8)  # noqa: ASYNC251 - that is the point

    async with TestApp(app_of(bill)) as kafka:
        await kafka.send("orders", b"")
        with pytest.raises(UnsettledError, match=r"the event loop was blocked for \d+\.\d s: await what"):
            await kafka.settled(timeout_s=0.2)
        await kafka.settled()


# -- handlers that do not end --------------------------------------------------------------------


def test_a_plain_handler_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    """The test fails, and the process ends."""
    code = """
import asyncio, threading
from asyncpar import topic
from asyncpar.errors import DrainIncompleteError
from asyncpar.testing import TestApp

@topic("notes")
def hang() -> None:
    threading.Event().wait()

async def main():
    async with TestApp(hang, shutdown_drain_timeout_ms=100) as kafka:
        await kafka.send("notes", b"")
        while not kafka.app.status().groups[0].handlers[0].running:
            await asyncio.sleep(0.01)

try:
    asyncio.run(main())
except DrainIncompleteError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=30, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hang on notes[0] offset 0" in done.stdout
