"""What becomes of a record whose attempt did not succeed: done, again, to the dead letters, or halt.

The slow path of one handler's workers: counts, logs, asks `core/failures.py`, and carries the decision out.
Never here: the rules, and records that succeed.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from asyncpar.core.failures import (
    Action,
    Decision,
    FailureRules,
    decide,
    give_up,
    is_nobodys,
    on_failure,
)
from asyncpar.core.virtual_partitions import Queues, VirtualPartition
from asyncpar.errors import HandlerTimeoutError, RecordBlockedError
from asyncpar.records import RawRecord, Verdict
from asyncpar.runtime.failure_log import FailureLog, brief
from asyncpar.runtime.letters import departure
from asyncpar.runtime.tally import Tally
from asyncpar.runtime.worker import Worker

if TYPE_CHECKING:
    from asyncpar.runtime.workers import HandlerPool


def _speaks(rules: FailureRules, verdict: Verdict, error: BaseException | None) -> bool:
    """True when a failure may be the fault of what the handler depends on."""
    if verdict is not Verdict.FAILED or is_nobodys(error):
        return False
    return on_failure(rules, error) == "retry"


class Verdicts:
    """Of one handler."""

    def __init__(self, pool: HandlerPool) -> None:
        self._pool = pool
        self._failures = FailureLog(pool.state.log, pool.handler.name)

    def close(self) -> None:
        """The workers have ended: say what the log has left out."""
        self._failures.close()

    def judge(
        self, me: Worker, vp: VirtualPartition, offset: int, verdict: Verdict, error: BaseException | None
    ) -> bool:
        """Tell the gate how a call ended; True when its failure is free of charge.

        What is wrong with the record itself says nothing of what the handler depends on: undecodable,
        permanent by its class or by a rule, or somebody else's turn.
        """
        gate = self._pool.gate
        assert gate is not None
        if verdict is Verdict.SUCCESS or _speaks(self._pool.handler.rules, verdict, error):
            return gate.ended(me, vp, offset, error, ok=verdict is Verdict.SUCCESS)
        gate.interrupted(me)
        if verdict is not Verdict.SKIPPED and not is_nobodys(error):
            gate.judge_key(vp, ok=False)
        return False

    def settle(
        self,
        vp: VirtualPartition,
        record: RawRecord,
        attempt: int,
        verdict: Verdict,
        error: BaseException | None,
        tally: Tally,
        *,
        is_free: bool = False,
    ) -> None:
        """An attempt ended otherwise than in success."""
        queues, state, offset = vp.queues, self._pool.state, record.offset
        if verdict is Verdict.FAILED:
            self._pool.timeouts += isinstance(error, HandlerTimeoutError)
            self._failures.note(queues.partition, offset, attempt, error, state.clock.monotonic())
        decision = self._decide(queues, offset, verdict, error, attempt, is_free=is_free)
        if verdict is Verdict.UNDECODABLE:
            tally.undecodable += 1
        elif decision.action is Action.DONE:
            tally.skipped += 1  # also what failed, where `on_error` passes over it
        else:
            tally.failed += 1
        if offset not in queues.unfinished:
            if decision.action is not Action.DONE:
                self._charge(queues, offset, decision)  # whoever runs it next begins with that
            state.late_completion(vp, offset, ok=decision.action is Action.DONE)
            return
        if decision.action is Action.DONE:
            queues.unfinished.pop(offset)
            queues.first_failed.pop(offset, None)
            self._count_finished()
            self._pool.finish(vp)
            return
        self._charge(queues, offset, decision)
        self._carry_out(decision, vp, record, verdict, error)

    @staticmethod
    def _charge(queues: Queues, offset: int, decision: Decision) -> None:
        """Not from `attempt`: a breaker that opened may have given failures back, this one among them."""
        queues.attempts[offset] = queues.attempts.get(offset, 0) + (not decision.is_free)

    def _count_finished(self) -> None:
        if self._pool.gate is not None:
            self._pool.gate.finished(self._pool.state.clock.monotonic())

    def end_blocked(self, vp: VirtualPartition) -> None:
        """Give up the head of `vp`, which waited for a retry, because it blocked the commit for too long."""
        assert vp.head is not None
        error = RecordBlockedError("given up while it waited for a retry: it blocked the commit for too long")
        self._carry_out(give_up(self._pool.handler.rules, "blocked"), vp, vp.head, Verdict.FAILED, error)

    def _carry_out(
        self,
        decision: Decision,
        vp: VirtualPartition,
        record: RawRecord,
        verdict: Verdict,
        error: BaseException | None,
    ) -> None:
        """Park, give up or halt; the record is not done."""
        queues, state, offset = vp.queues, self._pool.state, record.offset
        attempt = queues.attempts.get(offset, 0)
        if decision.action is Action.AGAIN:
            self._pool.retries += 1
            state.parking.park(vp, state.clock.monotonic() + decision.delay_seconds)
            state.on_parked()
            return
        if decision.action in (Action.DEAD_LETTER, Action.RETRY_TOPIC):
            self.send_away(vp, record, decision, error)
            return
        partition = state.partitions[queues.partition]
        what = "could not be decoded" if verdict is Verdict.UNDECODABLE else f"failed {_times(attempt)}"
        state.halt(partition, f"offset {offset}: {what} in handler {self._pool.handler.name}: {brief(error)}")

    def _decide(
        self,
        queues: Queues,
        offset: int,
        verdict: Verdict,
        error: BaseException | None,
        attempt: int,
        *,
        is_free: bool,
    ) -> Decision:
        now = self._pool.state.clock.monotonic()
        if verdict is Verdict.FAILED and not is_nobodys(error):
            queues.first_failed.setdefault(offset, now)
        first = queues.first_failed.get(offset, inf)
        return decide(
            self._pool.handler.rules,
            verdict,
            error,
            attempt,
            self._pool.state.clock.uniform(),
            age_seconds=now - first,
            is_free=is_free,
            may_travel=self._pool.handler.next_retry(queues.topic) is not None,
        )

    def send_away(
        self, vp: VirtualPartition, record: RawRecord, decision: Decision, error: BaseException | None
    ) -> None:
        """Send the head of `vp` to where `decision` says; it stays unfinished until it is there."""
        assert self._pool.state.outbox is not None
        letter = departure(self._pool.state, self._pool.handler, vp, record, decision, error)
        gate = self._pool.gate
        if gate is not None and gate.budget is not None and letter.kind == "dead_letter":
            letter.may_leave = gate.may_leave
            self._count_finished()
        attempts, now = vp.queues.attempts.get(record.offset, 0), self._pool.state.clock.monotonic()
        self._failures.left(
            vp.queues.partition, record.offset, letter.outgoing.topic, decision.reason, attempts, now
        )
        self._pool.state.outbox.take(letter)


def _times(attempts: int) -> str:
    return "once" if attempts == 1 else f"{attempts} times"
