"""What a declaration may say about failures, and what it may not."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from asyncpar.core.backoff import BACKOFFS
from asyncpar.errors import DecodeError, HandlerError
from asyncpar.policies import Backoff, Default, RateLimit, Retry, checked_on_error, delay_of


def test_retry_counts_runs_and_refuses_what_makes_no_sense() -> None:
    """At least one run, delays of at least a millisecond, a maximum that is not below the base."""
    wrong: list[dict[str, Any]] = [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": True},
        {"base_ms": 0},
        {"max_ms": -1},
        {"base_ms": 500, "max_ms": 100},
        {"backoff": "fibonacci"},
        {"max_age_ms": 0},
        {"base_ms": 500, "max_ms": 500, "max_age_ms": 499},
        {"attempts": 10**10},
        {"base_ms": 10**400, "max_ms": 10**400},
        {"max_ms": 10**5000},
        {"max_age_ms": 2**31},
        {"on": "ConectionError"},
        {"on": 3},
        {"not_on": BaseException},
        {"on": [KeyboardInterrupt]},
    ]
    for arguments in wrong:
        with pytest.raises(HandlerError, match="Retry: "):
            Retry(**arguments)


def test_a_burst_that_is_not_given_is_that_of_a_tenth_of_a_second() -> None:
    """At least one call; a rate that is none is refused all the same."""
    assert [RateLimit(per_second=rate).burst for rate in (0.1, 9, 100, 2_500.5)] == [1, 1, 10, 250]
    assert RateLimit(per_second=100, burst=1).burst == 1
    wrong: list[Any] = ["100", 0, -1, True, float("nan"), 10**400]
    for rate in wrong:
        with pytest.raises(HandlerError, match="RateLimit: per_second="):
            RateLimit(per_second=rate)
    with pytest.raises(HandlerError, match="RateLimit: burst="):
        RateLimit(per_second=1, burst=-1)


@pytest.mark.parametrize("name", ["a.retry.597h", "a.retry.999999999h"])
def test_a_retry_topic_of_more_than_24_days_is_refused(name: str) -> None:
    """No log keeps it for so long, and no clock counts it."""
    with pytest.raises(HandlerError, match="has a delay of more than 2147483647 ms"):
        delay_of("handler x", name)
    assert delay_of("handler x", "a.retry.596h") == 596 * 3600


def test_attempts_depend_on_dead_letters_unless_they_are_given() -> None:
    """For ever without, 5 with; None that is written means for ever in both cases."""
    assert Retry().attempts is Default.ATTEMPTS
    assert [Retry().attempts_for(dead_letters=there) for there in (False, True)] == [None, 5]
    assert [Retry(attempts=None).attempts_for(dead_letters=there) for there in (False, True)] == [None, None]
    assert [Retry(attempts=2).attempts_for(dead_letters=there) for there in (False, True)] == [2, 2]
    assert "for ever" in repr(Retry())


def test_every_policy_that_may_be_named_exists() -> None:
    """The declaration and the core know the same five."""
    assert set(get_args(Backoff)) == set(BACKOFFS)


def test_exceptions_are_given_as_classes_or_by_name() -> None:
    """A settings file has names only: of builtins, or with their module."""
    assert Retry(on=OSError).on == (OSError,)
    assert Retry(on=(OSError, KeyError)).on == (OSError, KeyError)
    named: Any = ["OSError", "asyncpar.errors.DecodeError"]
    assert Retry(not_on=named).not_on == (OSError, DecodeError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TimeoutEror", "did you mean 'TimeoutError'"),
        ("asyncpar.errors.NoSuch", "cannot be imported .*write it as module.Name"),
        ("no_such_module.Thing", "cannot be imported"),
        ("asyncpar.errors", "must name exception classes"),
    ],
)
def test_an_unknown_exception_is_refused_with_a_hint(name: str, message: str) -> None:
    """At import or when the settings are read, not when the first record fails."""
    given: Any = [name]
    with pytest.raises(HandlerError, match=message):
        Retry(on=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([ValueError], "must be a mapping"),
        ({ValueError: "ignore"}, r"on_error\[ValueError\]='ignore' is unknown"),
        ({"ValueEror": "skip"}, "did you mean 'ValueError'"),
        ({BaseException: "skip"}, "subclasses of Exception"),
    ],
)
def test_on_error_is_checked(given: object, message: str) -> None:
    """Classes on the left, one of four words on the right."""
    with pytest.raises(HandlerError, match=message):
        checked_on_error("handler x", given)


def test_on_error_takes_names_too() -> None:
    """As a settings table has them."""
    assert checked_on_error("handler x", {"ValueError": "skip", KeyError: "halt"}) == {
        ValueError: "skip",
        KeyError: "halt",
    }
