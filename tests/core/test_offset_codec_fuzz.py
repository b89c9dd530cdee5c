"""Commit metadata that other tools wrote, or that was damaged: sound runs, or a reason, and nothing else."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.offset_codec import MAX_SPAN, Ignored, decode, encode
from asyncpar.core.offsets import Run
from asyncpar.records import TopicPartition
from tests.core.models import TP, bounded

HWM = 100
RUNS = [(105, 130), (131, 140), (1_000, 70_000)]
OURS = encode(TP, HWM, RUNS).text
DENSE = encode(TP, HWM, [(HWM + 3 * n + 1, HWM + 3 * n + 2) for n in range(3_000)]).text
# Confluent's Parallel Consumer: base64 of a letter for the encoding and what that encoding wrote.
PARALLEL_CONSUMER_MAGIC = b"zlbaJenoZLNsOpKvk"


def check(text: str, offset: int = HWM, tp: TopicPartition = TP) -> list[Run] | Ignored:
    """Decode, and hold the answer to what every answer must be."""
    found = decode(tp, offset, text)
    if isinstance(found, Ignored):
        return found
    edges = [offset, *itertools.chain.from_iterable(found)]
    assert all(before < after for before, after in itertools.pairwise(edges))
    assert edges[-1] - offset <= MAX_SPAN
    return found


def _parallel_consumer(magic: int, payload: bytes) -> str:
    return base64.b64encode(bytes([magic]) + payload).decode()


# -- other tools ---------------------------------------------------------------------------------


@bounded(150)
@given(st.sampled_from(PARALLEL_CONSUMER_MAGIC), st.binary(max_size=300), st.booleans())
def test_the_parallel_consumers_metadata_is_foreign(magic: int, payload: bytes, packed: bool) -> None:
    """Its bitsets and run lengths, compressed or not, are never taken for ours."""
    payload = gzip.compress(payload, mtime=0) if packed else payload
    assert check(_parallel_consumer(magic, payload)) is Ignored.FOREIGN


@pytest.mark.parametrize(
    "text",
    [
        _parallel_consumer(ord("l"), struct.pack(">i", 16) + b"\xaa\x55"),
        _parallel_consumer(ord("o"), struct.pack(">10h", *range(10))),
        json.dumps({"offset": 100, "host": "worker-3", "done": [105, 131]}),
        "NO_METADATA",
        "null",
        "0",
        "2026-01-01T00:00:00Z",
        "consumer-1-7f3e",
        "MODULE$",
        "<xml/>",
        "ap1",
        "ap1:",
        "ap10:00000000:AQ",
        "\x00" * 100,
        "\ufeff" + OURS,
        " " + OURS,
    ],
)
def test_what_others_write_is_foreign(text: str) -> None:
    """Notes, host names, times and JSON stand in commits all over the world."""
    assert check(text) is Ignored.FOREIGN


@bounded(200)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: raw.decode("latin-1"))))
def test_any_text_is_refused(text: str) -> None:
    """Random text, control characters and lone surrogates yield no run."""
    assert check(text) == [] if not text else isinstance(check(text), Ignored)


@bounded(200)
@given(st.text("0123456789abcdefABCDEF+-_ \u0661\uff11", min_size=8, max_size=8), st.text(max_size=60))
def test_any_text_behind_our_prefix_is_refused(checksum: str, rest: str) -> None:
    """Our prefix alone makes nothing ours, whatever Python would take for a number."""
    assert isinstance(check(f"ap1:{checksum}:{rest}"), Ignored)


# -- damage --------------------------------------------------------------------------------------


@bounded(300)
@given(st.sampled_from([OURS, DENSE]), st.data())
def test_damaged_text_is_never_half_believed(text: str, data: st.DataObject) -> None:
    """Cut, doubled, swapped or changed anywhere: refused, or the very same runs (unused bits, capitals)."""
    whole = check(text)
    at = data.draw(st.integers(0, len(text) - 1))
    upto = data.draw(st.integers(at, len(text)))
    other = data.draw(st.characters())
    for damaged in (
        text[:at],
        text[at + 1 :],
        text[:at] + other + text[at + 1 :],
        text[:at] + other + text[at:],
        text[:at] + text[upto:],
        text[:upto] + text[at:],
        text[:at] + text[at:upto][::-1] + text[upto:],
        text.swapcase(),
    ):
        found = check(damaged)
        assert isinstance(found, Ignored) or found in ([], whole)
        assert found != [] or not damaged


@bounded(150)
@given(st.integers(0, 1 << 63), st.text(max_size=20), st.integers(0, 1 << 31))
def test_moved_text_is_refused(offset: int, topic: str, partition: int) -> None:
    """Copied to another topic, partition or offset it says nothing; odd topic names harm nobody."""
    tp = TopicPartition(topic.encode("utf-8", "replace").decode(), partition)
    if (tp, offset) != (TP, HWM):
        assert check(OURS, offset, tp) is Ignored.MISPLACED


# -- a right checksum around anything ------------------------------------------------------------


def _sealed(body: bytes) -> str:
    place = f"{TP.topic}\x00{TP.partition}\x00{HWM}\x00".encode()
    packed = base64.urlsafe_b64encode(body).rstrip(b"=").decode()
    return f"ap1:{zlib.crc32(place + body):08x}:{packed}"


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


_PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(zlib.compress),
    st.lists(st.integers(0, 1 << 70), max_size=8).map(lambda all_: b"".join(map(_varint, all_))),
    st.integers(0, 70_000).map(lambda length: zlib.compress(b"\xaa" * length)),
    st.integers(0, 70_000).map(lambda length: zlib.compress(b"\x01" * length)),
)


@bounded(300)
@given(
    st.lists(st.tuples(st.integers(0, 9), _PAYLOADS, st.integers(-2, 2)), max_size=4), st.binary(max_size=3)
)
def test_any_sections_are_read_or_damaged(sections: list[tuple[int, bytes, int]], tail: bytes) -> None:
    """Known and unknown sections in any order, with lengths that are off: sound runs, or damaged."""
    body = b"".join(
        _varint(number) + _varint(max(0, len(payload) + off)) + payload for number, payload, off in sections
    )
    found = check(_sealed(body + tail))
    assert not isinstance(found, Ignored) or found is Ignored.DAMAGED


_WIDEST = zlib.compress(b"\xaa" * 65_536, 9)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("ap1:" * 250_000, id="prefixes"),
        pytest.param("ap1:00000000:" + "A" * 1_000_000, id="letters"),
        pytest.param("{" * 1_000_000, id="json"),
        pytest.param(_sealed(b"\x09\x00" * 12_000), id="empty sections"),
        pytest.param(_sealed(b"\x01" + _varint(24_000) + b"\x01\x01" * 12_000), id="runs"),
        pytest.param(_sealed(b"\x05" + _varint(len(_WIDEST)) + _WIDEST), id="the widest bitmap"),
        pytest.param(
            _sealed((b"\x05" + _varint(len(_WIDEST)) + _WIDEST) * 30),
            id="30 of them in 4,000 characters",
        ),
    ],
)
def test_long_text_costs_its_length(text: str) -> None:
    """A string as long as a broker's setting allows, or longer, stops the loop only briefly."""
    started = time.process_time()
    check(text)
    assert time.process_time() - started < 0.75
