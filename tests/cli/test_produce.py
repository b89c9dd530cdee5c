"""`asyncpar produce` without a cluster: which records it makes, when it sends them, and what it says."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncpar import headers
from asyncpar.cli import produce_run
from asyncpar.cli.main import main
from asyncpar.cli.produce import exit_code
from asyncpar.cli.produce_load import Load, LoadRequest, Slot, filled, from_file, of_size
from asyncpar.cli.produce_run import Place, Report, as_json_fields, produced, summary
from asyncpar.errors import ConfigurationError, PublishError, UnknownTopicError
from asyncpar.records import OutgoingRecord
from tests.cli.program import asyncpar

Answer = Callable[[PublishError | None], None]
BOUND_SECONDS = 20
LOST = PublishError("topic 'orders' did not take a record", "unreachable")


class Cluster:
    """A topic of 4 partitions, unless it is missing; `answer` says how each record is answered for."""

    def __init__(self, *, is_missing: bool = False) -> None:
        self.is_missing = is_missing
        self.records: list[OutgoingRecord] = []
        self.sent_at: list[float] = []
        self.answer: Callable[[int, Answer], None] = lambda number, answered: answered(None)
        self.notes: list[str] = []

    async def partitions(self, topic: str) -> list[int]:
        if self.is_missing:
            raise UnknownTopicError(f"topic {topic!r} does not exist")
        return list(range(4))

    async def create_topic(self, topic: str, partitions: int) -> None:
        self.is_missing = False

    async def send(self, record: OutgoingRecord, answered: Answer) -> None:
        self.sent_at.append(time.time() * 1000)
        self.records.append(record)
        self.answer(len(self.records), answered)

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[Any]:
        yield self

    async def produce(self, partitions: int | None = None, **asked: Any) -> Report:
        request = LoadRequest("orders", of_size(10), **asked)
        place = Place(self.entered, self.entered)
        async with asyncio.timeout(BOUND_SECONDS) as bound:
            report = await produced(place, request, partitions, self.notes.append)
        assert not bound.expired()
        return report


def made(count: int, **asked: Any) -> list[OutgoingRecord]:
    load = Load(LoadRequest("orders", asked.pop("values", of_size(20)), **asked))
    return [load.record(number, 1_700_000_000_000 + number) for number in range(count)]


# -- which records -------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_records() -> None:
    """Keys and values; another seed makes others."""
    values = filled("{{number}} {{key}} {{random}}")
    assert made(50, values=values) == made(50, values=values)
    assert made(50, values=values) != made(50, values=values, seed=1)


def test_each_record_says_when_it_was_to_be_sent() -> None:
    """In the header that a bench reads."""
    [record] = made(1)
    assert record.headers == ((headers.INTENDED, b"1700000000000"),)
    assert headers.number(record.headers, headers.INTENDED) == 1_700_000_000_000


def test_keys_are_drawn_alike_or_by_zipfs_law() -> None:
    """With the exponent 2 the first key comes 4 times as often as the second, 9 times as the third."""
    even = Counter(record.key for record in made(10_000, keys=10))
    assert len(even) == 10
    assert max(even.values()) < 1.3 * min(even.values())
    skewed = Counter(record.key for record in made(30_000, keys=100, key_skew=2.0))
    assert skewed[b"key-0"] / skewed[b"key-1"] == pytest.approx(4, rel=0.15)
    assert skewed[b"key-0"] / skewed[b"key-2"] == pytest.approx(9, rel=0.15)
    assert {record.key for record in made(10, keys=0)} == {None}


def test_values_have_the_size_asked_for() -> None:
    """They begin with their number, as far as there is room."""
    assert of_size(14)(Slot(7, "k", 0, 0)) == b"0000000007...."
    assert of_size(3)(Slot(7, "k", 0, 0)) == b"000"
    assert of_size(0)(Slot(7, "k", 0, 0)) == b""


def test_a_template_is_filled_in() -> None:
    """JSON may stand around the placeholders, with braces of its own; an unknown one is refused."""
    value = filled('{"a": {"n": {{number}}}, "k": "{{ key }}", "t": {{time_ms}}, "r": {{random}}}')
    assert json.loads(value(Slot(7, "key-1", 5, 9))) == {"a": {"n": 7}, "k": "key-1", "t": 5, "r": 9}
    with pytest.raises(
        ConfigurationError, match=r"nothing to fill in for \{\{nmber\}\}; did you mean 'number'"
    ):
        filled("{{nmber}}")


def test_values_come_from_a_file_in_turn(tmp_path: Path) -> None:
    """Line by line, from the first one again after the last; empty lines are left out."""
    path = tmp_path / "values.jsonl"
    path.write_text('{"a": 1}\n\n  {"b": 2}\n')
    value = from_file(path)
    assert [value(Slot(at, "", 0, 0)) for at in range(3)] == [b'{"a": 1}', b'{"b": 2}', b'{"a": 1}']


def test_only_a_line_feed_ends_a_value(tmp_path: Path) -> None:
    """What else ends lines of text may stand in JSON strings, and a carriage return between its parts."""
    path = tmp_path / "values.jsonl"
    lines = ['{"a": "x\u2028y"}', '{"b": "p\u0085q"}', '{"c":\r1}']
    path.write_bytes("\r\n".join(lines).encode())
    value = from_file(path)
    assert [value(Slot(at, "", 0, 0)) for at in range(4)] == [line.encode() for line in [*lines, lines[0]]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": 1}\nnothing\n', "values.jsonl, line 2 is no JSON"),
        (b"1\n" + b"[" * 200_000 + b"\n", "values.jsonl, line 2 is nested too deeply"),
        (b"\n", "has no line"),
        (b"\xff\xfe", "it is no UTF-8 text"),
    ],
)
def test_a_file_without_values_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    """With the line, where there is one."""
    path = tmp_path / "values.jsonl"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=says):
        from_file(path)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        from_file(tmp_path / "none")


# -- sending -------------------------------------------------------------------------------------


async def test_all_are_written_and_counted() -> None:
    """As fast as it goes, when no rate is asked for."""
    cluster = Cluster()
    report = await cluster.produce(records=500)
    assert (report.sent, report.acknowledged, report.partitions) == (500, 500, 4)
    assert [record.value for record in cluster.records[:2]] == [b"0000000000", b"0000000001"]
    assert report.rate > 0
    assert summary(report, LoadRequest("orders", of_size(1)))[0].startswith("wrote 500 records to orders (4 ")


async def test_each_record_has_its_time_and_is_not_sent_before() -> None:
    """Evenly spaced by the rate, whatever the sending does."""
    cluster = Cluster()
    report = await cluster.produce(records=40, rate=200)
    intended = [headers.number(record.headers, headers.INTENDED) or 0 for record in cluster.records]
    assert [round((at - intended[0]) / 5) for at in intended] == list(range(40))
    assert all(sent >= at - 2 for sent, at in zip(cluster.sent_at, intended, strict=True))
    assert report.seconds >= 39 / 200
    assert "a second of 200 asked for" in summary(report, LoadRequest("orders", of_size(1), rate=200))[0]


async def test_a_broker_that_is_slow_moves_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """When too much is under way the next ones wait, and their headers say when they were to be sent."""
    monkeypatch.setattr(produce_run, "MOST_UNDER_WAY", 2)
    cluster, loop = Cluster(), asyncio.get_running_loop()
    most, under_way = 0, 0

    def slowly(number: int, answered: Answer) -> None:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)

        def answer() -> None:
            nonlocal under_way
            under_way -= 1
            answered(None)

        loop.call_later(0.05, answer)

    cluster.answer = slowly
    report = await cluster.produce(records=8, rate=1000)
    intended = [headers.number(record.headers, headers.INTENDED) or 0 for record in cluster.records]
    assert intended[-1] - intended[0] == pytest.approx(7, abs=1.5)
    assert report.latest_seconds > 0.1
    assert (most, report.acknowledged) == (2, 8)
    assert "after its time" in summary(report, LoadRequest("orders", of_size(1), rate=1000))[1]


async def test_records_that_are_not_acknowledged_are_counted_by_why() -> None:
    """The others are written all the same."""
    cluster = Cluster()
    cluster.answer = lambda number, answered: answered(LOST if number % 4 == 0 else None)
    report = await cluster.produce(records=100)
    assert (report.acknowledged, report.not_acknowledged, report.errors) == (75, 25, {str(LOST): 25})
    lines = summary(report, LoadRequest("orders", of_size(1)))
    assert "25 were not acknowledged: they may be there or not" in lines
    assert f"25 times: {LOST}" in lines


@pytest.mark.parametrize(
    ("error", "at_most"),
    [(PublishError("no right", "forbidden"), 1), (LOST, 50)],
)
async def test_a_topic_that_takes_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, error: PublishError, at_most: int
) -> None:
    """At once when it is for good, after many in a row otherwise; that is no interruption."""
    monkeypatch.setattr(produce_run, "_GIVE_UP_AFTER", 50)
    cluster = Cluster()
    cluster.answer = lambda number, answered: answered(error)
    report = await cluster.produce(records=0)
    assert (report.sent, report.acknowledged) == (at_most, 0)
    assert report.is_given_up
    assert not report.is_interrupted
    assert "the topic takes none" in summary(report, LoadRequest("orders", of_size(1)))[-1]


async def test_a_topic_that_is_missing_is_made_when_that_is_asked_for() -> None:
    """With as many partitions; one that is there keeps its own, and it is said."""
    with pytest.raises(UnknownTopicError, match="does not exist, or add --partitions to have it made"):
        await Cluster(is_missing=True).produce(records=1)
    missing = Cluster(is_missing=True)
    report = await missing.produce(partitions=6, records=1)
    assert (report.partitions, missing.notes) == (6, ["topic orders was made, with 6 partitions"])
    there = Cluster()
    assert (await there.produce(partitions=6, records=1)).partitions == 4
    assert there.notes == ["topic orders is there already, with 4 partitions; --partitions is not used"]
    silent = Cluster()
    await silent.produce(partitions=4, records=1)
    assert silent.notes == []


async def test_a_signal_while_it_connects_leaves_everything_as_it_is() -> None:
    """No topic is made, and no writer is opened."""
    cluster, opened = Cluster(is_missing=True), list[str]()

    @asynccontextmanager
    async def topics() -> AsyncIterator[Any]:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        yield cluster

    @asynccontextmanager
    async def writer() -> AsyncIterator[Any]:
        opened.append("writer")
        yield cluster

    request = LoadRequest("orders", of_size(1))
    report = await produced(Place(topics, writer), request, 3, cluster.notes.append)
    assert (cluster.is_missing, cluster.notes, opened) == (True, [], [])
    assert (report.is_interrupted, exit_code(report, request)) == (True, 130)


async def test_a_signal_ends_it_when_what_was_sent_is_answered_for() -> None:
    """It tells how far it came."""
    cluster, loop = Cluster(), asyncio.get_running_loop()

    def answer(number: int, answered: Answer) -> None:
        if number == 30:
            signal.raise_signal(signal.SIGINT)
        loop.call_later(0.05, answered, None)

    cluster.answer = answer
    report = await cluster.produce(records=0, rate=1000)
    assert 30 <= report.sent < 500
    assert report.sent == report.acknowledged
    assert report.is_interrupted
    assert not report.is_cut_off
    last = summary(report, LoadRequest("orders", of_size(1), records=0))[-1]
    assert last == f"stopped by a signal after {report.sent:,} records"


async def test_a_second_signal_waits_for_no_answer() -> None:
    """What was under way may be there or not."""
    cluster, loop = Cluster(), asyncio.get_running_loop()

    def answer(number: int, answered: Answer) -> None:
        if number <= 5:
            answered(None)
        if number == 30:
            signal.raise_signal(signal.SIGINT)
            loop.call_later(0.05, signal.raise_signal, signal.SIGTERM)

    cluster.answer = answer
    report = await cluster.produce(records=0)
    assert report.is_cut_off
    assert (report.acknowledged, report.not_acknowledged) == (5, report.sent - 5)
    fields = as_json_fields(report, LoadRequest("orders", of_size(1), records=0))
    assert (fields["interrupted"], fields["acknowledged"]) == (True, 5)
    assert json.dumps(fields)


async def test_without_a_terminal_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of a job has the summary, and nothing else."""
    await Cluster().produce(records=300, rate=1000)
    assert capsys.readouterr().err == ""


# -- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument 'TOPIC'; see asyncpar produce --help"),
        (("t", "--rate", "0"), "not in the range"),
        (
            ("t", "--keys", "1000001", "--key-skew", "1"),
            "at most 1,000,000 keys can be drawn with --key-skew",
        ),
        (("t", "--value", "a\udcff"), "--value is no UTF-8 text (at character 2)"),
        (("t", "--value", "x", "--value-bytes", "3"), "give one of --value-bytes, --value and --values-from"),
        (("t", "--value", "{{x}}"), "nothing to fill in for {{x}}"),
        (("t", "--set", "bootstrap_server=x"), "did you mean bootstrap_servers?"),
        (("t", "--values-from", "none.jsonl"), "none.jsonl cannot be read"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    """Nothing is connected, nothing else is printed."""
    monkeypatch.chdir(tmp_path)
    assert main(["produce", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("asyncpar: error: ")
    assert says in line


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (Report(sent=9, acknowledged=9), 0),
        (Report(sent=9, acknowledged=8), 1),
        (Report(sent=5, acknowledged=5, is_interrupted=True), 130),
        (Report(sent=9, acknowledged=9, is_interrupted=True), 0),
        (Report(sent=9, acknowledged=9, is_interrupted=True, is_cut_off=True), 130),
    ],
)
def test_the_exit_code_says_whether_all_was_written(report: Report, code: int) -> None:
    """A signal counts when records were still to come; without a number it is the ordinary end."""
    assert exit_code(report, LoadRequest("orders", of_size(1), records=9)) == code
    endless = LoadRequest("orders", of_size(1), records=0)
    assert exit_code(Report(sent=5, acknowledged=5, is_interrupted=True), endless) == 0


def test_an_unreachable_cluster_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    """After `startup_timeout_ms`, from a settings file as in a run."""
    (tmp_path / "asyncpar.toml").write_text('bootstrap_servers = "127.0.0.1:1"\nstartup_timeout_ms = 200\n')
    ended = asyncpar(tmp_path, "produce", "t")
    assert ended.code == 4
    assert re.search(r"no usable broker at 127.0.0.1:1 within 200 ms", ended.errors[0])
