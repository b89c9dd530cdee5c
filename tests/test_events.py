"""Lifecycle events: each opening and closing is told once, and a listener harms nothing."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any

import pytest

from asyncpar import App, Breaker, ConfigurationError, DeadLetterBudget, LifecycleEvent, PoisonKeys, Retry
from asyncpar.testing import TestApp

SECONDS = 10
TENANT = contextvars.ContextVar("TENANT", default="nobody")


async def until(condition: Callable[[], object], what: str) -> None:
    """Bounded."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, f"{what} did not come"
        await asyncio.sleep(0.005)


class World:
    """An app with one handler that fails as long as `is_out`, or always for the value "bad"; what it told."""

    def __init__(self, **policies: Any) -> None:
        self.told: list[LifecycleEvent] = []
        self.also: list[LifecycleEvent] = []
        self.is_out = True
        self.tenants: set[str] = set()
        self.app = App("shop", group="billing")
        self.app.on_event(self.hear)
        self.app.on_event(self.also.append)

        @self.app.topic("orders", name="bill", **policies)
        async def bill(value: str) -> None:
            TENANT.set(value)
            if self.is_out or value == "bad":
                raise ConnectionError("no route")

    def hear(self, event: LifecycleEvent) -> None:
        """Takes it down, and fails."""
        self.tenants.add(TENANT.get())
        self.told.append(event)
        raise RuntimeError("the listener's own fault")

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]


async def test_a_breaker_tells_when_it_opens_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    """Who, since when and why; what the listener raises goes to the log, and what handlers set not to it."""
    world = World(breaker=Breaker(min_calls=3, open_ms=100, max_open_ms=200, probes=1))
    before = time.time()
    async with TestApp(world.app) as kafka:
        for number in range(5):
            await kafka.send("orders", "fine", key=f"k{number}")
        await until(lambda: world.told, "the opening")
        world.is_out = False
        await until(lambda: "breaker_closed" in world.kinds, "the closing")
        await kafka.settled()
    first, last = world.told[0], world.told[-1]
    assert (first.kind, first.group, first.handler) == ("breaker_opened", "billing", "bill")
    assert "3 of 3 calls failed" in first.reason
    assert "ConnectionError: no route" in first.reason
    assert before <= first.at <= last.at <= time.time()
    assert (first.topic, first.key) == (None, None)
    assert world.kinds == ["breaker_opened"] * (len(world.told) - 1) + ["breaker_closed"]
    assert world.tenants == {"nobody"}
    assert world.also == world.told
    assert "on_event failed for breaker_opened of handler bill" in caplog.text


async def test_poisoned_keys_and_a_used_up_budget_are_told() -> None:
    """With topic and key; each begin and each end once."""
    world = World(
        retry=Retry(attempts=1),
        dead_letter=".dlq",
        poison_keys=PoisonKeys(failures=2, cool_down_ms=60_000),
        dead_letter_budget=DeadLetterBudget(share=0.0, at_least=3, window_ms=1_000),
    )
    world.is_out = False
    async with TestApp(world.app) as kafka:
        for _ in range(4):
            await kafka.send("orders", "bad", key="k1")
        await until(lambda: len(world.told) == 3, "the end of the budget's hold")
    poisoned, used_up, recovered = world.told
    assert (poisoned.kind, poisoned.topic, poisoned.key) == ("key_poisoned", "orders", b"k1")
    assert "2 times in a row" in poisoned.reason
    assert (used_up.kind, recovered.kind) == ("budget_used_up", "budget_recovered")


async def test_a_key_that_runs_again_is_told() -> None:
    """Its cool-down is over."""
    world = World(
        retry=Retry(attempts=1), dead_letter=".dlq", poison_keys=PoisonKeys(failures=1, cool_down_ms=50)
    )
    world.is_out = False
    async with TestApp(world.app) as kafka:
        await kafka.send("orders", "bad", key="k1")
        await until(lambda: world.kinds == ["key_poisoned"], "the poisoning")
        over = time.monotonic() + 0.06
        await until(lambda: time.monotonic() > over, "the end of the cool-down")
        await kafka.send("orders", "fine", key="k1")
        await until(lambda: world.kinds == ["key_poisoned", "key_recovered"], "the recovery")
        await kafka.settled()


def test_what_nobody_would_await_is_refused() -> None:
    """A coroutine function, or no function: at once, with what to do."""

    async def hear(event: LifecycleEvent) -> None:
        """Never called."""

    for wrong in (hear, "print"):
        with pytest.raises(ConfigurationError, match="is no plain function; .* let it start a task"):
            App(group="g").on_event(wrong)  # type: ignore[arg-type]
