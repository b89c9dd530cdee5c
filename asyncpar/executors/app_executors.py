"""The executors of one app: threads and child processes of its plain handlers, started and closed together.

Never here: what runs in them. Made by `App.run`, filled by `groups.build_handlers`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.executors.threads import ThreadExecutor

if TYPE_CHECKING:
    from asyncpar.executors.lane_child import ChildWork

CLOSE_SECONDS = 3.0


@dataclass(slots=True)
class AppExecutors:
    """Filled before `start`."""

    _threads: list[ThreadExecutor] = field(default_factory=list)
    _bridges: list[ProcessBridge] = field(default_factory=list)

    def threads(self, name: str, threads: int) -> ThreadExecutor:
        """Threads for one handler; each begins when a call finds none idle."""
        executor = ThreadExecutor(name, threads)
        self._threads.append(executor)
        return executor

    def processes(self, name: str, work: ChildWork, rules: BridgeRules, start_method: str) -> ProcessBridge:
        """Child processes for one handler; they begin at `start`."""
        from asyncpar.executors.lane import lanes  # brings multiprocessing, which most apps do without

        bridge = ProcessBridge(name, rules, lanes(work, start_method))
        self._bridges.append(bridge)
        return bridge

    async def start(self) -> None:
        """Start the child processes. Raises HandlerError when a handler's cannot be started."""
        try:
            async with asyncio.TaskGroup() as group:
                for bridge in self._bridges:
                    group.create_task(bridge.start(), name="asyncpar-start-children")
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__

    async def close(self) -> None:
        """Start nothing more. Threads that still run are not waited for, children end within a bound."""
        for executor in self._threads:
            executor.close()
        if self._bridges:
            await asyncio.gather(*(bridge.close(CLOSE_SECONDS) for bridge in self._bridges))
