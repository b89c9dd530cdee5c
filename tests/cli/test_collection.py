"""What a process of asyncpar's own does to its garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from asyncpar.cli.collection import YOUNGEST, tuned_collection
from asyncpar.cli.run import EXIT_STOPPED, live


class Looking:
    """An app that ends at once, and notes how the collector stood while it ran."""

    async def run(self, *, drain_and_exit: bool, on_started: Callable[[], None]) -> None:
        assert not drain_and_exit
        on_started()
        self.found = gc.get_threshold()[0], bool(gc.get_freeze_count())

    def stop(self, *, now: bool = False) -> None:
        raise AssertionError(now)

    def unfinished(self) -> tuple[str, ...]:
        return ()


@pytest.fixture(autouse=True)
def nothing_frozen() -> None:
    """Whatever tests before these have left."""
    gc.unfreeze()


@pytest.mark.parametrize("tune_gc", [True, False])
async def test_a_run_tunes_the_collector_and_leaves_it_as_it_was(tune_gc: bool) -> None:
    """What is loaded is frozen and the first threshold raised while it runs, unless `tune_gc` is off."""
    before, app = gc.get_threshold(), Looking()
    assert await live(app, drain_and_exit=False, tune_gc=tune_gc) == EXIT_STOPPED
    assert app.found == ((YOUNGEST, True) if tune_gc else (before[0], False))
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("chosen", "tuned"), [(0, 0), (50_000, 50_000), (500, YOUNGEST)])
def test_what_the_app_has_chosen_itself_is_kept(chosen: int, tuned: int) -> None:
    """Switched off, or collecting less often than asyncpar would; and what it froze stays frozen."""
    before = gc.get_threshold()
    try:
        with tuned_collection() as tune:
            gc.set_threshold(chosen)
            gc.freeze()
            tune()
            assert gc.get_threshold()[0] == tuned
        assert gc.get_threshold()[0] == chosen
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_garbage_of_the_start_is_collected_before_the_rest_is_kept() -> None:
    """Frozen, a circle that nobody holds any more would stay for good."""

    class Node:
        """Weighs nothing."""

        dead = 0

        def __del__(self) -> None:
            Node.dead += 1

    with tuned_collection() as tune:
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        del node
        tune()
        assert Node.dead == 1


def test_it_is_left_as_it_was_also_when_the_run_fails() -> None:
    """The error goes on."""
    before = gc.get_threshold()

    def fails() -> None:
        with tuned_collection() as tune:
            tune()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
