"""DEAD LETTER: what the dead-letter topics hold in the end, beside what the history says of its records.

Lives here: what each letter needs, and what each record that counts as done by one needs. Never here: what a
record that counts as done means to commits, order and duplicates: the other checkers know it by its `done`.
A letter's place in time is the `send` that was noted of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asyncpar import headers
from asyncpar.records import RawRecord, TopicPartition
from asyncpar.testing.checker_model import NS_PER_MS, Call, Checker, FaultSink, Partition, Sent, Tenure
from asyncpar.testing.checker_rules import Letter, Rules
from asyncpar.testing.history import DEAD_LETTER, NO_OFFSET, NO_PARTITION, TRUNCATE, Event

_NOT_FAILED_ITSELF = frozenset({"poison_key", "undecodable"})
"""Reasons of letters whose records need not have been given to a handler."""
_GIVEN_UP_AT_ONCE = frozenset({"exhausted", "too_old", "permanent"})
"""Reasons of letters that leave when a call has failed, and not later."""
_SURE_SHARE = 0.9
"""A budget's window moves on by tenths: this much of it counts in any case."""

_Place = tuple[TopicPartition, int]


def letter_of(tp: TopicPartition, record: RawRecord, *, is_intact: bool = True) -> Letter:
    """What `record` of a dead-letter topic says; of no offset when it does not say where it comes from."""
    origin = headers.origin(record.headers) or (NO_PARTITION, NO_OFFSET)
    attempts = headers.number(record.headers, headers.ATTEMPTS) or 0
    reason = headers.text(record.headers, headers.REASON) or ""
    return Letter(tp, record.offset, *origin, record.key, attempts, reason, is_intact)


class _Failed(NamedTuple):
    """A call that did not end well."""

    at_ns: int
    tenure: Tenure | None


class _Origin:
    """A record of which there are letters."""

    __slots__ = ("failures", "heard", "is_skipped", "keys", "letters")

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        """In the order in which they were written, as far as that is known."""
        self.keys: list[bytes | None] = []
        """Of the records that were sent to its offset: more than one when the log was truncated."""
        self.failures: list[_Failed] = []
        self.heard: list[tuple[str, int]] = []
        """Each `done` by a letter: the member, and the index of the event."""
        self.is_skipped = False
        """It was passed over once, and left only when it was read again."""


class DeadLetters(Checker):
    """DEAD LETTER: a record counts as done by its dead letter only once a topic holds that letter.

    Each time that a record counts as done so, one more letter of it has been written by then, with its key
    and its payload. (That no commit passes a failed record which does not count as done is LOST's to say.)

    Each letter's record was sent, and as many of its calls had failed as the letter says, at least one;
    with the reason `exhausted` at least `attempts`, and more only by what further assignments have added.
    What could not be decoded, or has a poisoned key, need not have run; but a key is poisoned by
    `poison_failures` failed calls in a row of one member. A record has at most one letter for each
    assignment in which it failed (or of its partition, where it need not have run): a second one within
    an assignment is no unclean end's fault, and a producer's repeats are recognised. A drain that ends
    before its time, and a stop that says that all is done, have waited for the letters on their way. The
    first letters of a key ascend, but for those of records that succeeded or were skipped elsewhere. Of what
    one member gave up within 90 % of `letter_window_ms`, at most `letter_budget` letters are acknowledged in
    it (source: TESTING; ARCHITECTURE, law 1).
    """

    def __init__(self, rules: Rules, found: FaultSink, events: Sequence[Event]) -> None:
        super().__init__(rules, found)
        self._written: dict[_Place, int] = {}
        """When each letter was written, ns."""
        self._cuts: Counter[TopicPartition] = Counter()
        self._assigned: defaultdict[TopicPartition, list[int]] = defaultdict(list)
        """When each partition was assigned to somebody, ns."""
        self._origins: defaultdict[_Place, _Origin] = defaultdict(_Origin)
        self._rows: Counter[tuple[str, bytes, str]] = Counter()
        """Failed calls in a row by topic, key and member."""
        self._poisoned: dict[tuple[str, bytes | None], int] = {}
        """When a key was poisoned first, ns."""
        self._acknowledged: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """By member: when a record failed last, and when its letter was acknowledged."""
        letters = {(letter.tp, letter.offset): letter for letter in rules.letters or ()}
        for letter in letters.values():
            self._origins[letter.origin, letter.origin_offset].letters.append(letter)
        self._look_ahead(events, letters)
        for origin in self._origins.values():
            origin.letters.sort(key=lambda one: (self._written.get((one.tp, one.offset), 0), one.offset))

    def _look_ahead(self, events: Sequence[Event], letters: Mapping[_Place, Letter]) -> None:
        """What may be noted later than it was so: sends, above all."""
        for event in events:
            if event.kind == "send":
                place = (event.tp, event.offset)
                if place in letters:
                    self._written[place] = event.at_ns
                elif place in self._origins:
                    self._origins[place].keys.append(event.key)
            elif event.kind == "assign":
                self._assigned[event.tp].append(event.at_ns)
            elif event.kind == "fault" and event.detail == TRUNCATE:
                self._cuts[event.tp] += 1

    # -- what happens ------------------------------------------------------------------------

    def ended(self, call: Call) -> None:
        """Remember what failed."""
        end, start = call.end, call.start
        if end is None:
            return
        is_ok = end.detail == "ok"
        if not is_ok and (start.tp, start.offset) in self._origins:
            self._origins[start.tp, start.offset].failures.append(_Failed(end.at_ns, call.tenure))
        if self.rules.poison_failures is None or start.key is None:
            return
        row = (start.tp.topic, start.key, start.member)
        self._rows[row] = 0 if is_ok else self._rows[row] + 1
        if self._rows[row] >= self.rules.poison_failures:
            self._poisoned.setdefault((start.tp.topic, start.key), end.at_ns)

    def settled(
        self,
        part: Partition,
        record: Sent,
        event: Event,
        index: int,
    ) -> None:
        """Judge a `done`: the letter that it stands for is there."""
        place = (part.tp, record.offset)
        if event.detail != DEAD_LETTER:
            if place in self._origins:
                self._origins[place].is_skipped = True
            return
        letters = self._origins[place].letters if place in self._origins else []
        written = sum(self._has(letter, event.at_ns) for letter in letters)
        heard = self._origins[place].heard
        heard.append((event.member, index))
        if len(heard) > written:
            which = "no letter" if len(heard) == 1 else f"no letter number {len(heard)}"
            what = f"{part.tp} offset {record.offset} counted as done, but {which} of it had been written"
            self.found("DEAD LETTER", what, event)
        tried = record.tried
        if tried is not None and tried.end is not None and tried.start.member == event.member:
            self._judge_budget(event, tried.end.at_ns)

    def _has(self, letter: Letter, at_ns: int) -> bool:
        """`letter` was written by `at_ns`, as far as one knows."""
        return self._written.get((letter.tp, letter.offset), 0) <= at_ns + self.rules.tolerance_ns

    def _judge_budget(self, event: Event, failed_ns: int) -> None:
        budget, window_ms = self.rules.letter_budget, self.rules.letter_window_ms
        if budget is None or window_ms is None:
            return
        since = event.at_ns - int(window_ms * NS_PER_MS * _SURE_SHARE)
        recent = [(failed, done) for failed, done in self._acknowledged[event.member] if done > since]
        recent.append((failed_ns, event.at_ns))
        self._acknowledged[event.member] = recent
        count = sum(failed > since for failed, _ in recent)
        if count > budget:
            what = (
                f"{event.member} had {count} letters written within {window_ms} ms, at most {budget} may be"
            )
            self.found("DEAD LETTER", what, event)

    # -- what is left ------------------------------------------------------------------------

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """Judge the letters."""
        firsts: list[Letter] = []
        for origin in self._origins.values():
            for number, letter in enumerate(origin.letters, 1):
                self._judge(letter, origin, number)
            if not origin.is_skipped:
                firsts += origin.letters[:1]
        self._judge_order(firsts, parts)

    def _tell(self, letter: Letter, what: str, *events: Event) -> None:
        where = f"{letter.origin} offset {letter.origin_offset}: its letter at {letter.tp} {letter.offset}"
        self.found("DEAD LETTER", f"{where} {what}", *events)

    def _judge(self, letter: Letter, origin: _Origin, number: int) -> None:
        """One letter, the `number`th of its record."""
        if letter.origin_offset == NO_OFFSET or not origin.keys:
            self._tell(letter, "is of a record that nobody sent")
            return
        if letter.key not in origin.keys:
            self._tell(letter, f"has the key {letter.key!r}, not {origin.keys[-1]!r}")
        if not letter.is_intact:
            self._tell(letter, "has another payload")
        if len(origin.keys) > 1:
            return  # nobody can tell which of the records at that offset it is about
        failures = [one for one in origin.failures if self._is_before(one.at_ns, letter)]
        self._judge_cause(letter, len(failures))
        lives = self._lives(letter, origin, failures)
        if lives is not None and number > lives:
            often = "one assignment" if lives == 1 else f"{lives} assignments"
            what = f"is number {number} of it, and it was given up in {often} at most"
            self._tell(letter, what)
        self._judge_attempts(letter, failures, lives)
        tenures = {id(one.tenure): one.tenure for one in failures}
        if number == 1 and len(tenures) == 1 and letter.reason in _GIVEN_UP_AT_ONCE:
            self._judge_drain(letter, origin, *tenures.values())

    def _judge_cause(self, letter: Letter, failed: int) -> None:
        if letter.reason == "poison_key" and self.rules.poison_failures is not None:
            since = self._poisoned.get((letter.origin.topic, letter.key))
            if since is None or not self._is_before(since, letter):
                self._tell(letter, f"says that its key {letter.key!r} was poisoned, which it was not by then")
        if failed < max(letter.attempts, letter.reason not in _NOT_FAILED_ITSELF):
            what = f"says {letter.attempts} attempts, and {failed} of its calls had failed by then"
            self._tell(letter, f"({letter.reason}) {what}")

    def _judge_attempts(self, letter: Letter, failures: Sequence[_Failed], lives: int | None) -> None:
        """`exhausted`: all attempts are used up; each further assignment may have added one that was lost."""
        attempts = self.rules.attempts
        if letter.reason != "exhausted" or attempts is None or not failures:
            return
        if letter.attempts < attempts:
            self._tell(letter, f"says that {letter.attempts} attempts used it up, and it has {attempts}")
        elif lives is not None and letter.attempts > attempts + lives - 1:
            self._tell(letter, f"says {letter.attempts} attempts, and it has {attempts} in each assignment")

    def _judge_drain(self, letter: Letter, origin: _Origin, tenure: Tenure | None) -> None:
        """Only in `tenure` it was given up: who gave that back in time had heard of the letter before."""
        if tenure is None or tenure.over != tenure.closed or tenure.cut or not self._had_time(tenure):
            return  # behind a cut nobody waits for what stood there before
        member, end = tenure.assign.member, tenure.closed_index
        if not any(heard == member and tenure.index < index < end for heard, index in origin.heard):
            how = "stopped" if tenure.closed == "left" else "gave the partition back"
            self._tell(letter, f"was on its way when {member} {how}, and there was time to wait for it")

    def _had_time(self, tenure: Tenure) -> bool:
        """It ended cleanly, and earlier than its drain had to."""
        if tenure.closed == "left":
            return not tenure.gave_up
        grace_ms = self.rules.max_revoke_grace_ms
        drains_until = None if tenure.closed != "released" or grace_ms is None else tenure.drain_ns(grace_ms)
        return drains_until is not None and tenure.closed_ns < drains_until - self.rules.tolerance_ns

    def _is_before(self, at_ns: int, letter: Letter) -> bool:
        """`at_ns` lies before `letter` was written, as far as one knows."""
        written = self._written.get((letter.tp, letter.offset))
        return written is None or at_ns <= written + self.rules.tolerance_ns

    def _lives(self, letter: Letter, origin: _Origin, failures: Sequence[_Failed]) -> int | None:
        """In how many assignments its record may have been given up by then; None: nobody knows."""
        if self.rules.replays == "any":
            return None
        cuts = self._cuts[letter.origin]
        if any(one.reason in _NOT_FAILED_ITSELF for one in origin.letters):
            assigned, written = self._assigned[letter.origin], self._written.get((letter.tp, letter.offset))
            known = len(assigned) if written is None else bisect_right(assigned, written)
            return max(1, known) + cuts
        return max(1, len({id(one.tenure) for one in failures})) + cuts

    def _judge_order(self, firsts: Sequence[Letter], parts: Mapping[TopicPartition, Partition]) -> None:
        """Of each key, as the topic holds them."""
        last: dict[object, Letter] = {}
        for letter in sorted(firsts, key=lambda one: (one.tp, one.offset)):
            lane = self.rules.lane_of(letter.key, letter.origin_offset)
            part = parts.get(letter.origin)
            record = None if part is None else part.log.records.get(letter.origin_offset)
            if isinstance(lane, int) or record is None or record.ghost or record.ends:
                continue
            before = last.setdefault((letter.tp, letter.origin, lane), letter)
            if before.origin_offset > letter.origin_offset:
                self._tell(letter, f"comes after that of offset {before.origin_offset} of its key")
            else:
                last[letter.tp, letter.origin, lane] = letter
