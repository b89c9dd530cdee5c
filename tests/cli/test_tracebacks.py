"""The user's own part of a traceback."""

import asyncio
import contextlib
import importlib
import json
import traceback
from collections.abc import Callable, Iterator

import click
import pytest
from pydantic import TypeAdapter

from asyncpar.cli.reports import report
from asyncpar.cli.tracebacks import innermost_place, user_traceback
from asyncpar.settings_checks import checked


def _raised(call) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


@contextlib.contextmanager
def _resource() -> Iterator[None]:
    yield
    raise KeyError("left")


def _in_machinery() -> None:
    async def inner() -> None:
        with _resource():
            await asyncio.sleep(0)

    asyncio.run(inner())


def test_frames_of_the_machinery_are_left_out():
    """asyncio and contextlib do not appear between the user's frames."""
    text = user_traceback(_raised(_in_machinery))
    assert "in inner" in text
    assert "in _resource" in text
    assert "asyncio/" not in text
    assert "contextlib.py" not in text


def test_chained_exceptions_are_cleaned_too():
    """The cause of an exception shows the user's frames only, as well."""

    def chained() -> None:
        try:
            importlib.import_module("nothing_of_the_kind")
        except ImportError as error:
            raise ValueError("no plugin") from error

    text = user_traceback(_raised(chained))
    assert "direct cause" in text
    assert "importlib/__init__" not in text
    assert "frozen" not in text
    assert "No module named 'nothing_of_the_kind'" in text


def test_an_error_of_asyncpar_itself_has_no_user_part():
    """Without any frame of the user there is nothing to show."""
    error = _raised(lambda: None.missing)  # type: ignore[attr-defined]
    error.__traceback__ = None
    assert user_traceback(error) == ""
    assert innermost_place(error) == ""


def test_the_innermost_place_is_the_users():
    """The place named is the user's last line, not the library's."""
    error = _raised(lambda: checked("max_in_flight", 0, "App(...)"))
    assert "test_tracebacks.py:" in innermost_place(error)


def test_a_fault_of_asyncpar_is_shown_whole_and_owned(capsys: pytest.CaptureFixture[str]):
    """Where no frame is the user's, the full traceback is kept and the line asks for a report."""
    error = TypeError("broken inside")
    assert report(error) == 1
    err = capsys.readouterr().err
    assert "this is a fault in asyncpar, please report it" in err.splitlines()[-1]
    assert "TypeError: broken inside" in err


def test_a_failure_below_click_is_a_fault_of_asyncpar(capsys: pytest.CaptureFixture[str]):
    """The frames of the library that calls our commands are nobody's fault and no user's code."""

    def call() -> None:
        click.Command("run", callback=click.Path(exists=True).convert).main(
            ["--help"], standalone_mode=False, prog_name=3
        )

    error = _raised(call)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # without the frames of this test
    assert "click" in "".join(traceback.format_exception(error))
    assert user_traceback(error) == ""
    assert innermost_place(error) == ""
    report(error)
    assert "this is a fault in asyncpar" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call", [lambda: json.loads("{"), lambda: TypeAdapter(int).validate_json(3)], ids=["json", "pydantic"]
)
def test_the_place_is_in_the_users_file_where_a_library_raised(call):
    """Their line called the library with something wrong; the library's frames are still shown."""
    error = _raised(call)
    assert "test_tracebacks.py:" in innermost_place(error)
    assert "test_tracebacks.py" in user_traceback(error)


def test_a_library_alone_is_no_code_of_the_user():
    """Without a frame of theirs, frames of the standard library or of what asyncpar stands on say nothing."""
    error = _raised(lambda: json.loads("{"))
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # json's own frames
    assert "json/__init__.py" in "".join(traceback.format_exception(error))
    assert user_traceback(error) == ""
    assert innermost_place(error) == ""


def test_code_made_from_a_string_is_no_place():
    """A dataclass makes its `__init__` so; who called it is the place."""
    made: dict[str, Callable[[], None]] = {}
    exec("def fails(): raise ValueError('no')", made)
    assert "test_tracebacks.py:" in innermost_place(_raised(made["fails"]))
