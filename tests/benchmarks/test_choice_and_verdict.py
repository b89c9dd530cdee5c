"""Which rows and contenders run, what is said of those that cannot, and whose faults fail a benchmark."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.choice import LeftOut, chosen, prepared, unasked
from benchmarks.harness import Results, Row, Run, Task, uncommitted
from benchmarks.load import Load

NOWHERE = ["--bootstrap-servers", "nowhere:1"]


def nothing(_: Task) -> Run:
    return Run(10, 1.0, 2.0)


def version() -> str:
    return "rival 1.2.3"


def no_package() -> str:
    raise LeftOut("no rival: install it")


def row(name: str = "one", prepare: Callable[[], str] = version) -> Row:
    """Our contender, its baseline, and two rivals that need the same thing."""
    return Row(
        name=name,
        load=Load(10, 1),
        contenders=dict.fromkeys(("ours", "floor", "rival", "rival fast"), nothing),
        subject="ours",
        baseline="floor",
        target=0.9,
        settings={},
        figures=lambda results: {"of_all": sorted(results)},
        rivals=frozenset({"rival", "rival fast"}),
        preparations=dict.fromkeys(("rival", "rival fast"), prepare),
    )


# -- the choice ----------------------------------------------------------------------------------


def test_all_rows_and_contenders_run_unless_some_are_named():
    """No name: everything; a row without a contender that was asked for is left out."""
    rows = [row("one"), row("two")]
    assert chosen(rows, None, None) == rows
    assert [one.name for one in chosen(rows, "two", None)] == ["two"]
    assert [list(one.contenders) for one in chosen(rows, "one", "floor, rival")] == [["floor", "rival"]]


def test_what_was_not_asked_for_is_said_to_be_left_out():
    """So that nobody takes a selection for all there is."""
    assert unasked([row("one"), row("two")], "ours, floor") == dict.fromkeys(
        ("rival", "rival fast"), "not asked for (--contenders)"
    )
    assert unasked([row()], None) == {}


def test_the_folder_of_the_json_is_made_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And where it cannot be made, that is said before too."""
    parser = argparse.ArgumentParser()
    harness.make_folder_of(None, parser)
    harness.make_folder_of(tmp_path / "build" / "benchmarks" / "p1.json", parser)
    assert (tmp_path / "build" / "benchmarks").is_dir()
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "file" / "p1.json", "File exists"), (tmp_path, "it is a folder")):
        with pytest.raises(SystemExit):
            harness.make_folder_of(path, parser)
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "contenders", "words"),
    [
        ("three", None, "no row three; there are: one, two"),
        (None, "theirs,ours", "no contender theirs; there"),
    ],
)
def test_an_unknown_name_ends_the_command_with_those_that_there_are(
    names: str | None, contenders: str | None, words: str
):
    """Before anything is measured."""
    with pytest.raises(SystemExit, match=words):
        chosen([row("one"), row("two")], names, contenders)


def test_what_cannot_run_is_left_out_and_said_with_the_reason(capsys: pytest.CaptureFixture[str]):
    """Both contenders that need it, in every row; what they need is looked for once."""
    asked: list[int] = []

    def look() -> str:
        asked.append(1)
        raise LeftOut("no rival: install it")

    found = prepared([row("one", look), row("two", look)])
    assert [list(one.contenders) for one in found.rows] == [["ours", "floor"]] * 2
    assert found.left_out == dict.fromkeys(("rival", "rival fast"), "no rival: install it")
    assert found.versions == {}
    assert len(asked) == 1
    assert "rival fast is left out: no rival: install it" in capsys.readouterr().out


def test_when_nothing_can_run_the_command_ends():
    """Rather than with an empty table."""
    with pytest.raises(SystemExit, match="nothing is left to measure"):
        prepared(chosen([row("one", no_package)], None, "rival"))


def test_versions_and_what_is_left_out_are_in_the_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Beside the machine; and without the baseline there is no ratio and no figure that needs it."""
    monkeypatch.setattr(
        harness, "measure", lambda _, row, rounds: {name: [Run(10, 1.0, 2.0)] for name in row.contenders}
    )
    made = [row("one"), row("two", no_package)]
    path = tmp_path / "found.json"
    words = [*NOWHERE, "--contenders", "ours,rival", "--json", str(path)]
    assert harness.conduct("A benchmark.", 10, lambda records: made[:1], words) == 0
    written = json.loads(path.read_text())
    assert written["environment"]["versions"] == {"rival": "rival 1.2.3"}
    assert "machine" in written["environment"]
    assert "ratio" not in written["result"] and "of_all" not in written["result"]
    assert harness.conduct("A benchmark.", 10, lambda records: made[1:], [*NOWHERE, "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert set(written["environment"]["left_out"]) == {"rival", "rival fast"}
    assert written["result"]["of_all"] == ["floor", "ours"]
    assert written["result"]["target_ratio"] == 0.9


# -- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "code", "words"), [("ours", 1, "FAILED: ours"), ("rival", 0, "not ours: rival")]
)
def test_a_rival_that_is_wrong_is_shown_and_fails_nothing(
    wrong: str,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Ours that is wrong ends the same command with 1."""

    def measure(_: str, row: Row, rounds: int) -> Results:
        faults = {wrong: ["1 records overtook an earlier one of their key"]}
        return {name: [Run(10, 1.0, 2.0, faults=faults.get(name, []))] for name in row.contenders}

    monkeypatch.setattr(harness, "measure", measure)
    assert harness.conduct("A benchmark.", 10, lambda records: [row()], NOWHERE) == code
    assert f"{words} lost, reordered or did not commit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_stopped", "committed", "fault"),
    [
        (False, {0: 4, 1: 6}, None),
        (False, {0: 4, 1: 5}, "instead of"),
        (False, {0: 10}, "instead of"),
        (True, {0: 4, 1: 3}, None),
        (True, {}, None),
        (True, {0: 4, 1: 4}, "committed 1 records that did not run"),
    ],
)
def test_all_is_committed_or_when_stopped_no_more_than_ran(
    is_stopped: bool, committed: dict[int, int], fault: str | None
):
    """Of 10 records in two partitions 8 ran, one of them twice, when the run was stopped."""
    run = Run(8, 1.0, 2.0, duplicates=1, is_stopped=is_stopped)
    found = uncommitted(run, committed, {0: 4, 1: 6})
    assert (found == []) is (fault is None)
    assert fault is None or fault in found[0]


def test_a_run_that_was_stopped_is_called_right_beside_the_note():
    """And one that was wrong is not."""
    note = "stopped after 20 s"
    assert harness.told(Run(8, 1.0, 2.0, notes=[note])).endswith(f"right, 0 duplicates, {note}")
    assert harness.told(Run(8, 1.0, 2.0, notes=[note], faults=["lost"])).endswith(f"lost; {note}")
