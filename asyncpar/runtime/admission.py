"""What may start now: the gate between a ready queue and its workers, for handlers that ask for one.

Breaker, rate limits, poison keys and records that are not due yet. Always true: what the gate keeps back
keeps its place in its key, costs no slot and no attempt, and is woken by one timer per handler (or the
parking lot's), never by one per record. A handler without such rules has no gate and pays nothing for it.

Called by workers: `may_start` before a head is taken, `admit` when one was, `ended` or `interrupted` when its
call is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from asyncpar.core.breaker import BreakerState, CircuitBreaker, Ticket, Transition
from asyncpar.core.dead_letter_budget import DeadLetterBudget
from asyncpar.core.failures import give_up
from asyncpar.core.poison import PoisonKeys
from asyncpar.core.rate_limit import KeyedBuckets, TokenBucket
from asyncpar.core.virtual_partitions import Queues, VirtualPartition
from asyncpar.errors import PoisonKeyError
from asyncpar.events import EventKind, LifecycleEvent
from asyncpar.records import TopicPartition
from asyncpar.runtime.due_times import DELAY, DueTimes
from asyncpar.runtime.failure_log import brief
from asyncpar.runtime.handlers import Admissions
from asyncpar.runtime.holds import HandlerHold, Trouble
from asyncpar.runtime.tally import count
from asyncpar.runtime.worker import Worker

if TYPE_CHECKING:
    from asyncpar.runtime.workers import HandlerPool

_NO_TICKET = Ticket(0)
_MAX_CHARGED = 10_000


class Gate:
    """One handler's."""

    def __init__(self, pool: HandlerPool, rules: Admissions) -> None:
        self._pool = pool
        self._state = pool.state
        self.breaker = None if rules.breaker is None else CircuitBreaker(rules.breaker)
        self.budget = None if rules.budget is None else DeadLetterBudget(rules.budget)
        self.poison = None if rules.poison is None else PoisonKeys(rules.poison)
        self._rate = None if rules.rate is None else TokenBucket(rules.rate)
        self._key_rate = None if rules.key_rate is None else KeyedBuckets(rules.key_rate)
        waits = rules.honours_delays or bool(pool.handler.retry_topics)
        self.due_times = DueTimes(pool, is_delayed=rules.honours_delays) if waits else None
        self._charged: deque[tuple[float, Queues, int]] = deque(maxlen=_MAX_CHARGED)
        """Failures that cost an attempt, while the breaker is closed: given back should it open."""
        self._timer: asyncio.TimerHandle | None = None
        self._hold = HandlerHold(pool, f"breaker of {pool.handler.name}")
        self._opened_at = 0.0
        """When the breaker, closed until then, opened last."""
        self._why_open = ""
        """What opened the breaker last."""
        self._used_up_since: float | None = None
        """Since when no dead letter may leave; None: one may."""
        self.openings = 0
        self.poisonings = 0
        self.held_back: dict[str, int] = {}
        """How often something was kept from starting, by why."""

    # -- before a call -----------------------------------------------------------------------

    def closed_for(self, now: float) -> tuple[float, str]:
        """Seconds for which nothing of this handler starts, and why; 0.0: something may."""
        if self.breaker is not None and not self.breaker.may_start(now):
            return self.breaker.until(now) - now, "breaker"
        return (0.0, "") if self._rate is None else (self._rate.wait(now), "rate_limit")

    def may_start(self, now: float) -> bool:
        """False: nothing of this handler starts now; its workers are woken when something may."""
        wait, why = self.closed_for(now)
        if wait <= 0:
            return True
        count(self.held_back, why)
        self._wake_in(wait)
        return False

    def admit(self, me: Worker, vp: VirtualPartition, now: float) -> bool:
        """True: the head of `vp` starts, right after `may_start`. False: it was parked or sent away."""
        wait, why = self.wait_of(vp, now)
        assert vp.head is not None
        if wait > 0:
            if why == DELAY:
                assert self.due_times is not None
                self.due_times.hold(vp.queues.partition, vp.head, now, wait)
            count(self.held_back, why)
            self._state.parking.park(vp, now + wait)
            self._state.on_parked()
            return False
        if self.due_times is not None:
            self.due_times.tell_if_disbelieved(vp.queues.partition, vp.head)
        if self.poison:
            self._tell_cooled(self.poison, now)
        if self.poison and (key := _key_of(vp)) is not None and self.poison.is_poisoned(key, now):
            count(self.held_back, "poison_key")
            error = PoisonKeyError(f"not run: its key failed {self.poison.rules.failures} times in a row")
            decision = give_up(self._pool.handler.rules, "poison_key")
            self._pool.verdicts.send_away(vp, vp.head, decision, error)
            return False
        if self._rate is not None:
            self._rate.take(now)
        if self._key_rate is not None and vp.key is not None:
            self._key_rate.take((vp.queues.topic, vp.key), now)
        me.ticket = _NO_TICKET if self.breaker is None else self.breaker.started(now)
        return True

    def wait_of(self, vp: VirtualPartition, now: float) -> tuple[float, str]:
        """Seconds until the head of `vp` may start, and why it waits."""
        assert vp.head is not None
        if self.due_times is not None and (wait := self.due_times.due_in(vp.queues.partition, vp.head)) > 0:
            return wait, DELAY
        if self._key_rate is not None and vp.key is not None:
            return self._key_rate.wait((vp.queues.topic, vp.key), now), "key_rate_limit"
        return 0.0, ""

    # -- after a call ------------------------------------------------------------------------

    def ended(
        self, me: Worker, vp: VirtualPartition, offset: int, error: BaseException | None, *, ok: bool
    ) -> bool:
        """A call ended with a verdict. True: its failure is free of charge, it has the breaker's cause."""
        now = self._state.clock.monotonic()
        if ok:
            self.finished(now)
        is_free = self._judge_call(me, vp, offset, now, error, ok=ok)
        if not is_free:
            self.judge_key(vp, ok=ok)
        return is_free

    def finished(self, now: float) -> None:
        """A record came to its end: the dead-letter budget is a share of those."""
        if self.budget is not None:
            self.budget.ended(now)

    def _judge_call(
        self,
        me: Worker,
        vp: VirtualPartition,
        offset: int,
        now: float,
        error: BaseException | None,
        *,
        ok: bool,
    ) -> bool:
        breaker = self.breaker
        if breaker is None:
            return False
        transition = breaker.ended(now, ok, me.ticket)
        if transition is not None:
            self._tell(transition, now, error)
        if ok:
            return False
        is_free = breaker.spares(me.ticket)
        if not is_free:
            self._charged.append((now, vp.queues, offset))
        return is_free

    def interrupted(self, me: Worker) -> None:
        """A call ended and says nothing of what it depends on."""
        if self.breaker is not None:
            self.breaker.interrupted(me.ticket)
            if self.breaker.state is not BreakerState.CLOSED:
                self._pool.wake()

    def judge_key(self, vp: VirtualPartition, *, ok: bool) -> None:
        """A call with the key of `vp` succeeded or failed; too many failures in a row poison the key."""
        poison, now = self.poison, self._state.clock.monotonic()
        if poison is None or (ok and not poison) or (key := _key_of(vp)) is None:
            return
        if ok:
            if poison.succeeded(key):
                self._state.log.info(
                    "handler %s: key %r of %s is no longer poisoned", self._pool.handler.name, key[1], key[0]
                )
                self._announce("key_recovered", "a record of it succeeded", key)
            return
        if poison.failed(key, now):
            self.poisonings += 1
            self._state.log.error(
                "handler %s: key %r of %s failed %d times in a row; its records are dead letters for %.0f s",
                self._pool.handler.name,
                key[1],
                key[0],
                poison.rules.failures,
                poison.rules.cool_down_ms / 1000,
            )
            self._announce("key_poisoned", f"it failed {poison.rules.failures} times in a row", key)
        self._tell_cooled(poison, now)

    def _tell_cooled(self, poison: PoisonKeys, now: float) -> None:
        """Keys whose cool-down is over run again; one more failure poisons them anew."""
        for topic, key in poison.forget_older(now):
            self._state.log.info(
                "handler %s: the cool-down of key %r of %s is over", self._pool.handler.name, key, topic
            )
            self._announce("key_recovered", "its cool-down is over", (topic, key))

    def _tell(self, transition: Transition, now: float, error: BaseException | None) -> None:
        """The breaker opened or closed: one line, and fetching is held or goes on."""
        name, log = self._pool.handler.name, self._state.log
        if transition.after is BreakerState.OPEN:
            self.openings += 1
            level = logging.ERROR if transition.before is BreakerState.CLOSED else logging.WARNING
            log.log(
                level,
                "handler %s: its breaker opened, %d of %d calls failed; nothing of it starts for %.1f s",
                name,
                transition.failures,
                transition.calls,
                transition.open_seconds,
            )
            if transition.before is BreakerState.CLOSED:
                self._opened_at = now
                self._give_back(now, transition.failures)
            failed = f"{transition.failures} of {transition.calls} calls failed, the last"
            if transition.before is not BreakerState.CLOSED:
                failed = "its last probe failed"
            self._why_open = f"{failed} with {brief(error)}; it tries again by itself"
            self._hold.begin(f"the breaker of handler {name} is open: {self._why_open}")
            self._announce("breaker_opened", self._why_open)
            self._wake_in(transition.open_seconds)
            return
        log.info("handler %s: its breaker closed after %d good calls", name, transition.calls)
        self._hold.end()
        self._announce("breaker_closed", f"after {transition.calls} good calls")
        self._pool.wake()

    def _announce(self, kind: EventKind, reason: str, key: tuple[str, bytes] | None = None) -> None:
        """Tell whoever listens to the app."""
        state, (topic, value) = self._state, (None, None) if key is None else key
        handler, at = self._pool.handler.name, state.clock.wall()
        state.on_event(LifecycleEvent(kind, state.group, handler, at, reason, topic, value))

    def _give_back(self, now: float, failures: int) -> None:
        """What led to the opening costs no attempt, and says nothing of its keys.

        That is the failures of the window, and those of the row that opened it, which may have lasted longer;
        `failures` counts the one that has just ended, which is free by itself.
        """
        assert self.breaker is not None
        since = now - self.breaker.rules.window_ms / 1000
        while self._charged:
            at, queues, offset = self._charged.popleft()
            if at < since and len(self._charged) >= failures - 1:
                continue
            since = min(since, at)
            if queues.attempts.get(offset):
                queues.attempts[offset] -= 1
        if self.poison is not None:
            self.poison.forgive(since)

    # -- dead letters ------------------------------------------------------------------------

    def may_leave(self, now: float) -> float:
        """Seconds that a dead letter has to wait for the budget; 0.0: it may leave, and is counted."""
        wait = 0.0 if self.budget is None else self.budget.take(now)
        if wait <= 0 and self._used_up_since is not None:
            self._used_up_since = None
            self._announce("budget_recovered", "dead letters leave again")
        elif wait > 0 and self._used_up_since is None:
            self._used_up_since = now
            self._announce("budget_used_up", "dead letters wait until its window moves on")
        return wait

    # -- seen from outside -------------------------------------------------------------------

    def count_poisoned(self) -> int:
        """How many keys are diverted now."""
        return 0 if self.poison is None else self.poison.count_poisoned(self._state.clock.monotonic())

    def trouble(self) -> Trouble | None:
        """Why nothing of the handler starts, but for probes, or no dead letter leaves."""
        if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED:
            how = self.breaker.state.value.replace("_", " ")
            return Trouble(f"its breaker is {how}: {self._why_open}", self._opened_at)
        if self._used_up_since is not None:
            why = (
                "its dead-letter budget is used up: dead letters wait, and leave again as its window moves on"
            )
            return Trouble(why, self._used_up_since)
        return None

    # -- holding -----------------------------------------------------------------------------

    def hold_new(self, tp: TopicPartition) -> None:
        """`tp` was opened: it is held as long as the others of this handler are."""
        if self.due_times is not None:
            self.due_times.opened(tp)
        self._hold.hold_new(tp)

    def _wake_in(self, seconds: float) -> None:
        """The workers look again then, or earlier: one timer, for the first of all that was asked for."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._woken)

    def _woken(self) -> None:
        self._timer = None
        if self._hold.is_on:
            assert self.breaker is not None
            now = self._state.clock.monotonic()
            if not self.breaker.may_start(now):
                self._wake_in(self.breaker.until(now) - now)
                return
            self._hold.end()  # also for probes: without records there would never be one
        self._pool.wake()

    def close(self) -> None:
        """Wake nobody any more."""
        if self.due_times is not None:
            self.due_times.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _key_of(vp: VirtualPartition) -> tuple[str, bytes] | None:
    """What poison is remembered by: topic and key of a record that has one."""
    key = None if vp.head is None else vp.head.key
    return None if key is None else (vp.queues.topic, key)
