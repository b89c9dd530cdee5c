"""`asyncpar dlq` on a real Kafka: what it lists, writes back, remembers and deletes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from asyncpar.records import OutgoingRecord
from tests.admin.letters import letter
from tests.cli.program import BOUND_SECONDS, Ended, asyncpar, environment
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import (
    Record,
    committed,
    end_offsets,
    produce,
    produce_transaction,
    start_offsets,
)
from tests.testing.producer_worlds import read_all

pytestmark = pytest.mark.broker


class Dlq:
    """A dead-letter topic and its source, and the command line in a folder of its own."""

    def __init__(self, broker: Broker, make_topic: TopicFactory, folder: Path, partitions: int = 1) -> None:
        self.bootstrap = broker.bootstrap
        self.folder = folder
        self.source = make_topic(partitions=2, name="orders")
        self.topic = make_topic(partitions=partitions, name="orders.dlq")

    def letter(self, number: int, **what: object) -> OutgoingRecord:
        return letter(number, **{"source": self.source, "key": b"k%d" % (number % 7), **what})  # type: ignore[arg-type]

    async def put(self, *letters: OutgoingRecord, partition: int | None = None) -> None:
        """Write dead letters."""
        await produce(self.bootstrap, self.topic, [as_record(one, partition) for one in letters])

    def run(self, command: str, *arguments: str) -> Ended:
        """`asyncpar dlq COMMAND TOPIC ARGUMENTS`."""
        return asyncpar(self.folder, *self.command(command, *arguments))

    def command(self, command: str, *arguments: str) -> tuple[str, ...]:
        return ("dlq", command, self.topic, *arguments, "--bootstrap-servers", self.bootstrap)

    def begin(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """`asyncpar dlq COMMAND TOPIC ARGUMENTS`, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "asyncpar", *self.command(command, *arguments)],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def replayed(self, topic: str | None = None) -> Counter[bytes | None]:
        """How often each value lies in the source."""
        found: Counter[bytes | None] = Counter()
        for partition in (0, 1) if topic is None else (0,):
            found.update(one.value for one in read_all(self.bootstrap, topic or self.source, partition))
        return found

    async def wait_for(self, count: int) -> None:
        """Until so many records lie in the source."""
        deadline = time.monotonic() + BOUND_SECONDS
        while sum((await end_offsets(self.bootstrap, self.source)).values()) < count:
            assert time.monotonic() < deadline, "the replay does not get on"


def as_record(one: OutgoingRecord, partition: int | None = None) -> Record:
    return Record(one.key, one.value, one.headers, partition)


@pytest.fixture
def dlq(broker: Broker, make_topic: TopicFactory, tmp_path: Path) -> Dlq:
    """One with one partition."""
    return Dlq(broker, make_topic, tmp_path)


async def test_list_is_a_table_of_what_the_options_ask_for(dlq: Dlq) -> None:
    """Each letter is a line; a filter leaves the others out; a double names the first."""
    await dlq.put(dlq.letter(1), dlq.letter(2, handler="mail"), dlq.letter(1))
    ended = dlq.run("list")
    assert (ended.code, ended.err) == (0, ""), ended.err
    head, *rows = ended.out.splitlines()
    assert head.split() == [
        "part",
        "offset",
        "when",
        "origin",
        "key",
        "reason",
        "error",
        "attempts",
        "handler",
    ]
    assert [row.split()[1] for row in rows] == ["0", "1", "2"]
    assert f"{dlq.source}[0]@1" in rows[0]
    assert "double of" not in rows[0]
    assert "double of 0@0" in rows[2]
    ended = dlq.run("list", "--handler", "mail", "--json")
    assert [json.loads(line)["offset"] for line in ended.out.splitlines()] == [1]
    assert dlq.run("list", "--handler", "mai", "--json").err.splitlines() == [
        f"asyncpar: no such dead letter in {dlq.topic}",
        "asyncpar: no letter has --handler mai; there are: bill, mail",
    ]


async def test_list_sees_committed_records_only_and_ends(dlq: Dlq) -> None:
    """Aborted letters are passed, and trailing markers of transactions do not keep it waiting."""
    await produce_transaction(dlq.bootstrap, dlq.topic, [as_record(dlq.letter(1))], "t1")
    await produce_transaction(dlq.bootstrap, dlq.topic, [as_record(dlq.letter(2))], "t2", commit=False)
    ended = dlq.run("list", "--json")
    assert ended.code == 0, ended.err
    assert [json.loads(line)["origin"]["offset"] for line in ended.out.splitlines()] == [1]


async def test_a_reader_that_has_seen_enough_is_no_error(dlq: Dlq) -> None:
    """`| head` closes the pipe: nothing on stderr, and the exit code is 0."""
    await dlq.put(*(dlq.letter(number, value=b"", headers=()) for number in range(2000)))
    process = dlq.begin("list", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert json.loads(process.stdout.readline())["offset"] == 0
        process.stdout.close()
        assert process.wait(BOUND_SECONDS) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()


async def test_show_gives_all_of_a_letter(dlq: Dlq) -> None:
    """Headers, key and value, the value laid out when it is JSON; an offset that is not there is an error."""
    await dlq.put(dlq.letter(0), dlq.letter(7, value=b'{"customer":"acme"}'))
    ended = dlq.run("show", "0", "1")
    assert ended.code == 0, ended.err
    for part in (
        "trace",
        "t1",
        "error-message",
        "no such customer",
        '    "customer": "acme"',
        f"{dlq.topic}[0]@1",
    ):
        assert part in ended.out
    ended = dlq.run("show", "0", "2")
    assert ended.code == 2
    assert "has no offset 2: its offsets go from 0 to 1" in ended.errors[0]


async def test_replay_writes_back_what_was_read_and_only_once(dlq: Dlq) -> None:
    """Key, value and headers are those of the letter; a second replay writes nothing."""
    own = (("trace", b"t1"), ("trace", b"t2"), ("empty", None))
    await dlq.put(*(dlq.letter(number, headers=own) for number in range(20)))
    ended = dlq.run("replay")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"replayed 20 letters: 20 to {dlq.source}\n"
    found = [one for partition in (0, 1) for one in read_all(dlq.bootstrap, dlq.source, partition)]
    assert {(one.key, one.value) for one in found} == {(b"k%d" % (n % 7), b"value-%d" % n) for n in range(20)}
    assert found[0].headers[:3] == list(own)
    headers = dict(found[0].headers)
    assert headers["x-asyncpar-replayed"] == b"1"
    assert headers["x-asyncpar-reason"] == b"exhausted"
    again = dlq.run("replay")
    assert again.out.startswith("replayed 0 letters\n"), again.out
    assert sum(dlq.replayed().values()) == 20


async def test_a_replay_with_another_filter_finds_what_the_first_one_left(dlq: Dlq) -> None:
    """What a filtered replay passed over is remembered as not replayed."""
    await dlq.put(
        *(dlq.letter(number, reason="permanent" if number % 2 else "exhausted") for number in range(30))
    )
    none = dlq.run("replay", "--reason", "perm")
    assert none.err == "asyncpar: no letter has --reason perm; there are: exhausted, permanent\n"
    first = dlq.run("replay", "--reason", "permanent")
    assert first.out.startswith("replayed 15 letters"), first.err
    group = f"asyncpar-dlq-replay-{dlq.topic}"
    assert (await committed(dlq.bootstrap, group, dlq.topic))[0].offset == 0
    rest = dlq.run("replay")
    assert rest.out.splitlines()[0].startswith("replayed 15 letters"), rest.err
    assert set(dlq.replayed().values()) == {1}
    assert (await committed(dlq.bootstrap, group, dlq.topic))[0].offset == 30


async def test_a_replay_that_is_killed_and_repeated_loses_none_and_doubles_one_at_most(
    broker: Broker, make_topic: TopicFactory, tmp_path: Path
) -> None:
    """kill -9 in the middle, five times: every letter is written, and each kill doubles at most one."""
    dlq = Dlq(broker, make_topic, tmp_path, partitions=3)
    count, kills = 900, 5
    await dlq.put(*(dlq.letter(number) for number in range(count)))
    for kill in range(1, kills + 1):
        process = dlq.begin("replay")
        try:
            await dlq.wait_for(kill * count // (kills + 2))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=BOUND_SECONDS)
        assert process.returncode == -signal.SIGKILL
    last = dlq.run("replay")
    assert last.code == 0, last.err
    found = dlq.replayed()
    assert set(found) == {b"value-%d" % number for number in range(count)}
    assert sum(found.values()) - count <= kills


async def test_an_interrupted_replay_ends_cleanly_and_doubles_none(dlq: Dlq) -> None:
    """SIGINT ends it after the letter under way with 130; the repeated replay writes the rest and no more."""
    await dlq.put(*(dlq.letter(number) for number in range(60)))
    process = dlq.begin("replay", "--rate", "40")
    try:
        await dlq.wait_for(10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=BOUND_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted: run the same command again to go on" in out
    assert err == ""
    assert sum(dlq.replayed().values()) < 60
    assert dlq.run("replay").code == 0
    assert dlq.replayed() == {b"value-%d" % number: 1 for number in range(60)}


async def test_a_dry_run_writes_nothing_and_remembers_nothing(dlq: Dlq) -> None:
    """It says what would be written where; neither the topic nor the group changes."""
    await dlq.put(dlq.letter(1), dlq.letter(2))
    ended = dlq.run("replay", "--dry-run", "--limit", "1")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        f"would write {dlq.topic}[0]@0 to {dlq.source}",
        f"would replay 1 letters: 1 to {dlq.source}",
        "ended at --limit 1: there is more",
    ]
    assert not dlq.replayed()
    assert await committed(dlq.bootstrap, f"asyncpar-dlq-replay-{dlq.topic}", dlq.topic) == {}


async def test_purge_deletes_what_was_replayed_and_nothing_else(dlq: Dlq) -> None:
    """`--replayed` deletes up to the first letter that was not replayed; it does not ask with --yes."""
    await dlq.put(*(dlq.letter(number) for number in range(10)))
    assert dlq.run("replay", "--limit", "4").code == 0
    dry = dlq.run("purge", "--replayed", "--dry-run")
    assert dry.out.splitlines() == [f"{dlq.topic}[0]: offsets 0 to 3 go (4), 6 stay"]
    assert await start_offsets(dlq.bootstrap, dlq.topic) == {0: 0}
    unasked = dlq.run("purge", "--replayed")
    assert unasked.code == 2
    assert "add --yes" in unasked.errors[0]
    done = dlq.run("purge", "--replayed", "--yes")
    assert (done.code, done.out) == (0, "deleted 4 offsets\n"), done.err
    assert await start_offsets(dlq.bootstrap, dlq.topic) == {0: 4}
    assert dlq.run("replay").out.startswith("replayed 6 letters")


async def test_purge_before_a_time_keeps_what_is_younger(dlq: Dlq) -> None:
    """The time is that of the letter's writing, and what was written later stays."""
    now_ms = round(time.time() * 1000)
    hours_ago = [
        as_record(dlq.letter(n))._replace(timestamp_ms=now_ms - n * 3_600_000) for n in (5, 4, 3, 2, 1)
    ]
    await produce(dlq.bootstrap, dlq.topic, hours_ago)
    done = dlq.run("purge", "--before", "2.5h", "--yes")
    assert done.code == 0, done.err
    assert await start_offsets(dlq.bootstrap, dlq.topic) == {0: 3}
    assert dlq.run("purge", "--before", "2.5h", "--yes").out == "nothing to delete\n"


async def test_a_compacted_topic_cannot_be_purged(dlq: Dlq, make_topic: TopicFactory) -> None:
    """Kafka refuses, and the line says why."""
    dlq.topic = make_topic(config={"cleanup.policy": "compact"})
    await dlq.put(dlq.letter(1), dlq.letter(2))
    ended = dlq.run("purge", "--all", "--yes")
    assert ended.code == 2
    assert "cleanup.policy" in ended.errors[0]


def test_an_unknown_topic_ends_with_2(broker: Broker, make_topic: TopicFactory, tmp_path: Path) -> None:
    """The line names the topic, and a similar one; nothing is created."""
    dlq = Dlq(broker, make_topic, tmp_path)
    right, dlq.topic = dlq.topic, dlq.topic + "x"
    for command in (("list",), ("show", "0", "0"), ("replay",), ("purge", "--all", "--yes")):
        ended = dlq.run(*command)
        assert ended.code == 2
        assert len(ended.errors) == 1
        assert f"topic '{dlq.topic}' does not exist" in ended.errors[0]
        assert f"did you mean '{right}'" in ended.errors[0]


async def test_a_source_that_is_gone_ends_a_replay_with_2(dlq: Dlq) -> None:
    """Nothing is written or created; `--to` helps."""
    await dlq.put(dlq.letter(1, source="gone-for-good"))
    ended = dlq.run("replay")
    assert ended.code == 2
    assert (
        f"topic 'gone-for-good', where letter {dlq.topic}[0]@0 comes from, does not exist" in ended.errors[0]
    )
    assert dlq.run("replay", "--to", dlq.source).code == 0
    assert sum(dlq.replayed().values()) == 1


async def test_a_record_too_large_for_its_source_is_left_and_named(
    dlq: Dlq, make_topic: TopicFactory
) -> None:
    """The others are replayed, the exit code is 1, and it is found again once the topic takes it."""
    small = make_topic(config={"max.message.bytes": "2000"})
    await dlq.put(dlq.letter(1, source=small, value=b"x" * 3000), dlq.letter(2, source=small))
    ended = dlq.run("replay")
    assert ended.code == 1, ended.err
    assert "1 left, too large for the topic they came from" in ended.out
    assert f"{dlq.topic}[0]@0" in ended.out
    assert dlq.run("replay", "--to", dlq.source).out.startswith(f"replayed 1 letters: 1 to {dlq.source}")
