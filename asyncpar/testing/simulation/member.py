"""One member of the simulated group: a process with an app in it, that can be frozen and killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from asyncpar.app import App
from asyncpar.assembly import Rigging
from asyncpar.errors import AsyncparError, DrainIncompleteError
from asyncpar.middleware import Middleware
from asyncpar.policies import Retry
from asyncpar.ports import Consumer, Producer
from asyncpar.runtime.group_state import Clock, GroupState
from asyncpar.runtime.outbox import DEPARTURES, Departure
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_sources import Loaded
from asyncpar.testing.recording import recording
from asyncpar.testing.simulation.children import Children
from asyncpar.testing.simulation.cluster import GROUP
from asyncpar.testing.simulation.dawdling import answering_late, dawdling
from asyncpar.testing.simulation.handlers import decode, make_handler, noting_undecodable
from asyncpar.testing.simulation.plan import LETTERS
from asyncpar.testing.virtual_time import VirtualLoop
from asyncpar.testing.witness import note_departure

if TYPE_CHECKING:
    from asyncpar.testing.simulation.world import World


_LETTERS_BY_RESULT = {"sent": "dead letter acknowledged", "failed": "dead letter refused"}


class _SimulatedApp(App):
    """An app on the world's clock."""

    def __init__(self, clock: Clock, **values: object) -> None:
        super().__init__(**values)  # type: ignore[arg-type]
        self._clock = clock

    @property
    def runtimes(self) -> tuple[GroupRuntime, ...]:
        """The groups that run, or that ran last."""
        return self._runtimes or self._ended


class Member:
    """A process. Its tasks and timers belong to its name; the loop freezes and kills them."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.name = name
        self.number = number
        """Which place in the group it takes; one that is started in place of another takes the same."""
        self.error: AsyncparError | None = None
        """How the app ended, if not well."""
        self.crash: Exception | None = None
        """What no app may raise."""
        self._on_ended: Callable[[Member], None] = lambda _: None
        self.wall_jump = 0.0
        """By how many seconds the host's wall clock is wrong."""
        self.ended = asyncio.Event()
        self._world = world
        self._consumer: Consumer | None = None
        self._app: _SimulatedApp | None = None
        plan = world.plan.children
        self._children = None if plan is None else Children(self, world, plan)
        self._context = VirtualLoop.context_of(name)
        self._task = world.loop.create_task(self._live(), name=name, context=self._context)

    # -- its life ----------------------------------------------------------------------------

    async def _live(self) -> None:
        settings = Settings.model_validate({"group": GROUP, **self._world.plan.settings})
        loaded = Loaded(settings, dict.fromkeys(KNOBS, "simulation"))
        rigging = Rigging(self._consumers, self._producer, departed=self._departed)
        try:
            self._app = self._make_app()
            if self._children is not None:
                rigging = rigging._replace(watch=self._children.watched)
            with self._app.rigged(loaded, rigging):
                await self._run(self._app)
        except AsyncparError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a process may crash, and then the life says so
            self.crash = error
        finally:
            self.ended.set()
            self._on_ended(self)

    async def _run(self, app: App) -> None:
        if self._children is None:
            await app.run()
            return
        await self._children.start()
        error: AsyncparError | None = None
        try:
            await app.run()
        except AsyncparError as raised:
            error = raised
        await self._children.close()
        if error is not None:
            raise error

    def processes(self) -> list[str]:
        """Its own and its children's, by the names that the loop knows them by."""
        return [self.name, *([] if self._children is None else self._children.processes())]

    def when_ended(self, act: Callable[[Member], None]) -> None:
        """Call `act` when the process has come to its end of itself."""
        self._on_ended = act

    def _make_app(self) -> _SimulatedApp:
        world, plan = self._world, self._world.plan
        loop, rng = world.loop, plan.rng(f"member {self.name}")
        clock = Clock(loop.time, lambda: loop.time() + self.wall_jump, rng.random)
        middlewares: list[Middleware] = []
        handler: dict[str, object] = {**plan.handler, "retry": Retry(attempts=plan.attempts)}
        if plan.mix.skipped:
            skips = plan.letters is None or not plan.letters.undecodable
            middlewares.append(noting_undecodable(self, world.history, skips=skips))
            handler |= {"decoder": decode, "on_decode_error": "skip" if skips else "halt"}
        if plan.letters is not None:
            handler |= {
                "dead_letter": LETTERS,
                "dead_letter_budget": plan.letters.budget,
                "breaker": plan.letters.breaker,
                "poison_keys": plan.letters.poison,
                "rate_limit": plan.letters.rate,
            }
        app = _SimulatedApp(clock, group=GROUP, middlewares=middlewares, **plan.settings)
        history = world.history if self._children is None else self._children.history
        made = make_handler(self, history, world.fates, world.problems)
        app.topic(*plan.partitions, **handler)(made)  # type: ignore[arg-type]
        return app

    def _consumers(self, group: str) -> Consumer:
        dawdles = dawdling(self._world.consumers_of(self), self._world.plan.rng(f"fetches of {self.name}"))
        made = recording(dawdles, self._world.history, self.name, self._goes_on)(group)
        self._consumer = made
        return made

    def _goes_on(self) -> bool:
        """It runs, and has not been told to stop: a consumer that is stopped now is replaced."""
        return any(True for _ in self._running_states())

    def _producer(self) -> Producer:
        producer, letters = self._world.producers_of(self)(), self._world.plan.letters
        if letters is None or not letters.late:
            return producer
        states, rng = self._world.states, self._world.plan.rng(f"letters of {self.name}")
        return answering_late(producer, letters.late, rng, partial(states.update, ("dead letter late",)))

    def _departed(self, _group: str, departure: Departure) -> None:
        note_departure(self._world.history, self.name, departure)

    def lease_from(self) -> float:
        """The present consumer's sign of membership."""
        return float("-inf") if self._consumer is None else self._consumer.lease_from()

    # -- what is done to it ------------------------------------------------------------------

    def stop(self) -> None:
        """SIGTERM."""
        if self._app is not None:
            self._context.copy().run(self._app.stop)

    @property
    def drained(self) -> bool:
        """After its end: whether all that ran had ended."""
        return not isinstance(self.error, DrainIncompleteError)

    def retry_halted(self) -> int:
        """Run the records of halted partitions again; how many partitions. None of a frozen process."""
        halted = 0
        if self._is_frozen():
            return 0
        for runtime in self._app.runtimes if self._app is not None else ():
            for tp, partition in list(runtime.state.partitions.items()):
                if partition.state.value == "halted":
                    self._context.copy().run(runtime.retry_halted, tp)
                    halted += 1
        return halted

    def neglected(self) -> list[str]:
        """Blocking records that nobody serves, as the watchdog found: a lost wake-up."""
        runtimes = self._app.runtimes if self._app is not None else ()
        sessions = [runtime.session for runtime in runtimes]
        return [
            f"{self.name}: {tp} offset {offset} is neglected"
            for session in sessions
            if session is not None
            for tp, offset in session.watchdog.idle_blocks.items()
        ]

    def unserved(self) -> list[str]:
        """Records that are ready beside a free slot and may start, which is right for a moment only."""
        now = self._world.loop.time()
        first = [
            pool.queue.ready[0]
            for state in self._running_states()
            if not state.lease_closed and now <= state.lease_until
            for pool in state.pools
            if pool.queue.ready and len(pool.busy()) < pool.handler.concurrency
            if pool.gate is None or pool.gate.closed_for(now)[0] <= 0
        ]
        return [
            f"{self.name}: {vp.queues.partition} offset {vp.head.offset} is ready beside a free slot"
            for vp in first
            if vp.head is not None
        ]

    def left_hanging(self) -> list[str]:
        """Calls that wait for their cancellation, of partitions that were taken: right for a moment only."""
        if not self._world.fates.hanging or self._world.plan.handler.get("on_revoke") == "keep":
            return []
        return [
            f"{self.name}: {tp} offset {offset} was not cancelled when its partition was taken"
            for state in self._running_states()
            for name, tp, offset in self._world.fates.hanging
            if name == self.name and tp not in state.partitions
        ]

    def may_cancel(self) -> bool:
        """A handler may be cancelled: always, unless it is to be kept, and then at the end."""
        keeps = self._world.plan.handler.get("on_revoke") == "keep"
        return not keeps or not list(self._running_states())

    def _running_states(self) -> Iterator[GroupState]:
        """What its groups are in, while it runs and is not told to stop."""
        if self._app is None or self._is_frozen():
            return
        for runtime in self._app.runtimes:
            if not runtime.state.stopping:
                yield runtime.state

    def _is_frozen(self) -> bool:
        return self._world.loop.is_frozen(self.name)

    def holds_back(self) -> bool:
        """True while records wait for shorter metadata."""
        return any(
            partition.queues is not None and partition.queues.held
            for runtime in (self._app.runtimes if self._app is not None else ())
            for partition in runtime.state.partitions.values()
        )

    def holds(self) -> Counter[str]:
        """What keeps its records from leaving now."""
        met: Counter[str] = Counter()
        for runtime in self._app.runtimes if self._app is not None else ():
            met["partition held"] += sum(DEPARTURES in by for by in runtime.state.holds.values())
            budgets = (pool.gate.budget for pool in runtime.state.pools if pool.gate is not None)
            met["budget used up"] += sum(budget is not None and budget.is_held for budget in budgets)
        return met

    def states(self) -> Counter[str]:
        """What its engine went through, by its own counters: to see that the rig reaches it."""
        met: Counter[str] = Counter()
        for runtime in self._app.runtimes if self._app is not None else ():
            counters = runtime.state.counters
            met.update({f"commit {answer}": times for answer, times in counters.commits.items()})
            met.update({f"rebalance {how}": times for how, times in counters.rebalances.items()})
            met.update({f"straggler {how}": times for how, times in counters.stragglers.items()})
            met.update({f"offset reset {why}": times for why, times in counters.offset_resets.items()})
            met["stale completion"] += counters.stale_completions
            met["record restored as done"] += counters.redelivered
            met["consumer replaced"] += counters.consumer_replacements
            for pool in runtime.state.pools:
                met["retry"] += pool.retries
                met["worker retired"] += pool.retired
                if pool.gate is not None:
                    met["breaker opened"] += pool.gate.openings
                    met["key poisoned"] += pool.gate.poisonings
            if runtime.state.outbox is not None:
                for (_, _, result), times in runtime.state.outbox.sent.items():
                    met[_LETTERS_BY_RESULT[result]] += times
        if self.error is not None:
            met[f"ended by {type(self.error).__name__}"] += 1
        return met
