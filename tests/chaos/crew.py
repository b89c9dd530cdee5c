"""The members of one round: started, watched, frozen, killed and stopped from outside, all in the history.

What lives here: processes and their signals. What never does: when and whom to strike (`striking.py`). Called
by `round.py`, the rebalances and the soak. Always: a `freeze` is of the moment before the process stands, a
`thaw` before it runs on, a `dead` when nothing of it runs any more; waits are bounded; a member is killed
with its crew.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from asyncpar.testing.history import Event, HistoryFile
from tests.chaos.plan import EXIT_UNFINISHED, EXIT_UNREACHABLE, READY
from tests.cli.program import ROOT, environment

END_SECONDS = 25.0
_KILL_SECONDS = 10.0
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_STARVED_SECONDS, _FED_SECONDS = 0.09, 0.01


class Plan(Protocol):
    """What a member process is told on its command line: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    def to_argument(self) -> str: ...


class CrewMember:
    """One process that runs `module`. `is_free`: nothing is being done to it, so that it may be struck."""

    def __init__(self, plan: Plan, log_path: Path, module: str) -> None:
        self.name = plan.name
        self.log_path = log_path
        self.is_free = True
        self.is_ending = False
        self._was_ready = False
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, plan.to_argument()],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has connected."""
        if not self._was_ready:
            self._was_ready = READY.encode() in self.log_path.read_bytes()
        return self._was_ready

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing when the process has ended."""
        if self.code is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the milliseconds that it takes."""
        self.send(signal.SIGKILL)
        self._process.wait(_KILL_SECONDS)

    def has_stopped(self) -> bool:
        """True once after a SIGSTOP has taken effect, and for a process that has ended."""
        if self.code is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG) is not None

    def log_end(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-12:])


class Crew:
    """Members of one group, all of which run `module`. `plan` is that of all of them but for the name."""

    def __init__(
        self, plan: Plan, history: HistoryFile, folder: Path, module: str = "tests.chaos.member"
    ) -> None:
        self._plan = plan
        self._module = module
        self._history = history
        self._folder = folder
        self._hired = 0
        self.members: list[CrewMember] = []
        self.findings: list[str] = []
        """What no member may do: end by itself, or not end when told to."""
        self.refused_starts = 0
        """Members that ended because they could not reach the cluster at their start, which is right."""
        self.unfinished_stops = 0
        """Stops that left work behind: a handler outlasted the drain, or the brokers were away."""

    def hire(self) -> CrewMember:
        """Start one more member."""
        self._hired += 1
        name = f"m{self._hired}"
        member = CrewMember(replace(self._plan, name=name), self._folder / f"{name}.log", self._module)
        self.members.append(member)
        return member

    def free(self) -> list[CrewMember]:
        """Those that have connected, run, and are not being struck."""
        return [one for one in self.members if one.is_free and one.code is None and one.is_ready]

    def reap(self) -> None:
        """Notice members that ended by themselves."""
        for member in [one for one in self.members if one.is_free and one.code is not None]:
            code = member.code
            self._buried(member)
            if code == EXIT_UNREACHABLE and not member.is_ready:
                self.refused_starts += 1
            else:
                self.findings.append(
                    f"{member.name} ended by itself with code {code}; it wrote:\n{member.log_end()}"
                )

    def kill(self, member: CrewMember) -> None:
        """kill -9."""
        member.is_free = False
        member.kill()
        self._buried(member)

    async def stand(self, member: CrewMember, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        member.is_free = False
        try:
            await self._freeze(member, seconds)
        finally:
            member.is_free = True

    async def starve(self, member: CrewMember, seconds: float) -> None:
        """It runs for a tenth of the time only, in slices."""
        member.is_free = False
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until and member.code is None:
                await self._freeze(member, _STARVED_SECONDS)
                await asyncio.sleep(_FED_SECONDS)
        finally:
            member.is_free = True

    async def _freeze(self, member: CrewMember, seconds: float) -> None:
        at_ns = self._history.clock()
        member.send(signal.SIGSTOP)
        try:
            await _until(member.has_stopped, _STOP_SECONDS, f"{member.name} has stopped")
            await asyncio.sleep(seconds)
        finally:
            self._history.append(Event("freeze", at_ns, member.name))
            self._history.note("thaw", member.name)
            member.send(signal.SIGCONT)

    async def end(self, member: CrewMember) -> None:
        """SIGTERM, and wait for the end. Cancelled, it may be called again for the same member."""
        member.is_free = False
        member.is_ending = True
        member.send(signal.SIGTERM)
        try:
            await _until(lambda: member.code is not None, END_SECONDS, f"{member.name} ends after SIGTERM")
        except TimeoutError as error:
            self.findings.append(f"{error}; it wrote:\n{member.log_end()}")
            self.kill(member)
            return
        if member.code == 0:
            self.members.remove(member)
            return
        self.unfinished_stops += member.code == EXIT_UNFINISHED
        if member.code != EXIT_UNFINISHED:
            self.findings.append(
                f"{member.name} ended with code {member.code} after SIGTERM; it wrote:\n{member.log_end()}"
            )
        self._buried(member)

    def close(self) -> None:
        """Kill whoever is left."""
        for member in list(self.members):
            self.kill(member)

    def _buried(self, member: CrewMember) -> None:
        self._history.note("dead", member.name)
        self.members.remove(member)


async def _until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(_LOOK_SECONDS)
