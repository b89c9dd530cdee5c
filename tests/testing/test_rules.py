"""By which rules a test's history is judged."""

from __future__ import annotations

from asyncpar import App
from asyncpar.groups import DeclaredGroup
from asyncpar.settings import Settings
from asyncpar.testing.rules import passes_over, rules_for

SETTINGS = Settings(max_in_flight=77, offset_reset="latest")


def declared() -> DeclaredGroup:
    """A group with handlers of all kinds."""
    app = App(group="billing")

    def match(topic: str, raw: object) -> bool:
        return True

    @app.topic("a", order="partition")
    @app.topic("b", match=match)
    async def one() -> None: ...

    @app.topic("b", order="unordered", match=match, unmatched="skip")
    @app.topic("c", order=lambda topic, raw: raw.key, on_decode_error="skip")
    @app.topic(pattern="audit-.*|a")
    async def two() -> None: ...

    @app.topic("d", concurrency=7, keyless="error")
    def three() -> None: ...

    (group,) = app.groups()
    return group


def test_order_is_that_of_the_topics_handlers() -> None:
    """Where they differ, or order by a function, none is taken for sure; a name beats a pattern."""
    group = declared()
    orders = {topic: rules_for(group, topic, SETTINGS).order for topic in ("a", "b", "c", "d", "audit-x")}
    assert orders == {"a": "partition", "b": "unordered", "c": "unordered", "d": "key", "audit-x": "key"}


def test_limits_are_those_of_the_settings() -> None:
    """Threads note what they saw a little later: as many as there are."""
    rules = rules_for(declared(), "d", SETTINGS)
    assert (rules.slots, rules.max_in_flight, rules.offset_reset) == (7, 77, "latest")
    assert rules_for(declared(), "a", SETTINGS).slots == 1


def test_topics_where_records_vanish_unseen_are_known() -> None:
    """`unmatched="skip"`, or an order function whose failures are skipped; not what is only halted."""
    group = declared()
    assert [topic for topic in "abcd" if passes_over(group, topic)] == ["b", "c"]
