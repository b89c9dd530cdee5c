"""`asyncpar run` as a process: signals, exit codes, and ending although something does not end."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncpar.cli.run import _signals
from tests.cli.live_app import FakeApp
from tests.cli.program import BOUND_SECONDS, Ended, asyncpar, environment, write

Start = Callable[[str], "subprocess.Popen[str]"]
HANDLER = 'from asyncpar import topic\n@topic("orders", group="g")\nasync def bill(body: bytes): ...\n'


@pytest.fixture(params=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts `live_app.py` in a mode on each event loop; kills what a failed test leaves behind."""
    started: list[subprocess.Popen[str]] = []

    def starting(mode: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.live_app", mode, request.param],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield starting
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=BOUND_SECONDS)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _ended(process: "subprocess.Popen[str]") -> Ended:
    out, err = process.communicate(timeout=BOUND_SECONDS)
    return Ended(process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_ends_with_0(start: Start, number: signal.Signals):
    """After SIGINT or SIGTERM the app stops, and a full drain is success."""
    process = start("plain")
    assert _line(process) == "running"
    process.send_signal(number)
    assert _ended(process).code == 0


def test_the_second_signal_cancels_and_ends_with_130(start: Start):
    """A drain that takes too long for its user is cut short, and the exit code says so."""
    process = start("long")
    assert _line(process) == "running"
    process.send_signal(signal.SIGTERM)
    assert _line(process) == "stopping"
    process.send_signal(signal.SIGINT)
    assert _ended(process).code == 130


async def test_one_signal_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch):
    """`timeout asyncpar run`, and others that signal a process and its group, mean a drain, no cancel."""
    now = [100.0]
    monkeypatch.setattr("asyncpar.cli.run.time.monotonic", lambda: now[0])
    app, running = FakeApp("plain"), asyncio.ensure_future(asyncio.sleep(0))
    with _signals(app, running) as seen:  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.01
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        now[0] += 1
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM] * 2
    with _signals(app, running) as seen:  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGTERM, signal.SIGINT]
    await running


def test_the_third_signal_ends_a_process_whose_loop_is_blocked(start: Start):
    """A handler that blocks the loop for ever cannot keep the process from being ended."""
    process = start("blocked loop")
    assert _line(process) == "running"
    for _ in range(BOUND_SECONDS * 20):
        # Signals that arrive together are one, so they are sent until they were heard.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.05)
            break
        except subprocess.TimeoutExpired:
            continue
    assert _ended(process).code == 130


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("unfinished", "bill at orders[0] offset 7"),
        ("swallowing task", "task stubborn (swallow)"),
        ("stuck thread", "thread asyncio_0"),
    ],
)
def test_what_does_not_end_is_named_and_left_behind(start: Start, mode: str, named: str):
    """A handler, a task or a thread that does not end is named, and the process ends all the same."""
    process = start(mode)
    assert _line(process) == "running"
    process.send_signal(signal.SIGTERM)
    ended = _ended(process)
    assert ended.code == 0
    assert ended.err.splitlines()[-1] == f"asyncpar: ending without waiting for: {named}"


def test_drain_and_exit_reaches_the_app(start: Start):
    """`--drain-and-exit` is passed on, and its end is success."""
    assert _ended(start("drained")).code == 0


def test_an_unreachable_broker_is_one_line_and_4(start: Start):
    """An error of asyncpar ends with its own exit code and no traceback."""
    ended = _ended(start("unreachable"))
    assert ended.code == 4
    assert ended.err.splitlines() == [
        "asyncpar: error: no broker answered at localhost:1 within 20000 ms; check the address"
    ]


def test_an_error_in_the_users_code_shows_their_frames(start: Start):
    """What a lifespan raises is shown from the user's frames on, then in one line, with exit code 1."""
    ended = _ended(start("fails"))
    assert ended.code == 1
    assert "fail_in_the_users_code" in ended.err
    assert "asyncpar/cli" not in ended.err
    assert "ValueError: no database, tests/cli/live_app.py:" in ended.errors[0]


def test_a_real_run_without_a_broker_ends_with_4(tmp_path: Path):
    """The whole way down: banner, an address where nobody listens, one line, exit code 4."""
    write(tmp_path, {"mine": HANDLER})
    options = ("--bootstrap-servers", "127.0.0.1:1", "--http-port", "0", "--set", "startup_timeout_ms=500")
    ended = asyncpar(tmp_path, "run", "mine", *options)
    assert ended.code == 4, ended.err
    assert "At least once" in ended.err
    assert len(ended.errors) == 1
    assert "127.0.0.1:1" in ended.errors[0]
    assert "Traceback" not in ended.err
