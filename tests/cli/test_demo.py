"""`asyncpar demo`: it shows the engine at work, ends cleanly, and its proof can fail."""

import asyncio
import contextlib
import dataclasses
import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from rich.console import Console

from asyncpar.adapters.mock_cluster import MockCluster
from asyncpar.cli import demo, demo_app, demo_cluster, demo_view
from asyncpar.cli.demo_app import key_names
from asyncpar.cli.demo_ledger import Ledger
from asyncpar.errors import AuthorizationError, ConfigurationError, WorkerDiedError
from asyncpar.middleware import Call
from asyncpar.records import SUCCESS, Outcome, Record, Verdict
from asyncpar.settings import Settings, usable_cores
from asyncpar.status import GroupStatus, HandlerStatus, PartitionStatus
from tests import kafka_tools
from tests.cli.program import asyncpar, environment
from tests.conftest import Broker

# Makes stdin the terminal that Ctrl-C comes from; only the child itself can.
OWN_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("asyncpar", run_name="__main__")
"""
PROVED = "PROVED: nothing lost, every key in order"
BOUND_SECONDS = 30


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`asyncpar demo ARGUMENTS` while it runs; killed if a test leaves it behind."""
    command = [sys.executable, "-m", "asyncpar", "demo", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The output up to the first line that contains `words`; pytest's time-out bounds it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the demo ended before it said {words!r}:\n{seen}")


# -- the whole command ---------------------------------------------------------------------------


def test_it_runs_for_its_seconds_and_proves_itself(tmp_path: Path):
    """Without Kafka and without a terminal: lines of figures, then the proof; nothing on stderr."""
    ended = asyncpar(tmp_path, "demo", "--seconds", "2")
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert ended.out.splitlines()[-1] == PROVED
    assert "joining the group" in ended.out
    assert "in flight" in ended.out and "gaps" in ended.out
    produced = int(ended.out.split("produced      ")[1].split()[0])
    assert produced > 1000


def test_with_cpu_it_computes_in_child_processes_and_proves_itself(tmp_path: Path):
    """The handler runs in children, which are shown; the ledger of this process proves the same."""
    ended = asyncpar(tmp_path, "demo", "--cpu", "--seconds", "1", "--rate", "300")
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert ended.out.splitlines()[-1] == PROVED
    cores = usable_cores()
    assert f"handled in {cores} child processes" in ended.out.splitlines()[0]
    assert f"children {cores}, " in ended.out
    assert f"child processes  {cores}, up to " in ended.out
    assert "records with the children" in ended.out


def test_settings_of_the_place_have_no_say(tmp_path: Path):
    """A settings file and variables of the user's own app neither break nor redirect the demo."""
    (tmp_path / "asyncpar.toml").write_text('group = "mine"\nnot_a_knob = 1\n')
    ended = asyncpar(tmp_path, "demo", "--seconds", "0.5", ASYNCPAR_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert PROVED in ended.out


def test_a_sigterm_ends_the_load_and_proves_what_was_produced(tmp_path: Path):
    """The first signal stops the load; what is left is drained and the proof still holds."""
    with started(tmp_path, "--seconds", "0") as process:
        read_until(process, "  load  ")
        read_until(process, "  load  ")  # a second later
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == 0, out
    assert PROVED in out


def test_a_signal_before_the_load_ends_it_at_once(tmp_path: Path):
    """Nothing was produced, nothing is lost: exit code 0."""
    with started(tmp_path, "--seconds", "0") as process:
        read_until(process, "joining")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == 0, out
    assert out.splitlines()[-1] == "NOTHING TO PROVE: no record was produced"


def test_a_second_signal_ends_it_without_a_proof(tmp_path: Path):
    """Who does not want to wait for the drain gets exit code 130 and is told that nothing is proved."""
    with started(tmp_path, "--seconds", "0", "--rate", "20000", "--keys", "1") as process:
        read_until(process, "load held back")
        process.send_signal(signal.SIGINT)
        read_until(process, "draining")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == 130, out
    assert "NOT PROVED: stopped by a second signal while" in out


def test_a_terminal_shows_a_live_table_that_ctrl_c_ends(tmp_path: Path):
    """On a terminal the figures are drawn in place; Ctrl-C ends the load and the summary follows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, "demo", "--seconds", "0"],
        cwd=tmp_path,
        env=environment(TERM="xterm-256color", COLUMNS="120", LINES="40"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown, interrupted = b"", False
    try:
        while chunk := _read(master):
            shown += chunk
            if not interrupted and b"s  load" in shown and b"payments, " in shown:
                os.write(master, b"\x03")
                interrupted = True
        code = process.wait(BOUND_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    text = shown.decode()
    assert code == 0, text[-2000:]
    for words in (
        "records/s",
        "HWM",
        "gaps",
        "blocking offset",
        "because of",
        "event loop",
        "threads",
        PROVED,
    ):
        assert words in text, words
    assert "\x1b[1A" in text, "drawn in place"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says when the other end is closed
        return b""


async def test_on_a_real_cluster_it_leaves_nothing_behind(broker: Broker, tmp_path: Path):
    """The topic and the group are its own and gone at the end."""
    ended = await asyncio.to_thread(
        asyncpar, tmp_path, "demo", "--seconds", "2", "--bootstrap-servers", broker.bootstrap
    )
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert PROVED in ended.out
    name = ended.out.split("topic ")[1].split()[0]
    assert name.startswith("asyncpar-demo-")
    assert name not in await kafka_tools.list_topics(broker.bootstrap)
    assert await kafka_tools.committed(broker.bootstrap, name, name) == {}


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_cluster_that_nobody_answers_for_is_one_line(tmp_path: Path):
    """Exit code 4, with the way out."""
    ended = asyncpar(tmp_path, "demo", "--seconds", "1", "--bootstrap-servers", "127.0.0.1:1")
    assert ended.code == 4
    assert len(ended.err.splitlines()) == 1, ended.err
    assert "127.0.0.1:1: no broker answered" in ended.err
    assert "leave --bootstrap-servers out" in ended.err


@pytest.mark.parametrize("arguments", [("--seconds", "-1"), ("--rate", "0"), ("--keys", "x")])
def test_a_wrong_option_is_one_line(tmp_path: Path, arguments: tuple[str, str]):
    """Exit code 2 before anything starts."""
    ended = asyncpar(tmp_path, "demo", *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1, ended.err


def test_missing_parts_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch):
    """Without the extra: one line, exit code 2."""
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name == "rich" else object())
    with pytest.raises(ConfigurationError) as caught:
        demo.execute(demo.DemoRequest(1, None, 1, 1))
    assert str(caught.value) == "the demo needs rich, not installed here: pip install 'asyncpar[demo]'"


def test_a_drain_that_takes_too_long_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """When the bound is over the summary says so and the exit code is 1."""
    monkeypatch.setattr(demo, "_DRAIN_SECONDS", 0.3)
    code = demo.execute(demo.DemoRequest(seconds=1, bootstrap_servers=None, rate=20_000, keys=1))
    out = capsys.readouterr().out
    assert code == 1
    assert "NOT PROVED: draining took longer than" in out
    assert "yes: each key's records" in out


def test_a_lost_record_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Exit code 1 and the record's name, when the ledger has one that was acknowledged and not handled."""
    prove = Ledger.prove
    monkeypatch.setattr(
        Ledger, "prove", lambda self: dataclasses.replace(prove(self), lost=("order-00000 #7",))
    )
    code = demo.execute(demo.DemoRequest(seconds=0.3, bootstrap_servers=None, rate=100, keys=10))
    out = capsys.readouterr().out
    assert code == 1
    assert "NO: 1 acknowledged records were not handled: order-00000 #7" in out
    assert "FAILED: records are missing" in out


class RefusingAdmin:
    """An admin client of a cluster that allows nothing."""

    def __init__(self, settings: dict[str, object]) -> None:
        pass

    def list_topics(self, timeout: float) -> None:
        pass

    def create_topics(self, topics: list[object], request_timeout: float) -> None:
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))


async def test_a_cluster_that_forbids_topics_is_told_clearly(monkeypatch: pytest.MonkeyPatch):
    """No right to create the topic: which right is needed, and what to do without it."""
    monkeypatch.setattr(demo_cluster, "AdminClient", RefusingAdmin)
    with pytest.raises(
        AuthorizationError, match=r"no right to create it .*CREATE on topics asyncpar-demo-\*"
    ):
        async with demo_cluster.existing("broker:9092", pytest.fail):
            pass


# -- the ledger ----------------------------------------------------------------------------------


def ledger_of(*numbers: int, acknowledged: int = 3, refused: tuple[int, ...] = ()) -> Ledger:
    """A ledger of one key `k` whose records 0.. were stored and whose records `numbers` were handled."""
    ledger = Ledger(["k"])
    for offset in range(acknowledged):
        number = ledger.send("k")
        if number in refused:
            ledger.refused("k", number)
        else:
            ledger.acknowledged("k", number, 0, offset)
    for number in numbers:
        with ledger.handling("k", number):
            pass
    return ledger


def test_a_good_history_is_proved():
    """All handled once, in order."""
    proof = ledger_of(0, 1, 2).prove()
    assert proof.is_complete and proof.is_in_order
    assert (proof.acknowledged, proof.handled, proof.duplicates) == (3, 3, 0)


def test_a_replay_is_a_duplicate_and_no_fault():
    """After a rebalance records may run again, in their order."""
    proof = ledger_of(0, 1, 0, 1, 2).prove()
    assert proof.is_complete and proof.is_in_order
    assert proof.duplicates == 2


def test_a_record_that_was_not_handled_is_lost():
    """Acknowledged and never done."""
    proof = ledger_of(0, 1).prove()
    assert proof.lost == ("k #2",)
    assert not proof.is_complete


@pytest.mark.parametrize("numbers", [(1, 0, 2), (0, 2, 1), (0, 1, 2, 0, 2)])
def test_a_record_that_overtakes_another_one_is_found(numbers: tuple[int, ...]):
    """Also within a replay."""
    assert not ledger_of(*numbers).prove().is_in_order


def test_a_failed_record_must_run_again_before_its_successor():
    """A failure does not let the next record of the key pass."""
    ledger = ledger_of(0)
    with contextlib.suppress(ValueError), ledger.handling("k", 1):
        raise ValueError
    with ledger.handling("k", 2):
        pass
    assert ledger.prove().reordered == ("k #2",)
    assert ledger.counts().failed == 1


def test_two_calls_of_a_key_at_a_time_are_found():
    """Serial per key."""
    ledger = ledger_of()
    with ledger.handling("k", 0), ledger.handling("k", 0):
        pass
    assert ledger.prove().overlapping == ("k #0",)


def test_what_the_broker_refused_is_nobodys_loss():
    """A record that was never stored need not be handled, and its successor may pass it."""
    proof = ledger_of(0, 2, refused=(1,)).prove()
    assert proof.is_complete and proof.is_in_order
    assert (proof.acknowledged, proof.refused) == (2, 1)


def test_a_record_without_an_answer_forbids_the_proof():
    """Nobody knows whether the broker has it."""
    ledger = ledger_of(0, 1, 2)
    ledger.send("k")
    assert not ledger.prove().is_complete


def test_a_log_in_another_order_is_found():
    """The broker's order of a key must be the one produced, in one partition."""
    ledger = Ledger(["k"])
    for offset in (5, 4):
        ledger.acknowledged("k", ledger.send("k"), 0, offset)
    assert ledger.prove().stored_out_of_order == ("k #1",)


# -- parts ---------------------------------------------------------------------------------------


async def test_a_failure_in_a_child_is_in_the_ledger():
    """The middleware that writes it sees an outcome; the call has failed, and the record is not done."""
    ledger = Ledger(["k"])
    ledger.acknowledged("k", ledger.send("k"), 0, 0)
    app = demo_app.cpu_app(ledger, "demo", Settings(group="demo"))
    (note,) = app._middlewares
    failed = Outcome(Verdict.FAILED, WorkerDiedError("it was killed"))

    async def call_next(call: Call) -> Outcome:
        return failed if call.attempt == 1 else SUCCESS

    def call(attempt: int) -> Call:
        return Call("hashes", (Record("demo", 0, 0, b"k", b'{"number": 0}'),), attempt)

    with pytest.raises(WorkerDiedError):
        await note(call(1), call_next)
    assert (ledger.counts().failed, ledger.counts().handled) == (1, 0)
    assert await note(call(2), call_next) is SUCCESS
    assert ledger.prove().is_complete and ledger.prove().is_in_order


def status(kind: type[Any], **known: object) -> Any:
    """One whose other fields are 0."""
    return kind(**dict.fromkeys((one.name for one in dataclasses.fields(kind)), 0) | known)


def test_children_are_shown_where_the_handler_runs():
    """In the live table and on the line: how many there are, and how many are busy."""
    handler = status(HandlerStatus, name="hashes", executor="process", children=2, busy_children=1)
    partition = status(PartitionStatus, topic="t", blocking_offset=None)
    group = status(GroupStatus, partitions=(partition,), handlers=(handler,))
    counts = Ledger(["k"]).counts()
    moment = demo_view.Moment("load", 1.0, counts, 0.0, is_held_back=False, group=group)
    console = Console(file=io.StringIO(), width=200)
    console.print(demo_view.picture("demo", moment))
    assert isinstance(console.file, io.StringIO)
    assert "2 child processes, 1 busy" in console.file.getvalue()
    assert "children 2, 1 busy" in demo_view.line(moment)


def test_every_kind_of_handler_gets_keys_and_the_busiest_key_goes_to_the_fast_one():
    """The demo shows fast, slow and threaded handlers at any usual number of keys."""
    keys = key_names(200)
    assert len(set(keys)) == 200
    assert keys[0].startswith("order-")
    assert {key.partition("-")[0] for key in keys} == {"order", "payment", "email", "report"}


def test_the_embedded_broker_starts_and_ends_within_a_second():
    """No process, no file, a topic on request."""
    before = time.monotonic()
    cluster = MockCluster()
    try:
        assert cluster.bootstrap_servers.startswith("127.0.0.1:")
        assert cluster.create_topic("orders") == 4
    finally:
        cluster.close()
    assert time.monotonic() - before < 1
    with pytest.raises(RuntimeError, match="closed"):
        cluster.create_topic("orders")
