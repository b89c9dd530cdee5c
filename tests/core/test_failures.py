"""Tests of the rules on failures: the table, row by row."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from asyncpar.core.failures import Action, Decision, FailureRules, decide, on_failure
from asyncpar.errors import (
    DecodeError,
    HandlerTimeoutError,
    Permanent,
    RecordBlockedError,
    RemoteHandlerError,
    Retryable,
    RetryAfter,
    WorkerDiedError,
)
from asyncpar.records import Verdict

DONE, HALT, AGAIN, DEAD = Action.DONE, Action.HALT, Action.AGAIN, Action.DEAD_LETTER
FAILED = Verdict.FAILED


def _rules(attempts: int | None = 5, **values: object) -> FailureRules:
    return replace(FailureRules(attempts, base_ms=100, max_ms=30_000), **values)  # type: ignore[arg-type]


def _action(rules: FailureRules, error: BaseException, made: int = 1, **values: object) -> Action:
    return decide(rules, FAILED, error, made, 0.5, **values).action  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", [Verdict.SUCCESS, Verdict.SKIPPED])
@pytest.mark.parametrize("attempts_made", [1, 5, 6])
def test_success_and_an_explicit_skip_are_done(verdict: Verdict, attempts_made: int) -> None:
    """Whichever attempt it was."""
    assert decide(_rules(), verdict, None, attempts_made, 0.5) == Decision(DONE)


def test_an_undecodable_record_is_given_up_unless_it_may_be_skipped() -> None:
    """It would fail for ever: no attempt is worth making."""
    error = DecodeError("no JSON")
    for attempts in (None, 1, 5):
        given_up = decide(_rules(attempts), Verdict.UNDECODABLE, error, 1, 0.5)
        assert (given_up.action, given_up.reason) == (HALT, "undecodable")
        rules = _rules(attempts, dead_letter=True)
        assert decide(rules, Verdict.UNDECODABLE, error, 1, 0.5) == Decision(DEAD, reason="undecodable")
        skipping = replace(rules, skip_undecodable=True)
        assert decide(skipping, Verdict.UNDECODABLE, error, 1, 0.5).action is DONE


def test_a_failure_is_run_again_until_its_attempts_are_used() -> None:
    """`attempts` counts all runs; a failure is never done, also not when none is left."""
    error = OSError()
    assert [_action(_rules(3), error, made) for made in (1, 2, 3, 4)] == [AGAIN, AGAIN, HALT, HALT]
    assert _action(_rules(1), error) is HALT
    assert _action(_rules(0), error) is HALT
    given_up = decide(_rules(3, dead_letter=True), FAILED, error, 3, 0.5)
    assert given_up == Decision(DEAD, reason="exhausted")


def test_no_limit_on_attempts_means_for_ever() -> None:
    """A record waits and is tried again, at most every `max_ms`, also where there are dead letters."""
    for dead_letter in (False, True):
        rules = _rules(None, dead_letter=dead_letter)
        assert decide(rules, FAILED, OSError(), 1_000_000, 0.5) == Decision(AGAIN, 15.0)


def test_the_delay_is_the_handlers_own_backoff() -> None:
    """It grows with the attempts that were made, by its policy, and follows the chance passed in."""
    for backoff, expected in (
        ("exp_full_jitter", [0.05, 0.1, 0.2]),
        ("fixed", [0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.2, 0.3]),
        ("exponential", [0.1, 0.2, 0.4]),
        ("exp_equal_jitter", [0.075, 0.15, 0.3]),
    ):
        rules = _rules(None, backoff=backoff)
        delays = [decide(rules, FAILED, OSError(), made, 0.5).delay_seconds for made in (1, 2, 3)]
        assert delays == pytest.approx(expected), backoff


def test_the_age_bounds_when_the_next_attempt_begins() -> None:
    """Counted from the first failure, the delay included."""
    rules = _rules(None, backoff="fixed", max_age_ms=1_000)
    assert _action(rules, OSError(), age_seconds=0.8) is AGAIN
    late = decide(rules, FAILED, OSError(), 2, 0.5, age_seconds=0.95)
    assert late == Decision(HALT, reason="too_old")


def test_an_attempt_that_is_free_is_followed_by_another() -> None:
    """No attempt is used up while a breaker is open; time goes on, and what is permanent stays so."""
    rules = _rules(1, max_age_ms=60_000, dead_letter=True)
    assert _action(rules, OSError(), 9, is_free=True) is AGAIN
    assert _action(rules, OSError(), 9, age_seconds=61.0, is_free=True) is DEAD
    assert _action(rules, Permanent(), 9, is_free=True) is DEAD


def test_what_a_handler_raises_may_say_what_happens() -> None:
    """Permanent, Retryable and RetryAfter beat `on_error=`, `on=` and `not_on=`."""
    rules = _rules(5, dead_letter=True, on_error={Exception: "skip"}, not_on=(Exception,))
    assert decide(rules, FAILED, Permanent(), 1, 0.5) == Decision(DEAD, reason="permanent")
    assert _action(replace(rules, dead_letter=False), Permanent()) is HALT
    assert _action(rules, Retryable()) is AGAIN
    assert decide(rules, FAILED, RetryAfter(delay_ms=70), 1, 0.5) == Decision(AGAIN, 0.07)
    assert _action(rules, RetryAfter(delay_ms=70), 5) is DEAD


def test_a_record_that_blocked_for_too_long_is_given_up() -> None:
    """A time-out is an ordinary failure, unless it is the one that `on_blocked` gives a record up with."""
    assert _action(_rules(dead_letter=True), HandlerTimeoutError()) is AGAIN
    assert _action(_rules(dead_letter=True), RecordBlockedError()) is DEAD


@pytest.mark.parametrize(
    ("how", "expected"), [("retry", AGAIN), ("dead_letter", DEAD), ("skip", DONE), ("halt", HALT)]
)
def test_on_error_decides_by_the_nearest_class(how: str, expected: Action) -> None:
    """The class itself beats its bases; a class that is not named is retried."""
    rules = _rules(dead_letter=True, on_error={OSError: how, Exception: "retry", KeyError: "halt"})
    assert _action(rules, ConnectionError()) is expected
    assert _action(rules, ValueError()) is AGAIN
    assert _action(rules, KeyError()) is HALT
    assert _action(_rules(on_error={OSError: "halt"}), ValueError()) is AGAIN


def test_only_what_on_names_is_tried_again_and_not_what_not_on_names() -> None:
    """Others are permanent; `not_on` beats `on`."""
    rules = _rules(dead_letter=True, on=(OSError,), not_on=(PermissionError,))
    assert _action(rules, ConnectionError()) is AGAIN
    assert _action(rules, PermissionError()) is DEAD
    assert _action(rules, ValueError()) is DEAD
    assert _action(_rules(not_on=(ValueError,)), ValueError()) is HALT
    assert _action(_rules(not_on=(ValueError,)), KeyError()) is AGAIN


def test_what_used_up_its_attempts_travels_on_while_there_is_a_retry_topic() -> None:
    """What is permanent does not: no later attempt would help."""
    rules = _rules(1, dead_letter=True, max_age_ms=1_000, not_on=(ValueError,))
    assert _action(rules, OSError(), may_travel=True) is Action.RETRY_TOPIC
    assert (
        _action(replace(rules, attempts=9), OSError(), age_seconds=2.0, may_travel=True) is Action.RETRY_TOPIC
    )
    assert _action(rules, ValueError(), may_travel=True) is DEAD
    assert decide(rules, Verdict.UNDECODABLE, None, 1, 0.5, may_travel=True).action is DEAD


def test_a_retry_after_may_be_free_of_charge() -> None:
    """Waiting for somebody else is no failed attempt; time goes on all the same."""

    class Busy(RetryAfter):
        is_free = True

    rules = _rules(1, max_age_ms=60_000)
    assert decide(rules, FAILED, Busy(delay_ms=10), 9, 0.5) == Decision(AGAIN, 0.01, is_free=True)
    assert _action(rules, Busy(delay_ms=10), 9, age_seconds=61.0) is HALT
    assert _action(rules, Busy(delay_ms=90_000), 9, age_seconds=-inf) is AGAIN


def _remote(kind: type[BaseException]) -> RemoteHandlerError:
    """What the parent knows of an exception of a child."""
    names = (f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__ if one is not object)
    return RemoteHandlerError("no", tuple(names))


class OfTheAppError(ConnectionError):
    """A user's class, which has a name only where a child raised it."""


@pytest.mark.parametrize("error", [OfTheAppError, ConnectionError, ValueError, KeyError, PermissionError])
def test_what_a_child_raised_is_matched_by_its_names_as_if_it_had_been_raised_here(
    error: type[Exception],
) -> None:
    """The nearest class in `on_error`, `on`, `not_on`: each decides the same."""
    for rules in (
        _rules(dead_letter=True, on_error={OSError: "skip", Exception: "retry", KeyError: "halt"}),
        _rules(dead_letter=True, on_error={OfTheAppError: "dead_letter", OSError: "skip"}),
        _rules(dead_letter=True, on=(OSError,), not_on=(PermissionError,)),
        _rules(on=(OfTheAppError,)),
        _rules(not_on=(LookupError, OfTheAppError)),
        _rules(),
    ):
        assert _action(rules, _remote(error)) is _action(rules, error()), rules


def test_a_child_that_died_is_a_failure_and_at_the_second_time_the_end() -> None:
    """The first costs an attempt and is judged by its class; the second is permanent, whatever is asked."""
    rules = _rules(dead_letter=True, on_error={WorkerDiedError: "skip"})
    assert _action(_rules(), WorkerDiedError("killed by SIGSEGV")) is AGAIN
    assert _action(rules, WorkerDiedError("killed by SIGSEGV")) is DONE
    assert decide(rules, FAILED, WorkerDiedError("twice", is_final=True), 1, 0.5) == Decision(
        DEAD, reason="permanent"
    )
    assert _action(_rules(), WorkerDiedError("twice", is_final=True), may_travel=True) is HALT


def test_a_time_out_of_ours_is_a_time_out_to_the_rules() -> None:
    """Who names TimeoutError means `timeout_ms` too; who names OSError means the network."""
    late = HandlerTimeoutError("late")
    assert on_failure(_rules(not_on=(TimeoutError,)), late) == "dead_letter"
    assert on_failure(_rules(not_on=(OSError,)), late) == "retry"
    assert on_failure(_rules(not_on=(TimeoutError,)), ConnectionError()) == "retry"
    asked = {OSError: "dead_letter", TimeoutError: "halt", Exception: "skip"}
    assert on_failure(_rules(on_error=asked), late) == "halt"
    assert on_failure(_rules(on_error={OSError: "halt", Exception: "skip"}), late) == "skip"
    assert on_failure(_rules(on_error={TimeoutError: "halt", HandlerTimeoutError: "skip"}), late) == "skip"


def test_on_is_about_what_handlers_raise() -> None:
    """A time-out, or a child process that died, is no fault that `on` leaves out; `not_on` may name it."""
    rules = FailureRules(attempts=5, base_ms=10, max_ms=100, on=(ConnectionError,))
    for error in (HandlerTimeoutError("late"), WorkerDiedError("killed")):
        assert on_failure(rules, error) == "retry"
        assert on_failure(replace(rules, not_on=(type(error),)), error) == "dead_letter"
    assert on_failure(rules, ValueError()) == "dead_letter"
