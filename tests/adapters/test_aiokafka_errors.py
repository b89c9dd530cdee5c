"""Foreign errors and codes in asyncpar's words."""

from __future__ import annotations

import ssl

import pytest
from aiokafka import TopicPartition as ClientPartition
from aiokafka import errors as kafka

from asyncpar.adapters.aiokafka_errors import (
    answered_error,
    commit_answer,
    fetch_error,
    final_error,
    is_unreadable,
    one_line,
    refused_credentials,
    request_error,
)
from asyncpar.errors import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    FetchError,
    OffsetOutOfRangeError,
)
from asyncpar.records import CommitAnswer, TopicPartition

A = CommitAnswer


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (0, A.ACKNOWLEDGED),
        (3, A.UNKNOWN_TOPIC),
        (7, A.RETRY),
        (12, A.METADATA_TOO_LARGE),
        (14, A.RETRY),
        (15, A.RETRY),
        (16, A.RETRY),
        (22, A.STALE),
        (25, A.STALE),
        (27, A.RETRY),
        (28, A.METADATA_TOO_LARGE),
        (29, A.FORBIDDEN),
        (30, A.FORBIDDEN),
        (69, A.STALE),
        (82, A.STALE),
        (9999, A.RETRY),
    ],
)
def test_commit_codes(code: int, answer: CommitAnswer) -> None:
    """Each code that a broker answers to a commit has one meaning; unknown ones are tried again."""
    assert commit_answer(code) is answer


def test_out_of_range_keeps_partition_and_offset() -> None:
    """The runtime decides the reset, so it must learn which position did not exist."""
    error = fetch_error(kafka.OffsetOutOfRangeError({ClientPartition("t", 1): 7}), "g", None, None)
    assert isinstance(error, OffsetOutOfRangeError)
    assert error.offsets == {TopicPartition("t", 1): 7}


def test_corrupt_records_name_the_place() -> None:
    """A fetch that fails says topic, partition and offset."""
    tp = TopicPartition("t", 1)
    error = fetch_error(kafka.CorruptRecordException("Invalid CRC"), "g", tp, 7)
    assert isinstance(error, FetchError)
    assert "t[1] at offset 7" in str(error)
    assert (error.partition, error.offset, error.unreadable) == (tp, 7, True)


@pytest.mark.parametrize(
    ("raised", "is_about_bytes"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), True),
        (EOFError("Compressed file ended"), True),
        (kafka.UnsupportedCodecError("Unknown compression codec 0x05"), True),
        (kafka.UnsupportedCodecError("Libraries for zstd compression codec not found"), False),
        (kafka.KafkaStorageError(), False),
        (kafka.KafkaConnectionError("gone"), False),
    ],
)
def test_what_is_wrong_with_the_bytes_is_told_from_what_may_pass(
    raised: Exception, is_about_bytes: bool
) -> None:
    """Only the former may halt a partition: whatever a broker or a connection says is tried again."""
    assert is_unreadable(raised) is is_about_bytes
    error = fetch_error(raised, "g", TopicPartition("t", 1), 7)
    assert getattr(error, "unreadable", False) is is_about_bytes


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (kafka.TopicAuthorizationFailedError("orders"), AuthorizationError, "no right on topic 'orders'"),
        (
            kafka.TopicAuthorizationFailedError(ClientPartition("orders", 3)),
            AuthorizationError,
            "no right on topic orders[3]",
        ),
        (kafka.GroupAuthorizationFailedError("g"), AuthorizationError, "no right on group 'g'"),
        (kafka.InconsistentGroupProtocolError(), ConfigurationError, "partition_assignment_strategy"),
        (kafka.InvalidSessionTimeoutError(), ConfigurationError, "session_timeout_ms"),
        (
            kafka.UnsupportedCodecError("Libraries for zstd compression codec not found"),
            ConfigurationError,
            "cramjam",
        ),
    ],
)
def test_errors_that_no_retry_mends(raised: Exception, kind: type[Exception], text: str) -> None:
    """Rights and settings are final, and the message says what to do."""
    error = final_error(raised, "g")
    assert type(error) is kind
    assert text in str(error)
    assert type(fetch_error(raised, "g", None, None)) is kind
    assert type(request_error(raised, "reading", "g")) is kind


def test_other_request_errors_may_pass() -> None:
    """What is not final is a BrokerError, which the runtime retries."""
    error = request_error(kafka.KafkaConnectionError("gone"), "reading committed offsets", "g")
    assert type(error) is BrokerError
    assert "reading committed offsets of group 'g' failed" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"), [(30, AuthorizationError), (29, AuthorizationError), (14, BrokerError)]
)
def test_answered_codes(code: int, kind: type[Exception]) -> None:
    """Codes in an answer become errors of the same kinds."""
    assert type(answered_error(code, "reading", "g", "t[0]")) is kind


def _failed_verification() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (kafka.SaslAuthenticationFailed("Authentication failed"), "refused the credentials (SASL PLAIN)"),
        (
            kafka.UnsupportedSaslMechanismError("no PLAIN here"),
            "h:1 does not offer SASL PLAIN: check sasl_mechanism",
        ),
        (kafka.IllegalSaslStateError("<connection>"), "h:1 takes no SASL at this port: use the port of"),
        (ValueError("Server sent wrong signature!"), "wrong signature"),
        (_failed_verification(), "does not verify: self-signed certificate"),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "check that the port speaks TLS",
        ),
    ],
)
def test_refused_credentials_say_why(raised: Exception, text: str) -> None:
    """The reason that the client keeps to its log stands in the one line that the user reads."""
    error = refused_credentials(raised, "h:1", "PLAIN")
    assert isinstance(error, AuthenticationError)
    assert text in str(error)
    assert "h:1" in str(error)


def test_the_cause_of_a_lost_connection_counts() -> None:
    """A TLS alert that arrives after the handshake closes the connection and is its cause."""
    lost = kafka.KafkaConnectionError("Connection closed")
    lost.__cause__ = ssl.SSLError(1, "tlsv13 alert certificate required")
    assert isinstance(refused_credentials(lost, "h:1", None), AuthenticationError)


@pytest.mark.parametrize(
    "raised", [ConnectionRefusedError(111, "refused"), ssl.SSLEOFError(8, "EOF"), ValueError("x")]
)
def test_silence_is_no_refusal(raised: Exception) -> None:
    """A broker that is not there yet, or hangs up, refused nobody's credentials."""
    assert refused_credentials(raised, "h:1", None) is None


def test_messages_are_one_line() -> None:
    """Line breaks and empty messages do not reach the user."""
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(TimeoutError()) == "no answer in time"
