"""Tests of the poison keys: rows of failures, cool-downs, and the bound on what is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.poison import Key, PoisonKeys, PoisonRules
from tests.core.models import bounded

A: Key = ("orders", b"a")
B: Key = ("orders", b"b")


def _fail(keys: PoisonKeys, key: Key, now: float, times: int) -> list[bool]:
    return [keys.failed(key, now) for _ in range(times)]


def test_the_fifth_failure_in_a_row_poisons_a_key_for_the_cool_down() -> None:
    """It is said once; failures of calls that ran already change nothing, also not how long it lasts."""
    keys = PoisonKeys(PoisonRules(failures=5))
    assert _fail(keys, A, 100.0, 4) == [False] * 4
    assert not keys.is_poisoned(A, 100.0)
    assert keys.failed(A, 100.0)
    assert _fail(keys, A, 130.0, 3) == [False] * 3
    assert keys.is_poisoned(A, 159.999)
    assert not keys.is_poisoned(A, 160.0)


def test_a_success_ends_the_row() -> None:
    """Four, a success and four more are no five in a row."""
    keys = PoisonKeys(PoisonRules(failures=5))
    _fail(keys, A, 100.0, 4)
    assert not keys.succeeded(A)
    assert _fail(keys, A, 100.0, 4) == [False] * 4
    assert keys.failed(A, 100.0)


def test_a_success_of_another_record_of_the_key_ends_its_cool_down() -> None:
    """One that ran when the key was poisoned: the key works. It is said once."""
    keys = PoisonKeys(PoisonRules(failures=5))
    _fail(keys, A, 100.0, 5)
    assert keys.succeeded(A)
    assert not keys.is_poisoned(A, 100.0)
    assert not keys.succeeded(A)
    assert keys.forget_older(1000.0) == []


def test_keys_of_other_topics_and_other_keys_are_not_concerned() -> None:
    """The same bytes in another topic are another key."""
    keys = PoisonKeys(PoisonRules(failures=5))
    _fail(keys, A, 100.0, 5)
    other = ("refunds", b"a")
    assert not keys.is_poisoned(B, 100.0)
    assert not keys.is_poisoned(other, 100.0)
    assert not keys.failed(other, 100.0)


@pytest.mark.parametrize("forgets", [False, True])
def test_after_its_cool_down_one_more_failure_poisons_a_key_again(forgets: bool) -> None:
    """The row goes on, whether or not somebody called `forget_older` meanwhile; a success ends it."""
    keys = PoisonKeys(PoisonRules(failures=5))
    _fail(keys, A, 100.0, 5)
    if forgets:
        assert keys.forget_older(160.0) == [A]
    assert keys.failed(A, 161.0)
    assert keys.is_poisoned(A, 220.0)
    if forgets:
        assert keys.forget_older(221.0) == [A]
    assert keys.succeeded(A) == (not forgets)
    assert _fail(keys, A, 222.0, 5) == [False] * 4 + [True]


@pytest.mark.parametrize("forgets", [False, True])
def test_a_row_is_over_after_an_hour_without_a_failure(forgets: bool) -> None:
    """Five failures in five days are no poison; and five retries that wait half an hour each are."""
    keys = PoisonKeys(PoisonRules(failures=5))
    rare: Key = ("orders", b"rare")
    for n in range(20):
        assert not keys.failed(A, 3601.0 * n)
        assert keys.failed(rare, 1800.0 * n) == (n >= 4)
        if forgets:
            keys.forget_older(1800.0 * n)
    _fail(keys, B, 0.0, 5)
    if forgets:
        keys.forget_older(3661.0)
    assert not keys.failed(B, 3661.0)


def test_one_failure_may_be_enough() -> None:
    """`failures=1` keeps no rows at all."""
    keys = PoisonKeys(PoisonRules(failures=1, cool_down_ms=1))
    assert keys.failed(A, 100.0)
    assert keys.forget_older(100.001) == [A]
    assert len(keys) == 0
    assert keys.failed(A, 100.002)
    assert keys.failed(A, 100.003)


def test_a_key_that_never_failed_costs_nothing() -> None:
    """Nothing is kept of its successes, and an empty table is False: callers need not make a key."""
    keys = PoisonKeys(PoisonRules(failures=5))
    assert not keys
    for n in range(100):
        keys.succeeded(("orders", b"%d" % n))
        assert not keys.is_poisoned(("orders", b"%d" % n), 1.0)
    assert not keys
    keys.failed(A, 1.0)
    assert keys
    keys.succeeded(A)
    assert not keys


def test_keys_whose_cool_down_ended_are_told_once() -> None:
    """In the order in which they ended; the count of those diverted says so without anybody being told."""
    keys = PoisonKeys(PoisonRules(failures=2))
    _fail(keys, A, 100.0, 2)
    _fail(keys, B, 101.0, 2)
    assert [keys.count_poisoned(now) for now in (101.0, 159.0, 160.5, 161.0)] == [2, 2, 1, 0]
    assert keys.forget_older(159.0) == []
    assert keys.forget_older(161.0) == [A, B]
    assert keys.forget_older(161.0) == []
    assert (keys.count_poisoned(161.0), len(keys)) == (0, 2)
    assert keys.forget_older(160.0 + 3600.5) == []
    assert len(keys) == 1
    keys.forget_older(161.0 + 3600.5)
    assert not keys


def test_what_an_outage_did_is_forgiven_and_what_was_before_it_is_not() -> None:
    """Rows and poisoned keys whose last failure came before it stay as they were."""
    keys = PoisonKeys(PoisonRules(failures=2, cool_down_ms=60_000))
    c, d = ("orders", b"c"), ("orders", b"d")
    _fail(keys, A, 100.0, 2)
    _fail(keys, B, 101.0, 1)
    _fail(keys, c, 110.0, 2)
    _fail(keys, d, 111.0, 1)
    keys.forgive(110.0)
    assert [keys.is_poisoned(key, 112.0) for key in (A, c)] == [True, False]
    assert [keys.failed(key, 112.0) for key in (B, c, d)] == [True, False, False]


def test_the_key_that_failed_longest_ago_is_forgotten_first() -> None:
    """A failure makes a key the youngest again; a question does not."""
    keys = PoisonKeys(PoisonRules(failures=3, max_keys=2))
    _fail(keys, A, 1.0, 2)
    _fail(keys, B, 2.0, 1)
    keys.failed(("orders", b"c"), 3.0)
    assert len(keys) == 2
    keys.failed(B, 4.0)
    keys.failed(("orders", b"d"), 5.0)
    assert keys.failed(B, 6.0), "its row of two was kept"
    assert not keys.failed(A, 7.0), "its row of two was forgotten"


def test_a_flood_of_failing_keys_drives_no_poisoned_one_out() -> None:
    """A poisoned key does not run and so does not fail: it would always be the one of longest ago."""
    keys = PoisonKeys(PoisonRules(failures=5, max_keys=10))
    _fail(keys, A, 100.0, 5)
    for n in range(1000):
        keys.failed(("orders", b"%d" % n), 101.0)
    assert keys.is_poisoned(A, 102.0)
    assert len(keys) == 11


def test_of_too_many_poisoned_keys_the_one_whose_cool_down_ends_first_is_let_go() -> None:
    """The table never grows beyond its bound, and a new poison is never ignored for want of room."""
    keys = PoisonKeys(PoisonRules(failures=1, max_keys=3))
    made: list[Key] = [("orders", b"%d" % n) for n in range(9)]
    for n, key in enumerate(made):
        assert keys.failed(key, 100.0 + n)
    assert [key for key in made if keys.is_poisoned(key, 110.0)] == made[-3:]
    assert len(keys) == 3


def test_a_key_that_is_poisoned_again_is_the_youngest_of_them() -> None:
    """Also where nobody called `forget_older` since its first cool-down ended."""
    keys = PoisonKeys(PoisonRules(failures=1, max_keys=2))
    keys.failed(A, 100.0)
    keys.failed(B, 150.0)
    keys.failed(A, 160.0)
    keys.failed(("orders", b"c"), 161.0)
    assert keys.is_poisoned(A, 162.0)
    assert not keys.is_poisoned(B, 162.0)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "failed", "failed", "succeeded", "forget_older"]),
        st.sampled_from([("orders", b"a"), ("orders", b"b"), ("refunds", b"a")]),
        st.sampled_from([0.0, 0.0, 1.0, 59.0, 60.0, 3600.0, 3601.0]),
    ),
    max_size=50,
)


@bounded(60)
@given(OPERATIONS, st.integers(1, 4))
def test_it_is_a_count_of_failures_in_a_row_and_forgetting_changes_no_answer(
    operations: list[tuple[str, Key, float]], failures: int
) -> None:
    """Against a model that keeps everything and never forgets."""
    keys, now = PoisonKeys(PoisonRules(failures)), 1000.0
    rows: dict[Key, tuple[int, float]] = {}
    until: dict[Key, float] = {}
    for what, key, passed in operations:
        now += passed
        if what == "succeeded":
            keys.succeeded(key)
            rows.pop(key, None)
            until.pop(key, None)
        elif what == "forget_older":
            keys.forget_older(now)
        elif until.get(key, 0.0) > now:
            assert not keys.failed(key, now)
        else:
            count, last = rows.get(key, (0, now))
            count = 1 if now - last > 3600.0 else count + 1
            assert keys.failed(key, now) == (count >= failures)
            rows[key] = (count, now)
            if count >= failures:
                until[key] = now + 60.0
                rows[key] = (failures - 1, until[key])
        assert all(keys.is_poisoned(one, now) == (until.get(one, 0.0) > now) for one in (A, B, key))
        assert len(keys) <= len(rows)
