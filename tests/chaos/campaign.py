"""Rounds until enough faults have struck: one cluster for all of them, and what each of them came to.

What lives here: how many rounds, and what is kept of them. What never does: what happens in a round. Called
by `__main__.py` and `test_chaos.py`. Always: a round that fails keeps its folder; all else is cleaned up.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import MEMBER_KINDS, NETWORK_KINDS
from tests.chaos.round import Outcome, Round, Shape, broker_kinds
from tests.kafka_broker import BrokerStartError

MOST_VOID = 3
"""So many rounds in a row may be void before the campaign gives up."""


class CampaignError(RuntimeError):
    """No verdict: the cluster fails again and again."""


@dataclass
class Goal:
    """`faults` in all, each kind at least its twentieth of them; no new round after `minutes`."""

    faults: int
    minutes: float | None = None
    brokers: int = 3
    shape: Shape = field(default_factory=Shape)
    only_round: int | None = None

    @property
    def of_each_kind(self) -> int:
        return self.faults // 20


@dataclass
class Tally:
    """What has happened so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    void: list[Outcome] = field(default_factory=list)
    kinds: tuple[str, ...] = ()
    no_disk: str | None = None
    seconds: float = 0.0

    @property
    def struck(self) -> Counter[str]:
        return sum((outcome.struck for outcome in self.outcomes), Counter())

    @property
    def missed(self) -> Counter[str]:
        return sum((outcome.missed for outcome in self.outcomes), Counter())

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in (*self.outcomes, *self.void) if outcome.faults_found]

    def has_reached(self, goal: Goal) -> bool:
        struck = self.struck
        return struck.total() >= goal.faults and all(struck[kind] >= goal.of_each_kind for kind in self.kinds)


async def run(goal: Goal, seed: int, tally: Tally, on_round: Callable[[Outcome], None]) -> None:
    """Rounds until `goal` is reached or its time is over; `tally` grows with each.

    Raises CampaignError when the cluster fails repeatedly.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="asyncpar-chaos-"))
    cluster: ChaosCluster | None = None
    void_in_a_row = 0
    numbers = count() if goal.only_round is None else iter([goal.only_round])
    try:
        for number in numbers:
            cluster = cluster or await _new_cluster(goal, tally)
            outcome = await _one_round(cluster, seed, number, goal.shape, folder)
            tally.seconds = time.monotonic() - began
            if outcome.void is None:
                void_in_a_row = 0
                tally.outcomes.append(outcome)
            else:
                void_in_a_row += 1
                tally.void.append(outcome)
                await cluster.close()
                cluster = None
            on_round(outcome)
            if void_in_a_row == MOST_VOID:
                raise CampaignError(f"{MOST_VOID} rounds in a row were void, the last one: {outcome.void}")
            is_late = goal.minutes is not None and tally.seconds > 60 * goal.minutes
            if is_late or tally.has_reached(goal):
                break
    finally:
        if cluster is not None:
            await cluster.close()
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # what failed is kept
        folder.rmdir()


async def _new_cluster(goal: Goal, tally: Tally) -> ChaosCluster:
    cluster = ChaosCluster(goal.brokers)
    tally.no_disk = cluster.no_disk
    tally.kinds = (*MEMBER_KINDS, *NETWORK_KINDS, *broker_kinds(cluster))
    try:
        await cluster.start()
    except BaseException as error:
        await cluster.close()
        if isinstance(error, BrokerStartError | OSError):
            raise CampaignError(f"the cluster does not start: {error}") from error
        raise
    return cluster


async def _one_round(cluster: ChaosCluster, seed: int, number: int, shape: Shape, folder: Path) -> Outcome:
    """A round; its folder is kept when something is wrong with it."""
    own = folder / f"round-{number}"
    own.mkdir()
    try:
        outcome = await Round(cluster, seed, number, shape, own).run()
    except asyncio.CancelledError:
        shutil.rmtree(own)
        raise
    if outcome.void is None and not outcome.faults_found:
        shutil.rmtree(own)
    else:
        cluster.save_logs(own)
    return outcome
