"""Every example runs as its user would run it; those that handle records do so on a real broker."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from asyncpar.core.offset_codec import decode
from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final, Rules, check
from asyncpar.testing.history import Event
from tests import kafka_tools
from tests.cli.program import ROOT, asyncpar, environment
from tests.kafka_broker import LOOPBACK, KafkaBroker
from tests.kafka_tools import Record

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")
PROGRAMS = [name for name in NAMES if not name.startswith("test_")]
ORDERS = 100_000
CUSTOMERS = 500
BOUND_SECONDS = 60


# -- without a broker ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_is_valid_and_told_about(name: str):
    """`--check` accepts it, and the README says how to start it."""
    ended = asyncpar(ROOT, "run", f"examples.{name}", "--group", "examples", "--check", "--http-port", "0")
    assert ended.code == 0, ended.err
    assert f"examples.{name}" in ended.out or name == "threads"
    assert f"`{name}.py`" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_imports_what_its_user_has(name: str):
    """No example leans on the tests or on what asyncpar keeps private."""
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "tests" not in text
    assert not any(
        line.startswith(("from asyncpar.core", "from asyncpar.runtime")) for line in text.splitlines()
    )


def pytest_says(*options: str) -> None:
    """Run `examples/test_orders.py` as its user does; fails with what pytest says."""
    # The plugin by its module and not by its entry point, which is there only where asyncpar is installed.
    plugins = ("-p", "no:asyncpar", "-p", "asyncpar.testing.plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "examples/test_orders.py", *options]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "4 passed" in ended.stdout


def test_the_tests_of_the_orders_example_pass():
    """In memory, without a broker; the README says how to start them."""
    pytest_says()
    assert "`test_orders.py`" in (EXAMPLES / "README.md").read_text()


@pytest.mark.broker
def test_the_tests_of_the_orders_example_pass_by_the_flag(private_broker: KafkaBroker):
    """The same on a real Kafka."""
    pytest_says(f"--asyncpar-bootstrap={private_broker.bootstrap}")


# -- small examples on a real broker -------------------------------------------------------------

TRACE = ("trace-id", b"t9")
SMALL: dict[str, tuple[dict[str, list[Record]], list[str]]] = {
    "typed_payloads": (
        {
            "payments": [
                Record(b"p", b'{"payment_id": 1, "cents": 250, "at": "2026-01-02T03:04:05Z"}', [TRACE]),
                Record(b"p", b'{"payment_id": 2, "cents": 0, "at": "2026-01-02T03:04:05Z"}'),
            ],
            "clicks": [Record(b"u1", b'{"page": "/home", "milliseconds": 12}')],
            "profiles": [Record(b"u1", b'{"name": "Ada", "email": "a@example.org"}'), Record(b"u1", None)],
            "blobs": [Record(None, b"\x00\xff")],
        },
        ["payment 1 of 250 cents, trace t9", "/home was seen for 12 ms", "u1 is now called Ada", "u1 is gone",
         "2 bytes from blobs[0] at 0"],
    ),
    "threads": ({"mails": [Record(b"a", b'{"to": "ada@example.org"}')]}, ["mail to ada@example.org is out"]),
    "patterns": (
        {
            "audit-logins": [Record(b"a", b'{"what": "login"}')],
            "audit-payments": [Record(b"a", b'{"what": "refund"}')],
        },
        ["audit-logins: login", "payment audited: refund"],
    ),
    "middleware": (
        {"greetings": [Record(b"c", b"c-1"), Record(b"c", b"c-9")]},
        ["hello, Ada", "skipped: no customer c-9", "attempt 1: skipped in"],
    ),
}  # fmt: skip


@pytest.mark.broker
async def test_small_examples_handle_their_records(private_broker: KafkaBroker):
    """Each reads its topics to the end and says what its README promises."""
    for name, (topics, words) in SMALL.items():
        for topic, records in topics.items():
            await kafka_tools.create_topic(private_broker.bootstrap, topic)
            await kafka_tools.produce(private_broker.bootstrap, topic, records)
        ended = await asyncio.to_thread(
            asyncpar,
            ROOT,
            *("run", f"examples.{name}", "--group", "examples", "--drain-and-exit", "--http-port", "0"),
            ASYNCPAR_BOOTSTRAP_SERVERS=private_broker.bootstrap,
        )
        assert ended.code == 0, f"{name}: {ended.err}"
        for expected in words:
            assert expected in ended.err, f"{name}: {expected!r} is not in {ended.err}"


# -- thumbnails: child processes -----------------------------------------------------------------


def an_image(width: int, height: int, kind: str) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(data, kind)
    return data.getvalue()


@pytest.mark.broker
async def test_thumbnails_are_made_in_children(private_broker: KafkaBroker, tmp_path: Path):
    """One per image, the newest version of each, no half ones; what is no image is a dead letter."""
    bootstrap, images = private_broker.bootstrap, {"images": 4, "images.dlq": 1}
    for name, partitions in images.items():
        await kafka_tools.create_topic(bootstrap, name, partitions)
    records = [Record(b"%d.png" % number, an_image(400, 200, "PNG")) for number in range(20)]
    records += [Record(b"cat.jpg", an_image(300, side, "JPEG")) for side in (300, 600)]
    await kafka_tools.produce(bootstrap, "images", [*records, Record(b"notes.txt", b"no image")])
    command = ("run", "examples.thumbnails:app", "--drain-and-exit", "--http-port", "0")
    ended = await asyncio.to_thread(
        asyncpar, ROOT, *command, ASYNCPAR_BOOTSTRAP_SERVERS=bootstrap, THUMBNAILS=str(tmp_path)
    )
    assert ended.code == 0, ended.err
    made = {name: Image.open(tmp_path / name).size for name in os.listdir(tmp_path)}  # noqa: PTH208 - async
    assert made == {**{f"{number}.png.webp": (128, 64) for number in range(20)}, "cat.jpg.webp": (64, 128)}
    assert "cat.jpg.webp: 64 x 128" in ended.err, "a child's log lines come out here"
    assert await kafka_tools.end_offsets(bootstrap, "images.dlq") == {0: 1}
    assert "Permanent: notes.txt is no image that can be read" in ended.err


async def test_the_thumbnails_example_runs_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A test needs no Kafka, and has real children."""
    from asyncpar.testing import TestApp
    from examples import thumbnails

    monkeypatch.setenv("THUMBNAILS", str(tmp_path))
    async with TestApp(thumbnails.app) as kafka:
        await kafka.send("images", an_image(256, 256, "PNG"), key="square")
        await kafka.settled()
    assert Image.open(tmp_path / "square.webp").size == (128, 128)


# -- orders: kill -9 in the middle ---------------------------------------------------------------


def orders_command(bootstrap: str) -> list[str]:
    """`asyncpar run examples.orders:app` to the end of what is there."""
    options = ("--bootstrap-servers", bootstrap, "--drain-and-exit", "--http-port", "0")
    return [sys.executable, "-m", "asyncpar", "run", "examples.orders:app", *options]


def orders_environment(ledger: Path) -> dict[str, str]:
    """With the ledger, and a short session: the group waits that long for the member that was killed."""
    return environment(
        ORDERS_LEDGER=str(ledger), ASYNCPAR_SESSION_TIMEOUT_MS="3000", ASYNCPAR_HEARTBEAT_INTERVAL_MS="500"
    )


def events_of(path: Path) -> list[Event]:
    """The example's own file in the words of the checkers; its "end" is only written by a success."""
    events = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        tp = TopicPartition(fields["topic"], fields["partition"])
        key = None if fields["key"] is None else fields["key"].encode()
        how = "ok" if fields["event"] == "end" else ""
        member = str(fields["pid"])
        events.append(Event(fields["event"], fields["monotonic_ns"], member, tp, fields["offset"], key, how))
    return events


def end_in_the_middle(command: list[str], ledger: Path, how: signal.Signals) -> Event:
    """Run until half of the orders have left their lines, then send the signal; the end as an event."""
    process = subprocess.Popen(command, cwd=ROOT, env=orders_environment(ledger), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + BOUND_SECONDS
        half = 0
        while not half or ledger.stat().st_size < half:
            assert process.poll() is None, "it ended before it was half done"
            assert time.monotonic() < deadline, "it did not get half-way in time"
            time.sleep(0.005)
            if not half and ledger.exists() and ledger.stat().st_size:
                with ledger.open("rb") as lines:
                    half = len(lines.readline()) * ORDERS  # two lines each, of about this length
        process.send_signal(how)
        assert process.wait(BOUND_SECONDS) == (0 if how == signal.SIGTERM else -how)
    finally:
        process.kill()
        process.communicate(timeout=10)
    return Event("dead", time.monotonic_ns(), str(process.pid))


def is_covered(tp: TopicPartition, offset: int, stored: dict[int, kafka_tools.Committed]) -> bool:
    """Whether the group's commit says that this record is done: below the offset, or in its metadata."""
    commit = stored.get(tp.partition)
    if commit is None:
        return False
    runs = decode(tp, commit.offset, commit.metadata)
    assert isinstance(runs, list), runs
    return offset < commit.offset or any(first <= offset < end for first, end in runs)


@pytest.mark.broker
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_orders_survive_their_end(private_broker: KafkaBroker, tmp_path: Path, how: signal.Signals):
    """Ended half-way and started again: nothing lost, every customer in order, few records twice or none."""
    ledger = tmp_path / "orders.jsonl"
    bootstrap = private_broker.bootstrap
    await kafka_tools.create_topic(bootstrap, "orders", partitions=8)
    produced = await kafka_tools.produce(
        bootstrap,
        "orders",
        [
            Record(
                b"c-%d" % (number * 7919 % CUSTOMERS),
                json.dumps({"order_id": number, "customer": f"c-{number * 7919 % CUSTOMERS}"}).encode(),
            )
            for number in range(ORDERS)
        ],
    )
    command = orders_command(bootstrap)
    killed = await asyncio.to_thread(end_in_the_middle, command, ledger, how)
    before = events_of(ledger)
    handled_before = {(event.tp, event.offset) for event in before if event.kind == "end"}
    assert ORDERS / 4 < len(handled_before) < ORDERS, "the kill came at the wrong time"
    stored = await kafka_tools.committed(bootstrap, "billing", "orders")
    again = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=ROOT,
        env=orders_environment(ledger),
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    committed = await kafka_tools.committed(bootstrap, "billing", "orders")
    ends = await kafka_tools.end_offsets(bootstrap, "orders")
    assert {number: one.offset for number, one in committed.items()} == ends
    sends = [Event("send", 0, "", TopicPartition(*one[:2]), one.offset, one.key) for one in produced]
    finals = {TopicPartition("orders", number): Final(end, end) for number, end in ends.items()}
    after = events_of(ledger)
    report = check([*sends, *after, killed], Rules(replays="any", finals=finals))
    assert report.is_ok, report.explain()
    assert report.counts["handled"] == ORDERS
    assert {event.member for event in before} == {killed.member}
    # Only what was in flight, or done since the last acknowledged commit, may have run twice.
    again = {(event.tp, event.offset) for event in after if event.member != killed.member}
    assert report.counts["duplicates"] == len(again & handled_before)
    assert not [(tp, offset) for tp, offset in again if is_covered(tp, offset, stored)]
    if how == signal.SIGTERM:
        assert report.counts["duplicates"] == 0


# -- FastAPI -------------------------------------------------------------------------------------


@contextmanager
def service(bootstrap: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`uvicorn examples.fastapi_app:api` on a free port: its address, and its process."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        descriptor, port = listener.fileno(), listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "examples.fastapi_app:api", "--fd", str(descriptor)],
            cwd=ROOT,
            env=environment(ASYNCPAR_BOOTSTRAP_SERVERS=bootstrap),
            pass_fds=(descriptor,),
        )
    try:
        yield f"http://{LOOPBACK}:{port}", process
    finally:
        process.kill()
        process.wait(10)


async def answer(client: httpx.AsyncClient, path: str, wanted: dict[str, object]) -> dict[str, object]:
    """The answer of `path` once it holds `wanted`; the last one when that does not happen in time."""
    deadline = time.monotonic() + 20
    while True:
        found: dict[str, object] = (await client.get(path)).json()
        if wanted.items() <= found.items() or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)


@pytest.mark.broker
async def test_fastapi_shows_what_the_consumer_saw(private_broker: KafkaBroker):
    """Routes and handlers share state; a SIGTERM to the service ends with everything committed."""
    bootstrap = private_broker.bootstrap
    await kafka_tools.create_topic(bootstrap, "orders", partitions=2)
    versions = [
        Record(b"7", json.dumps({"order_id": 7, "customer": "ada", "cents": cents}).encode())
        for cents in (100, 200, 300)
    ]
    await kafka_tools.produce(bootstrap, "orders", versions)
    with service(bootstrap) as (address, process):
        async with httpx.AsyncClient(base_url=address, timeout=BOUND_SECONDS) as client:
            found = await answer(client, "/orders/7", {"cents": 300})
            assert found == {"order_id": 7, "customer": "ada", "cents": 300}
            assert (await client.get("/orders/8")).status_code == 404
            status = await answer(client, "/consumer-status", {"ready": True})
            assert status["ready"], status
            groups = status["groups"]
            assert isinstance(groups, list)
            assert sum(partition["hwm"] for partition in groups[0]["partitions"]) == 3
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()) == (200, [])
        process.send_signal(signal.SIGTERM)
        # uvicorn ends with the signal that it was sent, once it has shut down.
        assert await asyncio.to_thread(process.wait, 20) in {0, -signal.SIGTERM}
    committed = await kafka_tools.committed(bootstrap, "orders-service", "orders")
    assert sum(one.offset for one in committed.values()) == 3


# -- the ledger of the orders example ------------------------------------------------------------


def test_the_orders_ledger_is_one_write_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each event reaches the system in one piece: instances can share the file, a kill loses none."""
    from asyncpar import Record as Handled
    from examples import orders

    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(
        "examples.orders.os.write", lambda file, text: written.append(text) or write(file, text)
    )
    ledger = orders.Ledger(tmp_path / "ledger.jsonl")
    ledger.write("start", Handled(topic="orders", partition=1, offset=5, key=b"c-1", value=b"{}"))
    ledger.close()
    line = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert (line["event"], line["topic"], line["partition"], line["offset"], line["key"]) == (
        *("start", "orders", 1, 5),
        "c-1",
    )
    assert len(written) == 1 and written[0].endswith(b"\n")


# -- failures: each in its way, on a real broker -------------------------------------------------

FAILURES = {
    **dict.fromkeys(("payments", "receipts", "reminders", "statements"), 2),
    **dict.fromkeys(("payments.dlq", "receipts.dlq", "receipts.retry.500ms", "receipts.retry.1s"), 1),
}
"""The topics of the example, and how many partitions each gets."""


def payment(number: int, card: str, customer: str) -> Record:
    """A payment by a test card of the example's bank."""
    value = json.dumps({"payment_id": f"p-{number}", "card": f"tok_{card}", "cents": 250}).encode()
    return Record(customer.encode(), value, [("payment-id", b"p-%d" % number)])


@contextmanager
def failures_app(bootstrap: str, down: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`asyncpar run examples.failures:app`, which writes into `log`; its bank is out while `down` exists."""
    command = [sys.executable, "-m", "asyncpar", "run", "examples.failures:app", "--http-port", "0"]
    variables = environment(ASYNCPAR_BOOTSTRAP_SERVERS=bootstrap, BANK_DOWN=str(down))
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def missing(log: Path, words: tuple[str, ...], times: int) -> list[str]:
    """Those of `words` that stand in `log` less than `times` times."""
    text = log.read_text()
    return [word for word in words if text.count(word) < times]


async def until_written(log: Path, *words: str, times: int = 1) -> None:
    """Wait until each of `words` stands in `log`, `times` times."""
    deadline = time.monotonic() + BOUND_SECONDS
    while left := missing(log, words, times):
        assert time.monotonic() < deadline, f"not in the log in time: {left}"
        await asyncio.sleep(0.05)


@pytest.mark.broker
async def test_failures_end_as_their_example_says(private_broker: KafkaBroker, tmp_path: Path):
    """An outage costs nothing; then each record ends as its card, address or limit says; a clean stop."""
    bootstrap, down, log = private_broker.bootstrap, tmp_path / "down", tmp_path / "log"
    for name, partitions in FAILURES.items():
        await kafka_tools.create_topic(bootstrap, name, partitions)
    down.touch()
    with failures_app(bootstrap, down, log) as process:
        outage = [payment(number, "visa", f"c-{number}") for number in range(100)]
        await kafka_tools.produce(bootstrap, "payments", outage)
        await until_written(log, "its breaker opened")
        down.unlink()
        await until_written(log, "its breaker closed")
        await until_written(log, " charged to c-", times=100)
        cards = ["refused", "paid", "flaky", "busy", "hangs", "visa"]
        records = [payment(200 + at, card, card) for at, card in enumerate(cards)]
        records += outage[:3]
        records += [payment(300 + at, "unreadable", "mallory") for at in range(2)]
        records.append(payment(302, "visa", "mallory"))
        await kafka_tools.produce(bootstrap, "payments", records)
        addresses = [b"ada@example.org", b"bob@slow.example", b"eve@gone.example"]
        await kafka_tools.produce(bootstrap, "receipts", [Record(None, address) for address in addresses])
        await kafka_tools.produce(bootstrap, "reminders", [Record(b"ada", b"pay")] * 4)
        await kafka_tools.produce(bootstrap, "statements", [Record(b"ada", b"10")])
        await until_written(
            log,
            *("p-202 charged to flaky, attempt 2", "p-203 charged to busy, attempt 2"),
            *("p-204 charged to hangs, attempt 2", "p-205 charged to visa, attempt 1"),
            *("of refused: permanent, attempts 1", "of mallory: exhausted, attempts 3"),
            *("key b'mallory' of payments failed 6 times in a row", "of mallory: poison_key, attempts 0"),
            *("ada@example.org from receipts\n", "bob@slow.example from receipts.retry.1s\n"),
            "statement of 10 pages for ada",
        )
        await until_written(log, "reminded ada", times=4)
        deadline = time.monotonic() + BOUND_SECONDS
        while await kafka_tools.end_offsets(bootstrap, "receipts.dlq") != {0: 1}:
            assert time.monotonic() < deadline, "the receipt for eve is no dead letter"
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, BOUND_SECONDS) == 0, log.read_text()
    text = log.read_text()
    assert text.count(" charged to c-") == 100, "a payment was charged twice"
    assert text.count("support: payments offset") == 4
    for topic in FAILURES.keys() - {"payments.dlq", "receipts.dlq"}:
        committed = await kafka_tools.committed(bootstrap, "payments", topic)
        ends = await kafka_tools.end_offsets(bootstrap, topic)
        assert {number: committed[number].offset for number in committed if ends[number]} == {
            number: end for number, end in ends.items() if end
        }
