"""The records of a run by partition, known from the start: each log, and another one after each cut.

Lives here: what `send`, `start` and a truncation say of logs. Never here: the walk through the events, or a
judgement. Called by `checker_replay`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from asyncpar.records import TopicPartition
from asyncpar.testing.checker_model import Lane, Log, Sent
from asyncpar.testing.checker_rules import Rules
from asyncpar.testing.history import TRUNCATE, Event


def logs_of(
    events: Sequence[Event],
    rules: Rules,
    joins: defaultdict[str, list[int]],
    deaths: dict[str, tuple[int, str]],
) -> dict[TopicPartition, list[Log]]:
    """Each partition's log, and another one after each truncation."""
    logs: defaultdict[TopicPartition, list[Log]] = defaultdict(lambda: [Log()])
    for index, event in enumerate(events):
        kind = event.kind
        if kind == "send":
            log = logs[event.tp][-1]
            if event.offset not in log.records:
                record = Sent(event.offset, event.key, int(event.detail or 0))
                record.ghost = record.settled = event.offset < log.reused_below
                log.records[event.offset] = record
        elif kind == "start":
            logs[event.tp][-1].started.add(event.offset)
        elif kind == "join":
            joins[event.member].append(index)
        elif kind == "dead":
            deaths[event.member] = (index, event.detail)
        elif kind == "fault" and event.detail == TRUNCATE:
            logs[event.tp].append(_truncated(logs[event.tp][-1], event.offset))
    for of_partition in logs.values():
        for log in of_partition:
            _put_in_order(log, rules)
    return dict(logs)


def _truncated(log: Log, end: int) -> Log:
    kept = {offset: record for offset, record in log.records.items() if offset < end}
    last = max(log.records, default=-1) + 1
    return Log(records=kept, started=set(log.started), reused_below=max(last, log.reused_below))


def _put_in_order(log: Log, rules: Rules) -> None:
    log.offsets = sorted(log.records)
    log.ordered = [log.records[offset] for offset in log.offsets]
    lanes: defaultdict[object, Lane] = defaultdict(Lane)
    for record in log.ordered:
        lane = rules.lane_of(record.key, record.offset)
        if not isinstance(lane, int):
            record.lane = lanes[lane]
            record.rank = len(record.lane.records)
            record.lane.records.append(record)
