"""Tests of the rules on failures: the table, row by row."""

from __future__ import annotations

import pytest

from asyncpar.core.failures import Action, Decision, FailureRules, decide
from asyncpar.records import Verdict


def _rules(attempts: int | None = 5, skip_undecodable: bool = False) -> FailureRules:
    return FailureRules(attempts, base_ms=100, max_ms=30_000, skip_undecodable=skip_undecodable)


@pytest.mark.parametrize("verdict", [Verdict.SUCCESS, Verdict.SKIPPED])
@pytest.mark.parametrize("attempts_made", [1, 5, 6])
def test_success_and_an_explicit_skip_are_done(verdict: Verdict, attempts_made: int) -> None:
    """Whichever attempt it was."""
    assert decide(_rules(), verdict, attempts_made, 0.5) == Decision(Action.DONE)


def test_an_undecodable_record_halts_unless_it_may_be_skipped() -> None:
    """It would fail for ever: no attempt is worth making."""
    for attempts in (None, 1, 5):
        assert decide(_rules(attempts), Verdict.UNDECODABLE, 1, 0.5).action is Action.HALT
        assert decide(_rules(attempts, True), Verdict.UNDECODABLE, 1, 0.5).action is Action.DONE


def test_a_failure_is_run_again_until_its_attempts_are_used() -> None:
    """`attempts` counts all runs; a failure is never done, also not when none is left."""
    actions = [decide(_rules(3), Verdict.FAILED, made, 0.5).action for made in (1, 2, 3, 4)]
    assert actions == [Action.AGAIN, Action.AGAIN, Action.HALT, Action.HALT]
    assert decide(_rules(1), Verdict.FAILED, 1, 0.5).action is Action.HALT
    assert decide(_rules(0), Verdict.FAILED, 1, 0.5).action is Action.HALT


def test_no_limit_on_attempts_means_for_ever() -> None:
    """Without a dead letter a record waits and is tried again, at most every `max_ms`."""
    assert decide(_rules(None), Verdict.FAILED, 1_000_000, 0.5) == Decision(Action.AGAIN, 15.0)


def test_the_delay_is_the_handlers_own_backoff() -> None:
    """It grows with the attempts that were made and follows the chance passed in."""
    delays = [decide(_rules(None), Verdict.FAILED, made, 0.5).delay_seconds for made in (1, 2, 3)]
    assert delays == pytest.approx([0.05, 0.1, 0.2])
