"""Every error that a broker may answer to a request of ours ends in recovery or in a clear error.

The lives run at the same time on clusters of their own; each test waits for its own.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from asyncpar.errors import (
    AuthorizationError,
    BrokerUnreachableError,
    ConfigurationError,
    ConsumerFailedError,
    DrainIncompleteError,
    UnknownTopicError,
)
from tests.wire.case import Case
from tests.wire.cases import CASES
from tests.wire.lives import Outcome, live, noting

AT_ONCE = 20
STALL_SECONDS = 0.5
"""Where this process stood still for longer, a session may have ended for that reason alone."""
EXIT_CODES = {
    ConfigurationError: 2,
    UnknownTopicError: 2,
    AuthorizationError: 4,
    BrokerUnreachableError: 4,
    ConsumerFailedError: 1,
    DrainIncompleteError: 1,
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Lives:
    """The lives of the selected cases, all begun."""

    def __init__(self, cases: list[Case]) -> None:
        self.unheard: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.unheard.append(context))
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(case: Case) -> Outcome:
            async with gate:
                return await live(case)

        self.tasks = {case.name: loop.create_task(gated(case)) for case in cases}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lives(request: pytest.FixtureRequest) -> AsyncIterator[Lives]:
    """The lives of the cases that were selected for this run, and of no others."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    with noting():
        made = Lives([params["case"] for params in chosen if isinstance(params.get("case"), Case)])
        yield made
        for task in made.tasks.values():
            task.cancel()
        await asyncio.gather(*made.tasks.values(), return_exceptions=True)


def _of(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


@_of([case for case in CASES if case.ends is None])
async def test_the_app_recovers(case: Case, lives: Lives) -> None:
    """Nothing is lost, reordered or left uncommitted, and of a fault that lasts something is said."""
    outcome = await lives.tasks[case.name]
    assert not outcome.hung, outcome.said()
    assert outcome.error is None
    assert not outcome.unused
    assert not outcome.uncovered()
    assert outcome.is_ordered()
    assert case.repeats or not outcome.repeated() or outcome.stalled_seconds > STALL_SECONDS
    assert not outcome.tracebacks()
    if case.phase.value == "stop":
        # What did not run stays for the next start; what ran is committed as far as it is without a gap.
        following = [set(range(end * 2 + p, outcome.produced, 2)) for p, end in outcome.committed.items()]
        assert all(not rest or min(rest) in outcome.lost() for rest in following)
        return
    assert not outcome.lost()
    assert outcome.is_stored()
    if case.heal_seconds and not case.is_quiet:
        assert outcome.was_red or outcome.said()


@_of([case for case in CASES if case.ends is not None])
async def test_the_app_ends_with_a_clear_error(case: Case, lives: Lives) -> None:
    """The run raises one error of asyncpar's, on one line that says what to do, and no commit lies."""
    outcome = await lives.tasks[case.name]
    assert not outcome.hung, outcome.said()
    assert type(outcome.error) is case.ends, outcome.said()
    assert outcome.error.exit_code == EXIT_CODES[case.ends]
    assert case.says in str(outcome.error)
    assert "\n" not in str(outcome.error)
    assert not outcome.unused
    assert not outcome.uncovered()
    assert outcome.is_ordered()
    assert not outcome.tracebacks()


async def test_nothing_went_unheard(lives: Lives) -> None:
    """No task of any of these lives ended with an exception that nobody took."""
    await asyncio.wait(lives.tasks.values()) if lives.tasks else None
    gc.collect()
    await asyncio.sleep(0)
    assert lives.unheard == []
