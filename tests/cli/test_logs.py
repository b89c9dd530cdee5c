"""Logs of a run: their two forms, what is taken out of them, and whose configuration holds."""

import inspect
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.consumer import group_coordinator
from aiokafka.errors import GroupCoordinatorNotAvailableError, InvalidGroupIdError

from asyncpar.cli.logs import (
    LOOKUP_FAILED,
    JsonFormatter,
    RepeatFilter,
    SecretFilter,
    TextFormatter,
    configure,
)
from asyncpar.errors import SettingError
from asyncpar.settings_sources import load

SECRET = "hush-hush"


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test has a root logger without handlers and its own folder; both are put back."""
    monkeypatch.chdir(tmp_path)
    root, client = logging.getLogger(), logging.getLogger("aiokafka")
    handlers, level, client_level = root.handlers[:], root.level, client.level
    root.handlers[:] = []
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    client.setLevel(client_level)
    for handler in root.handlers:
        for each in [each for each in handler.filters if isinstance(each, SecretFilter)]:
            handler.removeFilter(each)


def _logged(formatter: logging.Formatter, *secrets: str) -> tuple[logging.Logger, io.StringIO]:
    """A logger of its own that writes to a string."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(SecretFilter(secrets))
    logger = logging.Logger("shop")  # noqa: LOG001 -- one of its own, not the process's
    logger.addHandler(handler)
    return logger, stream


def test_json_is_one_object_on_one_line():
    """Collectors get ts, level, logger, message, the extra fields and the exception."""
    logger, stream = _logged(JsonFormatter())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed at %s", "orders[0]", extra={"offset": 7, "where": Path("x")})
    [line] = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert fields["ts"].endswith("Z")
    assert (fields["level"], fields["logger"]) == ("error", "shop")
    assert (fields["message"], fields["offset"], fields["where"]) == ("failed at orders[0]", 7, "x")
    assert "ValueError: two\nlines" in fields["exception"]


def test_an_extra_field_never_hides_a_standard_one():
    """An extra field named like one of ours is kept beside it."""
    logger, stream = _logged(JsonFormatter())
    logger.info("started", extra={"level": "deep"})
    fields = json.loads(stream.getvalue())
    assert (fields["level"], fields["extra_level"]) == ("info", "deep")


def test_text_shows_extra_fields_and_tracebacks():
    """People get one line with key=value pairs, then the traceback."""
    logger, stream = _logged(TextFormatter())
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed", extra={"offset": 7})
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(" ERROR   shop: failed offset=7")
    assert lines[-1] == "ValueError: no"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_known_secrets_are_redacted_everywhere(formatter: logging.Formatter):
    """A secret is taken out of message, arguments, extra fields (also nested) and tracebacks."""
    logger, stream = _logged(formatter, SECRET)
    try:
        raise ValueError(f"refused {SECRET}")
    except ValueError:
        extra = {"config": {"deep": [f"x{SECRET}x"]}, "note": SECRET, "sasl_password": "other"}
        logger.exception("login with %s failed", SECRET, extra=extra)
    assert SECRET not in stream.getvalue()
    assert "other" not in stream.getvalue()
    assert "login with *** failed" in stream.getvalue()


def test_a_secret_with_quotes_is_redacted_in_json():
    """Escaping for JSON cannot carry a secret past the filter."""
    secret = 'hu"sh\\hush'
    logger, stream = _logged(JsonFormatter(), secret)
    logger.info("with %s", secret)
    assert json.loads(stream.getvalue())["message"] == "with ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=abc next", "password=*** next"),
        ("sasl_plain_password='a b', x=1", "sasl_plain_password=***, x=1"),
        ('{"client_secret": "abc"}', '{"client_secret": ***}'),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("postgres://me:abc@host/db", "postgres://me:***@host/db"),
        ("token GroupToken(generation=3)", "token GroupToken(generation=3)"),
        ("https://host:8080/path", "https://host:8080/path"),
    ],
)
def test_what_looks_like_a_credential_is_redacted(text: str, shown: str):
    """Credentials that are not settings are found by their form; ordinary text stays as it is."""
    assert SecretFilter().redacted(text) == shown


def test_very_short_secrets_do_not_black_out_words():
    """A secret of a few letters is not searched for."""
    assert SecretFilter(["a"]).redacted("a banana") == "a banana"


def test_a_run_logs_to_stderr_at_the_chosen_level(capsys: pytest.CaptureFixture[str]):
    """`log_level` holds for every logger, and the client is quiet unless something is wrong."""
    configure(load(cli={"log_level": "info"}))
    logging.getLogger("shop").info("seen")
    logging.getLogger("shop").debug("not seen")
    logging.getLogger("aiokafka.consumer").info("not seen either")
    err = capsys.readouterr().err
    assert "INFO    shop: seen" in err
    assert "not seen" not in err


def test_the_level_error_holds_for_the_client_too(capsys: pytest.CaptureFixture[str]):
    """A level above warning is not lowered for the client."""
    configure(load(cli={"log_level": "error"}))
    logging.getLogger("aiokafka.consumer").warning("not seen")
    assert capsys.readouterr().err == ""


def test_an_app_that_configured_logging_keeps_it():
    """Handlers that the app set up stay, and their output is redacted too."""
    own = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(own)
    configure(load())
    assert own in logging.getLogger().handlers
    assert not any(isinstance(each.formatter, TextFormatter) for each in logging.getLogger().handlers)
    assert any(isinstance(each, SecretFilter) for each in own.filters)


def test_a_chosen_format_wins_over_the_apps_own_handlers():
    """Who asks for JSON on the command line gets JSON only."""
    logging.getLogger().addHandler(logging.StreamHandler(io.StringIO()))
    configure(load(cli={"log_format": "json"}))
    [handler] = logging.getLogger().handlers
    assert isinstance(handler.formatter, JsonFormatter)


CONFIG = """
[formatters.json]
"()" = "asyncpar.cli.logs.JsonFormatter"
[handlers.file]
class = "logging.FileHandler"
filename = "run.log"
formatter = "json"
[root]
level = "INFO"
handlers = ["file"]
"""


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_log_config_file_replaces_the_rest(tmp_path: Path, suffix: str):
    """`log_config` is a dictConfig in TOML or JSON; secrets are redacted there too."""
    import tomllib

    text = CONFIG if suffix == ".toml" else json.dumps(tomllib.loads(CONFIG))
    path = tmp_path / f"logs{suffix}"
    path.write_text(text, encoding="utf-8")
    configure(load(cli={"log_config": str(path)}))
    logging.getLogger("shop").info("password=abc")
    for handler in logging.getLogger().handlers:
        handler.close()
    assert json.loads((tmp_path / "run.log").read_text())["message"] == "password=***"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("logs.toml", "a = ", "cannot be read"),
        ("logs.json", "{", "cannot be read"),
        ("logs.json", "[]", "is not a table"),
        ("logs.toml", '[root]\nhandlers = ["none"]', "is refused by logging.config.dictConfig"),
    ],
)
def test_a_wrong_log_config_is_named(tmp_path: Path, name: str, text: str, says: str):
    """A file that cannot be used is an error that names the file."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=says) as caught:
        configure(load(cli={"log_config": name}))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_formatters_work_without_the_filter():
    """In a user's own dictConfig the formatters may stand alone."""
    record = logging.LogRecord("shop", logging.INFO, "", 0, "hello", None, None)
    assert TextFormatter().format(record).endswith("INFO    shop: hello")
    try:
        raise ValueError("no")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: no" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.fixture
def lookup_log() -> Iterator[logging.Logger]:
    """The client's logger for its search for the group's coordinator, put back afterwards."""
    logger = logging.getLogger(group_coordinator.__name__)
    filters = logger.filters[:]
    yield logger
    logger.filters[:] = filters


def _lookup_failed(logger: logging.Logger, error: BaseException) -> None:
    logger.error("Group Coordinator Request failed: %s", error)


def test_the_first_lookups_of_a_coordinator_are_no_errors(
    capsys: pytest.CaptureFixture[str], lookup_log: logging.Logger
):
    """A fresh cluster answers "not there yet" for a moment, and the client tries again: DEBUG at most."""
    configure(load(cli={"log_level": "info"}))
    _lookup_failed(lookup_log, GroupCoordinatorNotAvailableError())
    assert capsys.readouterr().err == ""
    configure(load(cli={"log_level": "debug"}))
    _lookup_failed(lookup_log, GroupCoordinatorNotAvailableError())
    assert capsys.readouterr().err.count(" DEBUG   ") == 1


def test_what_is_not_tried_again_stays_an_error(
    capsys: pytest.CaptureFixture[str], lookup_log: logging.Logger
):
    """Neither a lookup that the client gives up, nor any other error of it, is made quiet."""
    configure(load(cli={"log_level": "info"}))
    _lookup_failed(lookup_log, InvalidGroupIdError())
    lookup_log.error("Heartbeat session expired")
    assert capsys.readouterr().err.count(" ERROR   ") == 2


def test_lookups_that_go_on_failing_are_errors(
    capsys: pytest.CaptureFixture[str], lookup_log: logging.Logger, monkeypatch: pytest.MonkeyPatch
):
    """After ten seconds it is no start any more; after a quiet time a new one may begin."""
    now = [1000.0]
    monkeypatch.setattr("asyncpar.cli.logs.time.monotonic", lambda: now[0])
    configure(load(cli={"log_level": "info"}))
    seen = []
    for moment in (0, 9, 11, 16, 21, 60):
        now[0] = 1000.0 + moment
        _lookup_failed(lookup_log, GroupCoordinatorNotAvailableError())
        seen.append(" ERROR   " in capsys.readouterr().err)
    assert seen == [False, False, True, False, True, False]


def test_the_client_still_words_it_so():
    """The filter goes by the client's own text: a new version that words it anew is seen here."""
    source = inspect.getsource(group_coordinator)
    assert f'log.error("{LOOKUP_FAILED}", err)' in source


def _said(name: str, line: int, level: int = logging.ERROR, node: int = 7) -> logging.LogRecord:
    return logging.LogRecord(name, level, "client.py", line, "no connection to node %s", (node,), None)


def test_the_client_says_the_same_thing_once_in_ten_seconds(monkeypatch: pytest.MonkeyPatch):
    """By the line of its code, with how often it did meanwhile; asyncpar's lines and other lines pass."""
    now = [100.0]
    monkeypatch.setattr("asyncpar.cli.logs.time.monotonic", lambda: now[0])
    repeats = RepeatFilter()
    seen = [repeats.filter(_said("aiokafka.client", 7, node=node)) for node in range(500)]
    assert seen == [True, *[False] * 499]
    assert repeats.filter(_said("aiokafka.client", 8))
    other = _said("aiokafka.client", 7)
    other.msg, other.args = "no connection to another node %s", (7,)
    assert repeats.filter(other)
    assert all(repeats.filter(_said("asyncpar.runtime", 7)) for _ in range(3))
    assert all(repeats.filter(_said("aiokafka.client", 7, logging.INFO)) for _ in range(3))
    now[0] = 110.0
    again = _said("aiokafka.client", 7)
    assert repeats.filter(again)
    assert TextFormatter().format(again).endswith("no connection to node 7 repeated=499")
    now[0] = 125.0
    once_more = _said("aiokafka.client", 7)
    assert repeats.filter(once_more)
    assert "repeated" not in TextFormatter().format(once_more)


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("debug", 5)])
def test_a_run_leaves_out_what_the_client_repeats(level: str, lines: int, capsys: pytest.CaptureFixture[str]):
    """With log_level=debug everything is there."""
    configure(load(cli={"log_level": level}))
    for _ in range(5):
        logging.getLogger("aiokafka.conn").error("no connection")
    assert capsys.readouterr().err.count("no connection") == lines


def test_warnings_of_python_are_log_lines_too(capsys: pytest.CaptureFixture[str], captured_warnings: None):
    """In JSON everything on stderr is JSON, `warnings.warn` included."""
    configure(load(cli={"log_format": "json"}))
    warnings.warn("odd", RuntimeWarning, stacklevel=1)
    [line] = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert (fields["level"], fields["logger"]) == ("warning", "py.warnings")
    assert "RuntimeWarning: odd" in fields["message"]


@pytest.fixture
def captured_warnings() -> Iterator[None]:
    """Warnings are shown, not raised as in the rest of the suite."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
