"""The start banner promises what the settings and handlers say, and nothing else."""

from pathlib import Path

import pytest

from asyncpar import RateLimit, topic
from asyncpar.app import App
from asyncpar.cli.banner import (
    banner,
    banner_fields,
    chosen_for_handlers,
    chosen_settings,
    guarantees,
    handler_table,
)
from asyncpar.groups import DeclaredGroup, declare_groups
from asyncpar.policies import Retry
from asyncpar.settings_sources import Loaded, load
from asyncpar.topics import specs_of


@topic("orders", name="bill", concurrency=256, retry=Retry(attempts=5))
async def bill(body: bytes) -> None:
    """Ordered by key; tombstones are errors."""


@topic(pattern="audit-.*", name="audit", group="auditors", order="unordered")
def audit(body: bytes | None) -> None:
    """Unordered, in threads; takes tombstones."""


@topic("moves", name="moves", order="partition", tombstones="skip")
async def moves(body: bytes) -> None:
    """In the order of the partition; tombstones are skipped."""


def _by_first_byte(topic: str, raw: object) -> bytes | None:
    return b"x"


@topic("custom", name="custom", order=_by_first_byte, keyless="error")
async def custom(body: bytes) -> None:
    """Ordered by a function."""


def _declared(**settings: object) -> tuple[list[DeclaredGroup], Loaded]:
    app = App(group="billing", **settings)
    for handler in (bill, audit, moves, custom):
        app.include(handler)
    loaded = load(app_values=app.given_settings)
    app.configure(loaded)
    return app.groups(), loaded


def test_the_table_has_effective_values():
    """Own values beat settings, settings beat defaults, and each handler shows its group."""
    groups, _ = _declared(concurrency=7, retry_attempts=3)
    rows = {line.split("  ")[0]: line for line in handler_table(groups)}
    assert rows["bill"].split() == ["bill", "orders", "billing", "key", "async", "256", "5", "halt", "error"]
    audit_row = ["audit", "pattern", "audit-.*", "auditors", "unordered", "thread", "7", "3", "halt", "given"]
    assert rows["audit"].split() == audit_row
    assert rows["moves"].split()[-1] == "skip"
    assert rows["custom"].split()[3] == "function"


@topic("images", name="shrink", executor="process", dead_letter=".dlq")
def shrink(body: bytes) -> None:
    """Computes, in child processes."""


@pytest.mark.parametrize(
    ("change", "then"), [({}, "it becomes a dead letter."), ({"dead_letter": None}, "its partition halts.")]
)
def test_child_processes_are_counted_and_what_a_crash_means_is_said(change: dict[str, None], then: str):
    """Beside the executor's name, and in a sentence; nobody else gets that sentence."""
    app = App(group="billing", worker_pool_size=3)
    app.include(bill)
    app.topic("images", name="shrink", executor="process", **{"dead_letter": ".dlq", **change})(shrink)
    loaded = load(app_values=app.given_settings)
    app.configure(loaded)
    row = next(line for line in handler_table(app.groups()) if line.startswith("shrink"))
    assert row.split()[4:7] == ["process", "x3", "384"]
    (sentence,) = (one for one in guarantees(app.groups(), loaded.settings) if "Child processes" in one)
    assert sentence.startswith("Child processes of shrink: 3.")
    assert sentence.endswith(f"a second child is given up: {then}")


def test_order_is_promised_per_handler():
    """Each handler's order, and that of records without a key, is said in words."""
    groups, loaded = _declared()
    text = "\n".join(guarantees(groups, loaded.settings))
    assert "Order of bill: records of a partition with the same key run one at a time" in text
    assert "Order of audit: none" in text
    assert "Order of moves: the records of a partition run one at a time" in text
    assert "key (from _by_first_byte)" in text
    assert "A record without a key is an error." in text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "committed transactions only; a group without a commit starts at the earliest record"),
        ({"isolation_level": "read_uncommitted"}, "also those of transactions that are aborted later"),
        ({"offset_reset": "latest"}, "records that are there already are not read"),
        ({"offset_reset": "error"}, "ends the run with an error"),
        ({"commit_every": 7, "commit_interval_ms": 70}, "after 70 ms or 7 records done"),
    ],
)
def test_promises_follow_the_settings(settings: dict[str, object], says: str):
    """A changed setting changes the sentence about it."""
    groups, loaded = _declared(**settings)
    assert any(says in sentence for sentence in guarantees(groups, loaded.settings))


def test_what_each_handler_was_given_is_listed_with_its_origin(tmp_path: Path):
    """From its table, by line, else its decorator, else a setting that somebody chose; no defaults."""
    toml = tmp_path / "asyncpar.toml"
    toml.write_text('dead_letter = ".dlq"\n[handlers."pay"]\nattempts = 8\nnot_on = ["ValueError"]\n')
    app = App(group="billing")

    @app.topic(
        "payments",
        name="pay",
        retry=Retry(attempts=5, max_ms=60_000),
        on_error={LookupError: "skip"},
        timeout_ms=5_000,
        rate_limit=RateLimit(per_second=10, burst=2),
    )
    async def pay(body: bytes) -> None: ...

    @app.topic("mails", name="mail", dead_letter=False)
    async def mail(body: bytes) -> None: ...

    loaded = load(toml=toml, env={"ASYNCPAR_RETRY_ATTEMPTS": "3"}, app_values=app.given_settings)
    app.configure(loaded)
    groups = app.groups()
    table = f'{toml} line {{}}, [handlers."pay"]'
    expected = [
        "pay: timeout_ms = 5000 (@topic(...))",
        f"pay: attempts = 8 ({table.format(3)})",
        "pay: max_ms = 60000 (@topic(...))",
        f"pay: not_on = ValueError ({table.format(4)})",
        "pay: on_error = LookupError: skip (@topic(...))",
        f"pay: dead_letter = .dlq ({toml})",
        "pay: rate_limit = RateLimit(per_second=10, burst=2, max_keys=10000) (@topic(...))",
        "mail: attempts = 3 (variable ASYNCPAR_RETRY_ATTEMPTS)",
        "mail: dead_letter = none (@topic(...))",
    ]
    assert chosen_for_handlers(groups, loaded) == expected
    text = banner("app", "1", groups, loaded, colour=False)
    assert "\nWhat handlers were given\n  pay: timeout_ms = 5000 (@topic(...))\n" in text
    assert banner_fields(groups, loaded)["handler_settings"] == expected


def test_only_chosen_settings_are_listed_with_their_origin():
    """The list has what differs from the defaults, where it came from, and no secret."""
    loaded = load(
        cli={"commit_every": "5"},
        env={
            "ASYNCPAR_SASL_PASSWORD": "hush-hush",
            "ASYNCPAR_SASL_USERNAME": "me",
            "ASYNCPAR_SASL_MECHANISM": "PLAIN",
            "ASYNCPAR_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        },
    )
    lines = chosen_settings(loaded)
    assert "commit_every = 5 (command line)" in lines
    assert "sasl_password = *** (variable ASYNCPAR_SASL_PASSWORD)" in lines
    assert len(lines) == 5


def test_no_colour_unless_asked():
    """Escape sequences appear on a terminal only."""
    groups, loaded = _declared()
    assert "\x1b" not in banner("mine", "1.0", groups, loaded, colour=False)
    assert "\x1b[1m" in banner("mine", "1.0", groups, loaded, colour=True)


def test_the_fields_say_the_same():
    """JSON logs carry guarantees, handlers and chosen settings as data."""
    groups, loaded = _declared()
    fields = banner_fields(groups, loaded)
    assert fields["guarantees"] == guarantees(groups, loaded.settings)
    handlers = fields["handlers"]
    assert isinstance(handlers, list)
    assert handlers[0]["handler"] == "bill"
    assert handlers[0]["attempts"] == "5"
    assert fields["differing_settings"] == ["group = billing (App(...))"]


def test_the_table_says_where_a_failed_record_goes() -> None:
    """Through its retry topics to the dead letters; a suffix is shown as one."""

    async def dead(value: bytes) -> None: ...

    declared = topic(
        "orders", name="dead", retry_topics=["orders.retry.5s"], dead_letter=".dlq", group="billing"
    )(dead)
    loaded = load(app_values={})
    groups = declare_groups(specs_of(declared), loaded)
    rows = {line.split("  ")[0]: line for line in handler_table(groups)}
    assert "1         orders.retry.5s > *.dlq" in rows["dead"]
    text = "\n".join(guarantees(groups, loaded.settings))
    assert (
        "Failed records of dead travel through retry topics: later ones of their key overtake them." in text
    )
    assert "(tombstones) of dead: an error that makes a dead letter;" in text
