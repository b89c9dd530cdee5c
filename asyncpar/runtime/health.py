"""What liveness and readiness mean for one group: reasons, one sentence each. Source: DECISIONS.

Live: the loop ticks, tasks live, the poller is called. Never the broker, never the downstream.
Ready: joined, broker and topics reached, commits possible, no partition halted or blocked over the
limit, no task dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncpar.core.assignment import Partition, State
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.runtime.session import Session
from asyncpar.runtime.snapshots import partition_status
from asyncpar.status import blocked_text

_LOOP_LAG_LIMIT_SECONDS = 5.0


def not_live(runtime: GroupRuntime) -> list[str]:
    """Why a supervisor should restart this process; empty while it lives."""
    state, session = runtime.state, runtime.session
    if session is None or state.phase in ("starting", "stopping", "stopped"):
        return []
    reasons: list[str] = []
    if state.phase == "failed":
        reasons.append(f"group {state.group}: the engine failed")
        return reasons
    silent_for = state.clock.monotonic() - session.poller.called_at
    if session.is_connected and (not session.is_serving() or silent_for > session.watchdog.stall_seconds):
        reasons.append(f"group {state.group}: the poller has not been called for {silent_for:.0f} s")
    if session.watchdog.loop_lag_seconds > _LOOP_LAG_LIMIT_SECONDS:
        reasons.append(
            f"group {state.group}: the event loop is late by {session.watchdog.loop_lag_seconds:.1f} s"
        )
    return reasons


def not_ready(runtime: GroupRuntime) -> list[str]:
    """Why this instance does not do its whole work; empty when it does."""
    state, session = runtime.state, runtime.session
    if state.phase != "joined" or session is None:
        return [f"group {state.group} is {state.phase}"]
    reasons: list[str] = []
    if state.lease_closed and state.partitions:
        reasons.append(f"group {state.group}: heartbeats are not answered, no handler starts")
    if session.watchdog.refused_since is not None:
        reasons.append(f"group {state.group}: commits are refused, this member is not known to its group")
    if session.died.done():
        reasons.append(f"group {state.group}: the client died ({session.died.result()})")
    for partition in state.partitions.values():
        if partition.state is State.HALTED:
            reasons.append(f"{partition.tp} is halted: {_halt_text(partition, state.clock.monotonic())}")
        elif partition.state is State.OPENING:
            reasons.append(f"{partition.tp} is opening: its committed offset is being read")
    reasons += _without_children(state)
    reasons += _out_of_reach(state, session)
    reasons += _blocked(runtime, session)
    for tp, offset in session.watchdog.idle_blocks.items():
        reasons.append(f"{tp}: offset {offset} could run but nothing runs it")
    return reasons


def _halt_text(partition: Partition, now: float) -> str:
    """Why, since when, and what ends it."""
    if partition.halt_reason is None:
        return "it goes on as soon as what leaves it has left, and the end of its log is known"
    seconds = now - partition.halted_at
    return f"{partition.halt_reason} (for {seconds:.0f} s; retry_halted() or a restart tries it again)"


def _without_children(state: GroupState) -> list[str]:
    """Handlers whose child processes cannot be started."""
    return [
        f"handler {pool.handler.name}, for {state.clock.monotonic() - trouble.since:.0f} s: {trouble.why}"
        for pool in state.pools
        if pool.children is not None and (trouble := pool.children.trouble()) is not None
    ]


def _blocked(runtime: GroupRuntime, session: Session) -> list[str]:
    """What holds commits up for too long, and why."""
    limit_ms = runtime.state.config.max_blocking_duration_ms
    reasons: list[str] = []
    for tp, offset in session.watchdog.blocked.items():
        partition = runtime.state.partitions.get(tp)
        if partition is not None:
            why = blocked_text(partition_status(runtime, partition))
            reasons.append(
                f"{tp}: offset {offset} blocks the commit for longer than "
                f"max_blocking_duration_ms={limit_ms}: {why}"
            )
    return reasons


def _out_of_reach(state: GroupState, session: Session) -> list[str]:
    """What cannot be fetched, or can be fetched and not be read."""
    reasons: list[str] = []
    topics = {tp.topic for tp in state.partitions}
    for tp, why in session.reach.lost.items():
        if tp in state.partitions:
            reasons.append(f"{tp} cannot be fetched: {why}")
        elif tp.topic not in topics:
            reasons.append(f"topic {tp.topic} is away: {why}")
    for tp, why in session.poller.unreadable.lasting().items():
        reasons.append(f"{tp} stands still at {why}")
    return reasons


def loop_lag(runtimes: Iterable[GroupRuntime]) -> float:
    """How late the event loop was last, in seconds; 0.0 while nothing runs."""
    sessions = [runtime.session for runtime in runtimes]
    return max((one.watchdog.loop_lag_seconds for one in sessions if one is not None), default=0.0)
