"""A life before it is lived: everything that is drawn from the seed, as plain data.

Each part draws from a generator of its own, so that a part that is taken away (by the shrinker)
leaves the others as they were.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

CHAOS_SECONDS = 60.0
"""Faults and records come in the first minute; then the world heals."""
MIN_RECORDS, MAX_RECORDS = 2_000, 2_400
MIN_FAULTS, MAX_FAULTS = 4, 14
FULL_METADATA = 4_096
"""Kafka's own default of `offset.metadata.max.bytes`."""
_GAPS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault and when it strikes.

    `seconds` is how long it lasts where it lasts; `pick` (0 to 1) chooses its victim among those that
    there are when it strikes; `share` (0 to 1) says how much of the requests, or of the log, it takes.
    """

    at: float
    kind: str
    seconds: float
    pick: float
    share: float

    def __str__(self) -> str:
        how = f"{self.seconds:.1f} s, pick {self.pick:.2f}, share {self.share:.2f}"
        return f"{self.at:5.1f} s {self.kind} ({how})"


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of records (0 to 1) by what their handler does; the rest returns at once."""

    brief: float = 0.3
    slow: float = 0.03
    raising: float = 0.02
    hanging: float = 0.0005
    stubborn: float = 0.002
    untidy: float = 0.0
    skipped: float = 0.0
    failing: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One life. `settings` are engine-wide knobs, `handler` arguments of `@topic`."""

    seed: int
    partitions: Mapping[str, int]
    members: int
    cooperative: bool
    static: bool
    records: int
    keys: int
    keyless_share: float
    payload_bytes: int
    """The most that a record's value has."""
    settings: Mapping[str, object]
    handler: Mapping[str, object]
    attempts: int | None
    mix: Mix
    faults: Sequence[PlannedFault] = field(default=())
    metadata_max_bytes: int = FULL_METADATA
    """The broker's `offset.metadata.max.bytes`."""
    chaos_seconds: float = CHAOS_SECONDS

    def rng(self, part: str) -> random.Random:
        """The generator of a part of the world."""
        return random.Random(f"{self.seed}/{part}")


def draw(seed: int, kinds: Mapping[str, float]) -> Plan:
    """The plan of life `seed`; `kinds` weighs the faults."""
    plan = _draw(seed, kinds)
    rng = plan.rng("gaps")
    return _with_gaps(plan, rng) if rng.random() < _GAPS_SHARE else plan


def _with_gaps(plan: Plan, rng: random.Random) -> Plan:
    """More gaps between what is done than the broker's metadata can hold."""
    return replace(
        plan,
        settings={**plan.settings, "max_in_flight": 5_000},
        handler={**plan.handler, "concurrency": 100, "order": "key"},
        keys=400,
        mix=replace(plan.mix, hanging=0.05),
        metadata_max_bytes=rng.choice((140, 200)),
    )


def _draw(seed: int, kinds: Mapping[str, float]) -> Plan:
    rng = random.Random(f"{seed}/plan")
    partitions = {"orders": rng.randint(1, 4)}
    if rng.random() < 0.3:
        partitions["refunds"] = rng.randint(1, 2)
    session_ms = rng.choice((6_000, 10_000))
    settings: dict[str, object] = {
        "max_in_flight": rng.choice((16, 100, 500, 5_000)),
        "poll_batch_size": rng.choice((5, 50, 500)),
        "commit_every": rng.choice((10, 200, 2_000)),
        "commit_interval_ms": rng.choice((100, 500, 1_000, 3_000)),
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": session_ms // rng.choice((3, 5)),
        "max_revoke_grace_ms": rng.choice((500, 2_000, 5_000)),
        "shutdown_drain_timeout_ms": rng.choice((3_000, 30_000)),
        "retry_base_ms": 50,
        "retry_max_ms": 2_000,
        "http_port": 0,
    }
    if rng.random() < 0.3:
        settings["max_in_flight_bytes"] = 8_192
    handler: dict[str, object] = {
        "concurrency": rng.choice((1, 4, 20, 100)),
        "order": rng.choice(("key", "key", "key", "key", "partition")),
        "on_revoke": rng.choice(("cancel", "cancel", "keep")),
        "task_per_record": rng.random() < 0.1,
    }
    mix = Mix(
        slow=rng.choice((0.0, 0.03)),
        raising=rng.choice((0.0, 0.02, 0.1)),
        hanging=rng.choice((0.0, 0.001)),
        stubborn=rng.choice((0.0, 0.004)),
        untidy=rng.choice((0.0, 0.0, 0.05)),
        skipped=rng.choice((0.0, 0.0, 0.02)),
        failing=rng.choice((0.0, 0.0, 0.001)),
    )
    return Plan(
        seed=seed,
        partitions=partitions,
        members=rng.randint(2, 4),
        cooperative=rng.random() < 0.3,
        static=rng.random() < 0.15,
        records=rng.randint(MIN_RECORDS, MAX_RECORDS),
        keys=rng.choice((5, 50, 400)),
        keyless_share=rng.choice((0.0, 0.0, 0.1, 0.5)),
        payload_bytes=rng.choice((8, 8, 2_000)),
        settings=settings,
        handler=handler,
        attempts=3 if mix.failing else None,
        mix=mix,
        faults=_faults(rng, kinds),
    )


def _faults(rng: random.Random, kinds: Mapping[str, float]) -> tuple[PlannedFault, ...]:
    names, weights = list(kinds), list(kinds.values())
    drawn = rng.choices(names, weights, k=rng.randint(MIN_FAULTS, MAX_FAULTS))
    faults = [
        PlannedFault(
            at=round(rng.uniform(3.0, CHAOS_SECONDS - 5), 3),
            kind=kind,
            seconds=round(rng.choice((0.5, 3.0, 8.0, 15.0)) * rng.uniform(0.5, 1.5), 2),
            pick=int(rng.random() * 1000) / 1000,
            share=round(rng.choice((0.1, 0.5, 1.0)), 2),
        )
        for kind in drawn
    ]
    return tuple(sorted(faults, key=lambda fault: fault.at))
