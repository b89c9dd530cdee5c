"""Whole lives: they pass, they repeat exactly, every fault strikes, and a broken engine is found out."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest

from asyncpar.policies import Breaker, DeadLetterBudget, PoisonKeys, RateLimit
from asyncpar.runtime.committer import Committer
from asyncpar.runtime.outbox import Outbox
from asyncpar.runtime.rebalance import Rebalancer
from asyncpar.runtime.worker import Worker
from asyncpar.testing.history import encode
from asyncpar.testing.simulation.faults import FAULTS, WEIGHTS
from asyncpar.testing.simulation.life import FAULTS_AND_STATES, Outcome, live, plan_of
from asyncpar.testing.simulation.plan import (
    HANDLERS_FAIL,
    LETTERS_REFUSED,
    MIN_RECORDS,
    LetterPlan,
    Mix,
    Plan,
    PlannedFault,
)
from asyncpar.testing.simulation.shrink import shrink
from asyncpar.testing.simulation.trace import tell
from asyncpar.testing.simulation.world import LIFE_SECONDS
from tests.cli.program import ROOT

CALM = Mix(brief=0.3, slow=0.0, raising=0.0, hanging=0.0, stubborn=0.0)
SETTINGS: Mapping[str, object] = {
    "max_in_flight": 500,
    "poll_batch_size": 50,
    "commit_every": 200,
    "commit_interval_ms": 500,
    "session_timeout_ms": 6_000,
    "heartbeat_interval_ms": 2_000,
    "max_revoke_grace_ms": 2_000,
    "shutdown_drain_timeout_ms": 30_000,
    "retry_base_ms": 50,
    "retry_max_ms": 2_000,
    "http_port": 0,
}


def small_plan(*faults: PlannedFault, mix: Mix = CALM, **values: object) -> Plan:
    """Two members, a few records, these faults only."""
    plan = Plan(
        seed=1,
        partitions={"orders": 3},
        members=2,
        cooperative=False,
        static=False,
        records=300,
        keys=20,
        keyless_share=0.0,
        payload_bytes=8,
        settings=SETTINGS,
        handler={"concurrency": 10, "order": "key"},
        attempts=None,
        mix=mix,
        faults=faults,
        chaos_seconds=40.0,
    )
    return replace(plan, **values)  # type: ignore[arg-type]


def letter_plan(*faults: PlannedFault, **values: object) -> Plan:
    """The same, and some records become dead letters."""
    letters = LetterPlan(partitions=1, undecodable=False, **values)  # type: ignore[arg-type]
    return small_plan(*faults, mix=replace(CALM, hopeless=0.1), attempts=3, letters=letters)


def told(outcome: Outcome) -> str:
    return "" if outcome.is_ok else tell(outcome)


def digest(seed: int) -> str:
    """A text that any difference in what happened would change."""
    return hashlib.sha256(b"".join(map(encode, live(plan_of(seed)).events))).hexdigest()


@pytest.mark.parametrize("seed", range(20))
def test_drawn_lives_pass(seed: int) -> None:
    """No law is broken, whatever the seed brings, and a life is as long and as full as it says."""
    outcome = live(plan_of(seed))
    assert outcome.is_ok, told(outcome)
    assert outcome.simulated_seconds >= LIFE_SECONDS
    assert sum(1 for event in outcome.events if event.kind == "send") >= MIN_RECORDS
    assert len(outcome.plan.faults) >= 3


def test_a_life_repeats_exactly() -> None:
    """In this process and in others, whatever their seed of hashes: else a seed would be worth nothing."""
    code = (
        "import logging; logging.disable(); from tests.testing.simulation.test_life import digest; "
        "print([digest(seed) for seed in (1, 4, 9)])"
    )
    digests = {str([digest(seed) for seed in (1, 4, 9)])}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        digests.add(ended.stdout.strip())
    assert len(digests) == 1


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_strikes_and_is_survived(kind: str) -> None:
    """Each kind alone, planned a few times: at least one strikes, and the life passes."""
    faults = [
        PlannedFault(at=at, kind=kind, seconds=3.0, pick=pick, share=share)
        for at, pick, share in ((8.0, 0.1, 0.5), (15.0, 0.6, 0.2), (22.0, 0.9, 0.5), (29.0, 0.4, 0.2))
    ]
    outcome = live((letter_plan if kind == LETTERS_REFUSED else small_plan)(*faults))
    assert outcome.is_ok, told(outcome)
    assert outcome.met[kind] > 0


def test_records_become_dead_letters() -> None:
    """Those that never succeed, and no others: their attempts are used up, and the group comes to rest."""
    outcome = live(letter_plan())
    assert outcome.is_ok, told(outcome)
    sent = {(event.tp, event.offset) for event in outcome.events if event.kind == "send"}
    letters = {place for place in sent if place[0].topic == "orders.dlq"}
    assert 10 < len(letters) == outcome.counts["dead letters"] == outcome.met["dead letter acknowledged"]
    assert outcome.counts["handled"] == len(sent) - 2 * len(letters)


@pytest.mark.parametrize(
    ("rules", "state"),
    [
        ({"budget": DeadLetterBudget(share=0.0, at_least=1, window_ms=3_000)}, "budget used up"),
        ({"poison": PoisonKeys(failures=2, cool_down_ms=1_000)}, "key poisoned"),
        ({"breaker": Breaker(min_calls=5, open_ms=500, max_open_ms=2_000)}, "breaker opened"),
        ({"rate": RateLimit(per_second=100, burst=1)}, "dead letter acknowledged"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_rules_of_dead_letters_are_lived_through(rules: Mapping[str, object], state: str) -> None:
    """Each alone: it does what it is for, and the life passes."""
    outage = PlannedFault(at=20.0, kind=HANDLERS_FAIL, seconds=5.0, pick=0.5, share=0.5)
    outcome = live(letter_plan(*([outage] if "breaker" in rules else []), **rules))
    assert outcome.is_ok, told(outcome)
    assert outcome.met[state] > 0


def test_a_letter_that_was_never_written_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its member says that it was acknowledged, and its topic does not have it."""

    async def forgotten(self: Outbox, tp: object, departure: object) -> float:
        self._departed(departure)  # type: ignore[arg-type]
        self._settle(tp, departure)  # type: ignore[arg-type]
        return 0.0

    monkeypatch.setattr(Outbox, "_send", forgotten)
    assert live(letter_plan()).failed_checks == {"DEAD LETTER"}


def test_faults_and_their_weights_are_the_same_list() -> None:
    """What is planned can strike, and what can strike is planned and looked for."""
    assert set(WEIGHTS) == set(FAULTS) <= set(FAULTS_AND_STATES)


def test_a_broken_engine_is_found_out_shrunk_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A revoke without its final commit: the life fails, its plan shrinks, and the trace shows the record."""

    async def forgotten(*_: object) -> bool:
        return True

    monkeypatch.setattr(Committer, "final", forgotten)
    joins = [PlannedFault(at=at, kind="member joins", seconds=3.0, pick=0.5, share=0.5) for at in (8, 20, 33)]
    plan = small_plan(*joins, records=800, settings={**SETTINGS, "commit_interval_ms": 3_000})
    outcome = live(plan)
    assert "DUPLICATES" in outcome.failed_checks, outcome.problems
    smaller = shrink(plan, lambda one: "DUPLICATES" in live(one).failed_checks, max_lives=15)
    assert smaller != plan
    assert (len(smaller.faults), smaller.records) <= (len(plan.faults), plan.records)
    text = tell(live(smaller))
    assert "DUPLICATES orders[" in text
    assert "trace (seconds, member, event):" in text
    assert " start orders[" in text


def test_a_world_that_cannot_go_on_is_a_failed_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rig's own failure is told like any other, not raised."""
    monkeypatch.setattr("asyncpar.testing.simulation.life.MAX_STEPS", 5_000)
    outcome = live(small_plan())
    assert outcome.failed_checks >= {"SIMULATION"}
    assert "no end after" in " ".join(map(str, outcome.problems))


def test_a_handler_that_is_cancelled_and_should_be_kept_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `on_revoke="keep"` nothing but the end of the process cancels a handler."""
    monkeypatch.setattr(Rebalancer, "_is_kept", lambda *_: False)
    joins = [PlannedFault(at=at, kind="member joins", seconds=3.0, pick=0.5, share=0.5) for at in (8, 20)]
    plan = small_plan(*joins, mix=replace(CALM, hanging=0.1))
    kept = replace(plan, handler={**plan.handler, "on_revoke": "keep"})
    assert any("was cancelled, not kept" in one.text for one in live(kept).problems)
    assert live(plan).is_ok


def test_a_handler_that_is_left_hanging_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `on_revoke="cancel"` a partition is not taken without a word to what runs of it."""
    monkeypatch.setattr(Worker, "cancel", lambda *_: None)
    joins = [PlannedFault(at=at, kind="member joins", seconds=3.0, pick=0.5, share=0.5) for at in (8, 20)]
    plan = small_plan(*joins, mix=replace(CALM, hanging=0.1))
    assert any("was not cancelled when its partition was taken" in one.text for one in live(plan).problems)


def test_what_members_leave_unhandled_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody took fails the life."""
    broken = PlannedFault(at=5.0, kind="broken", seconds=1.0, pick=0.5, share=0.5)
    monkeypatch.setitem(FAULTS, "broken", (0.0, lambda world, fault: 1 / 0))  # type: ignore[arg-type, return-value]
    outcome = live(small_plan(broken))
    assert outcome.failed_checks == {"UNHANDLED"}
