"""What a lane's reply, or its death, means for each record that was sent to it.

Lives here: who is at fault when a child dies, and the memory of records that crashed one. Never here: lanes.

| the record                                    | ends as                                                  |
|-----------------------------------------------|----------------------------------------------------------|
| ran to its end                                | its success or its failure                               |
| ran when the child died by itself             | WorkerDiedError; the second time it is final             |
| ran when it was killed for its time           | HandlerTimeoutError                                      |
| ran when it was killed for any other reason   | NotStartedError: nobody's failure                        |
| did not run                                   | NotStartedError                                          |

What lies before the record that ran, in its batch, ran to its end: it failed where the child said so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncpar.errors import HandlerTimeoutError, NotStartedError, WorkerDiedError
from asyncpar.executors.lane_port import Death, JobFailure, Progress, Reply
from asyncpar.executors.process_calls import Call, SentBatch, error_of
from asyncpar.executors.process_lanes import ServingLane
from asyncpar.executors.process_statistics import Counters

_CRASHES_REMEMBERED = 1024


class Outcomes:
    """Of one handler's records. `clock` gives monotonic seconds."""

    def __init__(self, name: str, counters: Counters, clock: Callable[[], float]) -> None:
        self._name = name
        self._counters = counters
        self._clock = clock
        self._crashed: dict[tuple[str, int, int], str] = {}
        """Records that a child died of, and how; the oldest are forgotten first."""

    def replied(self, sent: SentBatch, reply: Reply) -> None:
        """A batch has ended: end its calls."""
        calls = sent.calls
        if sent.is_alone:
            self._counters.transit_seconds.add(self._clock() - sent.sent_at - reply.seconds)
        self._counters.handler_seconds.add(reply.seconds)
        if reply.run < len(calls):
            self._ran(calls[: reply.run], reply.failures)
            self.not_started(calls[reply.run :], "its child process was told to start nothing more")
        elif reply.failures or self._crashed:
            self._ran(calls, reply.failures)
        else:
            for call in calls:  # as `Call.end`; one that was over stays as it was
                call.is_over = True
                if not call.future.done():
                    call.future.set_result(None)

    def ran_before(self, lane: ServingLane, progress: Progress) -> None:
        """End the calls that ran before the one that runs by `progress`: nobody has to wait for the reply."""
        failures = lane.port.told(progress.number)
        for sent in lane.batches:
            if sent.number == progress.number:
                self._ran(sent.calls[: progress.index], failures)

    def died(self, lane: ServingLane, death: Death) -> Call | None:
        """A lane has died: end its calls. The call that ran, whether or not it is to blame."""
        running: Call | None = None
        for sent in lane.batches:
            if sent.number != death.number:
                self.not_started(sent.calls, f"its child process ended before it: {death.how}")
                continue
            calls, index = sent.calls, death.index
            # A failure that was told is the record's own end, though the child died before it went on.
            ended = index + 1 if index in death.failures else index
            self._ran(calls[:ended], death.failures)
            for call in calls[ended : index + 1]:
                running = call
                self._cut_off(lane, call, death.how)
            self.not_started(calls[index + 1 :], f"its child process ended before it: {death.how}")
        lane.batches.clear()
        return running

    @staticmethod
    def not_started(calls: Sequence[Call], why: str) -> None:
        """None of `calls` was run to its end, and none will be."""
        for call in calls:
            if not call.is_over:
                call.end(NotStartedError(f"not run: {why}"))

    def _ran(self, calls: Sequence[Call], failures: Mapping[int, JobFailure]) -> None:
        crashed = self._crashed
        for index, call in enumerate(calls):
            if crashed and not call.is_over:
                crashed.pop(call.place, None)
            failure = failures.get(index)
            call.end(None if failure is None else error_of(failure))

    def _cut_off(self, lane: ServingLane, call: Call, how: str) -> None:
        """`call` ran when its child ended."""
        if call.is_over:
            return  # nobody waits for it any more
        if lane.kill_reason is None:
            self._counters.blamed["crash"] += 1
            call.end(self._crash(call, how))
        elif lane.overdue is call:
            self._counters.blamed["timeout"] += 1
            self._crashed.pop(call.place, None)
            call.end(HandlerTimeoutError("its child process was killed because it ran past its timeout_ms"))
        else:
            call.end(NotStartedError(f"cut off: its child process was ended ({lane.kill_reason})"))

    def _crash(self, call: Call, how: str) -> WorkerDiedError:
        place, where = call.place, call.where
        before = self._crashed.pop(place, None)
        if before is not None:
            return WorkerDiedError(
                f"{where} ended the child process that ran it for the second time: {how} (before: {before})",
                is_final=True,
            )
        if len(self._crashed) >= _CRASHES_REMEMBERED:
            del self._crashed[next(iter(self._crashed))]
        self._crashed[place] = how
        return WorkerDiedError(f"the child process of handler {self._name} ended while it ran {where}: {how}")
