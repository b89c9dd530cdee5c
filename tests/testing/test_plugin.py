"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Broker

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
# By its module and not by its entry point, which is there only where asyncpar is installed.
PLUGIN = ("-p", "no:asyncpar", "-p", "asyncpar.testing.plugin", "-p", "no:cacheprovider")

HANDLERS = """
from asyncpar import App
from asyncpar.testing import MemoryBroker, TestApp

app, got = App(group="billing"), []


@app.topic("orders")
async def bill(order: dict[str, int]) -> None:
    got.append(order["cents"])
"""
THE_TEST = """
async def test_bill(kafka_app):
    async with kafka_app(app) as kafka:
        await kafka.send("orders", {"cents": 250})
        await kafka.settled()
    assert got == [250]
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """What pytest says to a file with `code`."""
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess(*PLUGIN, *options)


def test_the_fixture_under_pytest_asyncio(pytester: pytest.Pytester) -> None:
    """In strict mode with its mark, and in auto mode without; `TestApp` itself is not collected."""
    strict = run(
        pytester, f"import pytest\n{HANDLERS}\n@pytest.mark.asyncio{THE_TEST}", "-o", "asyncio_mode=strict"
    )
    strict.assert_outcomes(passed=1, warnings=0)
    auto = run(pytester, HANDLERS + THE_TEST, "-o", "asyncio_mode=auto")
    auto.assert_outcomes(passed=1, warnings=0)


def test_the_fixture_under_anyio(pytester: pytest.Pytester) -> None:
    """anyio's plugin runs it on asyncio, and in a fixture that outlives the task it was made in."""
    code = f"""
import pytest
{HANDLERS}

@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def kafka(kafka_app):
    async with kafka_app(app) as kafka:
        yield kafka


@pytest.mark.anyio{THE_TEST}

@pytest.mark.anyio
async def test_again(kafka):
    await kafka.send("orders", {{"cents": 1}})
    await kafka.settled()
"""
    run(pytester, code, "-p", "no:asyncio").assert_outcomes(passed=2, warnings=0)


def test_the_broker_of_a_test_is_the_one_that_its_apps_use(pytester: pytest.Pytester) -> None:
    """Whoever asks for `memory_broker` gets its faults, whatever the flag says; each test has a fresh one."""
    code = f"""
{HANDLERS}

async def test_faults(kafka_app, memory_broker):
    memory_broker.fail("Fetch", "DISCONNECT")
    async with kafka_app(app, commit_every=1) as kafka:
        assert kafka.broker is memory_broker
        assert app.settings.commit_every == 1
        await kafka.send("orders", {{"cents": 1}})
        await kafka.settled()


async def test_fresh(memory_broker):
    assert memory_broker.partition_counts() == {{}}


async def test_own(kafka_app):
    broker = MemoryBroker()
    async with kafka_app(app, broker=broker) as kafka:
        assert kafka.broker is broker
"""
    ran = run(pytester, code, "-o", "asyncio_mode=auto", "--asyncpar-bootstrap=127.0.0.1:9")
    ran.assert_outcomes(passed=3)


def test_a_halt_shows_the_handlers_traceback(pytester: pytest.Pytester) -> None:
    """pytest's report has the line of the handler that raised, and the place of the record."""
    code = """
from asyncpar import Retry, topic


@topic("orders", retry=Retry(attempts=1))
async def bill(order: dict[str, int]) -> None:
    raise ZeroDivisionError("in the handler")


async def test_bill(kafka_app):
    async with kafka_app(bill) as kafka:
        await kafka.send("orders", {})
        await kafka.settled()
"""
    ran = run(pytester, code, "-o", "asyncio_mode=auto")
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            '>*raise ZeroDivisionError("in the handler")',
            "The above exception was the direct cause of the following exception:",
            "E *HaltedError: orders[[]0[]] halted in group test, offset 0: *Error: in the handler",
        ]
    )


def test_the_same_test_by_the_flag(pytester: pytest.Pytester, broker: Broker) -> None:
    """`--asyncpar-bootstrap` takes a test to a real Kafka, unchanged, and says so at the top."""
    flag = f"--asyncpar-bootstrap={broker.bootstrap}"
    for _ in range(2):
        ran = run(pytester, HANDLERS + THE_TEST, "-o", "asyncio_mode=auto", flag)
        ran.assert_outcomes(passed=1)
        ran.stdout.fnmatch_lines([f"asyncpar: kafka_app runs on {broker.bootstrap}"])


def test_the_docs_page_is_true(pytester: pytest.Pytester) -> None:
    """Every test on the page about testing, and the one in the README, passes as it stands."""
    pages = ((ROOT / "docs" / "testing.md").read_text("utf-8"), (ROOT / "README.md").read_text("utf-8"))
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]
    tested = [block for block in blocks if "def test_" in block]
    pytester.makepyfile(**{f"test_{number}": block for number, block in enumerate(tested)})
    ran = pytester.runpytest_subprocess(*PLUGIN, "-o", "asyncio_mode=auto")
    ran.assert_outcomes(passed=sum(block.count("def test_") for block in tested), warnings=0)
    assert len(tested) >= 8


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:abc", "localhost:99999", "a b:9092", ":9092", "h:1,"]
)
def test_a_malformed_address_is_said_once(pytester: pytest.Pytester, address: str) -> None:
    """Before any test, in one line; not by each of them."""
    ran = run(pytester, HANDLERS + THE_TEST, f"--asyncpar-bootstrap={address}")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in ran.errlines if line.startswith("ERROR")]
    assert line.startswith(f"ERROR: --asyncpar-bootstrap={address}: ")
    assert line.endswith("is no address; give host:port, or several by commas")


def test_the_flag_is_in_the_help(pytester: pytest.Pytester) -> None:
    """`pytest --help` tells of it."""
    ran = run(pytester, "", "--help")
    ran.stdout.fnmatch_lines(["asyncpar:", "*--asyncpar-bootstrap=HOST:PORT*"])


def test_projects_that_do_not_use_it_pay_nothing() -> None:
    """The plugin is loaded everywhere: it imports neither the client, nor pydantic, nor the engine."""
    code = (
        "import sys, asyncpar.testing.plugin; "
        "heavy = {'aiokafka', 'pydantic', 'starlette', 'asyncpar.app', 'asyncpar.runtime'}; "
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_the_entry_point_leads_to_the_plugin() -> None:
    """pyproject.toml names the module that pytest loads."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"asyncpar": "asyncpar.testing.plugin"}


def test_every_name_of_the_package_loads() -> None:
    """What `asyncpar.testing` exports is there, and what it does not have is an AttributeError."""
    testing = importlib.import_module("asyncpar.testing")
    assert set(dir(testing)) == set(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TestAp'"):
        _ = testing.TestAp
