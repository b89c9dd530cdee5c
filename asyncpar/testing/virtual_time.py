"""An event loop whose time is a number: it jumps to the next timer instead of waiting for it.

For simulations: an hour of timers costs what its steps cost, and a run is repeated exactly by its
seed. No sockets, no threads, no signals. Members of a simulated world live in one loop: what belongs
to whom is told by the context that a task or timer was made in, so that the loop can freeze a member
(its tasks and timers wait, as under SIGSTOP) or kill it (they never run again, as under SIGKILL).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from asyncio import base_events, events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

MEMBER: ContextVar[str] = ContextVar("asyncpar_simulated_member", default="")
"""The simulated member that this context belongs to; empty for the world around them."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STEP_SECONDS = 1e-6
_DEFER_SHARE = 0.02


class SimulationError(RuntimeError):
    """The simulated program cannot go on: everything waits for nothing, or it ran for too many steps."""


class _NumberedTask(asyncio.Task[T]):
    """A task that lies in sets by its number, not its address: another run meets the same order."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class _Handle(events.Handle):
    """One without asyncio's debug mode, whose questions cost a tenth of a simulated life."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None


class _Timer(events.TimerHandle):
    """The same for a moment."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        _Handle.__init__(self, callback, args, loop, context)  # type: ignore[arg-type]
        self._when = when
        self._scheduled = False


class VirtualLoop(base_events.BaseEventLoop):
    """An asyncio event loop on a virtual clock.

    `rng` permutes the order in which ready task steps run (callbacks keep theirs, which asyncio
    promises); None leaves asyncio's order. Each step takes a microsecond of virtual time.
    """

    _ready: deque[events.Handle]

    def __init__(
        self, rng: random.Random | None = None, *, start: float = 1000.0, max_steps: int = 10**9
    ) -> None:
        super().__init__()
        self.now = start
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        """What nobody handled: contexts as asyncio gives them to an exception handler."""
        self._rng = rng
        self._max_steps = max_steps
        self._frozen: dict[str, list[events.Handle]] = {}
        self._dead: set[str] = set()
        self._kept: list[asyncio.Task[Any]] = []
        self._made_tasks = 0
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._made_timers = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def _make_task(self, _: asyncio.AbstractEventLoop, coroutine: Any, **values: Any) -> asyncio.Task[Any]:
        self._made_tasks += 1
        task: _NumberedTask[Any] = _NumberedTask(coroutine, loop=self, **values)
        task.number = self._made_tasks
        return task

    # -- members -----------------------------------------------------------------------------

    @staticmethod
    def context_of(member: str) -> Context:
        """A context for the tasks of `member`."""
        context = copy_context()
        context.run(MEMBER.set, member)
        return context

    def freeze(self, member: str) -> None:
        """Nothing of `member` runs until `thaw`; what comes due waits."""
        self._frozen.setdefault(member, [])

    def thaw(self, member: str) -> None:
        """`member` runs on: first what came due meanwhile, in its order."""
        self._ready.extend(self._frozen.pop(member, ()))

    def kill(self, member: str) -> None:
        """Nothing of `member` ever runs again; not even its `finally` blocks."""
        self._frozen.pop(member, None)
        self._dead.add(member)
        # Collecting a suspended coroutine would run its `finally` blocks: keep them all.
        self._kept += asyncio.all_tasks(self)

    def is_frozen(self, member: str) -> bool:
        """True between `freeze` and `thaw`."""
        return member in self._frozen

    # -- asyncio's part ----------------------------------------------------------------------

    def time(self) -> float:
        """The virtual time, seconds."""
        return self.now

    def time_ns(self) -> int:
        """The virtual time, nanoseconds."""
        return int(self.now * 1e9)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> events.TimerHandle:
        """See asyncio. Timers of one moment fire in the order in which they were made."""
        timer = _Timer(when, callback, args, self, context)
        self._made_timers += 1
        heapq.heappush(self._timers, (when, self._made_timers, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> events.TimerHandle:
        """See asyncio."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> events.Handle:
        """See asyncio; without its debug mode."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _run_once(self) -> None:  # noqa: C901 - one loop, inlined on purpose
        """One turn: what is ready now runs, or time moves on to the next timer."""
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise SimulationError("everything waits, and nothing is left that could wake it")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        batch = list(ready)
        ready.clear()
        if self._rng is not None and len(batch) > 1:
            self._permute(batch, self._rng)
        absent = bool(self._frozen or self._dead)
        for handle in batch:
            if handle._cancelled or (absent and self._is_held(handle)):
                continue
            self.now += _STEP_SECONDS
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - as asyncio's handles do
                text = f"Exception in callback {handle!r}"
                self.call_exception_handler({"message": text, "exception": error, "handle": handle})
        self.steps += len(batch)
        if self.steps > self._max_steps:
            raise SimulationError(f"no end after {self.steps} steps")

    def _permute(self, batch: list[events.Handle], rng: random.Random) -> None:
        """Other orders that asyncio might as well have chosen: of task steps only."""
        places = [at for at, handle in enumerate(batch) if _is_task_step(handle)]
        if len(places) < 2:
            return
        steps = [batch[at] for at in places]
        rng.shuffle(steps)
        for at, step in zip(places, steps, strict=True):
            batch[at] = step
        if rng.random() < _DEFER_SHARE:
            self._ready.append(batch.pop(places[-1]))

    def _is_held(self, handle: events.Handle) -> bool:
        member = handle._context.get(MEMBER, "")  # type: ignore[attr-defined]
        if member in self._frozen:
            self._frozen[member].append(handle)
            return True
        return member in self._dead

    def _process_events(self, event_list: object) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nothing sleeps that would have to be woken."""

    # -- the end -----------------------------------------------------------------------------

    def abandon(self) -> None:
        """End every task where it stands, and close. Nothing of it is logged or waited for."""
        self._kept.clear()
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            with contextlib.suppress(BaseException):
                coroutine.close()
        self._ready.clear()
        self._timers.clear()
        self.close()


def _is_task_step(handle: events.Handle) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]


@contextlib.contextmanager
def virtual_time(rng: random.Random | None = None, *, max_steps: int = 10**9) -> Iterator[VirtualLoop]:
    """A virtual loop that is the thread's event loop inside, and abandoned at the end."""
    loop = VirtualLoop(rng, max_steps=max_steps)
    try:
        yield loop
    finally:
        loop.abandon()


def run_virtually(
    main: Callable[[], Coroutine[Any, Any, T]],
    rng: random.Random | None = None,
    *,
    max_steps: int = 10**9,
) -> T:
    """The result of the coroutine that `main` makes, run on a virtual loop; like `asyncio.run`."""
    with virtual_time(rng, max_steps=max_steps) as loop:
        return loop.run_until_complete(main())
