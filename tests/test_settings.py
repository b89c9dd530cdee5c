"""The settings model: defaults, limits of each knob, and what is shown of it."""

import pytest
from pydantic import SecretStr, ValidationError

from asyncpar.settings import (
    KNOBS,
    SECTIONS,
    Settings,
    default_concurrency,
    differences,
    secret_values,
    shown,
)


def test_defaults_are_the_documented_ones():
    """The defaults that the guarantees and the sizing rest on do not change unnoticed."""
    settings = Settings()
    assert (settings.max_in_flight, settings.max_in_flight_bytes) == (5_000, 64 * 1024 * 1024)
    assert (settings.commit_every, settings.commit_interval_ms) == (2_000, 1_000)
    assert (settings.session_timeout_ms, settings.heartbeat_interval_ms) == (10_000, 3_000)
    assert (settings.max_revoke_grace_ms, settings.shutdown_drain_timeout_ms) == (5_000, 30_000)
    assert (settings.offset_reset, settings.isolation_level) == ("earliest", "read_committed")
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 9464)


def test_every_knob_is_in_exactly_one_section():
    """The docs page, which walks the sections, has every field of the model once."""
    assert sorted(KNOBS) == sorted(Settings.model_fields)
    assert len(KNOBS) == sum(len(section.model_fields) for section in SECTIONS)


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_says_what_it_means(name: str):
    """Each knob has a description; numbers also have limits and say what happens when low or high."""
    info = Settings.model_fields[name]
    assert info.description
    if isinstance(info.default, int) and not isinstance(info.default, bool):
        assert isinstance(info.json_schema_extra, dict)
        assert info.json_schema_extra["low"] or info.json_schema_extra["high"]
        assert len(info.metadata) == 2, "a least and a greatest value"
    if info.default is None:
        assert isinstance(info.json_schema_extra, dict)
        assert info.json_schema_extra["unset"], "what None stands for"


def test_settings_are_frozen_and_closed():
    """A setting cannot change under the engine, and a misspelt one is not swallowed."""
    with pytest.raises(ValidationError):
        Settings().max_in_flight = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(max_in_fligth=1)  # type: ignore[call-arg]


def test_secrets_are_in_no_repr():
    """A settings object can be printed: passwords and client options stay out."""
    settings = Settings(
        sasl_password=SecretStr("hush-hush"), client_options={"sasl_kerberos_password": "hush-hush"}
    )
    assert "hush-hush" not in repr(settings)
    assert "hush-hush" not in str(settings)


def test_differences_name_what_was_changed_and_hide_secrets():
    """Only changed knobs are listed, secrets as stars, also inside of client options."""
    settings = Settings(
        group="billing",
        sasl_password=SecretStr("hush-hush"),
        client_options={"check_crcs": False, "ssl_password": "hush-hush"},
    )
    assert differences(settings) == {
        "group": "billing",
        "client_options": "{check_crcs=False, ssl_password=***}",
        "sasl_password": "***",
    }


def test_shown_values_are_written_as_they_are_typed():
    """Booleans and None look like they do in a settings file; objects show their type only."""
    assert shown("wait_for_topics", True) == "true"
    assert shown("group", None) == "none"
    assert shown("sasl_oauth_token_provider", object()) == "<object>"


def test_secret_values_are_known_to_the_logs():
    """Both passwords and secret-looking client options are handed out for redaction."""
    settings = Settings(sasl_password=SecretStr("one"), client_options={"x_token": "two", "check_crcs": True})
    assert set(secret_values(settings)) == {"one", "two"}


def test_servers_may_be_a_list():
    """A list of servers in code or TOML means the same as commas."""
    assert Settings.model_validate({"bootstrap_servers": ["a:1", "b:2"]}).bootstrap_servers == "a:1,b:2"
    with pytest.raises(ValidationError, match="address is empty"):
        Settings(bootstrap_servers="a:1,,b:2")


def test_threads_get_fewer_slots_than_coroutines():
    """The default concurrency depends on where a handler runs."""
    assert default_concurrency("async") == 100
    assert 1 <= default_concurrency("thread") <= 32
