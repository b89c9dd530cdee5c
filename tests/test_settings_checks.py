"""Names, values and combinations of settings that are refused, and the line that says so."""

import pytest

from asyncpar.errors import SettingError
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_checks import allowed, check_names, checked, contradictions, parsed, suggestion


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_in_fligth", "max_in_flight"),
        ("group_id", "group"),
        ("auto_offset_reset", "offset_reset"),
        ("session-timeout-ms", "session_timeout_ms"),
        ("SESSION_TIMEOUT", "session_timeout_ms"),
    ],
)
def test_unknown_name_is_refused_with_the_near_one(written: str, meant: str):
    """A misspelt setting, or another client's word for it, names the one that was meant."""
    with pytest.raises(SettingError, match=f"did you mean {meant}"):
        check_names({written: 1})


def test_unknown_name_without_a_near_one_has_no_suggestion():
    """A wild guess would mislead more than silence."""
    assert suggestion("qqqqqqqq") == ""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("session_timeout_ms", "10s", "a whole number of milliseconds from 1000 to 1800000, without a unit"),
        ("max_in_flight_bytes", "64MB", "a whole number of bytes from 1 to"),
        ("offset_reset", "newest", "earliest, latest or error"),
        ("wait_for_topics", "maybe", "true or false"),
        ("client_options", "check_crcs=no", "give a JSON object"),
        ("ssl_cafile", "/no/such/file.pem", "there is no such file"),
        ("http_port", "tcp://10.0.0.1:80", "enableServiceLinks"),
        ("max_in_flight", "0", "from 1 to 1000000"),
        ("retry_attempts", "always", "a whole number from 1 to 1000000, without a unit, or forever"),
        ("retry_attempts", "0", "a whole number from 1 to 1000000, without a unit, or forever"),
    ],
)
def test_malformed_text_says_what_is_allowed(name: str, text: str, says: str):
    """The error is one line with the source, the key and the allowed values."""
    with pytest.raises(SettingError) as caught:
        parsed(name, text, "variable X")
    message = str(caught.value)
    assert says in message
    assert message.startswith("variable X: ")
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["500", True, 500.0, None])
def test_values_of_the_wrong_type_are_refused_in_code_and_toml(value: object):
    """Text, booleans and fractions are no whole numbers outside of variables."""
    with pytest.raises(SettingError, match="a whole number of milliseconds"):
        checked("commit_interval_ms", value, "App(...)")


def test_a_malformed_secret_is_not_shown():
    """The message about a secret that does not fit has the key only."""
    with pytest.raises(SettingError) as caught:
        checked("sasl_password", 12345678, "App(...)")
    assert "12345678" not in str(caught.value)
    assert "sasl_password" in str(caught.value)


def test_a_malformed_client_options_text_is_not_shown():
    """Client options may hold credentials, so their text is not quoted."""
    with pytest.raises(SettingError) as caught:
        parsed("client_options", "{password: hush}", "variable X")
    assert "hush" not in str(caught.value)


def test_long_values_are_cut():
    """A whole file pasted into a variable does not fill the screen."""
    with pytest.raises(SettingError) as caught:
        parsed("offset_reset", "x" * 5_000, "variable X")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", KNOBS)
def test_allowed_is_known_for_every_knob(name: str):
    """Every knob can say what it takes."""
    assert allowed(name)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"heartbeat_interval_ms": 4_000}, "more than a third of session_timeout_ms"),
        ({"max_in_flight": 10, "max_in_flight_per_partition": 11}, "max_in_flight_per_partition 11 is more"),
        ({"retry_base_ms": 60_000}, "retry_base_ms 60000 is more than retry_max_ms"),
        ({"sasl_password": "x"}, "security_protocol is PLAINTEXT, which does not authenticate"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism is not given"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "PLAIN needs sasl_username"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "GSSAPI", "sasl_username": "me"},
            "GSSAPI does not use it",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
            "needs sasl_oauth_token_provider",
        ),
        ({"ssl_cafile": __file__}, "does not encrypt"),
        ({"security_protocol": "SSL", "ssl_keyfile": __file__}, "without ssl_certfile"),
    ],
)
def test_contradictions_are_found(values: dict[str, object], says: str):
    """Settings that cannot hold together, or would silently do nothing, are named."""
    found = [contradiction.message for contradiction in contradictions(Settings.model_validate(values))]
    assert any(says in message for message in found), found


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"session_timeout_ms": 1_500, "heartbeat_interval_ms": 500},
        {"max_in_flight": 10, "max_in_flight_per_partition": 10},
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "me",
            "sasl_password": "x",
        },
        {
            "security_protocol": "SSL",
            "ssl_cafile": __file__,
            "ssl_certfile": __file__,
            "ssl_key_password": "x",
        },
    ],
)
def test_good_combinations_pass(values: dict[str, object]):
    """What belongs together is not refused."""
    assert list(contradictions(Settings.model_validate(values))) == []
