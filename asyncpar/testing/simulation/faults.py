"""What can go wrong in a simulated world, and how often it is planned.

Each fault is a function of the world and its plan; it says through `world.struck` that it really
struck, which it cannot when there is nobody left to be hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncpar.testing.memory_link import Code, Request
from asyncpar.testing.simulation.link import Trouble
from asyncpar.testing.simulation.plan import HANDLERS_FAIL, LETTERS_REFUSED, PlannedFault

if TYPE_CHECKING:
    from asyncpar.testing.simulation.world import World

Strike = Callable[["World", PlannedFault], None]

_REFUSALS: tuple[tuple[Request, Code], ...] = (
    ("OffsetCommit", Code.COORDINATOR_LOAD_IN_PROGRESS),
    ("OffsetCommit", Code.REQUEST_TIMED_OUT),
    ("OffsetCommit", Code.REBALANCE_IN_PROGRESS),
    ("OffsetCommit", Code.UNKNOWN_MEMBER_ID),
    ("OffsetCommit", Code.ILLEGAL_GENERATION),
    ("OffsetFetch", Code.COORDINATOR_LOAD_IN_PROGRESS),
    ("OffsetFetch", Code.NOT_COORDINATOR),
    ("Heartbeat", Code.NOT_COORDINATOR),
    ("Heartbeat", Code.REBALANCE_IN_PROGRESS),
    ("Heartbeat", Code.ILLEGAL_GENERATION),
    ("JoinGroup", Code.COORDINATOR_NOT_AVAILABLE),
    ("JoinGroup", Code.UNKNOWN_MEMBER_ID),
    ("SyncGroup", Code.NOT_COORDINATOR),
    ("SyncGroup", Code.REBALANCE_IN_PROGRESS),
    ("Fetch", Code.NOT_LEADER_OR_FOLLOWER),
    ("Fetch", Code.CORRUPT_MESSAGE),
    ("ListOffsets", Code.NOT_LEADER_OR_FOLLOWER),
    ("Metadata", Code.LEADER_NOT_AVAILABLE),
)
_WRITE_REFUSALS = (
    Code.NOT_LEADER_OR_FOLLOWER,
    Code.LEADER_NOT_AVAILABLE,
    Code.REQUEST_TIMED_OUT,
    Code.NOT_ENOUGH_REPLICAS,
    Code.KAFKA_STORAGE_ERROR,
    Code.MESSAGE_TOO_LARGE,
    Code.INVALID_RECORD,
    Code.TOPIC_AUTHORIZATION_FAILED,
)
_COMMIT_REFUSALS = tuple(code for request, code in _REFUSALS if request == "OffsetCommit")
_SMALL_METADATA = (16, 140, 200)
"""Characters: room for nothing, for a few runs, and for as many as bring the gate down now and then."""
_TRANSACTION_RECORDS = 20
_HOLE = 7


def _trouble(world: World, fault: PlannedFault) -> None:
    """Requests or answers of one member, or of all, are lost, late or repeated for a while."""
    member = world.pick(fault)
    everyone = fault.pick < 0.3 or member is None
    trouble = Trouble(fault.kind, None if everyone or member is None else member.name, fault.share)
    world.cluster.link.troubles.append(trouble)

    def end() -> None:
        if trouble in world.cluster.link.troubles:
            world.cluster.link.troubles.remove(trouble)

    world.later(fault.seconds, end)


def _join(world: World, fault: PlannedFault) -> None:
    """A member joins; it leaves again cleanly after a while."""
    if len(world.members) < world.max_members:
        member = world.start_member()
        world.struck[fault.kind] += 1
        world.later(fault.seconds + 10, lambda: world.stop_member(member))


def _leave(world: World, fault: PlannedFault) -> None:
    """A member is told to stop; another takes its place after a while."""
    member = world.pick(fault)
    if member is not None:
        world.struck[fault.kind] += 1
        world.stop_member(member)
        world.later(fault.seconds + 2, world.replenish)


def _kill(world: World, fault: PlannedFault) -> None:
    """A process dies; another takes its place after a while."""
    member = world.pick(fault)
    if member is not None:
        world.struck[fault.kind] += 1
        world.kill_member(member)
        world.later(fault.seconds, world.replenish)


def _freeze(world: World, fault: PlannedFault) -> None:
    """A process stands still beyond its session, and wakes as a zombie."""
    _stand_still(world, fault, world.session_seconds + 1 + fault.seconds)


def _stall(world: World, fault: PlannedFault) -> None:
    """A process stands still, and is back before its session has run out."""
    _stand_still(world, fault, min(fault.seconds, world.session_seconds * 0.6))


def _stand_still(world: World, fault: PlannedFault, seconds: float) -> None:
    member = world.pick(fault)
    if member is not None:
        world.struck[fault.kind] += 1
        world.freeze_member(member, seconds)


def _suspend(world: World, fault: PlannedFault) -> None:
    """All processes stand still, as on a suspended host."""
    world.struck[fault.kind] += 1
    for member in list(world.members):
        world.freeze_member(member, fault.seconds)


def _wall_jump(world: World, fault: PlannedFault) -> None:
    """Somebody sets a host's clock."""
    member = world.pick(fault)
    if member is not None:
        world.struck[fault.kind] += 1
        member.wall_jump += (fault.share - 0.5) * 7200


def _kick(world: World, fault: PlannedFault) -> None:
    """The coordinator removes a member."""
    member = world.pick(fault)
    if member is not None and world.cluster.kick(member.name):
        world.struck[fault.kind] += 1


def _move_coordinator(world: World, fault: PlannedFault) -> None:
    """The group gets another coordinator."""
    world.struck[fault.kind] += 1
    world.cluster.move_coordinator()


def _restart_broker(world: World, fault: PlannedFault) -> None:
    """The broker is away for a while."""
    if not world.cluster.broker.is_down:
        world.struck[fault.kind] += 1
        world.cluster.restart(fault.seconds)


def _truncate(world: World, fault: PlannedFault) -> None:
    """The broker comes back without the end of a log."""
    tp = world.cluster.pick_partition(fault)
    if not world.cluster.broker.is_down and world.cluster.truncate(tp, fault.share):
        world.struck[fault.kind] += 1
        world.cluster.restart(0.5)


def _retention(world: World, fault: PlannedFault) -> None:
    """The beginning of a log is deleted, read or not."""
    if world.cluster.delete_beginning(world.cluster.pick_partition(fault), fault.share):
        world.struck[fault.kind] += 1


def _hole(world: World, fault: PlannedFault) -> None:
    """Offsets without records."""
    world.struck[fault.kind] += 1
    world.cluster.broker.skip_offsets(world.cluster.pick_partition(fault), 1 + int(fault.share * _HOLE))


def _aborted(world: World, fault: PlannedFault) -> None:
    """A transaction stays open for a while, and is aborted."""
    records = 1 + int(fault.share * _TRANSACTION_RECORDS)
    if world.cluster.run_transaction(
        world.cluster.pick_partition(fault), records, fault.seconds, commits=False
    ):
        world.struck[fault.kind] += 1


def _committed(world: World, fault: PlannedFault) -> None:
    """A transaction stays open for a while: its records, and those behind them, come late."""
    records = 1 + int(fault.share * _TRANSACTION_RECORDS)
    if world.cluster.run_transaction(
        world.cluster.pick_partition(fault), records, fault.seconds, commits=True
    ):
        world.struck[fault.kind] += 1


def _small_metadata(world: World, fault: PlannedFault) -> None:
    """The broker takes less commit metadata than it says by default."""
    world.struck[fault.kind] += 1
    world.cluster.limit_metadata(_SMALL_METADATA[int(fault.pick * len(_SMALL_METADATA))], fault.seconds)


def _foreign_metadata(world: World, fault: PlannedFault) -> None:
    """Another tool has written metadata of its own, or of another partition, beside the committed offset."""
    if world.cluster.write_foreign_metadata(world.cluster.pick_partition(fault), is_copy=fault.share > 0.3):
        world.struck[fault.kind] += 1


def _refusal(world: World, fault: PlannedFault) -> None:
    """The broker answers the next few requests of a kind with an error."""
    request, code = _REFUSALS[int(fault.pick * len(_REFUSALS))]
    if world.cluster.refuse(request, code, 1 + int(fault.share * 4)):
        world.struck[fault.kind] += 1


def _refused_change(world: World, fault: PlannedFault) -> None:
    """The broker refuses the next commits of a member that leaves, or of the others while one joins."""
    code = _COMMIT_REFUSALS[int(fault.seconds * 10) % len(_COMMIT_REFUSALS)]
    if fault.share > 0.5:
        world.cluster.refuse("OffsetCommit", code, len(world.members))
        _join(world, fault)
    elif (member := world.pick(fault)) is not None:
        world.cluster.refuse("OffsetCommit", code, 1 + int(fault.share * 2), member.name)
        _leave(world, fault)


def _letters_refused(world: World, fault: PlannedFault) -> None:
    """The broker refuses the next few batches of dead letters: for a moment, or as if for good."""
    code = _WRITE_REFUSALS[int(fault.pick * len(_WRITE_REFUSALS))]
    if world.plan.letters is not None and world.cluster.refuse("Produce", code, 1 + int(fault.share * 9)):
        world.struck[fault.kind] += 1


def _handlers_fail(world: World, fault: PlannedFault) -> None:
    """What the handlers depend on is away for a while: every call fails."""
    world.struck[fault.kind] += 1
    world.fates.outages += 1

    def end() -> None:
        world.fates.outages -= 1

    world.later(fault.seconds, end)


def _grow(world: World, fault: PlannedFault) -> None:
    """A topic gets another partition."""
    world.struck[fault.kind] += 1
    world.cluster.grow(world.cluster.pick_partition(fault).topic)


FAULTS: dict[str, tuple[float, Strike]] = {
    "request lost": (2.0, _trouble),
    "answer lost": (2.0, _trouble),
    "request late": (1.0, _trouble),
    "request repeated": (1.0, _trouble),
    "request refused": (2.5, _refusal),
    "commit refused in a change": (1.5, _refused_change),
    "member joins": (1.5, _join),
    "member leaves": (1.5, _leave),
    "member dies": (2.0, _kill),
    "member frozen": (2.0, _freeze),
    "member stalls": (1.0, _stall),
    "host suspended": (0.5, _suspend),
    "wall clock jumps": (0.5, _wall_jump),
    "member kicked": (1.5, _kick),
    "coordinator moves": (1.0, _move_coordinator),
    "broker restarts": (1.0, _restart_broker),
    "log truncated": (0.5, _truncate),
    "log deleted from below": (0.5, _retention),
    "offsets without records": (1.0, _hole),
    "transaction aborted": (0.7, _aborted),
    "transaction committed": (0.7, _committed),
    "metadata limited": (0.7, _small_metadata),
    "metadata overwritten": (0.5, _foreign_metadata),
    "topic grows": (0.5, _grow),
    LETTERS_REFUSED: (0.0, _letters_refused),
    HANDLERS_FAIL: (0.0, _handlers_fail),
}
"""By name: how often it is planned in relation to the others, and what it does. 0.0: where a plan adds it."""

WEIGHTS = {name: weight for name, (weight, _) in FAULTS.items()}
