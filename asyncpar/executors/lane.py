"""A lane of the process bridge, the parent's half: one child process and the socket to it.

Lives here: what is sent to the child and what it says. The child's half is `lane_child.py`, the process
itself `lane_process.py`. Never here: which batch goes where, what a failure or a death means for a record.
Always: what a child has said whole before it died is heard before its death is told, a torn frame is not, and
the death is told once the process is certainly gone.

From the child: `("ready",)` or `("refused", why)`; `("failure", number, index, JobFailure's fields)`;
`("reply", number, run, seconds)`; `("log", record's values)`; `("dropped", lines)`; `("bye",)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import logging
import multiprocessing
import os
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable
from math import inf
from types import FunctionType, ModuleType
from typing import Any

from asyncpar.executors import lane_child
from asyncpar.executors.lane_child import ChildWork
from asyncpar.executors.lane_frames import FrameError, FrameReader, frame
from asyncpar.executors.lane_logs import log_here, present_levels
from asyncpar.executors.lane_port import (
    Batch,
    Death,
    JobFailure,
    LaneFactory,
    LaneStartError,
    Progress,
    Reply,
)
from asyncpar.executors.lane_process import ChildProcess, in_thread
from asyncpar.executors.lane_words import ALL_NUMBERS, LaneWords, new_words

__all__ = ["ChildWork", "ProcessLane", "lanes"]

_LOGGER = logging.getLogger("asyncpar.process")
_BYTES_AT_ONCE = 2**16
_SECONDS_TO_DIE = 1.0
_END = None
"""Sent in place of a batch: the child is to end."""

_preloaded: dict[str, None] = {}
"""Modules that the fork server is to have imported; of all handlers, because there is one fork server."""


def lanes(work: ChildWork, start_method: str) -> LaneFactory:
    """Makes lanes for the handler of `work`; `start_method` is "forkserver" or "spawn".

    Call it for every handler before the first lane starts: the fork server imports their modules only once.
    """
    if start_method == "forkserver":
        _preloaded.update(dict.fromkeys([*_modules_of_main(), work.module]))
        # Some programs put a Path there, which imports pass over.
        searched = [one for one in sys.path if isinstance(one, str)]  # type: ignore[redundant-expr]
        wanted = {"path": searched, "modules": list(_preloaded)}
        os.environ[lane_child.PRELOAD_VARIABLE] = json.dumps(wanted)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "asyncpar.executors.lane_preload"])
    return functools.partial(ProcessLane, work, start_method)


def _modules_of_main() -> list[str]:
    """Where the names in `__main__` come from: each child runs that file, where it is one."""
    main = vars(sys.modules["__main__"])
    if main.get("__spec__") is None and main.get("__file__") is None:
        return []
    found = []
    for value in list(main.values()):
        if isinstance(value, ModuleType):
            found.append(value.__name__)
        elif isinstance(value, FunctionType | type):
            found.append(value.__module__)
    return [name for name in found if name != "__main__"]


class ProcessLane:
    """See `lane_port.Lane`. `pid` is the child's, once it is ready."""

    def __init__(
        self,
        work: ChildWork,
        start_method: str,
        on_reply: Callable[[Reply], None],
        on_death: Callable[[Death], None],
    ) -> None:
        self.pid: int | None = None
        self._work = work
        self._start_method = start_method
        self._on_reply = on_reply
        self._on_death = on_death
        self._array = new_words()
        self._words = LaneWords(self._array)
        self._frames = FrameReader()
        self._failures: dict[int, dict[int, JobFailure]] = {}
        """Told, of batches that have not ended: by number, by index."""
        self._unsent: deque[memoryview] = deque()
        self._socket: socket.socket | None = None
        self._child: ChildProcess | None = None
        self._life: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._refusal: str | None = None
        self._is_killed = False
        self._is_closing = False
        self._has_left = False
        """The child has said that it ends."""
        self._has_dropped_logs = False

    async def start(self) -> None:
        """Start the child; until it is ready. Raises LaneStartError. Cancelled: the child is killed."""
        assert self._life is None, "a lane is used once"
        self._ready = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(self._ready), name="asyncpar-lane")
        try:
            await self._ready
        except asyncio.CancelledError:
            self._tell_nothing_more()
            self.kill()
            raise

    def send(self, batch: Batch) -> None:
        """Hand a batch over; what the socket does not take is sent as the child reads."""
        self._write(frame((batch.number, batch.jobs)))

    def stop_before(self, number: int) -> None:
        """Nothing more starts of batches below `number`."""
        self._words.stop_before(number)

    def renew_lease(self, until_ns: int) -> None:
        """Nothing starts after this moment; before the first call nothing starts at all."""
        self._words.renew_lease(until_ns)

    def progress(self) -> Progress | None:
        """What runs now."""
        return self._words.progress()

    def told(self, number: int) -> dict[int, JobFailure]:
        """The failures of batch `number` so far."""
        if self._socket is not None:
            self._read_rest(_unread_bytes(self._socket))  # no more: it may go on for ever, with its log
        return dict(self._failures.get(number, {}))

    def kill(self) -> None:
        """SIGKILL, at once or as soon as there is a process."""
        self._is_killed = True
        if self._child is not None:
            self._child.kill()

    async def close(self, timeout_s: float) -> None:
        """Nothing more starts; the child ends by itself, or is killed. Nothing is told any more."""
        if self._life is None or self._ready is None:
            return
        self._tell_nothing_more()
        try:
            if self._ready.done() and not self._is_killed:
                self._is_closing = True
                self._words.stop_before(ALL_NUMBERS)
                self._write(frame(_END))
                await asyncio.wait({self._life}, timeout=timeout_s)
        finally:
            self.kill()
        await asyncio.wait({self._life}, timeout=_SECONDS_TO_DIE)

    def _tell_nothing_more(self) -> None:
        self._on_reply = lambda _reply: None
        self._on_death = lambda _death: None

    # --- the life of the child ---

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """From the start of the process to its end, however that comes."""
        try:
            try:
                self._child = await self._started()
            except Exception as error:  # noqa: BLE001 - from the system, or from what `__main__` is
                self._settle(ready, f"{type(error).__name__}: {error}")
                return
            if self._is_killed:
                self._child.kill()
            assert self._socket is not None
            asyncio.get_running_loop().add_reader(self._socket, self._readable)
            await self._child.gone()
            self._read_rest()
            how = await self._child.release()
        finally:
            self._leave()
        if not ready.done():
            self._settle(
                ready, self._refusal or f"its process {how} before it was ready; its output says more"
            )
        else:
            self._tell_death(how)

    async def _started(self) -> ChildProcess:
        """The process, on its way to be ready. Raises what the system has against it."""
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        try:
            launched = in_thread(functools.partial(self._launch, theirs))
        except RuntimeError:  # no thread can be started
            theirs.close()
            raise
        return await launched

    def _launch(self, theirs: socket.socket) -> ChildProcess:
        """In a thread. The child gets a copy of `theirs`."""
        with theirs:
            arguments = (theirs, self._array, self._work, present_levels(), dict(os.environ))
            return ChildProcess.launch(self._start_method, lane_child.enter, arguments, lane_child.serve)

    def _settle(self, ready: asyncio.Future[None], why: str) -> None:
        """It did not get ready."""
        if not ready.done():  # else nobody waits any more
            prefix = f"{self._work.where}: "
            why = why.removeprefix(prefix)
            ready.set_exception(LaneStartError(f"{prefix}its child process did not start: {why}"))

    def _tell_death(self, how: str) -> None:
        at = self._words.progress()
        number, index = (0, 0) if at is None else (at.number, at.index)
        self._on_death(Death(how, number, index, self._failures.pop(number, {})))

    def _leave(self) -> None:
        """Give back what is left; the process too, when the loop ends before it does."""
        if self._child is not None:
            self._child.drop()
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None

    # --- the socket ---

    def _write(self, data: bytes) -> None:
        """Send it, or keep for later what the socket does not take."""
        if self._socket is None:
            return  # it has died, which is being told
        self._unsent.append(memoryview(data))
        if len(self._unsent) == 1 and not self._send_unsent():
            asyncio.get_running_loop().add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        """The socket takes more."""
        assert self._socket is not None
        if self._send_unsent():
            asyncio.get_running_loop().remove_writer(self._socket)

    def _send_unsent(self) -> bool:
        """True when all is sent."""
        assert self._socket is not None
        try:
            while self._unsent:
                data = self._unsent[0]
                sent = self._socket.send(data)
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = data[sent:]
        except BlockingIOError:
            return False
        except OSError:
            self._unsent.clear()  # it has died, and `_readable` sees that too
        return True

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_BYTES_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._hear(data)
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        if not self._has_left:
            self.kill()  # most likely it has died; otherwise it can do nothing any more

    def _read_rest(self, most_bytes: float = inf) -> None:
        """What the child has said by now."""
        assert self._socket is not None
        with contextlib.suppress(OSError):  # nothing is left, though somebody else may hold the other end
            while most_bytes > 0 and (data := self._socket.recv(_BYTES_AT_ONCE)):
                most_bytes -= len(data)
                self._hear(data)

    def _hear(self, data: bytes) -> None:
        try:
            for word, *values in self._frames.feed(data):
                self._heed(word, values)
        except FrameError as error:
            _LOGGER.error("%s: process %s is killed: %s", self._work.where, self.pid, error)
            self.kill()

    def _heed(self, word: str, values: list[Any]) -> None:
        match word, values:
            case "reply", [number, run, seconds]:
                self._on_reply(Reply(number, run, self._failures.pop(number, {}), seconds))
            case "failure", [number, index, fields]:
                self._failures.setdefault(number, {})[index] = JobFailure(*fields)
            case "log", [record]:
                log_here(record)
            case "dropped", [lines]:
                self._note_dropped(lines)
            case "ready", []:
                self._note_ready()
            case "refused", [why]:
                self._refusal = why
                self.kill()
            case "bye", []:
                self._has_left = True
                if self._child is not None:
                    self._child.dismiss()
            case _:
                raise FrameError(f"a frame says {word!r}, which means nothing")

    def _note_ready(self) -> None:
        assert self._child is not None
        assert self._ready is not None
        self.pid = self._child.pid
        if not self._ready.done():
            self._ready.set_result(None)

    def _note_dropped(self, lines: int) -> None:
        if not self._has_dropped_logs:
            self._has_dropped_logs = True
            _LOGGER.warning(
                "%s: process %s logs more than can be sent: %d lines are lost; log less in the handler",
                self._work.where,
                self.pid,
                lines,
            )


def _unread_bytes(one: socket.socket) -> int:
    """How much has arrived that nobody has read."""
    count: int = struct.unpack("i", fcntl.ioctl(one, termios.FIONREAD, bytes(4)))[0]
    return count
