"""Tests of the virtual event loop: time, members, interleavings."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

import pytest

from asyncpar.testing.virtual_time import SimulationError, VirtualLoop, run_virtually, virtual_time


def loop() -> VirtualLoop:
    found = asyncio.get_running_loop()
    assert isinstance(found, VirtualLoop)
    return found


def test_an_hour_takes_no_time() -> None:
    """Timers fire in their order at their moment, and nobody waits for them."""

    async def main() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []

        async def tick(name: str, seconds: float) -> None:
            for _ in range(3):
                await asyncio.sleep(seconds)
                seen.append((name, round(loop().time() - begin)))

        begin = loop().time()
        await asyncio.gather(tick("hour", 3600), tick("half", 1800))
        return seen

    begin = time.monotonic()
    seen = run_virtually(main)
    assert seen[0] == ("half", 1800)
    assert seen[-2:] == [("hour", 7200), ("hour", 10800)]
    assert time.monotonic() - begin < 60


def test_asyncio_works_as_ever() -> None:
    """Time-outs, task groups, events and cancellation need nothing of a real loop."""

    async def main() -> str:
        gate = asyncio.Event()
        loop().call_later(5, gate.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(gate.wait())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.sleep(2)
        return "done"

    assert run_virtually(main) == "done"


def orders(seed: int | None) -> list[int]:
    """In which order tasks that are ready at the same time run."""
    seen: list[int] = []

    async def step(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    async def main() -> None:
        await asyncio.gather(*(step(number) for number in range(6)))

    run_virtually(main, None if seed is None else random.Random(seed))
    return seen


def test_a_seed_permutes_task_steps_and_repeats_them() -> None:
    """Without one asyncio's order holds; with one it is another order, always the same."""
    assert orders(None) == [0, 1, 2, 3, 4, 5]
    assert orders(1) == orders(1)
    assert len({tuple(orders(seed)) for seed in range(20)}) > 10


def test_callbacks_keep_their_order() -> None:
    """Asyncio promises it for call_soon, so no seed may change it."""

    async def main() -> list[int]:
        seen: list[int] = []
        for number in range(20):
            loop().call_soon(seen.append, number)
        await asyncio.sleep(1)
        return seen

    assert run_virtually(main, random.Random(3)) == list(range(20))


def member_life(act: Callable[[VirtualLoop], None]) -> list[float]:
    """When a member that ticks once a second ticks, when `act` is done to it after 1.5 s; 5.5 s in all."""

    async def main() -> list[float]:
        seen: list[float] = []

        async def ticking() -> None:
            try:
                while True:
                    await asyncio.sleep(1)
                    seen.append(round(loop().time() - begin, 1))
            finally:
                seen.append(-1)

        begin = loop().time()
        task = loop().create_task(ticking(), context=VirtualLoop.context_of("m"))
        loop().call_later(1.5, act, loop())
        loop().call_later(4.25, loop().thaw, "m")
        await asyncio.sleep(5.5)
        assert not task.done()
        return list(seen)

    return run_virtually(main)


def test_a_frozen_member_stands_still_and_goes_on() -> None:
    """As under SIGSTOP: what came due runs when it is thawed, late; the others do not notice."""
    assert member_life(lambda _: None) == [1, 2, 3, 4, 5]
    assert member_life(lambda loop: loop.freeze("m")) == [1, 4.3, 5.3]


def test_a_killed_member_never_runs_again() -> None:
    """As under SIGKILL: neither its next step nor a `finally` block."""
    assert member_life(lambda loop: loop.kill("m")) == [1]


def test_a_world_in_which_all_wait_is_an_error() -> None:
    """A deadlock is told, not waited for."""

    async def main() -> None:
        await loop().create_future()

    with pytest.raises(SimulationError, match="everything waits"):
        run_virtually(main)


def test_a_world_without_an_end_is_an_error() -> None:
    """Steps are bounded."""

    async def main() -> None:
        def again() -> None:
            loop().call_soon(again)

        again()
        await loop().create_future()

    with pytest.raises(SimulationError, match="no end after"):
        run_virtually(main, max_steps=1000)


def test_what_nobody_handled_is_kept() -> None:
    """An exception in a callback does not end the world, and is not forgotten."""

    async def main() -> int:
        loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)
        return len(loop().errors)

    assert run_virtually(main) == 1


def test_tasks_that_refuse_to_end_are_abandoned() -> None:
    """Leaving the loop waits for nobody, also not for a task that swallows its cancellation."""

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    with virtual_time() as made:
        task = made.create_task(stubborn())
        made.call_later(1.5, task.cancel)
        made.run_until_complete(asyncio.sleep(3))
        assert not task.done()
    assert made.is_closed()
