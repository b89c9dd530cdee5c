"""Bugs in the runtime: workers, stragglers, fetching, rebalances, commits, stops."""

from __future__ import annotations

from tests.planted.bug import Bug

WORKERS = (
    Bug(
        "next-head-not-armed",
        "After a success the next record of the key is not made ready.",
        "runtime.workers",
        old="                    vp.head = rest.popleft()\n                    ready.append(vp)",
        new="                    vp.head = rest.popleft()",
        checks=("STUCK",),
    ),
    Bug(
        "idle-workers-are-not-woken",
        "A wake-up makes new workers only: once all are there and sleep, nobody hears it.",
        "runtime.workers",
        old="        while wanted and idle:",
        new="        while wanted and idle and len(self.workers) < self.handler.concurrency:",
        checks=("STUCK", "PROBLEM"),
    ),
    Bug(
        "retry-goes-behind-its-key",
        "A failed record waits for its retry behind the others of its key.",
        "runtime.verdicts",
        old="            self._pool.retries += 1\n",
        new="            self._pool.retries += 1\n"
        "            if vp.rest:\n"
        "                vp.rest.append(record)\n"
        "                vp.head = vp.rest.popleft()\n",
        checks=("ORDER",),
    ),
    Bug(
        "retry-timer-not-set",
        "A parked record does not set the timer.",
        "runtime.verdicts",
        old="            state.on_parked()\n",
        new="",
        checks=("STUCK",),
    ),
    Bug(
        "cancellation-counts-as-done",
        "A record whose handler was cancelled by a revoke counts as done.",
        "runtime.worker",
        old="            raise Interrupted(worker_ends=False)",
        new="            return Verdict.SKIPPED, raised",
        checks=("LOST",),
    ),
    Bug(
        "interrupted-straggler-counts-as-done",
        "A late completion counts as done, whether it ended or was interrupted.",
        "runtime.workers",
        old="self.state.late_completion(vp, offset, ok=False)",
        new="self.state.late_completion(vp, offset, ok=True)",
        checks=("LOST",),
    ),
    Bug(
        "late-failure-counts-as-done",
        "A record that fails after its partition was revoked counts as done.",
        "runtime.verdicts",
        old="state.late_completion(vp, offset, ok=decision.action is Action.DONE)",
        new="state.late_completion(vp, offset, ok=True)",
        checks=("LOST",),
    ),
    Bug(
        "skipped-is-not-settled",
        "A record that is skipped stays unfinished.",
        "runtime.verdicts",
        old="            queues.unfinished.pop(offset)\n",
        new="",
        checks=("STUCK",),
    ),
    Bug(
        "zombie-starts-work",
        "A worker looks at the watchdog's last word on the lease, not at the lease.",
        "runtime.workers",
        old="or (now > state.lease_until and not state.renew_lease(now))",
        new="or state.lease_closed",
        checks=("SERIAL",),
    ),
    Bug(
        "slot-leaks",
        "A worker that was retired keeps its slot.",
        "runtime.workers",
        old="            self.workers.pop(me, None)\n",
        new="",
        checks=("STUCK",),
    ),
)

STATE = (
    Bug(
        "lease-too-long",
        "The lease goes on for as long as a session that would begin now.",
        "runtime.group_state",
        old="LEASE_MARGIN_SECONDS = 0.5",
        new="LEASE_MARGIN_SECONDS = -5.0",
        checks=("SERIAL",),
    ),
    Bug(
        "lease-wakes-nobody",
        "Nobody looks at the queues again when the lease is back.",
        "runtime.group_state",
        old='handlers start again", self.group)\n                self.wake_all()',
        new='handlers start again", self.group)',
        checks=("STUCK", "PROBLEM"),
    ),
    Bug(
        "generation-not-checked",
        "A completion counts in the present generation of its partition, whatever generation it started in.",
        "runtime.group_state",
        old="        if partition is not None and partition.queues is queues:\n"
        "            if ok:\n"
        "                queues.tracker.mark_done(offset)",
        new="        if partition is not None and partition.tracker is not None:\n"
        "            if ok:\n"
        "                partition.tracker.mark_done(offset)",
        checks=("STUCK", "LOST"),
    ),
    Bug(
        "failed-straggler-adopted",
        "A straggler is adopted as done although it failed or was cancelled.",
        "runtime.group_state",
        old="adopted = ok and straggler.adoptable and present",
        new="adopted = straggler.adoptable and present",
        checks=("LOST",),
    ),
    Bug(
        "straggler-overlooked",
        "What still runs from an older assignment is overlooked when the partition is opened.",
        "runtime.group_state",
        old="if vp.queues.partition == partition.tp and vp.head is not None:",
        new="if vp.queues is queues and vp.head is not None:",
        checks=("SERIAL",),
    ),
    Bug(
        "queues-run-on",
        "Only the queues of a halted or draining partition are closed: lost ones run on.",
        "runtime.group_state",
        old="        if partition.queues is not None:\n            partition.queues.close",
        new="        if partition.queues is not None and partition.state in (State.HALTED, State.DRAINING):\n"
        "            partition.queues.close",
        checks=("SERIAL",),
    ),
    Bug(
        "metadata-not-restored",
        "What the metadata says is done above the committed offset is read and thrown away.",
        "runtime.opening",
        old="    kept = _runs_within(state, tp, runs, end)\n",
        new="    kept = []\n",
        checks=("DUPLICATES",),
    ),
    Bug(
        "timer-not-set-again",
        "The timer of parked records is not set again when it has fired.",
        "runtime.retries",
        old="            state.wake_all()\n        self.arm()",
        new="            state.wake_all()",
        checks=("STUCK",),
    ),
)

FETCHING = (
    Bug(
        "old-fetch-delivered",
        "What a fetch brings goes to the present assignment, although it was asked for by an older one.",
        "runtime.poller",
        old="if partition is None or partition.generation != asked_in:",
        new="if partition is None:",
        checks=("LOST", "COMMIT"),
    ),
    Bug(
        "markers-not-passed",
        "The position never passes markers behind the last record: the end is never committed.",
        "runtime.poller",
        old="                tracker.skip_to(position)",
        new="                pass",
        checks=("STUCK",),
    ),
    Bug(
        "reset-goes-on-as-before",
        "A position beyond the end of a truncated log is kept.",
        "runtime.opening",
        old="        if target >= tracker.position:",
        new="        if target != tracker.position:",
        checks=("STUCK",),
    ),
    Bug(
        "reset-forgets-its-queues",
        "A partition whose position is out of range seeks, but its tracker stays where it was.",
        "runtime.opening",
        old="            tracker.skip_to(target)\n",
        new="",
        checks=("STUCK",),
    ),
)

REBALANCES = (
    Bug(
        "revoke-does-not-wait",
        "A revoke commits and returns without a drain: what runs is left behind.",
        "runtime.rebalance",
        old="        await self.drain(mine, deadline)\n",
        new="",
        checks=("SERIAL", "PROBLEM"),
    ),
    Bug(
        "revoke-waits-too-long",
        "A revoke waits for its grace, whatever deadline the group has set.",
        "runtime.rebalance",
        old="deadline = min(grace, self._consumer.drain_deadline() - _COMMIT_SECONDS)",
        new="deadline = grace",
        checks=("SERIAL",),
    ),
    Bug(
        "revoke-without-final-commit",
        "A revoke drains and returns without a commit.",
        "runtime.rebalance",
        old="        await self._committer.final(mine, deadline + _COMMIT_SECONDS)\n",
        new="",
        checks=("DUPLICATES",),
    ),
    Bug(
        "commit-after-revoke",
        "A revoke returns at once and leaves its final commit to a task.",
        "runtime.rebalance",
        old="        await self._committer.final(mine, deadline + _COMMIT_SECONDS)\n"
        "        self.leave_behind(mine)\n",
        new="\n"
        "        async def finish() -> None:\n"
        "            await self._committer.final(mine, deadline + _COMMIT_SECONDS)\n"
        "            self.leave_behind(mine)\n"
        "\n"
        '        self._spawn(finish(), "final")\n',
        checks=("COMMIT", "DUPLICATES"),
    ),
    Bug(
        "revoke-starts-work",
        "A revoke does not close the queues: the next records of its keys start while it drains.",
        "runtime.rebalance",
        old="        for partition in partitions:\n"
        "            state.close_queues(partition)\n"
        "            if partition.state is not State.DRAINING:",
        new="        for partition in partitions:\n            if partition.state is not State.DRAINING:",
        checks=("SERIAL",),
    ),
    Bug(
        "retry-forgets-what-is-done",
        "A halted partition that is retried begins at its HWM, without what is done above it.",
        "runtime.opening",
        old="runs = _runs_within(state, tp, tracker.done_runs(), end)",
        new="runs = []",
        checks=("DUPLICATES",),
    ),
    Bug(
        "starts-at-the-end",
        "A partition without a commit starts at its end.",
        "runtime.opening",
        old='bounds = self._consumer.end if policy == "latest" else self._consumer.beginning',
        new="bounds = self._consumer.end",
        checks=("LOST",),
    ),
    Bug(
        "unreadable-commit-is-none",
        "An offset fetch that fails reads as a group without commits.",
        "runtime.opening",
        old="        committed = await self._consumer.committed(names)\n",
        new="        try:\n"
        "            committed = await self._consumer.committed(names)\n"
        "        except BrokerError:\n"
        "            committed = {}\n",
        checks=("DUPLICATES",),
    ),
)

COMMITTING = (
    Bug(
        "token-of-the-first-assignment",
        "Commits keep the token of the first assignment.",
        "runtime.rebalance",
        old="        state.token = token\n",
        new="        state.token = self._token = getattr(self, '_token', token)\n",
        checks=("COMMIT",),
    ),
    Bug(
        "stop-does-not-drain",
        "A stop cancels nothing and waits for nothing.",
        "runtime.session",
        old="drained = await self.rebalancer.drain(partitions, deadline, hurry)",
        new="drained = True",
        checks=("SERIAL",),
    ),
    Bug(
        "stop-does-not-commit",
        "A stop drains and leaves without a commit.",
        "runtime.session",
        old="            stored = await self.committer.final(partitions, bound) or all(",
        new="            stored = bound > 0 or all(",
        checks=("DUPLICATES",),
    ),
)

IN_RUNTIME = (*WORKERS, *STATE, *FETCHING, *REBALANCES, *COMMITTING)
