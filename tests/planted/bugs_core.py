"""Bugs in the pure core: offsets, metadata, queues, commits, limits. Mistakes that anybody could make."""

from __future__ import annotations

from tests.planted.bug import Bug

OFFSETS = (
    Bug(
        "hwm-one-too-high",
        "The offset to commit includes the first unfinished record.",
        "core.offsets",
        old="return next(iter(self.unfinished), self.position)",
        new="return next(iter(self.unfinished), self.position - 1) + 1",
        checks=("LOST",),
    ),
    Bug(
        "holes-block",
        "Offsets are counted instead of delivered ones: a hole in the log stays unfinished for ever.",
        "core.offsets",
        old="self.unfinished.update({record.offset: record for record in records})",
        new="expected = range(self.position, records[-1].offset + 1)\n"
        "        self.unfinished.update(dict.fromkeys(expected, records[0]))\n"
        "        self.unfinished.update({record.offset: record for record in records})",
        checks=("STUCK",),
    ),
    Bug(
        "halt-forgets-what-is-done",
        "A halt or a revoke goes back to the HWM without remembering what is done above it.",
        "core.offsets",
        old="        self._restored = runs\n",
        new="        self._restored = []\n",
        checks=("DUPLICATES",),
    ),
    Bug(
        "done-run-one-too-long",
        "A run of done offsets takes in the unfinished one behind it.",
        "core.offsets",
        old="runs.append((cursor, offset))",
        new="runs.append((cursor, offset + 1))",
        checks=("LOST",),
    ),
    Bug(
        "restored-run-one-too-early",
        "A restored run is passed over from the record before it on.",
        "core.offsets",
        old="while restored and restored[-1][0] <= offset:",
        new="while restored and restored[-1][0] <= offset + 1:",
        checks=("LOST",),
    ),
)

METADATA = (
    Bug(
        "encode-off-by-one",
        "The varint form of the metadata makes each done run one longer.",
        "core.offset_codec",
        old="parts += _varint(end - first)",
        new="parts += _varint(end - first + 1)",
        checks=("LOST",),
    ),
    Bug(
        "decode-off-by-one",
        "The bitmap form of the metadata is read one too low: a record is passed over, and one runs again.",
        "core.offset_codec",
        old="runs.append((offset + first, offset + end))",
        new="runs.append((offset + first - 1, offset + end - 1))",
        checks=("LOST", "DUPLICATES"),
    ),
    Bug(
        "wrong-base",
        "The runs of the varint form are read as absolute offsets, not as relative to the committed one.",
        "core.offset_codec",
        old="    runs: list[Run] = []\n    at, cursor = 0, offset\n",
        new="    runs: list[Run] = []\n    at, cursor = 0, 0\n",
        checks=("DUPLICATES", "LOST"),
    ),
    Bug(
        "checksum-ignored",
        "Metadata of another partition or offset is believed.",
        "core.offset_codec",
        old="if stated != _checksum(partition, offset, body):",
        new="if stated < 0:",
        checks=("LOST",),
    ),
)

QUEUES = (
    Bug(
        "key-unlocked-too-early",
        "A key with nothing waiting behind its running record counts as free: the next one runs beside it.",
        "core.virtual_partitions",
        old="            if vp is None:\n                by_key[key] = vp",
        new="            if vp is None or not vp.rest:\n                by_key[key] = vp",
        checks=("SERIAL", "ORDER"),
    ),
    Bug(
        "lifo-within-a-key",
        "A record that has to wait is put before the others of its key.",
        "core.virtual_partitions",
        old="                vp.rest.append(record)\n",
        new="                vp.rest.appendleft(record)\n",
        checks=("ORDER",),
    ),
    Bug(
        "finish-forgets-the-rest",
        "Where a partition has had failures, the next record of a key is not made ready.",
        "core.virtual_partitions",
        old="            route.ready.append(vp)\n            return route",
        new="            return route",
        checks=("STUCK",),
    ),
    Bug(
        "held-records-forgotten",
        "What was held back by the gate near the metadata cap is dropped when the gate opens.",
        "core.virtual_partitions",
        old="held, self.held = self.held, []",
        new="held, self.held = [], []",
        checks=("STUCK",),
    ),
    Bug(
        "straggler-locks-nothing",
        "The key of a straggler is not locked in the next assignment.",
        "core.virtual_partitions",
        old="            self.locked_offsets[offset] = vp\n        else:\n            self.by_key[key] = vp",
        new="            self.locked_offsets[offset] = vp",
        checks=("SERIAL", "PROBLEM"),
    ),
    Bug(
        "behind-a-straggler-for-ever",
        "What waited behind a straggler is not made ready when it ends.",
        "core.virtual_partitions",
        old="            self.route_of(vp.head).ready.append(vp)\n        elif vp.key is not None:",
        new="            pass\n        elif vp.key is not None:",
        checks=("STUCK",),
    ),
    Bug(
        "adopted-record-stays-queued",
        "The record of an adopted straggler counts as done, and stays in the queue of its key.",
        "core.virtual_partitions",
        old="            self._drop_waiting(vp, offset)",
        new="",
        checks=("STUCK", "DUPLICATES"),
    ),
)

COMMITS = (
    Bug(
        "commit-past-a-gap",
        "What is committed is the position: one past the last delivered record, done or not.",
        "core.commits",
        old="    plain = committed = Committed(hwm, encoded.text)",
        new="    plain = committed = Committed(tracker.position, encoded.text)",
        checks=("LOST",),
    ),
    Bug(
        "retry-taken-for-stored",
        "A commit whose outcome is not known counts as stored.",
        "core.commits",
        old="CommitAnswer.RETRY: Consequence.AGAIN,",
        new="CommitAnswer.RETRY: Consequence.STORED,",
        checks=("STUCK", "DUPLICATES"),
    ),
    Bug(
        "too-large-again-as-large",
        "Metadata that the broker refuses as too large is sent again at the same length.",
        "core.commits",
        old="        budget.refused(len(made.committed.metadata))",
        new="        pass",
        checks=("COMMIT",),
    ),
    Bug(
        "only-the-offset-is-compared",
        "A commit is left out when the offset is stored, although the done runs above it have changed.",
        "core.commits",
        old="    is_last = partition.state is State.DRAINING\n",
        new="    is_last = partition.state is State.DRAINING\n"
        "    acknowledged = partition.acknowledged\n"
        "    if acknowledged is not None and made.committed.offset == acknowledged.offset:\n"
        "        return None\n",
        checks=("DUPLICATES",),
    ),
    Bug(
        "draining-is-not-committed",
        "A partition that drains is left out of commits: the final one is empty.",
        "core.commits",
        old="frozenset({State.OPEN, State.HALTED, State.DRAINING})",
        new="frozenset({State.OPEN, State.HALTED})",
        checks=("DUPLICATES",),
    ),
)

LIMITS = (
    Bug(
        "max-in-flight-ignored",
        "The group's limit of records holds nothing back.",
        "core.backpressure",
        old="        self.records_active = _hysteresis(",
        new="        self.records_active = False and _hysteresis(",
        checks=("BUDGET",),
    ),
    Bug(
        "fetch-passes-the-limit",
        "Fetching stops at the limit, not a fetch below it.",
        "core.backpressure",
        old="return held + quantum > limit",
        new="return held >= limit",
        checks=("BUDGET",),
    ),
    Bug(
        "reserve-on-top-of-the-limit",
        "A partition that others keep waiting gets its reserve, also where that passes the group's limit.",
        "core.backpressure",
        old="room = min(room, left, limits.poll_batch_size)",
        new="room = min(room, limits.poll_batch_size)",
        checks=("BUDGET",),
    ),
    Bug(
        "bytes-ignored",
        "The limit of bytes holds nothing back.",
        "core.backpressure",
        old="        self.bytes_active = self._bytes_bound >= resume_at",
        new="        self.bytes_active = self._bytes_bound >= 1 << 62",
        checks=("BUDGET",),
    ),
    Bug(
        "failure-counts-as-done",
        "A record whose attempts are used up is passed over instead of halting its partition.",
        "core.failures",
        old='return _TRAVEL if may_travel else give_up(rules, "exhausted")',
        new="return _DONE",
        checks=("LOST",),
    ),
    Bug(
        "halted-partition-is-fetched",
        "A halted partition is fetched and queued as an open one.",
        "core.assignment",
        old="return self.state is State.OPEN\n",
        new="return self.state in (State.OPEN, State.HALTED)\n",
        checks=("LOST", "STUCK"),
    ),
    Bug(
        "halt-is-not-entered",
        "A halt leaves the partition open: its queues are closed, its fetching goes on.",
        "core.assignment",
        old="(State.OPEN, Event.HALT): State.HALTED,",
        new="(State.OPEN, Event.HALT): State.OPEN,",
        checks=("LOST", "STUCK"),
    ),
)

IN_CORE = (*OFFSETS, *METADATA, *QUEUES, *COMMITS, *LIMITS)
