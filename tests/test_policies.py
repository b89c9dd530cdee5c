"""What a declaration may say about failures, and what it may not."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from asyncpar.core.backoff import BACKOFFS
from asyncpar.errors import DecodeError, HandlerError
from asyncpar.policies import Backoff, Default, Retry, checked_on_error


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
        {"on": "ConectionError"},
        {"on": 3},
        {"not_on": BaseException},
        {"on": [KeyboardInterrupt]},
    ]
    for arguments in wrong:
        with pytest.raises(HandlerError, match="Retry: "):
            Retry(**arguments)


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
