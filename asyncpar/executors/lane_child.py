"""What runs in the child of a lane: one handler, batch after batch, until the parent says that it is enough.

The parent starts it as the only job of a pool of one: `enter` with what was handed over, then `serve`. It
imports nothing heavy and no event loop: a child should be there within milliseconds. Always: nothing runs
once the parent has gone, what may not start by the lane's words does not, and no exception of a user's class
leaves the process.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from asyncpar.context import CALL
from asyncpar.errors import HandlerError, Skip
from asyncpar.executors.lane_failures import failure_of, last_line
from asyncpar.executors.lane_frames import FramePipe
from asyncpar.executors.lane_logs import Levels, send_logs
from asyncpar.executors.lane_port import Fields, Job
from asyncpar.executors.lane_words import LaneWords, first_place
from asyncpar.executors.plain_calls import awaitable_refusal
from asyncpar.signatures import CallPlan, plan_call
from asyncpar.topics import OnDecodeError, Tombstones, specs_of

if TYPE_CHECKING:
    from asyncpar.executors.lane_words import WordArray

PRELOAD_VARIABLE = "_ASYNCPAR_PRELOAD"
"""In the environment of the fork server: what `lane_preload.py` imports there."""

_LOGGER = logging.getLogger("asyncpar.process")
_EXIT_ORPHANED = 3
_VALUE: Final = 4
"""Where the value stands in a `Job`."""


@dataclass(frozen=True, slots=True)
class ChildWork:
    """What a child is told of its handler: where to import it, and what the settings changed in it.

    `lifespan`: module:name of a function that makes a context manager, entered once in each child; what it
    yields is `Context.state`. `timeout_ms`: what `heartbeat()` asks for; None: there is no time-out.
    """

    module: str
    qualname: str
    handler: str
    group: str
    timeout_ms: int | None = None
    tombstones: Tombstones = "error"
    on_decode_error: OnDecodeError = "halt"
    lifespan: str | None = None

    @property
    def where(self) -> str:
        """How messages name the handler."""
        return f"handler {self.handler}"


_entered: list[tuple[socket, WordArray, ChildWork, Levels]] = []
"""From `enter` to `serve`, which the pool calls one after the other."""


def enter(
    connection: socket, words: WordArray, work: ChildWork, levels: Levels, environment: dict[str, str]
) -> None:
    """The first thing that runs in the child. `environment`: the parent's; the fork server's may be older."""
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop(PRELOAD_VARIABLE, None)
    _leave_signals_to_the_parent()
    _end_with_the_parent()
    _entered.append((connection, words, work, levels))


def serve() -> None:
    """Run batches until told to end. Ends the process at once when the parent has gone."""
    connection, words, work, levels = _entered.pop()
    pipe = FramePipe(connection)
    try:
        _serve(pipe, LaneWords(words), work, levels)
    except (EOFError, OSError):
        os._exit(_EXIT_ORPHANED)
    except BaseException:  # noqa: BLE001 - the pool would keep it to itself
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def imported(module: str, qualname: str) -> object:
    """What `qualname` means in `module`. Raises what the import raises, AttributeError for no such name."""
    found: object = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _leave_signals_to_the_parent() -> None:
    """A Ctrl-C or a SIGTERM to the whole group is the parent's business: it ends its children when it may."""
    for one in (signal.SIGINT, signal.SIGTERM):
        # Caught and not ignored, because programs that a handler starts would inherit that.
        signal.signal(one, _not_here)
        signal.siginterrupt(one, False)


def _not_here(_signal: int, _frame: FrameType | None) -> None:
    """Signals go to the parent."""


def _end_with_the_parent() -> None:
    """No child outlives its parent, whatever it is doing.

    The sentinel is a pipe whose other end only the parent holds, and on which nothing comes any more: that it
    becomes readable means that the parent has gone. On Linux the kernel kills then, also where a C call holds
    the interpreter's lock; elsewhere a thread does it, as soon as it gets that lock.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in children only"
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel that cannot: the thread does what it can
            fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
            fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    threading.Thread(target=_guard, args=(parent.sentinel,), name="asyncpar-guard", daemon=True).start()


def _guard(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(_EXIT_ORPHANED)


def _serve(pipe: FramePipe, words: LaneWords, work: ChildWork, levels: Levels) -> None:
    send_logs(pipe, levels)
    with contextlib.ExitStack() as lifespan:
        try:
            run = _prepare(work, lifespan)
        except HandlerError as error:
            pipe.send("refused", str(error))
            return
        send_logs(pipe, levels)  # again: what was imported may have put its own handlers there
        pipe.send("ready")
        context = contextvars.copy_context()
        context.run(CALL.set, _RunningCall(words, work.timeout_ms))
        _run_batches(pipe, words, run, context)
        try:
            lifespan.close()
        except Exception:
            _LOGGER.exception("%s: leaving process_lifespan %s failed", work.where, work.lifespan)
    logging.shutdown()
    sys.stdout.flush()
    pipe.send("bye")


def _prepare(work: ChildWork, lifespan: contextlib.ExitStack) -> Callable[[Fields], None]:
    """Everything that runs once. Raises HandlerError for what one line can say."""
    try:
        function = imported(work.module, work.qualname)
    except BaseException as error:
        raise _refusal(work, f"importing {work.module}.{work.qualname}", error) from error
    spec = next((one for one in specs_of(function) if one.name == work.handler), None)
    if spec is None:
        raise HandlerError(
            f"{work.where}: {work.module}.{work.qualname} has no @topic of this name in a child process, "
            "which only imports its module; put the decorator on the function where it is defined"
        )
    spec = spec.override(tombstones=work.tombstones, on_decode_error=work.on_decode_error)
    plan = plan_call(spec, group=work.group)
    return _runner(plan, _enter_lifespan(work, lifespan))


def _enter_lifespan(work: ChildWork, lifespan: contextlib.ExitStack) -> object:
    if work.lifespan is None:
        return None
    module, _, qualname = work.lifespan.partition(":")
    try:
        make: Any = imported(module, qualname)
        return lifespan.enter_context(make())
    except BaseException as error:
        raise _refusal(work, f"process_lifespan {work.lifespan}", error) from error


def _refusal(work: ChildWork, what: str, error: BaseException) -> HandlerError:
    """One line for the error, the traceback for the log."""
    _LOGGER.error("%s: %s failed in a child process", work.where, what, exc_info=error)
    return HandlerError(f"{work.where}: {what} raised {last_line(error)}")


def _runner(plan: CallPlan, state: object) -> Callable[[Fields], None]:
    """One attempt on one record: as `invoke.py` puts it together for threads."""
    function: Callable[..., object] = plan.spec.function
    bound, refuse_awaitable = plan.bind(state), awaitable_refusal(plan)
    raw_only, skips_tombstones = plan.raw_only, plan.skips_tombstones

    def run(fields: Fields) -> None:
        value = fields[_VALUE]
        if value is None and skips_tombstones:
            raise Skip("a tombstone, and tombstones='skip'")
        if raw_only and value is not None:
            result = function(value)
        else:
            job = Job._make(fields)
            args, kwargs = bound(job.topic, job.partition, job, job.attempt, job.generation)
            result = function(*args, **kwargs)
        if result is not None:
            refuse_awaitable(result)

    return run


class _RunningCall:
    """For `heartbeat()` and `extend()` in the handler."""

    def __init__(self, words: LaneWords, timeout_ms: int | None) -> None:
        self._words = words
        self._timeout_ms = timeout_ms

    def extend(self, milliseconds: int | None) -> None:
        """What runs gets that much time from now on; None: its time-out anew."""
        if self._timeout_ms is not None:
            wanted_ms = self._timeout_ms if milliseconds is None else milliseconds
            self._words.extend(time.monotonic_ns() + wanted_ms * 1_000_000)


def _run_batches(
    pipe: FramePipe, words: LaneWords, run: Callable[[Fields], None], context: contextvars.Context
) -> None:
    """Until the parent sends the end. EOFError or OSError when it has gone."""
    begin, clock, fresh_context = words.begin, time.monotonic_ns, context.copy
    while (batch := pipe.receive()) is not None:
        number, jobs = batch
        first = first_place(number)
        begun, done = clock(), 0
        for index, fields in enumerate(jobs):
            if not begin(first + index, clock()):
                break
            try:
                # What one record's handler leaves in context variables, the next one's does not see.
                fresh_context().run(run, fields)
            except BaseException as error:  # noqa: BLE001 - exit() too: it is a failure, and ends nothing
                # At once: should this process die at a later record, the parent knows how this one ended.
                pipe.send("failure", number, index, tuple(failure_of(error)))
            done = index + 1
        ended = clock()
        if done == len(jobs):
            # Should this process die before its reply is sent whole, the parent knows that all of it ran.
            words.stand_at(first + done)
        else:
            words.rest()
        pipe.send("reply", number, done, (ended - begun) / 1e9)
        words.rest()
