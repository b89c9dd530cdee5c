"""`asyncpar run` against a real Kafka: it works, stops when told, and ends with the right code."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import BOUND_SECONDS, Ended, asyncpar, environment, write
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import committed, keyed, produce

COUNTING = """
import asyncio, sys
from asyncpar import topic

@topic("{topic}", name="count")
async def count(body: bytes) -> None:
    print(body.decode(), flush=True)
"""
STUCK = """
import asyncio, sys
from asyncpar import topic

@topic("{topic}", name="stuck")
async def stuck(body: bytes) -> None:
    print("started", flush=True)
    await asyncio.Event().wait()
"""
STUBBORN = """
import threading
from asyncpar import topic

@topic("{topic}", name="stubborn")
def stubborn(body: bytes) -> None:
    print("started", flush=True)
    threading.Event().wait()
"""


def _options(broker: Broker, group: str) -> tuple[str, ...]:
    return ("--bootstrap-servers", broker.bootstrap, "--group", group, "--http-port", "0")


def _started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "asyncpar", "run", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process: "subprocess.Popen[str]") -> Ended:
    try:
        out, err = process.communicate(timeout=BOUND_SECONDS)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_drain_and_exit_does_all_that_is_there_and_ends_with_0(
    broker: Broker, make_topic: TopicFactory, group_id: str, tmp_path: Path
):
    """Every record is handled, everything is committed, and the process ends by itself."""
    topic = make_topic(partitions=2)
    await produce(broker.bootstrap, topic, keyed(200))
    write(tmp_path, {"mine": COUNTING.format(topic=topic)})
    ended = asyncpar(tmp_path, "run", "mine", "--drain-and-exit", *_options(broker, group_id))
    assert ended.code == 0, ended.err
    assert sorted(map(int, ended.out.split())) == list(range(200))
    offsets = await committed(broker.bootstrap, group_id, topic)
    assert sum(place.offset for place in offsets.values()) == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_signal_stops_a_run_with_0(
    loop: str, broker: Broker, make_topic: TopicFactory, group_id: str, tmp_path: Path
):
    """SIGTERM ends an idle run with a full drain and no error, whatever the event loop."""
    topic = make_topic()
    await produce(broker.bootstrap, topic, keyed(1))
    write(tmp_path, {"mine": COUNTING.format(topic=topic)})
    process = _started(tmp_path, "mine", *_options(broker, group_id), "--set", f"event_loop={loop}")
    assert _first_line(process) == "0"
    process.send_signal(signal.SIGTERM)
    ended = _ended(process)
    assert ended.code == 0, ended.err
    assert "SIGTERM: stopping" in ended.err
    assert ended.errors == []


async def test_a_drain_that_is_not_complete_ends_with_1(
    broker: Broker, make_topic: TopicFactory, group_id: str, tmp_path: Path
):
    """A handler that outlasts the drain's time is cancelled, its record is not committed, and it is said."""
    topic = make_topic()
    await produce(broker.bootstrap, topic, keyed(1))
    write(tmp_path, {"mine": STUCK.format(topic=topic)})
    options = (*_options(broker, group_id), "--set", "shutdown_drain_timeout_ms=200")
    process = _started(tmp_path, "mine", *options)
    assert _first_line(process) == "started"
    process.send_signal(signal.SIGTERM)
    ended = _ended(process)
    assert ended.code == 1, ended.err
    assert len(ended.errors) == 1
    offsets = await committed(broker.bootstrap, group_id, topic)
    assert sum(place.offset for place in offsets.values()) == 0


@pytest.mark.parametrize(("text", "name"), [(STUCK, "stuck"), (STUBBORN, "stubborn")])
async def test_a_second_signal_ends_with_130(
    broker: Broker, make_topic: TopicFactory, group_id: str, tmp_path: Path, text: str, name: str
):
    """A handler that waits for ever cannot keep the process; one in a thread is named."""
    topic = make_topic()
    await produce(broker.bootstrap, topic, keyed(1))
    write(tmp_path, {"mine": text.format(topic=topic)})
    process = _started(tmp_path, "mine", *_options(broker, group_id))
    assert _first_line(process) == "started"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if "SIGINT: stopping" in line:
            break
    # Another one than the first: the same one at once is taken for its echo.
    process.send_signal(signal.SIGTERM)
    ended = _ended(process)
    assert ended.code == 130, ended.err
    assert ("ending without waiting for" in ended.err) == (name == "stubborn"), ended.err


def test_an_unknown_topic_ends_with_2(broker: Broker, group_id: str, tmp_path: Path):
    """A topic that the cluster does not have is the user's mistake unless they asked to wait."""
    write(tmp_path, {"mine": COUNTING.format(topic=f"nowhere-{group_id}")})
    ended = asyncpar(tmp_path, "run", "mine", *_options(broker, group_id))
    assert ended.code == 2, ended.err
    assert len(ended.errors) == 1
    assert f"nowhere-{group_id}" in ended.errors[0]
