"""Who sees what handlers do in a test: one history per group, and a list of the attempts that ended.

Lives here: `Handled`, `Histories` (the sends of a broker, shared by its groups) and `Witness` (around the
calls of one group's handlers). Never here: a judgement, a change of what a handler does. Called by
`TestApp`, on the event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from asyncpar.context import CALL
from asyncpar.core.failures import on_failure
from asyncpar.errors import NotStartedError, Skip
from asyncpar.records import Outcome, RawRecord, TopicPartition, Verdict
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.outbox import Departure
from asyncpar.runtime.worker import Call, Worker, classify
from asyncpar.testing.history import SKIPPED, Event, History, Recorder, membership_sign

Ended = Literal["success", "failed", "undecodable", "skipped", "cancelled"]
_OF_VERDICT: dict[Verdict, Ended] = {
    Verdict.SUCCESS: "success",
    Verdict.FAILED: "failed",
    Verdict.UNDECODABLE: "undecodable",
    Verdict.SKIPPED: "skipped",
}


@dataclass(frozen=True, slots=True)
class Handled:
    """One attempt on a record, when it has ended.

    `outcome` is success, failed (a time-out too, whose error is a HandlerTimeoutError), undecodable, skipped,
    or cancelled (by a stop or a rebalance). `error` is what was raised: None after success and after a
    `Skip`, and there where `on_error` passes over it. `attempt` counts from 1.
    """

    group: str
    handler: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    attempt: int
    outcome: Ended
    error: BaseException | None = None

    @property
    def place(self) -> TopicPartition:
        """Its partition."""
        return TopicPartition(self.topic, self.partition)


class Histories(Recorder):
    """One history per group. What is noted here itself (a broker's sends) goes into every one."""

    def __init__(self) -> None:
        super().__init__()
        self.also: Recorder | None = None
        """Somebody else who is told of it."""
        self.by_hand: set[tuple[TopicPartition, int]] = set()
        """Records that no app wrote: a test sent them, or they were there before anybody watched."""
        self._common: list[Event] = []
        self._of: dict[str, History] = {}
        self._members = 0

    def append(self, event: Event) -> None:
        """Into every group's history, those to come included."""
        self._common.append(event)
        for history in self._of.values():
            history.append(event)
        if self.also is not None:
            self.also.append(event)

    def of(self, group: str) -> History:
        """The history of `group`."""
        if group not in self._of:
            history = self._of[group] = History()
            history.events.extend(self._common)
        return self._of[group]

    def new_member(self, group: str) -> str:
        """A name that no other member has."""
        self._members += 1
        return f"{group}-{self._members}"


class Witness:
    """Notes the calls of one group's handlers as `member`'s; `lease_from` is its consumer's."""

    def __init__(
        self,
        group: str,
        member: str,
        history: History,
        handled: list[Handled],
        lease_from: Callable[[], float],
    ) -> None:
        self._group = group
        self._member = member
        self._history = history
        self._handled = handled
        self._lease_from = lease_from

    def watched(self, handler: Handler) -> Handler:
        """`handler`, with its calls noted."""
        invoke = handler.invoke

        async def call(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> object:
            tp = TopicPartition(topic, partition)
            sign = membership_sign(self._lease_from)
            self._history.note("start", self._member, tp, raw.offset, raw.key, sign)
            raised: BaseException | None = None
            result: object = None
            try:
                result = await invoke(topic, partition, raw, attempt, generation)
                return result
            except BaseException as error:
                raised = error
                raise
            finally:
                self._note_end(handler, tp, raw, attempt, _ended(handler, result, raised), raised)

        return dataclasses.replace(handler, invoke=call)

    def departed(self, departure: Departure) -> None:
        """A record left for another topic, which has it: it is done where it was read."""
        note_departure(self._history, self._member, departure)

    def _note_end(
        self,
        handler: Handler,
        tp: TopicPartition,
        raw: RawRecord,
        attempt: int,
        ended: tuple[Ended, BaseException | None],
        raised: BaseException | None,
    ) -> None:
        outcome, error = ended
        if isinstance(raised, NotStartedError):
            self._history.note("end", self._member, tp, raw.offset, raw.key, "cancelled")
            return  # no attempt: it was given to a child process, which did not run it
        detail = {"success": "ok", "cancelled": "cancelled"}.get(outcome, "failed")
        self._history.note("end", self._member, tp, raw.offset, raw.key, detail)
        if outcome == "skipped" or (outcome == "undecodable" and handler.rules.skip_undecodable):
            self._history.note("done", self._member, tp, raw.offset, raw.key, SKIPPED)
        self._handled.append(
            Handled(self._group, handler.name, *tp, raw.offset, raw.key, attempt, outcome, error)
        )


def note_departure(history: Recorder, member: str, departure: Departure) -> None:
    """`member` heard that another topic has the record: `done`, and its kind says which topic."""
    tp, record = departure.vp.queues.partition, departure.record
    history.note("done", member, tp, record.offset, record.key, departure.kind)


def _ended(
    handler: Handler, result: object, raised: BaseException | None
) -> tuple[Ended, BaseException | None]:
    """How the engine takes an attempt that returned `result`, or raised."""
    if isinstance(raised, GeneratorExit):
        return "cancelled", raised  # its loop is gone
    running, task = CALL.get(None), asyncio.current_task()
    worker = running.worker if isinstance(running, Call) else running
    assert isinstance(worker, Worker)
    assert task is not None
    verdict, error = Verdict.SUCCESS, raised
    if raised is None and handler.judged and isinstance(result, Outcome):
        verdict, error = result.verdict, None if result.ok else result.error
        if verdict is Verdict.FAILED and worker.cancel_reason is not None:
            raised = error or RuntimeError("no reason given")
    if raised is not None:
        try:
            verdict, error = classify(worker, task, raised)
        except BaseException:  # noqa: BLE001 - it settles nothing, whatever it was
            return "cancelled", raised
    if verdict is Verdict.FAILED and on_failure(handler.rules, error) == "skip":
        return "skipped", error
    return _OF_VERDICT[verdict], None if isinstance(error, Skip) else error
