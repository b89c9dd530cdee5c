"""How letters are shown: cells, JSON, one in full; nothing that they hold reaches the terminal raw."""

from __future__ import annotations

import json

import pytest

from asyncpar import headers
from asyncpar.admin.replay import ReplayReport, ReplayRequest
from asyncpar.cli.dlq_output import (
    everything,
    facts,
    in_full,
    line,
    moment,
    print_table,
    printable,
    row,
    words,
)
from asyncpar.cli.dlq_replay import summary
from asyncpar.records import OutgoingRecord, TopicPartition
from tests.admin.letters import DLQ, letter, read_back, stray

EVIL = "a\x1b[2J\x07\r\nb\u202e"


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (1_896_091_200_123, "2030-01-31T12:00:00.123Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "-"),
        (10**18, "-"),
    ],
)
def test_moments_are_utc(time_ms: int, text: str) -> None:
    """A time that no calendar has is a dash."""
    assert moment(time_ms) == text


def test_bytes_are_text_or_hexadecimal_digits() -> None:
    """On one line, nothing is a dash."""
    assert words("schlüssel".encode()) == "schlüssel"
    assert words(b"\xff\x00") == "0xff00"
    assert words(None) == "-"


def test_what_commands_a_terminal_is_escaped() -> None:
    """Control characters, and those that turn the direction of writing."""
    assert printable(EVIL) == r"a\x1b[2J\x07\r\nb\u202e"
    assert printable(EVIL, "\n") == "a\\x1b[2J\\x07\\r\nb\\u202e"
    nasty = read_back(
        letter(1, key=EVIL.encode(), handler=EVIL, reason=EVIL, source=EVIL, headers=((EVIL, EVIL.encode()),))
    )
    shown = " ".join(row(nasty, None)) + in_full(nasty, 100) + line(everything(nasty))
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)


def test_a_row_says_all_that_a_letter_says() -> None:
    """Short: the error's class without its module."""
    cells = row(read_back(letter(7, key=b"acme", failed_ms=1_896_091_200_000), offset=3), None)
    assert cells == (
        "0",
        "3",
        "2030-01-31T12:00:00.000Z",
        "orders[0]@7",
        "acme",
        "exhausted",
        "ValueError",
        "5",
        "bill",
        "",
    )


def test_a_foreign_record_has_dashes() -> None:
    """Its key and its own time are all there is."""
    cells = row(read_back(stray(), timestamp=0), None)
    assert cells[2:] == ("1970-01-01T00:00:00.000Z", "-", "k", "-", "-", "-", "-", "")


def test_remarks_name_doubles_missing_values_and_replays() -> None:
    """All that apply."""
    dead = letter(7, metadata_only=True)
    dead = dead._replace(headers=headers.with_values(dead.headers, [(headers.REPLAYED, 2)]))
    remark = row(read_back(dead), (TopicPartition(DLQ, 1), 9))[-1]
    assert remark == "double of 1@9, no value, replayed 2x before"


def test_the_table_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Each letter is one line, and marks of rich are text."""
    print_table([row(read_back(letter(7, key=b"[red]x[/red]", source="s" * 60)), None)])
    head, only = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["part", "offset", "when"]
    assert "[red]x[/red]" in only
    assert f"{'s' * 60}[0]@7" in only


def test_json_has_each_fact_under_its_name() -> None:
    """Bytes that are no text are hexadecimal digits."""
    found = facts(read_back(letter(7, key=b"\xff"), offset=3), (TopicPartition(DLQ, 0), 1))
    assert found == {
        "topic": DLQ,
        "partition": 0,
        "offset": 3,
        "when": "1970-01-01T00:33:20.000Z",
        "origin": {"topic": "orders", "partition": 0, "offset": 7, "timestamp_ms": 1_000_007},
        "key": {"hex": "ff"},
        "reason": "exhausted",
        "error_type": "builtins.ValueError",
        "error_message": "no such customer",
        "attempts": 5,
        "handler": "bill",
        "group": "billing",
        "first_failed_ms": 1_500_000,
        "failed_ms": 2_000_000,
        "timestamp_ms": 3_000_000,
        "replayed": 0,
        "metadata_only": False,
        "double_of": {"partition": 0, "offset": 1},
    }
    whole = json.loads(line(everything(read_back(letter(7)))))
    assert whole["value"] == "value-7"
    assert whole["headers"][0] == ["trace", "t1"]
    assert facts(read_back(stray()))["origin"] is None


def full(value: bytes | None, max_bytes: int = 1000) -> list[str]:
    """The lines of the value."""
    lines = in_full(read_back(OutgoingRecord(DLQ, b"k", value)), max_bytes).splitlines()
    return lines[next(at for at, text in enumerate(lines) if text.startswith("value")) :]


def test_json_is_laid_out() -> None:
    """What only looks like JSON is shown as it is."""
    assert full(b'{"a":[1,2]}') == [
        "value, 11 bytes:",
        "  {",
        '    "a": [',
        "      1,",
        "      2",
        "    ]",
        "  }",
    ]
    assert full(b"{nothing") == ["value, 8 bytes:", "  {nothing"]


def test_text_and_bytes_are_cut() -> None:
    """Not through a character, and it says so."""
    assert full("äöü".encode(), 3) == [
        "value, 6 bytes:",
        "  ä",
        "  ... cut after 3 of 6 bytes: see --max-bytes",
    ]
    assert full(bytes(range(200, 240)), 33)[1:3] == [
        "  " + bytes(range(200, 232)).hex(" "),
        "  e8",
    ]


def test_no_value_and_no_headers_are_said() -> None:
    """A tombstone, a value left out on purpose, a record of another program."""
    assert full(None) == ["value: none"]
    shown = in_full(read_back(letter(7, metadata_only=True)), 100)
    assert "left out on purpose" in shown
    assert "(it does not say)" in in_full(read_back(stray()), 100)
    assert "failed         2000000 (1970-01-01T00:33:20.000Z)" in shown


def test_the_summary_counts_what_was_done_and_what_was_not() -> None:
    """A line for each that is not zero."""
    report = ReplayReport(
        remembered=1,
        filtered=2,
        doubles=3,
        metadata_only=4,
        without_origin=5,
        own_topic=6,
        too_large=7,
        left=["t[0]@1"],
    )
    report.replayed.update({"orders": 7, "returns": 8})
    report.limited, report.interrupted, report.memory_full = True, True, "t[0]@9"
    lines = summary(report, ReplayRequest("t", "g", limit=15), dry_run=False)
    assert lines[0] == "replayed 15 letters: 8 to returns, 7 to orders"
    assert [text.split()[0] for text in lines[1:8]] == ["1", "2", "3", "4", "5", "6", "7"]
    assert "t[0]@1" in lines[8]
    assert lines[9] == "ended at --limit 15: there is more"
    assert "t[0]@9" in lines[10]
    assert "again to go on" in lines[11]
    assert summary(ReplayReport(), ReplayRequest("t", "g"), dry_run=True) == ["would replay 0 letters"]
