"""`asyncpar produce` and `asyncpar bench` as processes, on a real Kafka."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from asyncpar import headers
from tests.cli.program import BOUND_SECONDS, asyncpar, environment, write
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import committed, delete_topics_now, end_offsets, group_members

pytestmark = pytest.mark.broker

SHOP = """
from asyncpar import App, Record
from pydantic import BaseModel

class Order(BaseModel):
    order: int
    customer: str

app = App(group="{group}")

@app.topic("{topic}", name="bill")
async def bill(order: Order, record: Record) -> None:
    assert record.header("{intended}")
"""


async def test_what_is_produced_is_benched_and_nothing_stays(
    broker: Broker, group_id: str, tmp_path: Path
) -> None:
    """A topic is made and filled; the app's group is not touched, and the bench's own one is gone."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    write(tmp_path, {"shop": SHOP.format(group=group_id, topic=topic, intended=headers.INTENDED)})
    where = ("--bootstrap-servers", broker.bootstrap, "--json")
    try:
        value = '{"order": {{number}}, "customer": "{{key}}"}'
        written = asyncpar(
            tmp_path, "produce", topic, "--records", "2000", "--partitions", "3", "--value", value, *where
        )
        assert written.code == 0, written.err
        assert json.loads(written.out)["acknowledged"] == 2000
        assert sum((await end_offsets(broker.bootstrap, topic)).values()) == 2000
        benched = asyncpar(tmp_path, "bench", "shop:app", *where)
        assert benched.code == 0, benched.err
        found = json.loads(benched.out)
        assert found["records"] == 2000
        assert found["handlers"][0]["failed_calls"] == 0
        [group] = found["groups"]
        assert f"as group {group['read_as']}, which is deleted afterwards" in benched.err
        for name in (group["read_as"], group_id):
            offsets = await committed(broker.bootstrap, name, topic)
            assert [at for at in offsets.values() if at.offset >= 0] == []
            assert not await group_members(broker.bootstrap, name)
    finally:
        delete_topics_now(broker.bootstrap, [topic])


def _producing(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "asyncpar", "produce", *arguments]
    return subprocess.Popen(
        [*command, "--records", "0", "--rate", "500", "--json", "--log-level", "debug"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_ctrl_c_tells_what_was_written(
    broker: Broker, make_topic: TopicFactory, tmp_path: Path
) -> None:
    """What the summary counts is in the topic, all of it acknowledged."""
    topic = make_topic(partitions=2)
    process = _producing(tmp_path, topic, "--bootstrap-servers", broker.bootstrap)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Sending (key" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=BOUND_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["interrupted"]
    assert report["sent"] == report["acknowledged"] > 0
    assert sum((await end_offsets(broker.bootstrap, topic)).values()) == report["acknowledged"]
