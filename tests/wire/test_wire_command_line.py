"""`asyncpar run` in a process of its own against a cluster with a fault: its exit code and its last line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.cli.program import environment, write
from tests.wire.lives import PARTITIONS, SETTINGS, TOPIC
from tests.wire.mock_cluster import MockCluster, Request

RECORDS = 20
BOUND_SECONDS = 40
AT_ONCE = 4
"""Processes: the machine has few cores."""
APP = f"""
from asyncpar import topic

@topic("{TOPIC}")
async def note(payload: str) -> None:
    with open("handled", "a") as file:
        print(payload, file=file, flush=True)
"""

# Request, error code for ever, exit code, a part of the last line. What all codes lead to: `cases.py`.
FATAL: list[tuple[Request, int, int, str]] = [
    (Request.API_VERSIONS, -195, 4, "no usable broker"),
    (Request.METADATA, 3, 2, "does not exist"),
    (Request.FIND_COORDINATOR, 30, 4, "no right on group"),
    (Request.JOIN_GROUP, 26, 2, "session_timeout_ms"),
    (Request.HEARTBEAT, -1, 1, "died 4 times"),
    (Request.FETCH, 29, 4, "no right on topic"),
    (Request.OFFSET_COMMIT, 30, 4, "no right to commit"),
]
SURVIVED: list[tuple[Request, int]] = [
    (Request.JOIN_GROUP, 15),
    (Request.OFFSET_COMMIT, 16),
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Ended:
    """How a process ended. `committed` is the sum over the partitions, seen from outside."""

    code: int
    err: str
    handled: list[str]
    committed: int

    @property
    def last_line(self) -> str:
        return self.err.rstrip().rpartition("\n")[2]


async def _run(folder: Path, request: Request, code: int, *, survived: bool) -> Ended:
    cluster = await asyncio.to_thread(MockCluster)
    try:
        await asyncio.to_thread(cluster.create_topic, TOPIC, PARTITIONS)
        records = [(number % PARTITIONS, b"k%d" % (number % 3), b"%d" % number) for number in range(RECORDS)]
        await asyncio.to_thread(cluster.produce, TOPIC, records)
        if survived:
            cluster.fail(request, code)
        elif request is Request.METADATA:
            await asyncio.to_thread(cluster.set_topic_error, TOPIC, code)
        else:
            cluster.fail_always(request, code)
        write(folder, {"app": APP})
        settings = {**SETTINGS, "bootstrap_servers": cluster.bootstrap, "group": "group"}
        if request is Request.API_VERSIONS:
            settings["startup_timeout_ms"] = 2_000
        arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        if survived:
            arguments.append("--drain-and-exit")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncpar", "run", "app", *arguments),
            cwd=folder,
            env=environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, err = await asyncio.wait_for(process.communicate(), BOUND_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        cluster.heal(request)
        committed = await asyncio.to_thread(cluster.committed, "group", TOPIC, PARTITIONS)
        file = folder / "handled"
        handled = file.read_text().split() if file.exists() else []
        assert process.returncode is not None
        return Ended(
            process.returncode, err.decode(), handled, sum(max(0, one) for one in committed.values())
        )
    finally:
        await asyncio.to_thread(cluster.close)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[dict[tuple[Request, int], asyncio.Task[Ended]]]:
    """All processes, a few at the same time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(request: Request, code: int, survived: bool) -> Ended:
        async with gate:
            return await _run(tmp_path_factory.mktemp("app"), request, code, survived=survived)

    asked = [(one[0], one[1], False) for one in FATAL] + [(*one, True) for one in SURVIVED]
    tasks = {one[:2]: asyncio.create_task(gated(*one)) for one in asked}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize(
    ("request_kind", "code", "exit_code", "says"),
    FATAL,
    ids=[f"{one[0].name.lower()}-{one[1]}" for one in FATAL],
)
async def test_what_no_retry_mends_ends_with_its_exit_code(
    request_kind: Request,
    code: int,
    exit_code: int,
    says: str,
    runs: dict[tuple[Request, int], asyncio.Task[Ended]],
) -> None:
    """The exit code says who has to act, the last line what to do, and there is no traceback."""
    ended = await runs[request_kind, code]
    assert ended.code == exit_code, ended.err
    assert ended.last_line.startswith("asyncpar: error: ")
    assert says in ended.last_line
    assert "Traceback" not in ended.err
    assert ended.committed <= len(set(ended.handled))


@pytest.mark.parametrize(
    ("request_kind", "code"), SURVIVED, ids=[f"{one[0].name.lower()}-{one[1]}" for one in SURVIVED]
)
async def test_what_passes_is_survived(
    request_kind: Request, code: int, runs: dict[tuple[Request, int], asyncio.Task[Ended]]
) -> None:
    """The process handles and commits everything up to the end, once each, and exits with 0."""
    ended = await runs[request_kind, code]
    assert ended.code == 0, ended.err
    assert sorted(map(int, ended.handled)) == list(range(RECORDS))
    assert ended.committed == RECORDS
    assert "Traceback" not in ended.err
