"""The border for errors: what aiokafka raises or the broker answers, in asyncpar's words.

Pure functions; nothing here connects or waits. Called by the other aiokafka files. Always: the message is
one line that says what, where and what to do, and the original exception is left to the caller as cause.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from aiokafka import errors as kafka

from asyncpar.errors import (
    AsyncparError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    FetchError,
    OffsetOutOfRangeError,
)
from asyncpar.records import CommitAnswer, TopicPartition

_ANSWERS = {
    0: CommitAnswer.ACKNOWLEDGED,
    3: CommitAnswer.UNKNOWN_TOPIC,
    12: CommitAnswer.METADATA_TOO_LARGE,
    # The request as a whole is too large for the offsets topic: without the metadata it fits.
    28: CommitAnswer.METADATA_TOO_LARGE,
    22: CommitAnswer.STALE,
    25: CommitAnswer.STALE,
    69: CommitAnswer.STALE,  # the group is gone, and every token of it with it
    82: CommitAnswer.STALE,
    29: CommitAnswer.FORBIDDEN,
    30: CommitAnswer.FORBIDDEN,
}
COORDINATOR_MOVED = frozenset({15, 16})


class FencedInstanceIdError(kafka.KafkaError):  # type: ignore[misc]
    """Another member holds our group_instance_id. The client knows neither the code nor a name for it."""


class TokenError(kafka.KafkaError):  # type: ignore[misc]
    """The user's token provider failed: no credentials were refused, and it may work the next time."""


_CREDENTIALS = (
    kafka.SaslAuthenticationFailed,
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
)
_GROUP_SETTINGS = {
    kafka.InconsistentGroupProtocolError: (
        "its other members use another assignor or protocol: give all of them the same "
        "partition_assignment_strategy ('range' or 'roundrobin')"
    ),
    kafka.InvalidSessionTimeoutError: (
        "the broker does not allow this session_timeout_ms: keep it between group.min.session.timeout.ms "
        "and group.max.session.timeout.ms"
    ),
    FencedInstanceIdError: (
        "another member has its group_instance_id: give each instance an id of its own, and start a "
        "replacement only when its predecessor has ended"
    ),
    kafka.InvalidGroupIdError: "the broker does not accept this group name: choose another one",
}


def commit_answer(code: int) -> CommitAnswer:
    """What an error code of OffsetCommit means.

    27 (rebalance in progress) is RETRY: while the group prepares, a real broker still takes commits of the
    running generation, and afterwards it says 22; nothing was stored and nobody else owns the partition yet.
    A code that nobody knows is RETRY as well.
    """
    return _ANSWERS.get(code, CommitAnswer.RETRY)


def code_name(code: int) -> str:
    """`16 (NotCoordinatorForGroupError)`: a code of the protocol for a message."""
    return f"{code} ({kafka.for_code(code).__name__})"


def one_line(error: BaseException) -> str:
    """The text of `error` on one line; its class name where it has no text of its own."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if isinstance(error, TimeoutError):
        return text or "no answer in time"
    return text or type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what caused it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def refused_credentials(
    error: BaseException, server: str, mechanism: str | None
) -> AuthenticationError | None:
    """The error that a user should read when `server` refused us or we refused it; None for any other."""
    for cause in causes(error):
        if isinstance(cause, TokenError):
            return None
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message or one_line(cause)
            return AuthenticationError(
                f"the certificate of {server} does not verify: {why}; check ssl_cafile and the host name"
            )
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            continue  # hung up on us: a load balancer does that while its broker starts
        if isinstance(cause, ssl.SSLError):
            return AuthenticationError(
                f"TLS with {server} failed: {one_line(cause)}; check that the port speaks "
                "TLS and, where the broker asks for a certificate, ssl_certfile"
            )
        if isinstance(cause, kafka.IllegalSaslStateError):
            return AuthenticationError(
                f"{server} takes no SASL at this port: use the port of its SASL listener, or a "
                "security_protocol without SASL (PLAINTEXT or SSL)"
            )
        if isinstance(cause, kafka.UnsupportedSaslMechanismError):
            return AuthenticationError(f"{server} does not offer SASL {mechanism}: check sasl_mechanism")
        # SCRAM and OAUTHBEARER raise plain ValueErrors when an answer does not fit.
        if isinstance(cause, _CREDENTIALS) or (mechanism is not None and isinstance(cause, ValueError)):
            return AuthenticationError(
                f"{server} refused the credentials (SASL {mechanism}): {one_line(cause)}; "
                "check sasl_mechanism, sasl_username and sasl_password"
            )
    return None


def no_right_on_group(group: str) -> AuthorizationError:
    """The broker lets us not be a member of `group`."""
    return AuthorizationError(f"no right on group {group!r}: grant READ on it to this user")


def no_right_on_topic(topics: str) -> AuthorizationError:
    """The broker lets us not read `topics`."""
    return AuthorizationError(f"no right on topic {topics}: grant READ and DESCRIBE on it to this user")


def is_unreadable(error: BaseException) -> bool:
    """Whether `error`, out of taking records, is about their bytes: parsers raise whatever they run into."""
    if isinstance(error, kafka.UnsupportedCodecError):
        return "Unknown" in str(error)  # else only the library for a known one is missing
    return isinstance(error, kafka.CorruptRecordException) or not isinstance(error, kafka.KafkaError)


def final_error(error: BaseException, group: str) -> AsyncparError | None:
    """What `error` means when trying again is no use: rights and group settings; None otherwise."""
    if isinstance(error, kafka.GroupAuthorizationFailedError):
        return no_right_on_group(group)
    if isinstance(error, kafka.TopicAuthorizationFailedError):
        # A fetch names the topic, ListOffsets a partition of it.
        names = (str(TopicPartition(*one)) if isinstance(one, tuple) else repr(one) for one in error.args)
        return no_right_on_topic(", ".join(names))
    for kind, advice in _GROUP_SETTINGS.items():
        if isinstance(error, kind):
            return ConfigurationError(f"cannot join group {group!r}: {advice}")
    if isinstance(error, kafka.UnsupportedCodecError) and not is_unreadable(error):
        return ConfigurationError(f"records cannot be decompressed: {one_line(error)}; pip install cramjam")
    return None


def fetch_error(
    error: BaseException, group: str, where: TopicPartition | None, offset: int | None
) -> AsyncparError:
    """What a failed fetch means; `where` and `offset` when one partition was asked for."""
    if isinstance(error, kafka.OffsetOutOfRangeError) and error.args and isinstance(error.args[0], dict):
        return OffsetOutOfRangeError({TopicPartition(*tp): at for tp, at in error.args[0].items()})
    final = final_error(error, group)
    if final is not None:
        return final
    what = f"failed: {type(error).__name__}: {one_line(error)}"
    if where is None:
        return FetchError(f"fetch {what}")
    text = f"fetch {where} at offset {offset} {what}"
    if not is_unreadable(error):
        return FetchError(text)  # what the group has to say also comes out of taking one partition's records
    return FetchError(text, partition=where, offset=offset, unreadable=True)


def request_error(error: BaseException, what: str, group: str) -> AsyncparError:
    """What a failed request means: `what` names it ("reading committed offsets")."""
    return final_error(error, group) or BrokerError(f"{what} of group {group!r} failed: {one_line(error)}")


def answered_error(code: int, what: str, group: str, where: str) -> AsyncparError:
    """What error `code` in an answer means; `where` is the topic or partition it stands beside."""
    if code == 30:
        return no_right_on_group(group)
    if code == 29:
        return no_right_on_topic(where)
    return BrokerError(f"{what} of group {group!r} failed for {where}: the broker answered {code_name(code)}")
