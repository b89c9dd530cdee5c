"""The process bridge under anything: random jobs, deaths, cancellations, withdrawals; what always holds."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Literal

import pytest

from asyncpar.errors import HandlerTimeoutError, NotStartedError, WorkerDiedError
from asyncpar.executors.lane_port import Batch, Job, JobFailure
from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.records import TopicPartition
from asyncpar.testing.modelled_lanes import JobFault, LaneFaults, ModelledLane, ModelledLanes
from asyncpar.testing.virtual_time import virtual_time
from tests.executors.bridge_world import TOPIC, Raw, failed
from tests.testing.virtually import loop, now

KEYS, RECORDS_OF_A_KEY, PARTITIONS = 16, 12, 3
_CHAOS_SECONDS = 20.0

Attempt = tuple[int, int]
"""Offset, and which call of it."""


class Chances(LaneFaults):
    """Faults by chance, until they are over."""

    def __init__(self, rng: random.Random, has_timeout: bool) -> None:
        self._rng = rng
        self._job_faults: list[JobFault] = ["crash_before", "crash_after"] + ["hang"] * has_timeout
        self.is_on = True
        self.faults: dict[Attempt, JobFault | None] = {}
        """Of all attempts that a child came to."""

    def _happens(self, chance: float) -> bool:
        return self.is_on and self._rng.random() < chance

    def of_start(self) -> str | None:
        return "no memory" if self._happens(0.3) else None

    def of_job(self, job: Job) -> JobFault | None:
        fault = self._rng.choice(self._job_faults) if self._happens(0.03) else None
        self.faults[job.offset, job.attempt] = fault
        return fault

    def of_reply(self, _batch: Batch) -> float | Literal["torn"]:
        if self._happens(0.03):
            return "torn"
        return self._rng.uniform(0.0, 2.0) if self._happens(0.03) else 0.0


class Life:
    """One bridge, its workers, and all that goes wrong with them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        timeout_ms = rng.choice([None, 300, 1000])
        self.chances = Chances(rng, timeout_ms is not None)
        self.children = ModelledLanes(self.handle, self.chances, timeout_ms=timeout_ms)
        self.rules = BridgeRules(
            lanes=rng.randint(1, 3),
            batch_size=rng.randint(1, 6),
            queue_size=1000,
            max_batch_wait_ms=rng.choice([0, 5, 50]),
            timeout_ms=timeout_ms,
            max_tasks_per_child=rng.choice([None, 3, 20]),
        )
        log = logging.getLogger("test.random")
        self.bridge = ProcessBridge("h", self.rules, self.children, loop().time, log)
        self.lease_until = float("inf")
        self.bridge.open(lambda: self.lease_until, lambda _: None)
        self.running: set[int] = set()
        self.ended: dict[Attempt, bool] = {}
        """Attempts that ran to their end, and whether they succeeded."""
        self.killed_at: set[Attempt] = set()
        """At which a child stood when somebody else killed it."""
        self.outcomes: dict[Attempt, BaseException | None] = {}
        self.cancelled: Counter[Attempt] = Counter()
        self.calls: dict[Attempt, asyncio.Task[None]] = {}
        """Those that have not ended."""

    async def handle(self, job: Job) -> JobFailure | None:
        key = job.offset % KEYS
        assert key not in self.running, f"two records of key {key} run at once"
        self.running.add(key)
        try:
            await asyncio.sleep(self.rng.choice([0.0, 0.001, 0.001, 0.01, 0.02, 0.2]))
            if self.rng.random() < 0.01:
                await asyncio.sleep(3.0)
        finally:
            self.running.discard(key)
        is_good = self.rng.random() < 0.9
        self.ended[job.offset, job.attempt] = is_good
        return None if is_good else failed()

    # -- workers -----------------------------------------------------------------------------

    async def work(self, key: int) -> None:
        """A key's records one after the other, each until it is done or given up."""
        for number in range(RECORDS_OF_A_KEY):
            offset = number * KEYS + key
            attempt, is_open = 0, True
            while is_open:
                attempt += 1
                if now() > self.lease_until:
                    await asyncio.sleep(0.4)
                answer = await self.call((offset, attempt))
                is_final = isinstance(answer, WorkerDiedError) and answer.is_final
                is_open = answer is not None and not is_final and not isinstance(answer, RuntimeError)
            await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.5]))

    async def call(self, attempt: Attempt) -> BaseException | None:
        coroutine = self.bridge.run(TOPIC, attempt[0] % PARTITIONS, Raw(attempt[0]), attempt[1], 1)
        task = asyncio.create_task(coroutine)
        self.calls[attempt] = task
        await asyncio.wait([task])
        del self.calls[attempt]
        assert attempt not in self.outcomes
        answer = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.outcomes[attempt] = answer
        return answer

    # -- what goes wrong ---------------------------------------------------------------------

    async def chaos(self) -> None:
        until = now() + _CHAOS_SECONDS
        while now() < until:
            await asyncio.sleep(self.rng.uniform(0.0, 0.3))
            strikes = [self.cancel, self.cancel, self.withdraw, self.kill, self.freeze, self.end_lease]
            self.rng.choice(strikes)()
        self.chances.is_on = False

    def cancel(self) -> None:
        if self.calls:
            attempt = self.rng.choice(list(self.calls))
            self.cancelled[attempt] += 1
            self.calls[attempt].cancel()
            if self.rng.random() < 0.3:
                loop().call_later(self.rng.choice([0.0, 0.0001, 0.03]), self.cancel_again, attempt)

    def cancel_again(self, attempt: Attempt) -> None:
        if attempt in self.calls:
            self.cancelled[attempt] += 1
            self.calls[attempt].cancel()

    def withdraw(self) -> None:
        self.bridge.withdraw(TopicPartition(TOPIC, self.rng.randrange(PARTITIONS)))

    def kill(self) -> None:
        lane = self.some_lane()
        if lane is not None:
            for serving in self.bridge._lanes:
                call = serving.at(lane.progress()) if serving.port is lane else None
                if call is not None:
                    self.killed_at.add((call.place[2], Job._make(call.fields).attempt))
            lane.die("killed by SIGKILL")

    def freeze(self) -> None:
        lane = self.some_lane()
        if lane is not None:
            lane.freeze()
            loop().call_later(self.rng.choice([0.01, 1.0, 15.0]), lane.thaw)

    def end_lease(self) -> None:
        self.lease_until = now() + self.rng.uniform(-0.1, 0.1)
        loop().call_later(0.2, self.renew_lease)

    def renew_lease(self) -> None:
        self.lease_until = float("inf")

    def some_lane(self) -> ModelledLane | None:
        alive = [lane for lane in self.children.lanes if not lane.is_dead and lane.pid is not None]
        return self.rng.choice(alive) if alive else None

    # -- what must hold ----------------------------------------------------------------------

    def judge(self) -> None:
        crashes = Counter[int]()
        for (offset, number), answer in sorted(self.outcomes.items()):
            attempt = (offset, number)
            fault = self.chances.faults.get(attempt)
            if answer is None:
                assert self.ended.get(attempt) is True, f"{attempt} succeeded, and did not run to its end"
            elif isinstance(answer, NotStartedError):
                assert attempt not in self.ended or fault == "crash_after", f"{attempt} ran: {answer}"
            elif isinstance(answer, WorkerDiedError):
                assert attempt in self.killed_at or fault in ("crash_before", "crash_after"), attempt
                assert attempt not in self.ended or fault == "crash_after", attempt
                crashes[offset] += 1
                assert not answer.is_final or crashes[offset] >= 2, attempt
            elif isinstance(answer, HandlerTimeoutError):
                assert self.rules.timeout_ms is not None
                assert attempt in self.chances.faults, f"{attempt} did not run"
                assert attempt not in self.ended or fault == "crash_after", attempt
            elif isinstance(answer, asyncio.CancelledError):
                assert self.cancelled[attempt], f"{attempt} was not cancelled"
                gave_up = self.cancelled[attempt] > 1 or fault == "crash_after"
                assert attempt not in self.ended or gave_up, f"{attempt} ran to its end"
            else:
                assert self.ended.get(attempt) is False, f"{attempt}: {answer!r}"


async def live(rng: random.Random, *, closes_early: bool) -> None:
    life = Life(rng)
    life.chances.is_on = False
    await life.bridge.start()
    life.chances.is_on = True
    workers = [asyncio.create_task(life.work(key)) for key in range(KEYS)]
    chaos = asyncio.create_task(life.chaos())
    if closes_early:
        await asyncio.sleep(rng.uniform(0.0, 5.0))
        await life.bridge.close(rng.choice([0.0, 0.5]))
        waiting = list(life.calls.values())
        for worker in workers:
            worker.cancel()
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=1e-3)
            assert not late, "a call outlives the bridge"
        chaos.cancel()
        await asyncio.wait([chaos, *workers])
    else:
        _, late = await asyncio.wait([chaos, *workers], timeout=1000)
        assert not late, f"no end: {life.bridge.statistics}"
        await asyncio.gather(chaos, *workers)
        life.judge()
        statistics = life.bridge.statistics
        assert (statistics.busy, statistics.pending) == (0, 0)
        await life.bridge.close(1.0)
    await asyncio.sleep(20)
    assert all(lane.is_dead for lane in life.children.lanes)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for _, _, timer in loop()._timers if not timer.cancelled()] == []
    assert loop().errors == []


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_each_record_gets_its_own_end(seed: int) -> None:
    """Once, and a true one; keys stay one at a time; who is blamed ran; it all ends, nothing stays."""
    rng = random.Random(seed)
    with virtual_time(rng, max_steps=2_000_000) as virtual:
        virtual.run_until_complete(live(rng, closes_early=False))


@pytest.mark.parametrize("seed", range(20))
def test_a_close_at_any_moment_ends_everything(seed: int) -> None:
    """No call waits on, no child and no timer stays."""
    rng = random.Random(1000 + seed)
    with virtual_time(rng, max_steps=2_000_000) as virtual:
        virtual.run_until_complete(live(rng, closes_early=True))
