"""Bugs where something ends or is handed over: slots, wake-ups, cancellations, halts, revokes, stops."""

from __future__ import annotations

from tests.planted.bug import Bug

SLOTS = (
    Bug(
        "slots-without-a-limit",
        "Workers that run are not counted when new ones are made.",
        "runtime.workers",
        old="room = self.handler.concurrency - len(self.workers) - self._to_spawn",
        new="room = self.handler.concurrency - self._to_spawn",
        checks=("BUDGET",),
    ),
    Bug(
        "retired-wakes-nobody",
        "A worker that ends leaves its slot empty although heads are ready.",
        "runtime.workers",
        old="            if not self._closing:\n                self.wake()\n",
        new="",
        checks=("PROBLEM",),
    ),
    Bug(
        "others-are-not-woken",
        "A worker whose handler waits does not wake the others for the heads that are ready.",
        "runtime.workers",
        old="            self._wake(len(ready))\n",
        new="            pass\n",
        checks=("PROBLEM",),
    ),
    Bug(
        "who-may-not-start-wakes-others",
        "A worker that goes to sleep asks to be told of the loop's turn: they wake each other for ever.",
        "runtime.workers",
        old="                await self._sleep_until_woken(me)\n",
        new="                self._when_it_turns(now)\n                await self._sleep_until_woken(me)\n",
        checks=("SIMULATION",),
    ),
    Bug(
        "intake-wakes-nobody",
        "Records that come in wake no worker.",
        "runtime.group_state",
        old="            pool.wake()\n        self._fed.clear()",
        new="            pass\n        self._fed.clear()",
        checks=("PROBLEM",),
    ),
    Bug(
        "lease-judged-by-an-old-clock",
        "A worker judges the lease by the time at which its last call began.",
        "runtime.workers",
        old="now > state.lease_until and",
        new="me.started > state.lease_until and",
        checks=("SERIAL",),
    ),
)

CANCELLATIONS = (
    Bug(
        "cancel-reason-kept",
        "A worker that was cancelled once cannot be cancelled again.",
        "runtime.workers",
        old="        me.cancel_reason = None\n        while task.cancelling():",
        new="        while task.cancelling():",
        checks=("PROBLEM", "STUCK"),
    ),
    Bug(
        "revoke-cancels-nobody",
        "What still runs when the grace of a revoke is over is not cancelled.",
        "runtime.rebalance",
        old='                worker.cancel("drain")',
        new="                pass",
        checks=("PROBLEM",),
    ),
    Bug(
        "lost-cancels-nobody",
        "What runs of a lost partition is not cancelled.",
        "runtime.rebalance",
        old='                worker.cancel("lost")',
        new="                pass",
        checks=("PROBLEM",),
    ),
    Bug(
        "replaced-client-loses-nothing",
        "What a client held that died is still held when the next one takes its place.",
        "runtime.runtime",
        old="        dead.rebalancer.lost(frozenset(state.partitions))\n",
        new="",
        checks=("COMMIT", "SERIAL"),
    ),
    Bug(
        "keep-is-ignored",
        'Handlers with `on_revoke="keep"` are cancelled like all others.',
        "runtime.rebalance",
        old="return any(worker in pool.workers and not pool.handler.cancel_on_revoke for",
        new="return any(worker is None for",
        checks=("PROBLEM",),
    ),
    Bug(
        "keyless-straggler-locks-nothing",
        "A record without a key starts again while a straggler still runs it.",
        "core.virtual_partitions",
        old="if self.locked_offsets and record.offset in self.locked_offsets:",
        new="if False:",
        checks=("SERIAL",),
    ),
)

HALTS = (
    Bug(
        "one-attempt-too-many",
        "A record is tried once more than its attempts allow.",
        "core.failures",
        old="attempts_made >= rules.attempts",
        new="attempts_made > rules.attempts",
        checks=("ORDER", "DEAD LETTER"),
    ),
    Bug(
        "halt-closes-nothing",
        "A halt leaves the queues of its partition open: what waits there is started.",
        "runtime.group_state",
        old='        self.close_queues(partition)\n        self.log.error(\n            "%s halted, %s.',
        new='        self.log.error(\n            "%s halted, %s.',
        checks=("PROBLEM", "ORDER"),
    ),
    Bug(
        "dropped-fetch-moves-on",
        "A chunk that an older assignment asked for is dropped, and the client stays behind it.",
        "runtime.poller",
        old="            if partition is not None and partition.is_open and partition.tracker is not None:\n"
        "                self._source.seek(tp, partition.tracker.position)\n"
        "            return\n"
        "        if self._state.intake",
        new="            return\n        if self._state.intake",
        checks=("LOST", "ORDER"),
    ),
)

LAST_COMMITS = (
    Bug(
        "success-in-the-drain-is-dropped",
        "What ends well after its partition has halted or begun to drain does not count as done.",
        "runtime.group_state",
        old="            if ok:\n                queues.tracker.mark_done(offset)\n            return",
        new="            return",
        checks=("DUPLICATES",),
    ),
    Bug(
        "final-commit-waits-for-none",
        "The final commit of a revoke is sent beside the one that is on its way.",
        "runtime.committer",
        old="                async with self._lock:\n                    while self._state.token",
        new="                if True:\n                    while self._state.token",
        checks=("COMMIT",),
    ),
    Bug(
        "final-commit-tries-once",
        "The final commit is given up at the first answer that asks for another try.",
        "runtime.committer",
        old="                        await asyncio.sleep(_FIRST_BACKOFF_SECONDS)\n",
        new="                        return False\n",
        checks=("DUPLICATES",),
    ),
    Bug(
        "refused-commits-unnoticed",
        "A member whose commits are refused while its heartbeats are answered goes on for ever.",
        "runtime.watchdog",
        old="        self._judge_commits(now)\n",
        new="",
        checks=("STUCK",),
    ),
    Bug(
        "stop-commits-before-its-drain",
        "A stop commits, and lets what runs end only then.",
        "runtime.session",
        old="        drained = await self.rebalancer.drain(partitions, deadline, hurry)\n"
        "        stored = True\n",
        new="        stored = True\n"
        "        if partitions:\n"
        "            await self.committer.final(\n"
        "                partitions, self._state.clock.monotonic() + CONSUMER_STOP_SECONDS\n"
        "            )\n"
        "        drained = await self.rebalancer.drain(partitions, deadline, hurry)\n"
        "        partitions = []\n",
        checks=("DUPLICATES",),
    ),
    Bug(
        "stop-drains-too-briefly",
        "A stop waits half a second for what runs, whatever its timeout.",
        "runtime.session",
        old="drained = await self.rebalancer.drain(partitions, deadline, hurry)",
        new="drained = await self.rebalancer.drain(\n"
        "            partitions, min(deadline, self._state.clock.monotonic() + 0.5), hurry\n"
        "        )",
        checks=("SERIAL",),
    ),
)

IN_ENDINGS = (*SLOTS, *CANCELLATIONS, *HALTS, *LAST_COMMITS)
