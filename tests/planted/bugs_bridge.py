"""Bugs in the bridge to child processes: what it says of records that ran, that run, and that never will."""

from __future__ import annotations

from tests.planted.bug import Bug

ENDS = (
    Bug(
        "not-run-counts-as-done",
        "What a child was told not to start any more counts as done, as the rest of its batch does.",
        "executors.process_outcomes",
        old="            self._ran(calls[: reply.run], reply.failures)\n",
        new="            self._ran(calls, reply.failures)\n",
        checks=("LOST",),
    ),
    Bug(
        "cut-off-counts-as-done",
        "A record that ran when its child was killed for a revoke counts as done.",
        "executors.process_outcomes",
        old='            call.end(NotStartedError(f"cut off: its child process was ended',
        new="            call.end()\n"
        '            call.end(NotStartedError(f"cut off: its child process was ended',
        checks=("LOST",),
    ),
    Bug(
        "cancelled-counts-as-done",
        "A record whose worker is cancelled is not called back from its child, and counts as done.",
        "executors.process_bridge",
        old="        lane = next(lane for lane in self._lanes if call in lane.calls())\n",
        new="        return\n        lane = next(lane for lane in self._lanes if call in lane.calls())\n",
        checks=("LOST",),
    ),
    Bug(
        "told-failures-forgotten",
        "Of a batch whose child died, what had failed before counts as done.",
        "executors.process_outcomes",
        old="            self._ran(calls[:ended], death.failures)\n",
        new="            self._ran(calls[:ended], {})\n",
        checks=("LOST",),
    ),
)

BLAME = (
    Bug(
        "first-of-the-batch-is-blamed",
        "When a child dies, the first record of its batch is taken for the one that ran.",
        "executors.process_outcomes",
        old="            calls, index = sent.calls, death.index\n",
        new="            calls, index = sent.calls, 0\n",
        checks=("PROBLEM", "DUPLICATES"),
    ),
    Bug(
        "whole-batch-is-blamed",
        "When a child dies, what lay behind the record that ran has failed as well.",
        "executors.process_outcomes",
        old="            self.not_started(calls[index + 1 :], ",
        new="            for call in calls[index + 1 :]:\n"
        "                call.end(WorkerDiedError(death.how))\n"
        "            self.not_started(calls[index + 1 :], ",
        checks=("PROBLEM",),
    ),
    Bug(
        "second-batch-is-blamed",
        "When a child dies, all of the batch that waited behind the running one has failed.",
        "executors.process_outcomes",
        old="            if sent.number != death.number:\n",
        new="            if sent.number != death.number:\n"
        "                for call in sent.calls:\n"
        "                    call.end(WorkerDiedError(death.how))\n",
        checks=("PROBLEM",),
    ),
)

STARTS = (
    Bug(
        "sent-again-after-a-crash",
        "What a dead child had is sent to another one, beside what the workers make of it.",
        "executors.process_bridge",
        old="        running = self._outcomes.died(lane, death)\n",
        new="        self._feed.pending.extend(call for call in lane.calls() if not call.is_over)\n"
        "        running = self._outcomes.died(lane, death)\n",
        checks=("SERIAL", "ORDER", "DUPLICATES"),
    ),
    Bug(
        "withdrawn-records-stay-in-the-queue",
        "What is withdrawn while it waits for a child is sent to one all the same.",
        "executors.process_feed",
        old="        self.pending.clear()\n        self.pending.extend(kept)\n",
        new="",
        checks=("SERIAL",),
    ),
    Bug(
        "withdrawal-stops-no-child",
        "What a child has of a partition that is taken away is started there all the same.",
        "executors.process_bridge",
        old="            if lane.has_of(tp):\n                lane.stop(now)\n",
        new="            pass\n",
        checks=("SERIAL",),
    ),
    Bug(
        "children-without-a-lease",
        "A child goes on starting what it has, however long its parent has been frozen.",
        "executors.process_bridge",
        old="        return int(max(0.0, min(self._lease_until(), _ALWAYS)) * 1e9)",
        new="        return int(_ALWAYS * 1e9)",
        checks=("SERIAL",),
    ),
)

LANES = (
    Bug(
        "refusal-never-ends",
        "When children could not be started for a while, nothing is fetched any more.",
        "executors.process_keeper",
        old="            self._failed.clear()\n            self._refuse(None)\n",
        new="            self._failed.clear()\n",
        checks=("STUCK",),
    ),
    Bug(
        "dead-children-are-not-replaced",
        "A child that has died has no successor.",
        "executors.process_keeper",
        old="        lane.needs_successor()\n\n    def retire",
        new="\n    def retire",
        checks=("STUCK", "PROBLEM"),
    ),
)

IN_BRIDGE = (*ENDS, *BLAME, *STARTS, *LANES)
