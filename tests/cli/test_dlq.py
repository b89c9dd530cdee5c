"""`asyncpar dlq` without a cluster: its command line, its errors and its exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from asyncpar.cli.dlq import dlq
from tests.cli.program import ROOT, asyncpar, write
from tests.kafka_broker import free_port

COMMANDS = ("list", "show", "replay", "purge")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing command; see asyncpar dlq --help"),
        (("lst",), "No such command 'lst'"),
        (("list",), "Missing argument 'TOPIC'; see asyncpar dlq list --help"),
        (("show", "t", "0"), "Missing argument 'OFFSET'"),
        (("list", "t", "--since", "yesterday"), "'yesterday' is no time: write 30s, 15m, 2h"),
        (("list", "t", "--limit", "0"), "0 is not in the range x>=1"),
        (("list", "t", "--since", "1h", "--until", "2h"), "--since is not before --until"),
        (("replay", "t", "--to", "t"), "cannot be replayed to the topic in which they lie"),
        (("replay", "t", "--rate", "0"), "is not in the range"),
        (("replay", "t", "--commit-every", "0"), "is not in the range"),
        (("purge", "t"), "say what to delete by one of --before, --replayed and --all"),
        (("purge", "t", "--all", "--replayed"), "say what to delete by one of"),
        (("purge", "t", "--before", "soon"), "'soon' is no time"),
        (("list", "t", "--set", "bootstrap_server=x"), "did you mean bootstrap_servers?"),
        (
            ("list", "t", "--bootstrap-servers", "a:1", "--set", "bootstrap_servers=b:1"),
            "bootstrap_servers is given twice",
        ),
        (("list", "t", "--config", "x.toml"), "x.toml cannot be read: No such file"),
        (("list", "t", "--env-file", "x.env"), "x.env cannot be read: No such file"),
        (("list", "t", "--set", "security_protocol=TLS"), "security_protocol = 'TLS' is not allowed"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """Nothing is connected, nothing else is printed."""
    ended = asyncpar(tmp_path, "dlq", *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1, ended.err
    assert says in ended.errors[0]


@pytest.mark.parametrize(
    "arguments", [("list", "t"), ("show", "t", "0", "0"), ("replay", "t"), ("purge", "t", "--all", "--yes")]
)
def test_an_unreachable_cluster_is_one_line_and_exit_code_4(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """After `startup_timeout_ms`; the address can come from a settings file."""
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "asyncpar.toml").write_text(f'bootstrap_servers = "{address}"\nstartup_timeout_ms = 300\n')
    ended = asyncpar(tmp_path, "dlq", *arguments)
    assert ended.code == 4
    assert len(ended.err.splitlines()) == 1, ended.err
    assert f"no usable broker at {address} within 300 ms" in ended.errors[0]


def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    """The command line wins over it, as in a run."""
    address = f"127.0.0.1:{free_port()}"
    variables = {"ASYNCPAR_BOOTSTRAP_SERVERS": "127.0.0.1:1", "ASYNCPAR_STARTUP_TIMEOUT_MS": "200"}
    ended = asyncpar(tmp_path, "dlq", "list", "t", "--bootstrap-servers", address, **variables)
    assert f"no usable broker at {address} within 200 ms" in ended.errors[0]


def test_the_table_says_what_it_needs(tmp_path: Path) -> None:
    """Without rich, the extra is named and JSON offered; --json does not need it."""
    write(tmp_path, {"sitecustomize": "import sys\nsys.modules['rich'] = None\n"})
    hidden = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "ASYNCPAR_STARTUP_TIMEOUT_MS": "100"}
    ended = asyncpar(tmp_path, "dlq", "list", "t", **hidden)
    assert ended.code == 2
    assert "pip install 'asyncpar[demo]', or use --json" in ended.errors[0]
    ended = asyncpar(tmp_path, "dlq", "list", "t", "--json", "--bootstrap-servers", "127.0.0.1:1", **hidden)
    assert ended.code == 4


def test_the_page_names_every_option() -> None:
    """Each option of the commands is on the page, and each option on the page exists."""
    text = (ROOT / "docs" / "dead_letters_cli.md").read_text(encoding="utf-8")
    options = {name for one in COMMANDS for param in dlq.commands[one].params for name in _long(param)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named == options


def test_commands_on_the_page_are_accepted() -> None:
    """Each command line of the page can be parsed."""
    text = (ROOT / "docs" / "dead_letters_cli.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ asyncpar dlq (\w+) (.*)$", text, re.MULTILINE)
    assert {name for name, _ in lines} == set(COMMANDS)
    for name, arguments in lines:
        words = [word.strip("'\"") for word in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", arguments)]
        dlq.commands[name].make_context(name, words)


def _long(parameter: click.Parameter) -> list[str]:
    return [name for name in parameter.opts if name.startswith("--")]
