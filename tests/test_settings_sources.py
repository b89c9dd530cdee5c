"""Which source of settings wins, and what is refused or warned about in each."""

from pathlib import Path

import pytest

from asyncpar import topic
from asyncpar.errors import HandlerError, SettingError
from asyncpar.groups import declare_groups
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_checks import checked, contradictions
from asyncpar.settings_sources import PROFILES, load, read_env_file
from asyncpar.topics import specs_of


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a folder without an asyncpar.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: str, text: str) -> Path:
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def test_nothing_given_means_the_defaults():
    """Without any source every knob has its default and says so."""
    loaded = load()
    assert loaded.settings == Settings()
    assert dict(loaded.origins) == dict.fromkeys(KNOBS, "default")
    assert loaded.warnings == ()
    assert loaded.toml is None


_ORDER = ("cli", "env", "env_file", "toml_env", "toml_base", "app", "profile", "default")
_EXPECTED = {
    "cli": (1, "command line"),
    "env": (2, "variable ASYNCPAR_COMMIT_EVERY"),
    "env_file": (3, "prod.env: ASYNCPAR_COMMIT_EVERY"),
    "toml_env": (4, "settings.toml [env.prod]"),
    "toml_base": (5, "settings.toml"),
    "app": (6, "App(...)"),
    "profile": (PROFILES["test"]["commit_every"], "profile test"),
    "default": (2_000, "default"),
}


@pytest.mark.parametrize("strongest", _ORDER)
def test_the_strongest_source_wins(strongest: str):
    """With all weaker sources present too, each source in turn decides, and is named as the origin."""
    present = _ORDER[_ORDER.index(strongest) :]
    base = "commit_every = 5\n" if "toml_base" in present else ""
    table = "[env.prod]\ncommit_every = 4\n" if "toml_env" in present else "[env.prod]\n"
    env = {"ASYNCPAR_ENV": "prod"}
    if "env" in present:
        env["ASYNCPAR_COMMIT_EVERY"] = "2"
    loaded = load(
        cli={"commit_every": "1"} if "cli" in present else {},
        env=env,
        env_file=_write("prod.env", "ASYNCPAR_COMMIT_EVERY=3\n" if "env_file" in present else ""),
        toml=_write("settings.toml", base + table),
        app_values={
            **({"commit_every": 6} if "app" in present else {}),
            **({"profile": "test"} if "profile" in present else {}),
        },
    )
    value, origin = _EXPECTED[strongest]
    assert (loaded.settings.commit_every, loaded.origins["commit_every"]) == (value, origin)
    assert loaded.is_explicit("commit_every") == (strongest not in ("profile", "default"))


def test_the_default_toml_file_is_read_when_it_exists():
    """`./asyncpar.toml` needs no option."""
    _write("asyncpar.toml", 'group = "billing"\n')
    loaded = load()
    assert loaded.settings.group == "billing"
    assert loaded.origins["group"] == "asyncpar.toml"
    assert loaded.toml == Path("asyncpar.toml")


def test_unprefixed_variables_are_never_read():
    """A variable of another program with a knob's name changes nothing and is no reason to warn."""
    loaded = load(env={"GROUP": "x", "COMMIT_EVERY": "1", "PROFILE": "test", "ENABLED": "true"})
    assert loaded.settings == Settings()
    assert loaded.warnings == ()


def test_the_prefix_alone_makes_no_variable_similar_to_another():
    """Only what stands behind ASYNCPAR_ is compared: nobody meant GROUP by XX."""
    assert load(env={"ASYNCPAR_XX": "1"}).warnings == ("ignored, no such setting: ASYNCPAR_XX",)


def test_unknown_variables_give_one_warning_with_suggestions():
    """What an orchestrator injects does not end the run, and a typo is seen."""
    loaded = load(env={"ASYNCPAR_SERVICE_HOST": "10.0.0.1", "ASYNCPAR_GRUOP": "x"})
    assert len(loaded.warnings) == 1
    assert "ASYNCPAR_SERVICE_HOST" in loaded.warnings[0]
    assert "ASYNCPAR_GRUOP; did you mean ASYNCPAR_GROUP?" in loaded.warnings[0]


def test_reserved_variables_do_not_warn():
    """The environment's name and the test suite's own variables are no settings."""
    names = ("ASYNCPAR_ENV", "ASYNCPAR_TEST_BROKER", "ASYNCPAR_REQUIRE_BROKER")
    assert load(env=dict.fromkeys(names, "1")).warnings == ()


def test_an_empty_variable_counts_as_not_set():
    """`ASYNCPAR_GROUP=` of a compose file leaves the weaker source in force."""
    assert load(env={"ASYNCPAR_GROUP": ""}, app_values={"group": "billing"}).settings.group == "billing"


def test_a_value_none_in_code_counts_as_not_given():
    """`App(group=None)` does not hide a profile or a default."""
    loaded = load(app_values={"commit_every": None})
    assert loaded.origins["commit_every"] == "default"


@pytest.mark.parametrize(
    ("sources", "where"),
    [
        ({"cli": {"max_in_fligth": "1"}}, "command line"),
        ({"app_values": {"max_in_fligth": 1}}, "App(...)"),
    ],
)
def test_unknown_names_are_refused(sources: dict[str, dict[str, object]], where: str):
    """The command line and code must name settings that exist."""
    with pytest.raises(SettingError) as caught:
        load(**sources)  # type: ignore[arg-type]
    assert str(caught.value) == f"{where}: unknown setting 'max_in_fligth'; did you mean max_in_flight?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_in_fligth = 1", "settings.toml: unknown setting 'max_in_fligth'; did you mean max_in_flight?"),
        ("[env.dev]\ngruop = 'x'", "settings.toml [env.dev]: unknown setting 'gruop'; did you mean group?"),
        ("commit_every = '5'", "settings.toml: commit_every = '5' is not allowed; give a whole number"),
        ("commit_every = ", "settings.toml is not TOML"),
        ("env = 5", "settings.toml: env is not a table"),
        ("[env]\ndev = 5", "settings.toml: env.dev is not a table"),
        ("[handlers]\nbill = 5", 'settings.toml: handlers.bill is not a table; write [handlers."bill"]'),
    ],
)
def test_a_wrong_toml_file_is_named_with_its_key(text: str, says: str):
    """Mistakes in a settings file name the file and the key, also in tables of other environments."""
    with pytest.raises(SettingError) as caught:
        load(toml=_write("settings.toml", text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_toml_file_is_an_error_when_it_was_asked_for():
    """A settings file that was named must be there."""
    with pytest.raises(SettingError, match=r"nowhere\.toml cannot be read: No such file"):
        load(toml=Path("nowhere.toml"))


def test_an_environment_without_its_table_is_refused():
    """A misspelt ASYNCPAR_ENV does not run production with the base settings."""
    path = _write("settings.toml", "[env.production]\ncommit_every = 4\n")
    with pytest.raises(SettingError, match=r"ASYNCPAR_ENV=prodction: .*did you mean production"):
        load(env={"ASYNCPAR_ENV": "prodction"}, toml=path)


def test_an_environment_is_fine_where_no_table_exists_at_all():
    """ASYNCPAR_ENV may be set where the settings do not differ by environment."""
    path = _write("settings.toml", "commit_every = 4\n")
    assert load(env={"ASYNCPAR_ENV": "prod"}, toml=path).settings.commit_every == 4


def test_the_env_file_may_name_the_environment():
    """ASYNCPAR_ENV is read from the env file when the environment has none."""
    toml = _write("settings.toml", "[env.prod]\ncommit_every = 4\n")
    env_file = _write("x.env", "ASYNCPAR_ENV=prod\n")
    assert load(env_file=env_file, toml=toml).settings.commit_every == 4


def test_handlers_tables_are_passed_on_with_those_of_the_environment_over_them():
    """Handlers' own values come out by handler name, the environment's key by key over the base's."""
    path = _write(
        "settings.toml",
        '[handlers."bill"]\nconcurrency = 5\nattempts = 2\n[env.prod.handlers."bill"]\nconcurrency = 50\n',
    )
    assert load(toml=path).handlers == {"bill": {"concurrency": 5, "attempts": 2}}
    prod = load(toml=path, env={"ASYNCPAR_ENV": "prod"})
    assert prod.handlers == {"bill": {"concurrency": 50, "attempts": 2}}


def test_where_a_handlers_value_stands_is_known():
    """By file and line: its key's, else its table's; an environment's over the base's, but not another's."""
    lines = (
        "commit_every = 5",
        "",
        '[handlers."shop.bill"]  # the base',
        "concurrency = 5",
        "attempts = 2",
        "[ env . 'prod' . handlers . 'shop.bill' ]",
        "# more there",
        "concurrency = 50",
        "[env.dev.handlers.'shop.bill']",
        "attempts = 1",
        "[env.dev]",
        "commit_every = 1",
        "[handlers.mail]",
        "on = []",
    )
    path = _write("settings.toml", "\n".join(lines))
    loaded = load(toml=path, env={"ASYNCPAR_ENV": "prod"})
    where = {key: loaded.handler_origin("shop.bill", key) for key in ("attempts", "concurrency", "on", "")}
    of_bill = ', [handlers."shop.bill"]'
    assert where == {
        "attempts": f"settings.toml line 5{of_bill}",
        "concurrency": f"settings.toml line 8{of_bill}",
        "on": f"settings.toml line 6{of_bill}",
        "": f"settings.toml line 6{of_bill}",
    }
    assert load(toml=path).handler_origin("shop.bill", "concurrency") == f"settings.toml line 4{of_bill}"
    assert load(toml=path).handler_origin("mail") == 'settings.toml line 13, [handlers."mail"]'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("attempts = 0", 'line 2, [handlers."bill"]: handler bill: Retry: attempts=0 must be'),
        ("\ntimeout_ms = '5s'", 'line 3, [handlers."bill"]: handler bill: timeout_ms='),
        (
            "atempts = 1",
            "line 2, [handlers.\"bill\"]: handler bill: unknown setting 'atempts'; did you mean 'attempts'?",
        ),
        (
            "base_ms = 9\nmax_ms = 3",
            'line 2, [handlers."bill"]: handler bill: Retry: max_ms=3 is below base_ms=9',
        ),
    ],
)
def test_a_bad_handler_table_is_refused_with_its_line(table: str, message: str):
    """The file, the line of the key that is meant, the handler, and what is wrong with it."""

    @topic("orders", name="bill")
    async def bill(body: bytes) -> None: ...

    loaded = load(toml=_write("settings.toml", f'[handlers."bill"]\n{table}\n'), app_values={"group": "g"})
    with pytest.raises(HandlerError) as caught:
        declare_groups(specs_of(bill), loaded)
    assert str(caught.value).startswith(f"settings.toml {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[handlers.shop.bill]\nattempts = 1",
            'settings.toml, [handlers."shop"]: no handler has this name; write [handlers."shop.bill"], in ',
        ),
        (
            '[handler."shop.bill"]\nattempts = 1',
            "settings.toml: there is no table [handler]; there is [env.name] and",
        ),
        (
            "[env.x.retry]\nattempts = 1",
            "settings.toml [env.x]: there is no table [retry]; there is only [env.name.",
        ),
    ],
)
def test_a_table_that_is_meant_for_a_handler_is_put_right(text: str, message: str):
    """A name with a dot and no quotes, a table of another name."""

    @topic("orders", name="shop.bill")
    async def bill(body: bytes) -> None: ...

    with pytest.raises(SettingError) as caught:
        declare_groups(specs_of(bill), load(toml=_write("settings.toml", text), app_values={"group": "g"}))
    assert str(caught.value).startswith(message)


def test_contradictions_name_where_each_value_came_from():
    """When two sources contradict each other the message says which ones."""
    with pytest.raises(SettingError) as caught:
        load(cli={"session_timeout_ms": "6000"}, app_values={"heartbeat_interval_ms": 5_000})
    message = str(caught.value)
    assert "heartbeat_interval_ms from App(...)" in message
    assert "session_timeout_ms from command line" in message


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_are_valid_settings(profile: str):
    """Each profile's values are allowed and do not contradict each other."""
    for name, value in PROFILES[profile].items():
        assert checked(name, value, "profile") == value
    settings = load(cli={"profile": profile}).settings
    assert list(contradictions(settings)) == []


def test_an_unknown_profile_is_refused():
    """A misspelt profile lists the profiles there are."""
    with pytest.raises(SettingError, match="low_latency, high_throughput, resource_constrained or test"):
        load(cli={"profile": "fast"})


def test_env_files_are_read_as_written():
    """Quotes, comments, `export` and a byte order mark are understood; nothing is expanded."""
    path = _write("x.env", "\ufeffexport A=1\n# comment\nB='two words'\nC=$A-${A}\n\nD=\n")
    assert read_env_file(path) == {"A": "1", "B": "two words", "C": "$A-${A}", "D": ""}


def test_a_broken_line_of_an_env_file_is_named():
    """A line without a value names the file and the line, not its content."""
    with pytest.raises(SettingError, match=r"x\.env, line 2: write NAME=value"):
        read_env_file(_write("x.env", "A=1\nhush hush\n"))


def test_a_missing_env_file_is_an_error():
    """An env file that was named must be there."""
    with pytest.raises(SettingError, match=r"nowhere\.env cannot be read"):
        load(env_file=Path("nowhere.env"))


def test_a_malformed_value_in_an_env_file_names_the_file():
    """The source of a malformed value is the file, with the variable's name."""
    with pytest.raises(SettingError, match=r"x\.env: ASYNCPAR_COMMIT_EVERY: commit_every = 'many'"):
        load(env_file=_write("x.env", "ASYNCPAR_COMMIT_EVERY=many\n"))


def test_values_that_lost_are_not_judged():
    """A malformed value that a stronger source overrides does not stop the run."""
    loaded = load(cli={"commit_every": "7"}, env={"ASYNCPAR_COMMIT_EVERY": "many"})
    assert loaded.settings.commit_every == 7


def test_client_options_come_as_json_in_variables_and_as_a_table_in_toml():
    """The one structured knob has a form in each source."""
    assert load(env={"ASYNCPAR_CLIENT_OPTIONS": '{"check_crcs": false}'}).settings.client_options == {
        "check_crcs": False
    }
    path = _write("settings.toml", "[client_options]\ncheck_crcs = false\n")
    assert load(toml=path).settings.client_options == {"check_crcs": False}


class TokenSource:
    """A token provider as a user writes it."""

    async def token(self) -> str:
        """A bearer token."""
        return "t"


_OAUTH = {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}


def test_a_token_provider_may_be_named():
    """`module:object` is imported, and a class is called."""
    loaded = load(cli={**_OAUTH, "sasl_oauth_token_provider": f"{__name__}:TokenSource"})
    assert isinstance(loaded.settings.sasl_oauth_token_provider, TokenSource)


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ("tokens", "give module:object"),
        ("no_such_module:x", "no_such_module:x cannot be used: ModuleNotFoundError"),
        (f"{__name__}:Nothing", "AttributeError"),
        (42, "int has no token"),
    ],
)
def test_an_unusable_token_provider_is_refused(provider: object, says: str):
    """A provider that is not there, or has no token(), is named with the reason."""
    with pytest.raises(SettingError, match=says):
        load(cli={**_OAUTH, "sasl_oauth_token_provider": provider})
