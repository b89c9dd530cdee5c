"""The command line as a whole: every mistake ends with one clear line and the right exit code."""

import json
from pathlib import Path

import pytest

from asyncpar import __version__
from tests.cli.program import asyncpar, write

GOOD = """
from asyncpar import topic

@topic("orders", group="billing", name="bill")
async def bill(body: bytes) -> None: ...
"""

TWO_FOR_ONE_TOPIC = """
from asyncpar import topic

@topic("orders", group="billing")
async def first(body: bytes) -> None: ...

@topic("orders", group="billing")
async def second(body: bytes) -> None: ...
"""

FAILING_AT_START = """
from contextlib import asynccontextmanager
from asyncpar import App

@asynccontextmanager
async def state(app):
    raise ValueError("no database")
    yield

app = App(group="billing", lifespan=state)

@app.topic("orders")
async def bill(body: bytes) -> None: ...
"""


def test_version(tmp_path: Path):
    """`asyncpar --version` names the version."""
    assert asyncpar(tmp_path, "--version").out == f"asyncpar {__version__}\n"


def test_help_lists_the_commands(tmp_path: Path):
    """`asyncpar --help` shows what there is."""
    ended = asyncpar(tmp_path, "--help")
    assert ended.code == 0
    assert "run" in ended.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing command; see asyncpar --help"),
        (("runn",), "No such command 'runn'"),
        (("run",), "Missing argument 'TARGET'; see asyncpar run --help"),
        (("run", "good", "--chekc"), "No such option"),
        (("run", "good", "--set", "group"), "'group' is not KEY=VALUE"),
        (("run", "good", "--group", "a", "--set", "group=b"), "group is given twice"),
        (("run", "nowhere"), "target nowhere: there is no module nowhere in "),
        (("run", "god"), "did you mean good?"),
        (
            ("run", "good", "--set", "max_in_fligth=5"),
            "command line: unknown setting 'max_in_fligth'; did you",
        ),
        (
            ("run", "good", "--set", "commit_every=5s"),
            "command line: commit_every = '5s' is not allowed; give",
        ),
        (("run", "good", "--http-port", "http"), "http_port = 'http' is not allowed; give a whole number"),
        (("run", "good", "--profile", "fast"), "profile = 'fast' is not allowed; give low_latency, "),
        (("run", "good", "--config", "x.toml"), "x.toml cannot be read: No such file"),
        (("run", "good", "--env-file", "x.env"), "x.env cannot be read: No such file"),
        (("run", "good", "--log-config", "x.json"), "log_config = 'x.json': there is no such file"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], says: str
):
    """No traceback and nothing else on stderr: one line that says what and where."""
    ended = asyncpar(write(tmp_path, {"good": GOOD}), *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1, ended.err
    assert says in ended.errors[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os", "no App and no @topic function in mine"),
        ('from asyncpar import topic\n@topic("orders")\nasync def bill(body: bytes): ...', "group"),
        (TWO_FOR_ONE_TOPIC, "orders"),
        (
            'from asyncpar import topic\n@topic("x", group="g", order="kee")\nasync def f(b: bytes): ...',
            "kee",
        ),
        ("from asyncpar import App\napp = App(max_in_fligth=5)", "did you mean max_in_flight?"),
        (
            'from asyncpar import topic\n@topic("x", group="g")\nasync def f(a: dict, b: dict): ...',
            "handler mine.f",
        ),
    ],
)
def test_a_wrong_app_is_one_line_and_exit_code_2(tmp_path: Path, text: str, says: str):
    """No handler, no group, two handlers for one topic, a wrong signature: found without a broker."""
    ended = asyncpar(write(tmp_path, {"mine": text}), "run", "mine", "--check")
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert says in ended.errors[0]


def test_a_module_that_raises_shows_the_users_frames_only(tmp_path: Path):
    """The traceback has no frame of asyncpar or importlib, and the one line ends it."""
    text = 'def connect():\n    raise KeyError("DATABASE_URL")\n\nconnect()\n'
    ended = asyncpar(write(tmp_path, {"broken": text}), "run", "broken")
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    files = [line for line in lines if line.strip().startswith("File ")]
    assert len(files) == 2
    assert all("broken.py" in line for line in files), ended.err
    raised = "importing broken raised KeyError: 'DATABASE_URL', broken.py:2"
    assert lines[-1] == f"asyncpar: error: {raised}; fix it and start again"
    assert len(ended.errors) == 1


def test_a_module_that_imports_what_is_missing_is_not_called_missing(tmp_path: Path):
    """A missing dependency of the user's module is their error, with the line that imports it."""
    ended = asyncpar(write(tmp_path, {"mine": "import nothing_of_the_kind\n"}), "run", "mine")
    assert ended.code == 2
    assert "there is no module mine" not in ended.err
    assert "No module named 'nothing_of_the_kind', mine.py:1" in ended.errors[0]


def test_a_syntax_error_shows_its_line(tmp_path: Path):
    """A syntax error shows file, line and text, and no frame of asyncpar."""
    ended = asyncpar(write(tmp_path, {"mine": "x = 1\ndef f(:\n"}), "run", "mine")
    assert ended.code == 2
    assert "def f(:" in ended.err
    assert "importlib" not in ended.err
    assert "SyntaxError" in ended.errors[0]
    assert "mine.py:2" in ended.errors[0]


def test_a_module_that_exits_is_told_how_not_to(tmp_path: Path):
    """A script that calls sys.exit at import does not end the run silently."""
    ended = asyncpar(write(tmp_path, {"mine": "import sys\nsys.exit(0)\n"}), "run", "mine")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "importing mine called sys.exit, mine.py:2" in ended.errors[0]


def test_check_prints_the_handlers_and_needs_no_broker(tmp_path: Path):
    """`--check` validates everything; the table, and what was given by whom, are on stdout."""
    folder = write(tmp_path, {"good": GOOD})
    (folder / "asyncpar.toml").write_text('[handlers."bill"]\ntimeout_ms = 50\n')
    ended = asyncpar(folder, "run", "good", "--check", "--set", "dead_letter=.dlq")
    assert (ended.code, ended.err) == (0, "")
    head, row, *given = ended.out.splitlines()
    assert head.split()[:3] == ["handler", "topics", "group"]
    assert row.split()[:3] == ["bill", "orders", "billing"]
    assert '  bill: timeout_ms = 50 (asyncpar.toml line 2, [handlers."bill"])' in given
    assert "  bill: dead_letter = .dlq (command line)" in given
    assert given[-2:] == ["Settings that differ from the defaults", "  dead_letter = .dlq (command line)"]


def test_check_refuses_client_options_that_would_break_a_guarantee(tmp_path: Path):
    """`--check` finds what the client adapter would refuse at start, without a broker."""
    option = 'client_options={"enable_auto_commit": true}'
    ended = asyncpar(write(tmp_path, {"good": GOOD}), "run", "good", "--check", "--set", option)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "enable_auto_commit" in ended.errors[0]


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_check_loads_the_files_for_tls(tmp_path: Path, protocol: str):
    """A file that holds no certificate fails `--check` as it would fail the start, and not only there."""
    (tmp_path / "ca.pem").write_text("no certificate", encoding="utf-8")
    settings = [f"security_protocol={protocol}", "ssl_cafile=ca.pem"]
    if protocol == "SASL_SSL":
        settings += ["sasl_mechanism=PLAIN", "sasl_username=me", "sasl_password=hush-hush"]
    options = [part for each in settings for part in ("--set", each)]
    ended = asyncpar(write(tmp_path, {"good": GOOD}), "run", "good", "--check", *options)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "ssl_cafile 'ca.pem' holds no PEM certificates" in ended.errors[0]


def test_in_json_the_last_line_is_json_too(tmp_path: Path):
    """A collector of JSON loses neither the error that ended the run nor the traceback that explains it."""
    options = ("--log-format", "json", "--http-port", "0")
    ended = asyncpar(write(tmp_path, {"failing": FAILING_AT_START}), "run", "failing", *options)
    assert ended.code == 1
    last = [json.loads(line) for line in ended.err.splitlines()][-1]
    assert (last["level"], last["logger"]) == ("critical", "asyncpar.run")
    assert last["message"] == "ValueError: no database, failing.py:7; fix it and start again"
    assert "in state" in last["exception"]


def test_an_unknown_variable_warns_once_and_goes_on(tmp_path: Path):
    """What an orchestrator injects is reported, with a suggestion, and does not stop the run."""
    ended = asyncpar(write(tmp_path, {"good": GOOD}), "run", "good", "--check", ASYNCPAR_GRUOP="x")
    assert ended.code == 0
    assert len(ended.err.splitlines()) == 1
    assert "WARNING" in ended.err
    assert "did you mean ASYNCPAR_GROUP?" in ended.err


def test_a_malformed_variable_names_itself(tmp_path: Path):
    """The line about a malformed value names the variable."""
    ended = asyncpar(write(tmp_path, {"good": GOOD}), "run", "good", "--check", ASYNCPAR_HTTP_PORT="web")
    assert ended.code == 2
    assert "variable ASYNCPAR_HTTP_PORT: http_port = 'web' is not allowed" in ended.errors[0]


def test_the_env_file_reaches_the_app_and_the_settings(tmp_path: Path):
    """`--env-file` sets what the app's own code reads too, but never over the environment."""
    text = 'import os\nassert os.environ["DATABASE_URL"] == "db"\nassert os.environ["HOME_TOWN"] == "Ulm"\n'
    write(tmp_path, {"mine": text + GOOD.replace(', group="billing"', "")})
    (tmp_path / "x.env").write_text("DATABASE_URL=db\nHOME_TOWN=Bonn\nASYNCPAR_GROUP=from-file\n")
    ended = asyncpar(tmp_path, "run", "mine", "--check", "--env-file", "x.env", HOME_TOWN="Ulm")
    assert ended.code == 0, ended.err
    assert "from-file" in ended.out


def test_a_secret_is_in_no_message(tmp_path: Path):
    """A password given where it cannot be used is not repeated in the error."""
    arguments = ("run", "good", "--check", "--set", "sasl_password=hush-hush")
    ended = asyncpar(write(tmp_path, {"good": GOOD}), *arguments)
    assert ended.code == 2
    assert "sasl_password is given but security_protocol is PLAINTEXT" in ended.errors[0]
    assert "hush-hush" not in ended.err + ended.out
