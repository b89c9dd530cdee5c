"""Reading and writing committed offsets, against answers made by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError
from aiokafka.protocol.commit import (
    OffsetCommitRequest_v3,
    OffsetCommitResponse_v3,
    OffsetFetchResponse_v1,
    OffsetFetchResponse_v3,
)

from asyncpar.adapters.aiokafka_offsets import GroupOffsets
from asyncpar.errors import AuthorizationError, BrokerError
from asyncpar.records import CommitAnswer, Committed, GroupToken, TopicPartition

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
TOKEN = GroupToken(3, "member")


class Coordinator:
    """Answers each request with the next of `answers`; an exception is raised, None never answers."""

    def __init__(self, *answers: Any) -> None:
        self.coordinator_node = 1
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.moved: list[Any] = []

    async def ask_coordinator(self, request: Any) -> Any:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def coordinator_moved(self, node: Any) -> None:
        self.moved.append(node)


def offsets(coordinator: Coordinator) -> GroupOffsets:
    return GroupOffsets(coordinator, "g", 0.2)  # type: ignore[arg-type]


def fetched(*partitions: tuple[int, int, str, int], error: int = 0) -> OffsetFetchResponse_v3:
    return OffsetFetchResponse_v3(0, [("t", list(partitions))] if partitions else [], error)


def answered(*codes: tuple[int, int]) -> OffsetCommitResponse_v3:
    return OffsetCommitResponse_v3(0, [("t", list(codes))])


async def test_commits_are_read_with_metadata() -> None:
    """A commit comes with its string, and -1 means that there is none."""
    found = await offsets(Coordinator(fetched((0, 7, "m", 0), (1, -1, "", 0)))).committed([P0, P1])
    assert found == {P0: Committed(7, "m"), P1: None}


@pytest.mark.parametrize(
    ("code", "kind", "moved"),
    [(14, BrokerError, []), (15, BrokerError, [1]), (16, BrokerError, [1]), (30, AuthorizationError, [])],
)
async def test_an_error_of_the_whole_answer_raises(
    code: int, kind: type[Exception], moved: list[int]
) -> None:
    """An error with no topics beside it must never read as "nothing committed"."""
    coordinator = Coordinator(fetched(error=code))
    with pytest.raises(kind):
        await offsets(coordinator).committed([P0])
    assert coordinator.moved == moved


async def test_the_recorded_bytes_of_a_loading_group_raise() -> None:
    """The same, from the bytes that a broker sends while the group loads."""
    answer = OffsetFetchResponse_v3.decode(bytes.fromhex("00000000" + "00000000" + "000e"))
    with pytest.raises(BrokerError, match="GroupLoadInProgress"):
        await offsets(Coordinator(answer)).committed([P0])


async def test_an_error_of_one_partition_raises() -> None:
    """A partition's own error is no missing commit either, also in an answer without a common code."""
    with pytest.raises(BrokerError, match=r"t\[1\]"):
        await offsets(
            Coordinator(OffsetFetchResponse_v1([("t", [(0, 7, "", 0), (1, -1, "", 14)])]))
        ).committed([P0, P1])


async def test_a_partition_left_out_raises() -> None:
    """An answer that says nothing of a partition does not say that it has no commit."""
    with pytest.raises(BrokerError, match=r"leaves out t\[1\]"):
        await offsets(Coordinator(fetched((0, 7, "", 0)))).committed([P0, P1])


async def test_reading_is_bounded() -> None:
    """A coordinator that never answers is a BrokerError in time, and a lost connection is one at once."""
    with pytest.raises(BrokerError, match="no answer in time"):
        await offsets(Coordinator(None)).committed([P0])
    with pytest.raises(BrokerError, match="gone"):
        await offsets(Coordinator(KafkaConnectionError("gone"))).committed([P0])


async def test_nothing_asked_asks_nobody() -> None:
    """No partitions, no request; no offsets, no commit."""
    coordinator = Coordinator()
    assert await offsets(coordinator).committed([]) == {}
    assert await offsets(coordinator).commit(TOKEN, {}, 1.0) == {}


async def test_has_commits_looks_at_our_topics_only() -> None:
    """Commits in topics that the group read once do not count."""
    answer = fetched((0, 7, "", 0))
    assert await offsets(Coordinator(answer)).has_commits(lambda topic: topic == "t")
    assert not await offsets(Coordinator(answer)).has_commits(lambda topic: topic == "other")
    assert not await offsets(Coordinator(fetched())).has_commits(lambda topic: True)


async def test_a_commit_carries_its_token() -> None:
    """Generation and member id are those of the token, whatever the client believes by now."""
    coordinator = Coordinator(answered((0, 0), (1, 12)))
    answers = await offsets(coordinator).commit(TOKEN, {P0: Committed(5, "a"), P1: Committed(6, "b")}, 1.0)
    assert answers == {P0: CommitAnswer.ACKNOWLEDGED, P1: CommitAnswer.METADATA_TOO_LARGE}
    sent = coordinator.requests[0].build(OffsetCommitRequest_v3).to_object()
    assert (sent["consumer_group_generation_id"], sent["consumer_id"]) == (3, "member")
    assert sent["topics"][0]["partitions"] == [
        {"partition": 0, "offset": 5, "metadata": "a"},
        {"partition": 1, "offset": 6, "metadata": "b"},
    ]


@pytest.mark.parametrize("token", [GroupToken(-1, "member"), GroupToken(3, "")])
async def test_no_member_sends_no_commit(token: GroupToken) -> None:
    """A commit without generation or member is taken by an empty group, so it is never sent."""
    coordinator = Coordinator()
    assert await offsets(coordinator).commit(token, {P0: Committed(5, "")}, 1.0) == {P0: CommitAnswer.STALE}
    assert coordinator.requests == []


@pytest.mark.parametrize("metadata", ["x" * 32_768, "\ud800"])
async def test_metadata_that_cannot_be_sent(metadata: str) -> None:
    """A string that the protocol cannot carry fails for its partition; the others are committed."""
    coordinator = Coordinator(answered((1, 0)))
    answers = await offsets(coordinator).commit(
        TOKEN, {P0: Committed(5, metadata), P1: Committed(6, "")}, 1.0
    )
    assert answers == {P0: CommitAnswer.METADATA_TOO_LARGE, P1: CommitAnswer.ACKNOWLEDGED}
    assert coordinator.requests[0]._topics == [("t", [(1, 6, "")])]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, CommitAnswer.RETRY),
        (KafkaConnectionError("gone"), CommitAnswer.RETRY),
        (RuntimeError("client broke"), CommitAnswer.RETRY),
        (GroupAuthorizationFailedError("g"), CommitAnswer.FORBIDDEN),
        (OffsetCommitResponse_v3(0, []), CommitAnswer.RETRY),
    ],
)
async def test_a_commit_never_raises(answer: Any, expected: CommitAnswer) -> None:
    """Lost answers, broken clients and silence are answers too, for every partition."""
    assert await offsets(Coordinator(answer)).commit(TOKEN, {P0: Committed(5, "")}, 0.1) == {P0: expected}


@pytest.mark.parametrize(("code", "moved"), [(15, [1]), (16, [1]), (14, []), (22, []), (25, []), (27, [])])
async def test_only_a_moved_coordinator_is_looked_up(code: int, moved: list[int]) -> None:
    """A refused commit changes nothing in the client but, on 15 and 16, whom it takes for the coordinator."""
    coordinator = Coordinator(answered((0, code)))
    await offsets(coordinator).commit(TOKEN, {P0: Committed(5, "")}, 1.0)
    assert coordinator.moved == moved


async def test_cancellation_passes_through() -> None:
    """A commit that is cancelled by its caller ends as cancelled."""
    task = asyncio.create_task(offsets(Coordinator(None)).commit(TOKEN, {P0: Committed(5, "")}, 10.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
