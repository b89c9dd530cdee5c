"""Numbers on the command line: within their bounds, and numbers."""

from __future__ import annotations

import click
import pytest

from asyncpar.cli.main import main
from asyncpar.cli.ranges import FiniteRange


@pytest.mark.parametrize(
    ("text", "says"), [("nan", "nan is no number within the range x>0"), ("inf", "inf is no")]
)
def test_what_is_no_number_is_refused(text: str, says: str) -> None:
    """Although no comparison with a bound refuses it."""
    with pytest.raises(click.BadParameter, match=says):
        FiniteRange(min=0, min_open=True).convert(text, None, None)


def test_numbers_are_judged_by_their_bounds() -> None:
    """As click does."""
    assert FiniteRange(0, 10).convert("2.5", None, None) == 2.5
    with pytest.raises(click.BadParameter, match="11.0 is not in the range"):
        FiniteRange(0, 10).convert("11", None, None)


@pytest.mark.parametrize(
    "command",
    [
        ("bench", "app:app", "--seconds"),
        ("produce", "orders", "--rate"),
        ("produce", "orders", "--key-skew"),
        ("dlq", "replay", "orders.dlq", "--rate"),
        ("demo", "--seconds"),
    ],
    ids=" ".join,
)
def test_each_command_refuses_it(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """With one line that names the option, and exit code 2, before anything is connected."""
    assert main([*command, "nan"]) == 2
    told = capsys.readouterr().err
    assert f"Invalid value for '{command[-1]}': nan is no number" in told
    assert "Traceback" not in told
