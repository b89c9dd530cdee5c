"""How a leader shares partitions out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncpar.records import TopicPartition
from asyncpar.testing.memory_assignors import Plan, Wish, assign


def short(plan: Plan) -> dict[str, list[str]]:
    """`{"a": ["x0", "x1"]}`."""
    return {member: sorted(f"{tp.topic}{tp.partition}" for tp in share) for member, share in plan.items()}


def held(*names: str) -> frozenset[TopicPartition]:
    """Partitions by their short names."""
    return frozenset(TopicPartition(name[0], int(name[1:])) for name in names)


BOTH, X, Y = frozenset("xy"), frozenset("x"), frozenset("y")


def test_round_robin_takes_turns() -> None:
    """Partitions go to members in turn; one without the topic is passed over."""
    assert short(assign("roundrobin", {"b": Wish(BOTH), "a": Wish(BOTH)}, {"x": 3, "y": 2})) == {
        "a": ["x0", "x2", "y1"],
        "b": ["x1", "y0"],
    }
    plan = assign("roundrobin", {"a": Wish(X), "b": Wish(BOTH), "c": Wish(Y)}, {"x": 2, "y": 2})
    assert short(plan) == {"a": ["x0"], "b": ["x1", "y1"], "c": ["y0"]}


def test_range_gives_neighbours() -> None:
    """Each topic by itself: neighbouring partitions, the first members get one more."""
    assert short(assign("range", {"b": Wish(BOTH), "a": Wish(BOTH)}, {"x": 3, "y": 1})) == {
        "a": ["x0", "x1", "y0"],
        "b": ["x2"],
    }


def test_a_topic_that_is_gone_has_no_partitions() -> None:
    """A topic that the metadata does not know is shared out as nothing."""
    for protocol in ("range", "roundrobin", "cooperative"):
        assert short(assign(protocol, {"a": Wish(BOTH)}, {"x": 1})) == {"a": ["x0"]}  # type: ignore[arg-type]


def test_cooperative_holds_back_what_moves() -> None:
    """What is held above the fair share goes to nobody until its holder has given it back."""
    counts = {"x": 4}
    first = assign("cooperative", {"a": Wish(X, held("x0", "x1", "x2", "x3")), "b": Wish(X)}, counts)
    assert short(first) == {"a": ["x0", "x1"], "b": []}
    second = assign("cooperative", {"a": Wish(X, first["a"]), "b": Wish(X)}, counts)
    assert short(second) == {"a": ["x0", "x1"], "b": ["x2", "x3"]}
    assert assign("cooperative", {m: Wish(X, second[m]) for m in second}, counts) == second


def test_cooperative_takes_a_doubtful_claim_from_both() -> None:
    """A partition that two members claim to hold is given to nobody this time."""
    members = {"a": Wish(X, held("x0")), "b": Wish(X, held("x0"))}
    assert short(assign("cooperative", members, {"x": 2})) == {"a": ["x1"], "b": []}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from("xyz"), min_size=1), min_size=1),
    st.dictionaries(st.sampled_from("xyz"), st.integers(1, 5)),
    st.sampled_from(["range", "roundrobin", "cooperative"]),
)
def test_everything_has_one_owner_who_wants_it(
    topics: dict[str, set[str]], counts: dict[str, int], protocol: str
) -> None:
    """After as many rounds as it takes each wanted partition is held by exactly one of its subscribers."""
    owned = {member: frozenset[TopicPartition]() for member in topics}
    for _ in range(2):
        members = {member: Wish(frozenset(wanted), owned[member]) for member, wanted in topics.items()}
        owned = assign(protocol, members, counts)  # type: ignore[arg-type]
        shared = [tp for share in owned.values() for tp in share]
        assert len(shared) == len(set(shared))
        assert all(tp.topic in topics[member] for member, share in owned.items() for tp in share)
        if protocol == "cooperative":
            continue
        wanted_topics = set().union(*topics.values())
        assert set(shared) == {TopicPartition(t, p) for t in wanted_topics for p in range(counts.get(t, 0))}
