"""Child processes of real members on a real Kafka: killed at random, orphaned, revoked, told to stop.

All of the kills: `python -m tests.workers --minutes 1`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from asyncpar.testing.history import Event, HistoryFile, read
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.members import STEADY, Member
from tests.integration.waiting import eventually, until_committed_to_end
from tests.integration.watch import judge
from tests.workers import journal
from tests.workers.__main__ import summary
from tests.workers.journal import Journal, Run
from tests.workers.killing import Killing, WorkersMember
from tests.workers.plan import WorkersPlan
from tests.workers.processes import children_of, of_session

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"),
]

Start = Callable[..., Member]
LONG = 20.0


class Ground:
    """A topic, and members of a group on it whose children all write into one journal."""

    def __init__(self, bootstrap: str, topic: str, group: str, folder: Path) -> None:
        self.bootstrap, self.topic, self.group = bootstrap, topic, group
        self.history = folder / "history"
        self.history.touch()
        self.journal = Journal(folder / "journal")
        self.members: list[Member] = []
        self.produced: list[kafka_tools.Produced] = []
        self._folder = folder

    def start(self, work_ms: float = 2.0, on_revoke: str = "cancel", **settings: object) -> Member:
        """One more member."""
        plan = WorkersPlan(
            self.topic, str(self.history), str(self._folder / "journal"), work_ms, on_revoke=on_revoke
        )
        log = self._folder / f"member-{len(self.members) + 1}.log"
        settings = {"worker_pool_size": 3, **settings}
        self.members.append(WorkersMember(plan, self.bootstrap, self.group, log, **settings))
        return self.members[-1]

    async def produce(self, count: int, keys: int = 100, value: bytes = b"") -> None:
        """Records that take as long as the value says."""
        records = kafka_tools.keyed(count, keys, value)
        self.produced += await kafka_tools.produce(self.bootstrap, self.topic, records)

    async def until(self, condition: Callable[[Sequence[Run]], object], what: str) -> None:
        """Until the runs so far are as `condition` says."""

        def look() -> object:
            self.journal.look()
            return condition(self.journal.runs)

        await eventually(look, what)

    async def finish(self) -> None:
        """Until all is committed; those that still run are stopped, and end with 0."""
        self.finals = await until_committed_to_end(self.bootstrap, self.group, self.topic)
        for member in self.members:
            if member.is_running:
                assert await asyncio.to_thread(member.stop) == 0, member.log
        self.journal.look()

    def check(self, cut_off_ns: dict[int, int] | None = None, **rules: object) -> dict[str, int]:
        """No law was broken; the checkers' counts. `cut_off_ns`: children that did not end their last run."""
        cut_off_ns = cut_off_ns or {}
        runs = self.journal.runs
        assert journal.overlaps(runs, cut_off_ns) == []
        done = {run.place for run in runs if run.end_ns is not None}
        assert {(one.partition, one.offset) for one in self.produced} == done
        events = [*read(self.history), *journal.events(self.topic, runs, cut_off_ns)]
        report = judge(events, self.produced, self.finals, **rules)
        assert report.is_ok, f"{report.explain()}\n{[member.log[-2000:] for member in self.members]}"
        return dict(report.counts)


@pytest.fixture
def ground(broker: Broker, make_topic: TopicFactory, group_id: str, tmp_path: Path) -> Iterator[Ground]:
    """Of four partitions; members that still run at the end of the test are killed, and their children."""
    made = Ground(broker.bootstrap, make_topic(partitions=4), group_id, tmp_path)
    yield made
    for member in made.members:
        member.kill()


def of(member: Member) -> Callable[[Run], bool]:
    """Whether a run was one of `member`'s children's."""
    return lambda run: run.member == member.name


async def test_children_killed_under_load_lose_and_reorder_nothing(broker: Broker, tmp_path: Path) -> None:
    """One every 200 ms: 0 lost, 0 reordered, 0 overlaps, attempts counted only for what ran; work goes on."""
    seed = random.SystemRandom().randrange(1_000_000)
    outcome = await Killing(broker.bootstrap, 5.0, seed, tmp_path, lambda _: None).run()
    assert outcome.faults_found == [], f"seed {seed}\n{summary(outcome)}"
    assert outcome.kills > 10
    assert outcome.cut_off > 0, "children were killed while they ran something"
    assert outcome.ratio > 0.2, summary(outcome)


async def test_children_of_a_killed_parent_are_gone_before_the_next_one_runs_anything(ground: Ground) -> None:
    """kill -9 of the parent: no child outlives it, and the restarted parent's run the same keys alone."""
    await ground.produce(3000)
    first = ground.start(work_ms=20, group_instance_id="the-only-one")
    await ground.until(lambda runs: len(runs) > 100, "the first one works")
    assert len(children_of(first.pid)) == 3
    os.kill(first.pid, signal.SIGKILL)
    second = ground.start(work_ms=2, group_instance_id="the-only-one")
    await eventually(lambda: not of_session(first.pid), "all processes of the first one are gone", LONG)
    gone_ns = time.monotonic_ns()
    HistoryFile(ground.history).append(Event("dead", gone_ns, first.name))
    await ground.until(lambda runs: any(map(of(second), runs)), "the second one works")
    await ground.finish()

    old = [run for run in ground.journal.runs if of(first)(run)]
    began = min(run.start_ns for run in ground.journal.runs if of(second)(run))
    assert max(run.end_ns or run.start_ns for run in old) < began
    counts = ground.check({run.pid: gone_ns for run in old if run.end_ns is None})
    assert counts["unclean losses"] > 0, "partitions of the killed one"


async def test_a_member_that_joins_finds_nothing_running_and_nothing_runs_twice(ground: Ground) -> None:
    """Records end within the grace: each runs once, whichever member has its partition."""
    await ground.produce(4000)
    first = ground.start(work_ms=10, **STEADY)
    await ground.until(lambda runs: len(runs) > 300, "the first one works")
    second = ground.start(work_ms=10, **STEADY)
    await ground.until(lambda runs: sum(map(of(second), runs)) > 300, "the second one works")
    assert first.is_running
    await ground.finish()
    counts = ground.check(**STEADY)
    assert counts["duplicates"] == 0
    assert len(ground.journal.runs) == len(ground.produced), "nothing was cut off"
    assert {run.attempt for run in ground.journal.runs} == {1}


async def test_what_outlives_the_grace_is_cut_off_and_nothing_else_runs_twice(ground: Ground) -> None:
    """Long records are killed with their child when a member joins; nobody is blamed for it."""
    await ground.produce(40, keys=40, value=b"1500")
    first = ground.start(max_revoke_grace_ms=200)
    await ground.until(lambda runs: len(runs) >= 3, "the first one works")
    second = ground.start(max_revoke_grace_ms=200)
    await ground.until(lambda runs: any(map(of(second), runs)), "the second one works")
    await ground.finish()
    runs = ground.journal.runs
    cut = {run.pid: run for run in runs if run.end_ns is None}
    assert cut, "records ran when the second one joined"
    assert all(of(first)(run) for run in cut.values())
    assert {run.attempt for run in runs} == {1}
    again = {run.place for run in runs if sum(run.place == one.place for one in runs) > 1}
    assert again == {run.place for run in cut.values()}
    released = [event for event in read(ground.history) if event.kind == "released"]
    ends = {
        pid: min(
            one.at_ns for one in released if one.at_ns > run.start_ns and one.tp.partition == run.partition
        )
        for pid, run in cut.items()
    }
    ground.check(ends, max_revoke_grace_ms=200)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_a_signal_to_the_whole_process_group_drains(ground: Ground, number: signal.Signals) -> None:
    """As of Ctrl-C or a service manager: children end what they run, all of it counts, the exit code is 0."""
    await ground.produce(3000)
    first = ground.start(work_ms=30, **STEADY)
    await ground.until(lambda runs: len(runs) > 60, "it works")
    os.killpg(first.pid, number)
    assert await asyncio.to_thread(first.ended) == 0, first.log
    await eventually(lambda: not of_session(first.pid), "no process of it is left")
    ground.journal.look()
    assert ground.journal.running() == [], "what ran has ended"
    assert len(ground.journal.runs) < 3000, "it was told under load"
    assert "Traceback" not in first.log

    ground.start(work_ms=2, **STEADY)
    await ground.finish()
    counts = ground.check(**STEADY)
    assert counts["duplicates"] == 0
    assert len(ground.journal.runs) == 3000
