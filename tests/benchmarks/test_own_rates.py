"""Workloads S1, P9, P10, `threads` and `busy_partition`: contenders are right, and judged as they say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncpar import headers
from asyncpar.testing.checkers import Report
from benchmarks import busy_partition, harness, p9, p10, s1, threads
from benchmarks.harness import Run, Task
from benchmarks.load import Load, produce
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.rebalances.changes import Outcome
from tests.rebalances.stillness import Stillness, Window

# -- S1 ------------------------------------------------------------------------------------------


class Letter(NamedTuple):
    """A dead letter, as the client delivers it."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def letter(partition: int, offset: int, key: bytes = b"k", value: bytes | None = None) -> Letter:
    where = [(headers.TOPIC, b"t"), (headers.PARTITION, b"%d" % partition), (headers.OFFSET, b"%d" % offset)]
    return Letter(key, value, [*where, (headers.PAYLOAD, headers.METADATA_ONLY.encode())])


REFUSED = {(0, 1): b"k", (0, 4): b"k", (1, 1): b"k"}


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([letter(0, 1), letter(1, 1), letter(0, 4)], None),
        ([letter(0, 1), letter(1, 1)], "2 dead letters, which are not one of each of 3 failed records"),
        ([letter(0, 1), letter(0, 1), letter(1, 1), letter(0, 4)], "4 dead letters"),
        ([letter(0, 4), letter(1, 1), letter(0, 1)], "1 dead letters overtook"),
        ([letter(0, 1, value=b"v"), letter(1, 1), letter(0, 4)], "1 dead letters have a value"),
        ([letter(0, 1, key=b"x"), letter(1, 1), letter(0, 4)], "1 dead letters have a value, another key"),
        ([Letter(b"k", None, []), letter(0, 1), letter(1, 1), letter(0, 4)], "do not say what they are"),
    ],
    ids=["right", "lost", "twice", "order", "value", "key", "no headers"],
)
def test_each_failed_record_has_one_dead_letter(found: list[Letter], fault: str | None):
    """With its key, without its value, and in the order of its key."""
    faults = s1.judge_letters(found, REFUSED)
    assert (faults == []) is (fault is None)
    assert fault is None or any(fault in one for one in faults)


def earlier_run(path: Path, **shares: float) -> Path:
    """The JSON of an earlier run of the row `async`."""
    path.write_text(json.dumps({"rows": {"async": {"result": {"of_yardstick": shares}}}}))
    return path


@pytest.mark.parametrize(("earlier", "code"), [(0.55, 0), (0.56, 1), (0.2, 0)])
def test_a_regression_of_over_a_tenth_fails(
    earlier: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """By the share of the yardstick of each contender that the earlier run has; others are not compared."""

    def measure(_: str, row: harness.Row, rounds: int) -> harness.Results:
        return {name: [Run(100, 0.5 if name == s1.YARDSTICK else 1.0, 2.0)] for name in row.contenders}

    monkeypatch.setattr(harness, "measure", measure)
    known = "256 in flight, batch 500"
    against = earlier_run(tmp_path / "earlier.json", **{known: earlier})
    sizes = ["--bootstrap-servers", "nowhere:1", "--records", "50"]
    assert s1.main([*sizes, "--against", str(against), "--json", str(tmp_path / "found.json")]) == code
    assert (f"more than a tenth: async, {known}" in capsys.readouterr().out) is bool(code)
    written = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert written["async"]["result"]["of_earlier"] == {known: round(0.5 / earlier, 3)}
    assert "of_earlier" not in written["dead-letters"]["result"]
    assert s1.main(sizes) == 0


@pytest.mark.parametrize("text", [None, "no JSON", "[]", '{"rows": {"async": {}}}'])
def test_a_file_of_no_earlier_run_is_refused(text: str | None, tmp_path: Path):
    """Before anything is measured, with its name."""
    path = tmp_path / "earlier.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match="earlier.json: no JSON of an earlier run"):
        s1.main(["--against", str(path)])


def produced(broker: Broker, topic: str, group: str, records: int) -> Task:
    """A load in `topic`, and who is to read it."""
    load = Load(records, 10, partitions=2)
    produce(broker.bootstrap, topic, load)
    return Task(broker.bootstrap, topic, group, load.records, load.per_key, load.partitions)


@pytest.mark.broker
def test_s1_runs_with_dead_letters_are_right(broker: Broker, make_topic: TopicFactory, group_id: str):
    """One of each hundred of a key fails, and its letter is found, on a topic that is removed again."""
    task = produced(broker, make_topic(partitions=2), group_id, 2_000)
    run = s1.run_letters(True, task)
    assert isinstance(run, s1.LetterRun)
    assert run.faults == []
    assert run.letters == sum(s1.p4.failing_per_key(task.per_key)) > 0


# -- threads -------------------------------------------------------------------------------------


@pytest.mark.broker
def test_all_contenders_of_threads_run_each_record_once(
    broker: Broker, make_topic: TopicFactory, group_id: str
):
    """asyncpar's in order, and one of a key at a time."""
    task = produced(broker, make_topic(partitions=2), group_id, 600)
    runs: dict[str, Run] = {}
    for name, contender in threads.rows(10)[0].contenders.items():
        runs[name] = contender(replace(task, group=f"{group_id}-{len(runs)}"))
    assert {name: (run.records, run.faults) for name, run in runs.items()} == dict.fromkeys(runs, (600, []))
    assert len(runs) == 3


# -- one busy partition --------------------------------------------------------------------------


@pytest.mark.broker
def test_the_busy_load_lies_in_one_partition(broker: Broker, make_topic: TopicFactory):
    """All of it, and nothing anywhere else."""
    topic = make_topic(partitions=3)
    load = Load(1_000, 10)
    busy_partition.produce_to_one(broker.bootstrap, topic, load)
    assert asyncio.run(kafka_tools.end_offsets(broker.bootstrap, topic)) == {0: 1_000, 1: 0, 2: 0}


def test_a_busy_partition_is_judged_beside_the_even_load_of_the_same_contender():
    """Round by round."""

    def rates(*found: float) -> list[busy_partition.Measured]:
        return [busy_partition.Rate(rate=rate) for rate in found]

    found = busy_partition.result(
        {
            "asyncpar, even": rates(100, 200, 100),
            "asyncpar, one busy": rates(95, 170, 80),
            "raw aiokafka, even": rates(400, 400, 400),
            "raw aiokafka, one busy": rates(100, 100, 100),
        }
    )
    assert found["busy_of_even"] == {"asyncpar": 0.85, "raw aiokafka": 0.25}
    assert found["targets"] == {"busy of even": {"at_least": 0.9, "measured": 0.85, "is_met": False}}


# -- P9 and P10 ----------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("name", list(p9.MEMBERS))
async def test_an_idle_member_is_awake(
    name: str, broker: Broker, make_topic: TopicFactory, group_id: str, monkeypatch: pytest.MonkeyPatch
):
    """It handles what comes before and after it was looked at, and its idleness cost something."""
    monkeypatch.setattr(p9, "SETTLE_SECONDS", 0.1)
    topic = make_topic(partitions=p9.PARTITIONS)
    found = await p9.MEMBERS[name](broker.bootstrap, topic, group_id, 0.3)
    assert found.faults == []
    assert found.seconds >= 0.3
    assert 0 < found.share < 1


async def test_a_member_that_does_not_wake_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    """Also one that handles a record twice."""
    monkeypatch.setattr(p9, "_WAIT_SECONDS", 0.01)
    once = [*range(p9.PARTITIONS)]
    assert await p9._until_seen(once, 1)
    assert not await p9._until_seen(once, 2)
    assert not await p9._until_seen([*once, *once[1:], 1], 2)


def outcome(folder: Path, **values: Any) -> Outcome:
    return Outcome(folder, changes=3, records=50, **values)


def test_p10_counts_duplicates_and_pauses(tmp_path: Path):
    """What the run of the rebalances found is taken over, a missing verdict is a fault."""
    counts = {"duplicates": 2, "stragglers": 0, "late starts": 0, "unclean losses": 0}
    window = Window("m4 joins", 0, 10)
    steps = [Stillness(window, (100.0, 300.0)), Stillness(window, (200.0,))]
    found = p10.changed(
        outcome(tmp_path, report=Report((), counts), calm=Stillness(window, (9.0,)), steps=steps), 7
    )
    assert (found.seed, found.changes, found.records, found.duplicates) == (7, 3, 50, 2)
    assert (found.calm_pause_ms, found.pause_ms, found.longest_pause_ms) == (9.0, 200.0, 300.0)
    assert found.faults == ["2 duplicates, where there must be none"]
    void = p10.changed(outcome(tmp_path, void="the broker is gone"), 7)
    assert void.faults == ["no verdict: the broker is gone"]
    result = p10.result({p10.NAME: [found, void]})
    assert (result["duplicates"], result["longest_pause_ms"]) == (2, 300.0)
