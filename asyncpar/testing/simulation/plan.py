"""A life before it is lived: everything that is drawn from the seed, as plain data.

Each part draws from a generator of its own, so that a part that is taken away (by the shrinker)
leaves the others as they were.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from asyncpar.policies import Breaker, DeadLetterBudget, PoisonKeys, RateLimit
from asyncpar.testing.simulation.children import ChildPlan, draw_children, with_children

CHAOS_SECONDS = 60.0
"""Faults and records come in the first minute; then the world heals."""
MIN_RECORDS, MAX_RECORDS = 2_000, 2_100
MIN_FAULTS, MAX_FAULTS = 4, 14
FULL_METADATA = 4_096
"""Kafka's own default of `offset.metadata.max.bytes`."""
_GAPS_SHARE = 0.1
_LETTERS_SHARE = 0.3
_CHILDREN_SHARE = 0.1
LETTERS = ".dlq"
"""The dead letters of a topic go to the topic of its name with this behind it."""
LETTERS_REFUSED, HANDLERS_FAIL = "letters refused", "handlers fail"
"""Faults that are planned in lives with dead letters only; the second where there is a breaker as well."""


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
    hopeless: float = 0.0


@dataclass(frozen=True, slots=True)
class LetterPlan:
    """How records of a life become dead letters, and the rules that go with it; None: without that one."""

    partitions: int
    """Of each topic of dead letters."""
    undecodable: bool
    """What cannot be decoded becomes a dead letter, too; else it is skipped."""
    budget: DeadLetterBudget | None = None
    breaker: Breaker | None = None
    poison: PoisonKeys | None = None
    rate: RateLimit | None = None
    late: float = 0.0
    """Share of dead letters of which their member hears late that they are written."""


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
    letters: LetterPlan | None = None
    """None: there are no dead letters, and a record whose attempts are used up halts its partition."""
    children: ChildPlan | None = None
    """None: handlers run on the loop of their member."""

    def rng(self, part: str) -> random.Random:
        """The generator of a part of the world."""
        return random.Random(f"{self.seed}/{part}")


def draw(seed: int, kinds: Mapping[str, float]) -> Plan:
    """The plan of life `seed`; `kinds` weighs the faults."""
    plan = _draw(seed, kinds)
    rng = plan.rng("gaps")
    if rng.random() < _GAPS_SHARE:
        plan = _with_gaps(plan, rng)
    rng = plan.rng("letters")
    if rng.random() < _LETTERS_SHARE:
        plan = _with_letters(plan, rng)
    rng = plan.rng("children")
    return with_children(plan, draw_children(rng)) if rng.random() < _CHILDREN_SHARE else plan


def _with_letters(plan: Plan, rng: random.Random) -> Plan:
    """Records that never succeed, dead letters for them, and in some lives the rules that go with these."""
    letters = _letters(rng)
    more = _some_faults(rng, LETTERS_REFUSED, rng.randint(0, 2))
    if letters.breaker is not None:
        more += _some_faults(rng, HANDLERS_FAIL, rng.randint(1, 2))
    return replace(
        plan,
        letters=letters,
        attempts=rng.randint(2, 5),
        mix=replace(plan.mix, hopeless=rng.choice((0.003, 0.02))),
        faults=tuple(sorted((*plan.faults, *more), key=lambda fault: fault.at)),
    )


def _letters(rng: random.Random) -> LetterPlan:
    """All of it short enough for a life to come to rest, however many letters there are in the end."""
    poison = PoisonKeys(failures=rng.choice((2, 3, 5)), cool_down_ms=rng.choice((300, 1_500)))
    breaker = Breaker(
        failure_share=rng.choice((0.3, 0.7)),
        min_calls=rng.choice((5, 10)),
        window_ms=rng.choice((1_000, 5_000)),
        open_ms=rng.choice((200, 1_000)),
        probes=rng.choice((1, 3)),
        successes=rng.choice((1, 2)),
        max_open_ms=2_000,
    )
    rate = RateLimit(per_second=rng.choice((60, 200)), burst=rng.choice((1, 50)))
    has_poison = rng.random() < 0.3
    # A poisoned key may be half of all records.
    few = DeadLetterBudget(share=0.0, at_least=rng.choice((2, 10)), window_ms=rng.choice((500, 1_000)))
    many = DeadLetterBudget(share=rng.choice((0.0, 0.2)), at_least=50, window_ms=2_000)
    return LetterPlan(
        partitions=rng.choice((1, 1, 3)),
        undecodable=rng.random() < 0.5,
        budget=(many if has_poison else few) if rng.random() < 0.4 else None,
        breaker=breaker if rng.random() < 0.35 else None,
        poison=poison if has_poison else None,
        rate=rate if rng.random() < 0.2 else None,
        late=rng.choice((0.0, 0.0, 0.3)),
    )


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
    members, cooperative = rng.randint(2, 4), rng.random() < 0.3
    # Never both: a static member that dies between giving partitions back and joining again leaves them to
    # nobody until the next rebalance, as the protocol has it, and such a life does not come to rest.
    is_static = rng.random() < 0.15
    return Plan(
        seed=seed,
        partitions=partitions,
        members=members,
        cooperative=cooperative,
        static=is_static and not cooperative,
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
    faults = [_fault(rng, kind) for kind in drawn]
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _some_faults(rng: random.Random, kind: str, count: int) -> list[PlannedFault]:
    return [_fault(rng, kind) for _ in range(count)]


def _fault(rng: random.Random, kind: str) -> PlannedFault:
    return PlannedFault(
        at=round(rng.uniform(3.0, CHAOS_SECONDS - 5), 3),
        kind=kind,
        seconds=round(rng.choice((0.5, 3.0, 8.0, 15.0)) * rng.uniform(0.5, 1.5), 2),
        pick=int(rng.random() * 1000) / 1000,
        share=round(rng.choice((0.1, 0.5, 1.0)), 2),
    )
