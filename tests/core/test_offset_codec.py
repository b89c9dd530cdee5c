"""Tests of the commit metadata: round trips, and everything that must not be believed."""

from __future__ import annotations

import base64
import itertools
import random
import re
import string
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core import offset_codec
from asyncpar.core.offset_codec import MAX_CHARS, MAX_SPAN, Encoded, Ignored, decode, decode_attempts, encode
from asyncpar.core.offsets import Run
from asyncpar.records import TopicPartition
from tests.core.models import TP, bounded

HEAD = len("ap1:00000000:")
LENGTHS = st.one_of(st.integers(1, 3), st.integers(1, 300), st.integers(1, 1 << 30))


@st.composite
def runs_above(draw: st.DrawFn, max_runs: int = 40) -> tuple[int, list[Run]]:
    """An HWM and runs above it, as a tracker makes them: ascending and apart."""
    hwm = draw(st.one_of(st.integers(0, 100), st.integers(0, 1 << 62)))
    return hwm, _from_lengths(hwm, draw(st.lists(st.tuples(LENGTHS, LENGTHS), max_size=max_runs)))


def _from_lengths(hwm: int, lengths: list[tuple[int, int]]) -> list[Run]:
    runs: list[Run] = []
    cursor = hwm
    for undone, done in lengths:
        runs.append((cursor + undone, cursor + undone + done))
        cursor += undone + done
    return runs


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _section(number: int, payload: bytes) -> bytes:
    return _varint(number) + _varint(len(payload)) + payload


def _sealed(body: bytes, hwm: int = 0, tp: TopicPartition = TP) -> str:
    """Metadata with a right checksum around any body, written from the format's description."""
    place = f"{tp.topic}\x00{tp.partition}\x00{hwm}\x00".encode()
    packed = base64.urlsafe_b64encode(body).rstrip(b"=").decode()
    return f"ap1:{zlib.crc32(place + body):08x}:{packed}"


# -- round trips -----------------------------------------------------------------------------


@bounded(60)
@given(runs_above())
def test_any_runs_survive_the_round_trip(case: tuple[int, list[Run]]) -> None:
    """What was encoded untruncated is decoded exactly, in ASCII and within the limit."""
    hwm, runs = case
    encoded = encode(TP, hwm, runs)
    assert not encoded.truncated
    assert len(encoded.text) <= MAX_CHARS
    assert encoded.text.isascii()
    assert decode(TP, hwm, encoded.text) == runs


@bounded(30)
@given(st.integers(0, 1 << 40), st.lists(st.booleans(), max_size=3_000), st.integers(1, 700))
def test_dense_patterns_survive_the_round_trip(hwm: int, pattern: list[bool], repeats: int) -> None:
    """Bit patterns, repeated so that they deflate, come back from whichever form is shortest."""
    bits = (pattern * repeats)[:5_000]
    edges = [i for i in range(1, len(bits)) if bits[i] and not bits[i - 1]]
    runs = [(hwm + i, hwm + [*bits, False].index(False, i)) for i in edges[:500]]
    encoded = encode(TP, hwm, runs)
    decoded = decode(TP, hwm, encoded.text)
    assert isinstance(decoded, list)
    assert decoded == runs[: len(decoded)]
    assert encoded.truncated is (len(decoded) < len(runs))


@pytest.mark.parametrize(
    ("section", "runs"),
    [
        (1, [(1, 1 << 30)]),
        (2, [(i, i + 1) for i in (1, 3, 6, 8, 11, 13, 14 + 2, 19, 23, 29, 31)]),
        (4, [(100_000 * i + 1, 100_000 * i + 77) for i in range(1, 300)]),
        (5, [(2 * i + 1, 2 * i + 2) for i in range(5_000)]),
    ],
    ids=["varints", "bitmap", "deflated varints", "deflated bitmap"],
)
def test_each_form_is_chosen_where_it_is_shortest(section: int, runs: list[Run]) -> None:
    """All four forms are written, and read back."""
    text = encode(TP, 0, runs).text
    packed = text[HEAD:]
    body = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
    assert body[0] == section
    assert decode(TP, 0, text) == runs


def test_the_widest_bitmap_is_read_back_and_costs_its_length_not_its_square() -> None:
    """A short text with half a million edges is no bomb, and stops the loop for no longer than a blink."""
    widest = [(2 * i + 1, 2 * i + 2) for i in range(1 << 18)]
    started = time.process_time()
    encoded = encode(TP, 0, widest)
    decoded = decode(TP, 0, encoded.text)
    assert time.process_time() - started < 2.0
    assert len(encoded.text) < 300
    assert decoded == widest


def test_long_varints_are_read_back() -> None:
    """Thousands of runs that are too far apart for a bitmap deflate well, and are no bomb either."""
    longest = [(1_000 * i + 1, 1_000 * i + 900) for i in range(1 << 12)]
    encoded = encode(TP, 0, longest)
    assert not encoded.truncated
    assert decode(TP, 0, encoded.text) == longest


def test_nothing_done_above_the_hwm_is_an_empty_text() -> None:
    """Most commits carry no metadata at all, and an empty text says nothing."""
    assert encode(TP, 5, []) == offset_codec.Encoded("", False)
    assert decode(TP, 5, "") == []


# -- truncation ------------------------------------------------------------------------------


def _check_truncation(hwm: int, runs: list[Run], max_chars: int) -> None:
    encoded = encode(TP, hwm, runs, max_chars)
    assert len(encoded.text) <= max_chars
    decoded = decode(TP, hwm, encoded.text)
    assert isinstance(decoded, list)
    assert decoded == runs[: len(decoded)]
    assert encoded.truncated is (len(decoded) < len(runs))


def test_every_limit_is_kept() -> None:
    """At every limit from 0 to 4,096 the text fits, and holds the lowest runs and no others."""
    chance = random.Random(1)
    runs = _from_lengths(7, [(chance.randrange(1, 1 << 20), chance.randrange(1, 400)) for _ in range(8)])
    for max_chars in range(MAX_CHARS + 1):
        _check_truncation(7, runs, max_chars)


def _coin_runs(chance: random.Random, count: int) -> list[Run]:
    """Runs of an incompressible bitmap: every offset is done or not by the toss of a coin."""
    tosses = "".join(f"{chance.getrandbits(1):b}" for _ in range(count * 4))
    found = re.finditer("1+", tosses)
    return [(1 + match.start(), 1 + match.end()) for match in itertools.islice(found, count)]


def test_dense_runs_are_cut_at_many_limits() -> None:
    """Where a bitmap is shortest it is cut at the limit, highest runs first; little room is wasted."""
    runs = _coin_runs(random.Random(2), 8_000)
    for max_chars in (0, 18, 19, 24, 25, 26, 100, 101, 2_000, 4_095, MAX_CHARS):
        _check_truncation(0, runs, max_chars)
    encoded = encode(TP, 0, runs)
    assert encoded.truncated
    assert len(encoded.text) > MAX_CHARS - 20


def test_sparse_runs_are_cut_at_many_limits() -> None:
    """The same where varints are the shortest form."""
    chance = random.Random(2)
    lengths = [(chance.randrange(1, 1 << 30), chance.randrange(1, 1 << 30)) for _ in range(400)]
    runs = _from_lengths(0, lengths)
    for max_chars in range(0, MAX_CHARS + 1, 61):
        _check_truncation(0, runs, max_chars)
    encoded = encode(TP, 0, runs)
    assert encoded.truncated
    assert len(encoded.text) > MAX_CHARS * 0.85


@bounded(60)
@given(runs_above(), st.integers(0, MAX_CHARS))
def test_any_runs_fit_any_limit(case: tuple[int, list[Run]], max_chars: int) -> None:
    """No runs and no limit make a text that is too long or lists what is not done."""
    _check_truncation(case[0], case[1], max_chars)


# -- what is not believed --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["{}", "x", "ap1", "ap1:0123456", "ap2:01234567:AQI", "ap1:01234567;AQI", "AP1:01234567:AQI", "\x00\xff"],
)
def test_foreign_text_is_ignored(text: str) -> None:
    """Other tools write metadata too; theirs is theirs."""
    assert decode(TP, 0, text) is Ignored.FOREIGN


@bounded(60)
@given(st.text(max_size=60), st.booleans())
def test_any_text_is_ignored_without_an_error(text: str, ours: bool) -> None:
    """No text makes decode raise, and none that we did not write yields runs."""
    decoded = decode(TP, 3, "ap1:" + text if ours else text)
    assert decoded == [] if not text and not ours else isinstance(decoded, Ignored)


def test_any_flipped_character_is_never_believed() -> None:
    """One character changed anywhere: ignored, or (unused bits, capitals) the very same runs."""
    runs = [(105, 130), (131, 140), (1_000, 70_000)]
    text = encode(TP, 100, runs).text
    believed = 0
    for at in range(len(text)):
        for other in {*string.printable, "\x00", "é", "\ud800"} - {text[at]}:
            decoded = decode(TP, 100, text[:at] + other + text[at + 1 :])
            believed += not isinstance(decoded, Ignored)
            assert isinstance(decoded, Ignored) or decoded == runs
    assert believed < 30


def test_any_flipped_bit_of_the_body_is_noticed() -> None:
    """The checksum covers every bit of the body."""
    runs = [(105, 130), (131, 140), (1_000, 70_000)]
    text = encode(TP, 100, runs).text
    packed = text[HEAD:]
    body = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
    for bit in range(len(body) * 8):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        repacked = base64.urlsafe_b64encode(bytes(damaged)).rstrip(b"=").decode()
        assert decode(TP, 100, text[:HEAD] + repacked) is Ignored.MISPLACED


def test_any_cut_text_is_ignored() -> None:
    """A text cut off anywhere is not read as fewer runs."""
    text = encode(TP, 100, [(105, 130), (131, 140), (1_000, 70_000)]).text
    assert all(isinstance(decode(TP, 100, text[:length]), Ignored) for length in range(1, len(text)))


@pytest.mark.parametrize(
    ("tp", "offset"),
    [
        (TopicPartition("payments", 3), 10),
        (TopicPartition("orders", 2), 10),
        (TopicPartition("orders", 3), 9),
        (TopicPartition("orders", 3), 11),
        (TopicPartition("orders\x003", 0), 10),
    ],
)
def test_text_in_another_place_is_ignored(tp: TopicPartition, offset: int) -> None:
    """An offset copied to another cluster, topic, partition or position keeps its string: not believed."""
    text = encode(TP, 10, [(12, 15)]).text
    assert decode(TP, 10, text) == [(12, 15)]
    assert decode(tp, offset, text) is Ignored.MISPLACED


@pytest.mark.parametrize(
    "body",
    [
        b"\x01",
        b"\x01\x05\x01\x01",
        _section(1, b"\x01"),
        _section(1, b"\x00\x05"),
        _section(1, b"\x05\x00"),
        _section(1, b"\x05\x01\x00\x02"),
        _section(1, b"\x80" * 4),
        _section(1, b"\xff" * 12 + b"\x01"),
        _section(1, _varint(1) + _varint(MAX_SPAN)),
        _section(2, b"\x01"),
        _section(2, b"\x03"),
        _section(4, b"not deflated"),
        _section(4, zlib.compress(b"\x01\x01")[:-1]),
        _section(5, b""),
        _section(1, b"\x01\x01") + _section(2, b"\x02"),
        b"\xff" * 12,
    ],
)
def test_a_body_that_makes_no_sense_is_damaged(body: bytes) -> None:
    """With a right checksum and a wrong body nothing is counted as done."""
    assert decode(TP, 0, _sealed(body)) is Ignored.DAMAGED


@bounded(100)
@given(st.binary(max_size=40))
def test_any_sealed_body_is_read_or_refused(body: bytes) -> None:
    """Whatever the bytes, decode gives ascending runs above the offset, or says why not."""
    decoded = decode(TP, 50, _sealed(body, hwm=50))
    if isinstance(decoded, list):
        edges = [50, *(edge for run in decoded for edge in run)]
        assert edges == sorted(set(edges))
    else:
        assert decoded is Ignored.DAMAGED


def test_unknown_sections_are_skipped() -> None:
    """A later version may add sections; this one reads past them."""
    ours = _section(1, b"\x02\x03")
    for body in (
        _section(7, b"\x01\x02\x03") + ours,
        ours + _section(300, b"later"),
        _section(8, b"") + ours + _section(9, b"x" * 200),
    ):
        assert decode(TP, 0, _sealed(body)) == [(2, 5)]
    assert decode(TP, 0, _sealed(_section(7, b"abc"))) == []
    assert decode(TP, 0, _sealed(b"")) == []


@pytest.mark.parametrize("section", [4, 5])
def test_a_deflate_bomb_is_refused_within_bounds(section: int) -> None:
    """A text that would inflate to 10 MB is damaged, and costs little memory to refuse."""
    deflater = zlib.compressobj(9)
    piece = b"\x01" * 1_000_000
    bomb = b"".join(deflater.compress(piece) for _ in range(10)) + deflater.flush()
    text = _sealed(_section(section, bomb))
    tracemalloc.start()
    try:
        assert decode(TP, 0, text) is Ignored.DAMAGED
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


# -- attempts --------------------------------------------------------------------------------


def test_attempts_come_back_beside_the_runs() -> None:
    """Of the lowest records; a text without runs has them too, and none has neither."""
    attempts = {7: 3, 9: 200, 5_000: 1}
    for runs in ([], [(8, 9), (20, 4_000)]):
        text = encode(TP, 7, runs, attempts=attempts).text
        assert decode(TP, 7, text) == runs
        assert decode_attempts(TP, 7, text) == attempts
    assert decode_attempts(TP, 7, encode(TP, 7, [(8, 9)]).text) == {}
    assert decode_attempts(TP, 7, "") == {}


def test_attempts_never_take_the_place_of_runs() -> None:
    """What does not fit is left out, the highest first; a text that is cut short has none."""
    attempts = dict.fromkeys(range(100, 200), 5)
    assert decode_attempts(TP, 0, encode(TP, 0, [], attempts=attempts).text) == dict.fromkeys(
        range(100, 132), 5
    )
    runs = [(at, at + 1) for at in range(1, 40, 2)]
    plain = encode(TP, 0, runs)
    room = len(plain.text) + 20
    with_some = encode(TP, 0, runs, room, attempts)
    assert len(with_some.text) <= room
    assert decode(TP, 0, with_some.text) == runs
    kept = decode_attempts(TP, 0, with_some.text)
    assert 0 < len(kept) < 10
    assert list(kept) == list(range(100, 100 + len(kept)))
    assert encode(TP, 0, runs, len(plain.text), attempts) == plain
    assert encode(TP, 0, [], 1, attempts) == Encoded("", False)


@pytest.mark.parametrize(
    "body",
    [
        _section(3, b"\x01\x00"),
        _section(3, b"\x01"),
        _section(3, b"\x01\x02\x00\x02"),
        _section(3, b"\x01\x02") + _section(3, b"\x01\x02"),
        _section(3, b"\xff\xff\xff\xff\xff\xff\x7f\x01"),
    ],
)
def test_attempts_that_make_no_sense_are_damage(body: bytes) -> None:
    """No count of zero, no record twice, nothing cut off or far away: then nothing of it is believed."""
    text = _sealed(body)
    assert decode(TP, 0, text) is Ignored.DAMAGED
    assert decode_attempts(TP, 0, text) == {}
