"""Which request is answered with which error when, and what has to come of it: the table of these tests.

What lives here: the cases as data. What never does: to run them (`lives`). Called by `test_wire_faults`.
Always: a code is one that some version of Kafka's broker may answer to that request, or what a network does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asyncpar.errors import (
    AuthorizationError,
    BrokerUnreachableError,
    ConfigurationError,
    ConsumerFailedError,
    DrainIncompleteError,
    UnknownTopicError,
)
from tests.wire.case import ALWAYS, Case, Code, Phase, Rewrite
from tests.wire.mock_cluster import Request

_HEAL_SECONDS = 3.5
"""Longer than a session, so that the group gives our partitions away meanwhile where it can."""
_SHORT_START = {"startup_timeout_ms": 2_000}


def _each(request: Request, phase: Phase, codes: tuple[Code, ...], **how: Any) -> Iterator[Case]:
    for code in codes:
        yield Case(request, code, phase, **how)


def _heartbeat(code: Code) -> tuple[tuple[Request, Code], ...]:
    return ((Request.HEARTBEAT, code),)


_MOVED = (Code.COORDINATOR_LOAD_IN_PROGRESS, Code.COORDINATOR_NOT_AVAILABLE, Code.NOT_COORDINATOR)
_STALE = (Code.ILLEGAL_GENERATION, Code.UNKNOWN_MEMBER_ID)
_REFUSED_IDS = "its group_instance_id"


def _of_find_coordinator() -> Iterator[Case]:
    request = Request.FIND_COORDINATOR
    for phase, beside in ((Phase.START, ()), (Phase.RUNNING, _heartbeat(Code.NOT_COORDINATOR))):
        passing = (Code.COORDINATOR_LOAD_IN_PROGRESS, Code.COORDINATOR_NOT_AVAILABLE, Code.HANGS_UP)
        yield from _each(request, phase, passing, beside=beside)
        yield Case(
            request,
            Code.GROUP_AUTHORIZATION_FAILED,
            phase,
            beside=beside,
            ends=AuthorizationError,
            says="READ on it",
        )
        yield Case(
            request, Code.INVALID_GROUP_ID, phase, beside=beside, ends=ConfigurationError, says="group name"
        )
    strange = (Code.UNKNOWN_SERVER_ERROR, Code.UNSUPPORTED_VERSION, Code.INVALID_REQUEST)
    yield from _each(
        request, Phase.START, strange, ends=BrokerUnreachableError, says="finding the coordinator of group"
    )
    yield from _each(request, Phase.RUNNING, strange, beside=_heartbeat(Code.NOT_COORDINATOR))
    lasting = Code.COORDINATOR_NOT_AVAILABLE
    yield Case(
        request,
        lasting,
        Phase.START,
        ALWAYS,
        ends=BrokerUnreachableError,
        settings=_SHORT_START,
        says="coordinator of group",
    )
    yield Case(
        request,
        lasting,
        Phase.RUNNING,
        ALWAYS,
        _heartbeat(Code.NOT_COORDINATOR),
        heal_seconds=_HEAL_SECONDS,
        repeats=True,
    )


def _of_join_group() -> Iterator[Case]:
    request = Request.JOIN_GROUP
    for phase, beside in ((Phase.START, ()), (Phase.RUNNING, _heartbeat(Code.REBALANCE_IN_PROGRESS))):
        passing = (
            *_MOVED,
            *_STALE,
            Code.REBALANCE_IN_PROGRESS,
            Code.GROUP_MAX_SIZE_REACHED,
            Code.UNKNOWN_SERVER_ERROR,
            Code.HANGS_UP,
        )
        yield from _each(request, phase, passing, beside=beside, repeats=phase is Phase.RUNNING)
        yield Case(
            request, Code.MEMBER_ID_REQUIRED, phase, beside=beside, rewrite=Rewrite.MEMBER_ID, repeats=True
        )
        for code, ends, says in (
            (Code.INCONSISTENT_GROUP_PROTOCOL, ConfigurationError, "partition_assignment_strategy"),
            (Code.INVALID_GROUP_ID, ConfigurationError, "group name"),
            (Code.INVALID_SESSION_TIMEOUT, ConfigurationError, "group.min.session.timeout.ms"),
            (Code.FENCED_INSTANCE_ID, ConfigurationError, _REFUSED_IDS),
            (Code.GROUP_AUTHORIZATION_FAILED, AuthorizationError, "READ on it"),
        ):
            yield Case(request, code, phase, beside=beside, ends=ends, says=says)
        yield Case(
            request,
            Code.GROUP_MAX_SIZE_REACHED,
            phase,
            ALWAYS,
            beside,
            heal_seconds=_HEAL_SECONDS,
            repeats=phase is Phase.RUNNING,
        )


def _of_sync_group() -> Iterator[Case]:
    request = Request.SYNC_GROUP
    for phase, beside in ((Phase.START, ()), (Phase.RUNNING, _heartbeat(Code.REBALANCE_IN_PROGRESS))):
        passing = (
            *_MOVED,
            *_STALE,
            Code.INCONSISTENT_GROUP_PROTOCOL,
            Code.REBALANCE_IN_PROGRESS,
            Code.UNKNOWN_SERVER_ERROR,
            Code.HANGS_UP,
        )
        yield from _each(request, phase, passing, beside=beside)
        for code, ends, says in (
            (Code.FENCED_INSTANCE_ID, ConfigurationError, _REFUSED_IDS),
            (Code.GROUP_AUTHORIZATION_FAILED, AuthorizationError, "READ on it"),
        ):
            yield Case(request, code, phase, beside=beside, ends=ends, says=says)


def _of_heartbeat() -> Iterator[Case]:
    request, phase = Request.HEARTBEAT, Phase.RUNNING
    yield from _each(request, phase, (*_MOVED, Code.HANGS_UP))
    yield from _each(request, phase, (Code.REBALANCE_IN_PROGRESS,))
    # The client gives its membership up: the two it knows, and one for which it has no branch.
    ends_membership = (*_STALE, Code.UNKNOWN_SERVER_ERROR)
    yield from _each(request, phase, ends_membership, repeats=True)
    yield Case(request, Code.NOT_COORDINATOR, phase, ALWAYS, heal_seconds=_HEAL_SECONDS, repeats=True)
    yield Case(request, Code.GROUP_AUTHORIZATION_FAILED, phase, ends=AuthorizationError, says="READ on it")
    yield Case(request, Code.FENCED_INSTANCE_ID, phase, ends=ConfigurationError, says=_REFUSED_IDS)
    yield Case(
        request, Code.UNKNOWN_SERVER_ERROR, phase, ALWAYS, ends=ConsumerFailedError, says="died 4 times"
    )


def _of_leave_group() -> Iterator[Case]:
    request, phase = Request.LEAVE_GROUP, Phase.STOP
    codes = (
        *_MOVED,
        Code.UNKNOWN_MEMBER_ID,
        Code.GROUP_AUTHORIZATION_FAILED,
        Code.UNKNOWN_SERVER_ERROR,
        Code.HANGS_UP,
    )
    yield from _each(request, phase, codes)
    yield Case(request, Code.LATE, phase, delay_ms=60_000)


def _of_offset_fetch() -> Iterator[Case]:
    request = Request.OFFSET_FETCH
    for phase, beside in ((Phase.START, ()), (Phase.RUNNING, _heartbeat(Code.REBALANCE_IN_PROGRESS))):
        whole = (*_MOVED, *_STALE, Code.UNKNOWN_SERVER_ERROR, Code.UNSTABLE_OFFSET_COMMIT, Code.HANGS_UP)
        yield from _each(request, phase, whole, beside=beside)
        yield from _each(
            request,
            phase,
            (Code.COORDINATOR_LOAD_IN_PROGRESS, Code.NOT_COORDINATOR, Code.UNKNOWN_SERVER_ERROR),
            beside=beside,
            rewrite=Rewrite.WHOLE,
        )
        in_partitions = (
            Code.UNKNOWN_TOPIC_OR_PARTITION,
            Code.COORDINATOR_LOAD_IN_PROGRESS,
            Code.NOT_COORDINATOR,
            Code.UNSTABLE_OFFSET_COMMIT,
            Code.UNKNOWN_SERVER_ERROR,
        )
        yield from _each(request, phase, in_partitions, beside=beside, rewrite=Rewrite.PARTITIONS)
        yield Case(
            request,
            Code.UNSTABLE_OFFSET_COMMIT,
            phase,
            ALWAYS,
            beside,
            heal_seconds=_HEAL_SECONDS,
        )
        for code, rewrite, says in (
            (Code.GROUP_AUTHORIZATION_FAILED, None, "READ on it"),
            (Code.GROUP_AUTHORIZATION_FAILED, Rewrite.WHOLE, "READ on it"),
            (Code.TOPIC_AUTHORIZATION_FAILED, Rewrite.PARTITIONS, "no right on topic orders["),
        ):
            yield Case(
                request, code, phase, beside=beside, rewrite=rewrite, ends=AuthorizationError, says=says
            )


def _of_offset_commit() -> Iterator[Case]:
    request = Request.OFFSET_COMMIT
    passing = (
        *_MOVED,
        Code.REQUEST_TIMED_OUT,
        Code.OFFSET_METADATA_TOO_LARGE,
        Code.INVALID_COMMIT_OFFSET_SIZE,
        Code.REBALANCE_IN_PROGRESS,
        Code.UNKNOWN_SERVER_ERROR,
        Code.HANGS_UP,
    )
    forbidden = (Code.TOPIC_AUTHORIZATION_FAILED, Code.GROUP_AUTHORIZATION_FAILED)
    for phase in (Phase.RUNNING, Phase.STOP):
        yield from _each(request, phase, passing)
        yield from _each(request, phase, forbidden, ends=AuthorizationError, says="no right to commit")
    yield Case(request, Code.UNKNOWN_TOPIC_OR_PARTITION, Phase.RUNNING)
    # One that its heartbeats know all the same: the member is replaced after a session.
    yield Case(request, Code.GROUP_ID_NOT_FOUND, Phase.RUNNING, repeats=True)
    # A broker that does not know a member to a commit does not know it to a heartbeat either.
    for code in _STALE:
        yield Case(request, code, Phase.RUNNING, after=_heartbeat(code), repeats=True)
    yield Case(request, Code.REQUEST_TIMED_OUT, Phase.RUNNING, ALWAYS, heal_seconds=_HEAL_SECONDS)
    gone = (*_STALE, Code.GROUP_ID_NOT_FOUND)
    yield from _each(request, Phase.STOP, gone, ends=DrainIncompleteError, says="not acknowledged")
    for code, delay_ms in ((Code.COORDINATOR_NOT_AVAILABLE, 0), (Code.LATE, 60_000)):
        yield Case(
            request,
            code,
            Phase.STOP,
            ALWAYS if delay_ms == 0 else 1,
            delay_ms=delay_ms,
            ends=DrainIncompleteError,
            says="not acknowledged",
        )


def _of_fetch() -> Iterator[Case]:
    request, phase = Request.FETCH, Phase.RUNNING
    passing = (
        Code.OFFSET_OUT_OF_RANGE,
        Code.CORRUPT_MESSAGE,
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        Code.LEADER_NOT_AVAILABLE,
        Code.NOT_LEADER_OR_FOLLOWER,
        Code.REQUEST_TIMED_OUT,
        Code.REPLICA_NOT_AVAILABLE,
        Code.KAFKA_STORAGE_ERROR,
        Code.FENCED_LEADER_EPOCH,
        Code.UNKNOWN_LEADER_EPOCH,
        Code.UNSUPPORTED_COMPRESSION_TYPE,
        Code.OFFSET_NOT_AVAILABLE,
        Code.UNKNOWN_TOPIC_ID,
        Code.UNKNOWN_SERVER_ERROR,
        Code.HANGS_UP,
    )
    yield from _each(request, phase, passing)
    yield from _each(request, Phase.START, passing)
    lasting = (Code.KAFKA_STORAGE_ERROR, Code.UNKNOWN_SERVER_ERROR)
    yield from _each(request, phase, lasting, times=ALWAYS, heal_seconds=_HEAL_SECONDS)
    # While a leader is elected the client asks on without a word.
    yield Case(request, Code.NOT_LEADER_OR_FOLLOWER, phase, ALWAYS, heal_seconds=_HEAL_SECONDS, is_quiet=True)
    for when in (Phase.START, Phase.RUNNING):
        yield Case(
            request,
            Code.TOPIC_AUTHORIZATION_FAILED,
            when,
            ends=AuthorizationError,
            says="no right on topic 'orders'",
        )


def _of_list_offsets() -> Iterator[Case]:
    request = Request.LIST_OFFSETS
    passing = (
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        Code.LEADER_NOT_AVAILABLE,
        Code.NOT_LEADER_OR_FOLLOWER,
        Code.REQUEST_TIMED_OUT,
        Code.REPLICA_NOT_AVAILABLE,
        Code.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        Code.KAFKA_STORAGE_ERROR,
        Code.FENCED_LEADER_EPOCH,
        Code.UNKNOWN_LEADER_EPOCH,
        Code.OFFSET_NOT_AVAILABLE,
        Code.UNKNOWN_SERVER_ERROR,
        Code.HANGS_UP,
    )
    for phase, beside in (
        (Phase.START, ()),
        (Phase.RUNNING, ((Request.FETCH, Code.OFFSET_OUT_OF_RANGE),)),
    ):
        yield from _each(request, phase, passing, beside=beside)
        yield Case(request, Code.OFFSET_NOT_AVAILABLE, phase, ALWAYS, beside, heal_seconds=_HEAL_SECONDS)
        yield Case(
            request,
            Code.TOPIC_AUTHORIZATION_FAILED,
            phase,
            beside=beside,
            ends=AuthorizationError,
            says="no right on topic orders[",
        )


def _of_metadata() -> Iterator[Case]:
    request = Request.METADATA
    yield Case(request, Code.HANGS_UP, Phase.START)
    yield Case(request, Code.HANGS_UP, Phase.RUNNING)
    for code, ends, says in (
        (Code.UNKNOWN_TOPIC_OR_PARTITION, UnknownTopicError, "does not exist"),
        (Code.INVALID_TOPIC_EXCEPTION, UnknownTopicError, "no valid name"),
        (Code.TOPIC_AUTHORIZATION_FAILED, AuthorizationError, "no right on topic 'orders'"),
        (Code.UNKNOWN_SERVER_ERROR, BrokerUnreachableError, "looking topic 'orders' up"),
        (Code.UNKNOWN_TOPIC_ID, BrokerUnreachableError, "looking topic 'orders' up"),
    ):
        yield Case(request, code, Phase.START, ALWAYS, ends=ends, says=says, settings=_SHORT_START)
    yield Case(request, Code.LEADER_NOT_AVAILABLE, Phase.START, ALWAYS, heal_seconds=1.0)
    yield Case(
        request,
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        Phase.START,
        ALWAYS,
        heal_seconds=1.0,
        settings={"wait_for_topics": True},
    )
    lasting = (
        Code.UNKNOWN_TOPIC_OR_PARTITION,
        Code.LEADER_NOT_AVAILABLE,
        Code.INVALID_TOPIC_EXCEPTION,
        Code.UNKNOWN_SERVER_ERROR,
        Code.UNKNOWN_TOPIC_ID,
    )
    yield from _each(request, Phase.RUNNING, lasting, times=ALWAYS, heal_seconds=1.0)


def _of_api_versions() -> Iterator[Case]:
    request = Request.API_VERSIONS
    codes = (Code.UNSUPPORTED_VERSION, Code.UNKNOWN_SERVER_ERROR, Code.HANGS_UP)
    yield from _each(request, Phase.START, codes)
    yield from _each(request, Phase.RUNNING, codes, beside=((Request.FETCH, Code.HANGS_UP),))
    yield Case(
        request,
        Code.HANGS_UP,
        Phase.START,
        ALWAYS,
        ends=BrokerUnreachableError,
        settings=_SHORT_START,
        says="expects TLS",
    )


CASES: tuple[Case, ...] = (
    *_of_find_coordinator(),
    *_of_join_group(),
    *_of_sync_group(),
    *_of_heartbeat(),
    *_of_leave_group(),
    *_of_offset_fetch(),
    *_of_offset_commit(),
    *_of_fetch(),
    *_of_list_offsets(),
    *_of_metadata(),
    *_of_api_versions(),
)
