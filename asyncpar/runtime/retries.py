"""Wakes parked records when they are due: one timer for all of them, none per record."""

from __future__ import annotations

import asyncio

from asyncpar.runtime.group_state import GroupState


class RetryTimer:
    """One armed timer, for the earliest parked record."""

    def __init__(self, state: GroupState) -> None:
        self._state = state
        self._handle: asyncio.TimerHandle | None = None
        state.on_parked = self.arm

    def arm(self) -> None:
        """Something was parked or discarded: be there when the first one is due."""
        due = self._state.parking.next_due()
        if due is None:
            return
        loop = asyncio.get_running_loop()
        if self._handle is not None:
            self._handle.cancel()
        delay = max(0.0, due - self._state.clock.monotonic())
        self._handle = loop.call_later(delay, self._fire)

    def _fire(self) -> None:
        self._handle = None
        state = self._state
        if state.parking.release(state.clock.monotonic()):
            state.wake_all()
        self.arm()

    def close(self) -> None:
        """Nothing wakes any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
