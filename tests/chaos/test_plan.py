"""What members do with records: the same wherever a record is met, and all sorts of it."""

from __future__ import annotations

from tests.chaos.plan import GRACE_MS, MemberPlan, Temper, temper


def tempers(*, is_quick: bool) -> list[Temper]:
    """Those of the first 20,000 records of a partition."""
    return [temper("topic", 0, offset, is_quick=is_quick) for offset in range(20_000)]


def test_a_record_is_treated_alike_by_every_member() -> None:
    """The place of a record decides."""
    assert tempers(is_quick=False) == tempers(is_quick=False)


def test_quick_handlers_are_quick_and_fail_now_and_then() -> None:
    """Nothing takes more than 4 ms; one in two hundred raises once."""
    found = tempers(is_quick=True)
    assert max(one.seconds for one in found) <= 0.004
    assert 50 < sum(one.failures > 0 for one in found) < 200


def test_slow_handlers_are_of_every_sort() -> None:
    """Some raise several times, some outlast the grace, some swallow a cancellation; most do not."""
    found = tempers(is_quick=False)
    assert {one.failures for one in found} == {0, 1, 2, 3}
    assert 0 < sum(one.seconds > GRACE_MS / 1000 and not one.is_deaf for one in found) < 200
    assert 0 < sum(one.is_deaf for one in found) < 100
    assert sum(one.seconds < 0.1 for one in found) > 19_000


def test_a_plan_survives_the_command_line() -> None:
    """What the crew writes the member reads."""
    plan = MemberPlan("m1", "127.0.0.1:1", "group", "quick", "slow", "history")
    assert MemberPlan.from_argument(plan.to_argument()) == plan
