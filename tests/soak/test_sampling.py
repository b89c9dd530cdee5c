"""A sample of a process: this one, with endpoints that a small server plays."""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.kafka_broker import free_port
from tests.soak.plan import SoakPlan, Vitals
from tests.soak.sampling import SampleError, last_vitals, take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

VITALS = Vitals(1.5, 7, {0: 3, 1: 4}, 0, [])
STATUS = {
    "groups": [
        {"partitions": [{"true_lag": 5, "in_flight": 2}, {"true_lag": None, "in_flight": 1}]},
        {"partitions": []},
    ]
}


class Answers(BaseHTTPRequestHandler):
    """A member's endpoints."""

    def do_GET(self) -> None:
        body = json.dumps(STATUS).encode() if self.path == "/status" else b"# metrics"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[SoakPlan]:
    """This process poses as the member."""
    vitals = tmp_path / "vitals"
    vitals.write_text(VITALS.to_line())
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield SoakPlan("m", "", "", "", server.server_port, str(vitals))
        server.shutdown()
        serving.join(10)


def test_a_sample_is_of_the_process_of_its_endpoints_and_of_what_it_says(plan: SoakPlan) -> None:
    """Partitions and groups are summed up; a lag that is not known yet is none."""
    sample = take(os.getpid(), plan)
    assert (sample.lag, sample.in_flight, sample.vitals) == (5, 3, VITALS)
    assert 10 < sample.rss_mb < 10_000
    assert sample.threads >= 2
    assert sample.cpu_seconds > 0


def test_what_leaks_shows(plan: SoakPlan) -> None:
    """Three more descriptors, one more thread, twenty more megabytes."""
    before = take(os.getpid(), plan)
    over = threading.Event()
    held = threading.Thread(target=over.wait, args=(30,))
    held.start()
    try:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(open(os.devnull, "rb"))  # noqa: PTH123 - any open file
            # Fresh pages: the heap of a long run has room for this, and would not grow.
            memory = stack.enter_context(mmap.mmap(-1, 20_000_000))
            memory.write(b"x" * 20_000_000)
            after = take(os.getpid(), plan)
    finally:
        over.set()
        held.join(10)
    assert after.descriptors - before.descriptors == 3
    assert after.threads - before.threads == 1
    assert after.rss_mb - before.rss_mb > 15


def test_a_member_that_is_gone_or_silent_is_an_error(plan: SoakPlan, tmp_path: Path) -> None:
    """No process, no endpoint, nothing written yet."""
    with pytest.raises(SampleError):
        take(2**22 + 1, plan)
    with pytest.raises(SampleError):
        take(os.getpid(), replace(plan, http_port=free_port()))
    with pytest.raises(SampleError):
        take(os.getpid(), replace(plan, vitals=str(tmp_path / "none")))


def test_the_last_whole_line_of_the_vitals_counts(tmp_path: Path) -> None:
    """However long the file is, and whatever is being written behind it."""
    path = tmp_path / "vitals"
    path.write_text(VITALS.to_line() * 500 + replace(VITALS, tasks=9).to_line() + '{"at": 2')
    assert last_vitals(path).tasks == 9
    path.write_text("")
    with pytest.raises(ValueError, match="nothing in"):
        last_vitals(path)
