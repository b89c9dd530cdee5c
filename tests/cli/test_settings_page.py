"""The generated page of settings is complete and current."""

from asyncpar.cli.settings_page import page
from asyncpar.settings import KNOBS
from asyncpar.settings_handlers import HANDLER_KEYS
from asyncpar.topics import OVERRIDABLE
from tests.cli.program import ROOT


def test_the_page_in_the_docs_is_current():
    """docs/settings.md is what the settings say now: `python -m asyncpar.cli.settings_page` writes it."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()


def test_every_knob_has_an_entry():
    """No knob is left out of the page."""
    text = page()
    for name in KNOBS:
        assert text.count(f"### `{name}`\n") == 1


def test_every_key_of_a_handlers_table_is_listed():
    """With the engine-wide setting that it beats, if there is one."""
    assert HANDLER_KEYS.keys() == OVERRIDABLE
    assert {key.knob for key in HANDLER_KEYS.values()} - {None} <= set(KNOBS)
    assert "| `attempts` | total runs" in page()
