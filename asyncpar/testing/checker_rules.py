"""What a run was set to, and what it left behind: what the checkers have to be told beside the history.

Pure data, checked when it is made. Never here: anything that a history tells, and judgements. Made by whoever
asks for a check, read by the checkers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from asyncpar.records import TopicPartition

Ordering = Literal["key", "partition", "unordered"]
Replays = Literal["recorded", "any"]
Reset = Literal["earliest", "latest"]
Rebalancing = Literal["eager", "cooperative"]
_WORDS = {
    "order": get_args(Ordering),
    "replays": get_args(Replays),
    "offset_reset": get_args(Reset),
    "rebalancing": get_args(Rebalancing),
}
_NO_NUMBERS = frozenset({*_WORDS, "finals", "letters"})


class Final(NamedTuple):
    """What the broker holds of a partition at the end: the group's committed offset and the log's end."""

    committed: int | None
    end: int


class Letter(NamedTuple):
    """A dead letter as its topic holds it at the end: where it lies, which record it names, what it says.

    `key`, `attempts` and `reason` are what the letter says (`asyncpar.headers`). `is_intact`: its payload is
    the one of the record.
    """

    tp: TopicPartition
    offset: int
    origin: TopicPartition
    origin_offset: int
    key: bytes | None
    attempts: int
    reason: str
    is_intact: bool = True


@dataclass(frozen=True)
class Rules:
    """What the run was set to. None: not known, and what depends on it is not judged.

    `order` is the handlers'. `replays="any"`: the history tells of calls only, not of assignments and
    commits; then every step back in a key is taken for a replay, and COMMIT, DUPLICATES and the rules of
    revokes are not judged. `slots` is the handlers' concurrency when they run in threads, and 1 on the event
    loop. `concurrency`: how many calls one member may run at a time, over all that its history tells of.
    `attempts`: a record that has failed so often halts its partition, or with `letters` becomes a dead
    letter. `tolerance_ns` is how far apart two processes (or threads) may have seen one thing: 0 in a
    simulation. `chunk_bytes` is the most that one fetch brings. `rebalancing`: in a cooperative group the
    broker cannot tell whose a partition is by the generation of a commit. `finals`: partitions that must have
    come to rest, `{TopicPartition("orders", 0): Final(42, 42)}`; plain tuples will do.

    `letters`: all that the dead-letter topics hold at the end; without it DEAD LETTER is not judged. The
    `send` of a letter in the history says when it was written; where there is none, that is not judged.
    `poison_failures`: so many calls of a key that fail in a row poison it. `letter_budget`: so many records
    may become dead letters of one member in `letter_window_ms`. Raises ValueError, TypeError.
    """

    order: Ordering = "key"
    replays: Replays = "recorded"
    offset_reset: Reset = "earliest"
    slots: int = 1
    session_timeout_ms: int | None = None
    max_revoke_grace_ms: int | None = None
    shutdown_drain_timeout_ms: int | None = None
    max_in_flight: int | None = None
    max_in_flight_bytes: int | None = None
    concurrency: int | None = None
    attempts: int | None = None
    chunk_bytes: int = 0
    rebalancing: Rebalancing = "eager"
    tolerance_ns: int = 0
    finals: Mapping[TopicPartition, Final] | None = None
    letters: Sequence[Letter] | None = None
    poison_failures: int | None = None
    letter_budget: int | None = None
    letter_window_ms: int | None = None

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                choices = " or ".join(map(repr, words))
                raise ValueError(f"Rules({name}={getattr(self, name)!r}) is not allowed; give {choices}")
        for name, value in vars(self).items():
            is_number = isinstance(value, int) and not isinstance(value, bool)
            if name not in _NO_NUMBERS and value is not None and not is_number:
                raise TypeError(f"Rules({name}={value!r}) is not allowed; give a whole number")
        if (self.letter_budget is None) != (self.letter_window_ms is None):
            raise ValueError("Rules(letter_budget=..., letter_window_ms=...) go together; give both or none")
        object.__setattr__(self, "finals", _finals(self.finals))
        object.__setattr__(self, "letters", _letters(self.letters))

    def lane_of(self, key: bytes | None, offset: int) -> Hashable:
        """What orders a record: its key, its partition (""), or nothing but itself (its offset)."""
        if self.order == "partition":
            return ""
        return offset if key is None or self.order == "unordered" else key


def _finals(given: object) -> dict[TopicPartition, Final] | None:
    """`given` with its tuples named; TypeError for what is none."""
    if given is None:
        return None
    try:
        items: list[tuple[Any, Any]] = list(given.items())  # type: ignore[attr-defined]
        finals = {TopicPartition(*tp): Final(*final) for tp, final in items}
    except (AttributeError, TypeError):
        finals = {}
    if not finals and given != {}:
        raise TypeError(
            f"Rules(finals={given!r}) is not allowed; give committed offset and end of the log of each "
            'partition: {("orders", 0): (42, 42)}'
        )
    for tp, final in finals.items():
        if not all(isinstance(one, int) for one in (tp.partition, final.committed or 0, final.end)):
            raise TypeError(f"Rules(finals=...) has {final!r} for {tp}; both are offsets")
    return finals


def _letters(given: object) -> tuple[Letter, ...] | None:
    """`given` as a tuple; TypeError when there is something else in it."""
    if given is None:
        return None
    letters = tuple(given) if isinstance(given, Sequence) else None
    if letters is None or any(not isinstance(one, Letter) for one in letters):
        raise TypeError(f"Rules(letters={given!r}) is not allowed; give Letter(...) for each, in a list")
    return letters
