"""Waiting for a state: look, and look again, with a bound. Never a sleep that hopes.

Called by all integration tests.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final
from tests import kafka_tools

WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.03
_MEMBER_FIELD = 2  # of a line in the history


async def eventually(condition: Callable[[], Any], what: str, timeout_seconds: float = WAIT_SECONDS) -> Any:
    """The first true answer of `condition` (sync or async); AssertionError names `what` after the bound."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        await asyncio.sleep(_LOOK_SECONDS)


def ended_calls(history: Path, member: str | None = None) -> int:
    """How many calls have ended well so far, in all or on `member`; cheap enough to ask again and again."""
    lines = history.read_bytes().split(b"\n")
    ends = [line for line in lines if line.startswith(b"end\t") and line.endswith(b"\tok")]
    if member is None:
        return len(ends)
    return sum(line.split(b"\t")[_MEMBER_FIELD] == member.encode() for line in ends)


async def until_ended(history: Path, count: int, timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait until `count` calls have ended well."""
    await eventually(lambda: ended_calls(history) >= count, f"{count} calls ended", timeout_seconds)


async def until_committed_to_end(
    bootstrap: str, group: str, topic: str, timeout_seconds: float = WAIT_SECONDS
) -> dict[TopicPartition, Final]:
    """Wait until the group's commits of `topic` are the ends of its partitions: the lag is 0.

    Returns what is stored, for the checkers.
    """
    ends = await kafka_tools.end_offsets(bootstrap, topic)
    seen: dict[int, int] = {}

    async def is_at_end() -> bool:
        nonlocal seen
        commits = await kafka_tools.committed(bootstrap, group, topic)
        seen = {number: commit.offset for number, commit in commits.items()}
        # What was always empty is committed too, or not at all: both are lag 0.
        return {number: seen.get(number, 0) for number in ends} == ends

    try:
        await eventually(is_at_end, "committed = end", timeout_seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; ends {ends}, committed {seen}") from None
    return {TopicPartition(topic, number): Final(seen.get(number), end) for number, end in ends.items()}


async def until_group_is_empty(bootstrap: str, group: str) -> None:
    """Wait until the group has no members: after that no commit of a dead one can arrive."""

    async def is_empty() -> bool:
        return not await kafka_tools.group_members(bootstrap, group)

    await eventually(is_empty, f"group {group} is empty")
