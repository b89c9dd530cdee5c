"""Where records that failed lead to among the handlers of one app, and what is refused there."""

from __future__ import annotations

import pytest

from asyncpar.errors import HandlerError
from asyncpar.groups import DeclaredGroup, declare_groups
from asyncpar.settings_sources import load
from asyncpar.topic_graph import Way, check_ways
from asyncpar.topics import TopicSpec, specs_of, topic


def way(
    handler: str, *topics: str, dead: str | None = None, retry: tuple[str, ...] = (), group: str = "g"
) -> Way:
    return Way(handler, group, topics, None, retry, dead)


@pytest.mark.parametrize(
    ("ways", "route"),
    [
        ([way("one", "a", dead="b"), way("two", "b", dead="a")], "a -> b (of one in group g) -> a (of two"),
        ([way("one", "a", dead=".dlq"), way("two", "a.dlq", dead="a", group="h")], "a -> a.dlq (of one"),
        (
            [way("one", "a", dead="b"), way("two", "b", "x", dead="c"), way("three", "c", dead="b")],
            "b -> c (of two in group g) -> b (of three in group g)",
        ),
    ],
    ids=("two handlers", "a suffix, another group", "behind the first one"),
)
def test_dead_letters_that_go_round_are_refused(ways: list[Way], route: str) -> None:
    """A record that always fails would be written and run again for ever; the way is named."""
    with pytest.raises(HandlerError, match="would go round for ever: ") as caught:
        check_ways(ways)
    assert route in str(caught.value)


@pytest.mark.parametrize(
    "ways",
    [
        [way("one", "a", dead=".dlq"), way("two", "a.dlq", dead=".dlq")],
        [way("one", "a", dead="lost"), way("two", "b", dead="lost"), way("three", "lost")],
        [way("one", "a", dead="b"), way("two", "a", dead="c"), way("three", "b", "c", dead="d")],
        [way("one", "a", retry=("a.retry.5s",)), way("watch", "a.retry.5s", group="h")],
    ],
    ids=("letters of letters", "one topic for all", "a diamond", "a look at retries"),
)
def test_dead_letters_that_come_to_an_end_are_fine(ways: list[Way]) -> None:
    """Handlers of the same app may read them."""
    check_ways(ways)


def test_a_retry_topic_belongs_to_one_group() -> None:
    """Both groups would read and run what failed in one of them."""
    ways = [way("one", "a", retry=("a.retry.5s",)), way("two", "a", retry=("a.retry.5s",), group="h")]
    with pytest.raises(HandlerError, match=r"a.retry.5s belongs to one in group g and to two in group h"):
        check_ways(ways)


def test_dead_letters_do_not_go_to_a_retry_topic() -> None:
    """Its handler would run what somebody else has given up."""
    ways = [way("one", "a", retry=("a.retry.5s",)), way("two", "b", dead="a.retry.5s")]
    with pytest.raises(HandlerError, match=r"handler two: .* a.retry.5s, a retry topic of one in group g"):
        check_ways(ways)


async def one(value: bytes) -> None:
    """A handler."""


async def two(value: bytes) -> None:
    """Another."""


def declared(*specs: tuple[TopicSpec, ...], **values: object) -> list[DeclaredGroup]:
    return declare_groups([spec for of_one in specs for spec in of_one], load(app_values=values))


def specs(function: object, *topics: str, **options: object) -> tuple[TopicSpec, ...]:
    """What @topic puts on `function`, which is left as it was."""
    found = specs_of(topic(*topics, **options)(function))[:1]  # type: ignore[call-overload]
    del function.__asyncpar_topics__  # type: ignore[attr-defined]
    return found


def test_a_pattern_matches_nothing_that_the_app_itself_writes() -> None:
    """Not the dead letters and retries of another handler either, of whichever group; a name does."""
    writer = specs(one, "orders.eu", group="g", dead_letter=".dlq", retry_topics=["orders.eu.retry.5s"])
    for group in ("g", "other"):
        groups = declared(writer, specs(two, "named.dlq", pattern="orders.*", group=group))
        pattern = next(found for found in groups if found.name == group).subscription.pattern
        assert pattern is not None
        assert pattern.fullmatch("orders.us")
        assert pattern.fullmatch("orders.us.dlq"), "of another app"
        assert not pattern.fullmatch("orders.eu.dlq")
        assert bool(pattern.fullmatch("orders.eu.retry.5s")) is (group == "g"), "by its name"
    (group,) = declared(
        specs(one, pattern="a[.].*", group="g", dead_letter=".dlq"), specs(two, pattern=".*", group="g")
    )
    pattern = group.subscription.pattern
    assert pattern is not None
    assert [bool(pattern.fullmatch(name)) for name in ("a.b", "a.b.dlq", "c.dlq")] == [True, False, True]
    (reader,) = declared(writer, specs(two, "orders.eu.dlq", group="g"))
    assert "orders.eu.dlq" in reader.subscription.topics


def test_circles_are_looked_for_in_a_whole_app() -> None:
    """With the dead letters that settings give."""
    with pytest.raises(HandlerError, match="would go round for ever"):
        declared(specs(one, "a"), specs(two, "a.dlq", dead_letter="a"), group="g", dead_letter=".dlq")
