"""Handlers that children of the lane tests import: each does what its record's value says."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, NoReturn

from asyncpar.context import Context, Header, extend, heartbeat
from asyncpar.errors import Permanent, Retryable, RetryAfter, Skip
from asyncpar.executors.lane_frames import frame
from asyncpar.topics import topic

_SEEN: ContextVar[int] = ContextVar("seen", default=0)
_LOGGER = logging.getLogger("tests.child")


class UnpicklableError(Exception):
    """Cannot be unpickled: its constructor takes other arguments than it passes on."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.lock = threading.Lock()


class SilentError(Exception):
    """Has no message: asking for it fails."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def _fail() -> NoReturn:
    raise ValueError("no")


def _unpicklable() -> NoReturn:
    raise UnpicklableError(7, "here")


def _silent() -> NoReturn:
    raise SilentError


def _huge_message() -> NoReturn:
    raise ValueError("x" * 50_000_000)


def _surrogate() -> NoReturn:
    raise ValueError("\udcff")


def _skip() -> NoReturn:
    raise Skip("not mine")


def _permanent() -> NoReturn:
    raise Permanent("never")


def _retryable() -> NoReturn:
    raise Retryable("later")


def _retry_after() -> NoReturn:
    error = RetryAfter("soon", delay_ms=250)
    error.is_free = True
    raise error


def _no_exception() -> NoReturn:
    raise KeyboardInterrupt


def _coroutine() -> object:
    async def never() -> None:
        raise AssertionError

    return never()


def _spin() -> NoReturn:
    while True:
        pass


def _hold_the_lock() -> None:
    """Sleep in C without giving the interpreter's lock back."""
    ctypes.PyDLL(None).usleep(60_000_000)


def _segfault() -> None:
    ctypes.string_at(0)


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _close_everything() -> NoReturn:
    os.closerange(3, 256)
    while True:
        time.sleep(1)


def _say(data: bytes) -> None:
    """On the lane's own socket, which is found among the descriptors."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(path.readlink()).startswith("socket:"):
                os.write(int(path.name), data)


def _write_nonsense() -> NoReturn:
    _say(frame(("reply", len)))
    while True:
        time.sleep(1)


def _die_in_a_reply() -> None:
    _say(frame(("reply", 1, 1, 0.0))[:-2])
    os._exit(5)


def _log() -> None:
    _LOGGER.debug("not wanted")
    _LOGGER.info("three is %d", 3, extra={"order": 7, "thing": object()})
    try:
        _fail()
    except ValueError:
        _LOGGER.exception("it failed")


def _flood() -> None:
    for number in range(20_000):
        _LOGGER.warning("line %d %s", number, "x" * 1_000)


def _fork() -> None:
    """A process of its own, which logs."""
    pid = os.fork()
    if pid == 0:
        _LOGGER.warning("from elsewhere")
        os._exit(0)
    os.waitpid(pid, 0)


def _look_at_context() -> None:
    """Fails when an earlier record's value is still there."""
    if _SEEN.get():
        raise AssertionError
    _SEEN.set(1)


def _ask_who_holds_signals() -> None:
    """Fails unless a program that it starts would be ended by SIGTERM."""
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
        raise AssertionError


def _tell_environment() -> NoReturn:
    raise ValueError(" ".join(f"{name}={value}" for name, value in os.environ.items() if "ASYNCPAR" in name))


DEEDS: dict[str, Callable[[], object]] = {
    "ok": lambda: None,
    "fail": _fail,
    "unpicklable": _unpicklable,
    "silent": _silent,
    "huge message": _huge_message,
    "surrogate": _surrogate,
    "skip": _skip,
    "permanent": _permanent,
    "retryable": _retryable,
    "retry after": _retry_after,
    "no exception": _no_exception,
    "coroutine": _coroutine,
    "exit": lambda: sys.exit(4),
    "os exit": lambda: os._exit(3),
    "segfault": _segfault,
    "kill": _kill_itself,
    "spin": _spin,
    "hold the lock": _hold_the_lock,
    "close everything": _close_everything,
    "nonsense": _write_nonsense,
    "torn reply": _die_in_a_reply,
    "lock as result": threading.Lock,
    "50 MB as result": lambda: bytes(50_000_000),
    "too much memory": lambda: len(b"x" * 2**32),
    "log": _log,
    "flood": _flood,
    "fork": _fork,
    "context": _look_at_context,
    "environment": _tell_environment,
    "signals": _ask_who_holds_signals,
    "sleep": lambda: time.sleep(60),
    "nap": lambda: time.sleep(0.2),
}


@topic("t", name="obey")
def obey(value: str) -> object:
    """Do it."""
    return DEEDS[value]()


@topic("t", name="raw")
def raw(value: bytes) -> None:
    """Nothing, with the bytes as they are."""


@topic("t", name="typed")
def typed(order: dict[str, int], trace: Annotated[str, Header("trace")], context: Context) -> None:
    """Fails with all that it got, so that a test can look at it."""
    raise ValueError((order, trace, context.state, context.group, context.attempt, repr(context)))


@topic("t", name="journal")
def journal(value: bytes) -> None:
    """Write down when it started, in the file that the value names, and take a while."""
    with Path(value.decode()).open("a") as file:
        file.write(f"{time.monotonic_ns()}\n")
    time.sleep(0.01)


@topic("t", name="gated")
def gated(value: bytes) -> None:
    """Say that it has started, and end when it may: files `value`.started and `value`.go."""
    Path(f"{value.decode()}.started").touch()
    while not Path(f"{value.decode()}.go").exists():
        time.sleep(0.002)


@topic("t", name="patient")
def patient(value: str) -> None:
    """As `gated`, with a request for more time before."""
    extend(600_000)
    extend(1)
    heartbeat()
    gated(value.encode())


@topic("t", name="stateful")
def stateful(value: bytes, context: Context) -> None:
    """Fails with what the lifespan yielded."""
    raise ValueError(context.state)


@contextlib.contextmanager
def lifespan() -> Iterator[str]:
    """Says when it is left."""
    yield f"state of {os.getpid()}"
    _LOGGER.warning("left")


@contextlib.contextmanager
def failing_lifespan() -> Iterator[None]:
    """Never gets there."""
    raise LookupError("no database")
    yield


@contextlib.contextmanager
def failing_to_leave() -> Iterator[None]:
    """Cannot be left."""
    yield
    raise LookupError("no way out")


@contextlib.contextmanager
def dying_lifespan() -> Iterator[None]:
    """Ends the process."""
    os._exit(9)
    yield


@contextlib.contextmanager
def hanging_lifespan() -> Iterator[None]:
    """Never returns."""
    time.sleep(600)
    yield


@contextlib.contextmanager
def deaf_lifespan() -> Iterator[None]:
    """Never lets the child go."""
    yield
    time.sleep(600)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """A gigabyte beyond what there is."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    yield
