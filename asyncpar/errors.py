"""Every error that asyncpar raises, and the exit code of `asyncpar run` that each one means.

    AsyncparError
    ├── ConfigurationError          2   what the user wrote
    │   ├── TargetError                 the app to run cannot be found or imported
    │   ├── HandlerError                a handler's signature or declaration
    │   ├── SettingError                an unknown, malformed or contradictory setting
    │   ├── UnknownTopicError           a topic that the cluster does not have
    │   └── PortInUseError              the HTTP port asked for is taken
    ├── ConnectError                4   the cluster cannot be used
    │   ├── BrokerUnreachableError      nobody answered in time
    │   ├── AuthenticationError         credentials or certificates refused
    │   └── AuthorizationError          no right on a topic or on the group
    ├── EngineError                 1   asyncpar cannot go on
    │   ├── ConsumerFailedError         the client died more often than it may be replaced
    │   └── DrainIncompleteError        stopped with work unfinished
    ├── DecodeError                     a payload, key or header does not fit its annotation
    │   └── TombstoneError              a record without a value, for a payload that may not be None
    ├── HandlerFailedError              a plain handler raised what must not leave it (SystemExit)
    ├── RemoteHandlerError              a handler raised in a child process: what is known of its exception
    ├── WorkerDiedError                 the child process that ran a record crashed, or was killed
    ├── NotStartedError                 a child process did not run a record (never leaves run())
    ├── HandlerTimeoutError             a handler ran for longer than its `timeout_ms`
    │   └── RecordBlockedError              a record blocked the commit for too long
    ├── PoisonKeyError                  a record's key failed too often: it is not run
    ├── PublishError                    a record could not be written; asyncpar tries again
    └── BrokerError                     one request failed; asyncpar retries it (never leaves run())
        ├── OffsetOutOfRangeError       the position does not exist any more (or not yet)
        └── FetchError                  a fetch raised; positions must be restored

What a handler may raise to say what is to happen to its record (none of them is an AsyncparError):

    Retryable   again, after the usual delay, whatever `on=` and `not_on=` say
    RetryAfter  again, after a delay of its own
    Permanent   never again: to the dead letters, or halt
    Skip        done: passed over on purpose

Adapters translate foreign exceptions into these at the border. A message says what happened,
where, and what to do, on one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from asyncpar.records import TopicPartition

_LONGEST_DELAY_MS = 2**31 - 1
PublishReason: TypeAlias = Literal["unreachable", "unknown_topic", "too_large", "forbidden", "other"]


class AsyncparError(Exception):
    """Base of all errors of asyncpar. `exit_code` is what `asyncpar run` ends with."""

    exit_code = 1


class ConfigurationError(AsyncparError):
    """Something the user wrote is wrong; nothing was started."""

    exit_code = 2


class TargetError(ConfigurationError):
    """The target of `asyncpar run` cannot be found, imported or used."""


class HandlerError(ConfigurationError):
    """A handler's declaration or signature is wrong."""


class SettingError(ConfigurationError):
    """A setting is unknown, malformed or contradicts another one."""


class UnknownTopicError(ConfigurationError):
    """A subscribed topic does not exist on the cluster."""


class PortInUseError(ConfigurationError):
    """The HTTP port that was asked for is taken by another program."""


class ConnectError(AsyncparError):
    """The cluster cannot be used with what was given."""

    exit_code = 4


class BrokerUnreachableError(ConnectError):
    """No bootstrap server answered within `startup_timeout_ms`."""


class AuthenticationError(ConnectError):
    """Credentials were refused, or a certificate does not verify."""


class AuthorizationError(ConnectError):
    """The credentials have no right on a topic or on the group."""


class EngineError(AsyncparError):
    """The engine cannot go on; `run()` raises this instead of idling."""


class ConsumerFailedError(EngineError):
    """The Kafka client died and was replaced as often as it may be."""


class DrainIncompleteError(EngineError):
    """The engine stopped while work was unfinished; that work runs again after a restart."""


class DecodeError(AsyncparError):
    """Bytes do not fit the type that the handler asks for. The record is never retried."""


class TombstoneError(DecodeError):
    """A record has no value, and the payload's annotation does not allow None."""


class HandlerFailedError(AsyncparError):
    """A handler tried to end the process (SystemExit); it counts as an ordinary failure."""


class ChildTraceback(Exception):  # noqa: N818 - a cause that is shown, never raised
    """The traceback of a child process, as the cause of what is raised for it here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f"\n{self.text}"


class RemoteHandlerError(AsyncparError):
    """A handler raised in a child process. Its exception stayed there; this says what it was.

    `ancestors`: module and qualified name of its class and of that one's bases, nearest first, such as
    "builtins.KeyError"; `Retry(on=...)`, `not_on=` and `on_error=` match by them. `message` is its text,
    `traceback_text` the child's traceback.
    """

    def __init__(self, message: str, ancestors: tuple[str, ...], traceback_text: str = "") -> None:
        self.ancestors = ancestors
        self.message = message
        self.traceback_text = traceback_text
        kind = ancestors[0].removeprefix("builtins.") if ancestors else "an exception without a name"
        super().__init__(f"{kind}: {message}" if message else kind)


class WorkerDiedError(AsyncparError):
    """The child process that ran the record ended before the record did: a crash, a kill, no memory, exit.

    The first time it is an ordinary failure. `is_final`: the same record did it again and is run no more.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        self.is_final = is_final
        super().__init__(message)


class NotStartedError(AsyncparError):
    """A record was given to the process bridge and was not run to its end there, by no fault of its own.

    It is certain that it does not run any more. Its attempt counts for nothing: it may run again at once.
    """


class BrokerError(AsyncparError):
    """A request to the cluster failed in a way that may pass. The runtime tries again.

    `partitions` has the reason of each partition that it failed for; empty: it failed for all asked about.
    """

    def __init__(self, message: str, partitions: Mapping[TopicPartition, str] | None = None) -> None:
        self.partitions = dict(partitions or {})
        super().__init__(message)


class OffsetOutOfRangeError(BrokerError):
    """A position lies outside of the log: retention has passed it, or the log was truncated."""

    def __init__(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.offsets = dict(offsets)
        where = ", ".join(f"{tp} at offset {offset}" for tp, offset in self.offsets.items())
        super().__init__(f"offset out of range: {where}")


class FetchError(BrokerError):
    """A fetch raised; what it had already taken from the client's buffers may be lost.

    The poller seeks every partition it asked for back to its own next offset; only `partition` where that is
    set, because then the others are not concerned. `offset` is the one it could not go on from. `unreadable`:
    the bytes there make no sense, so that asking again is likely to bring them again.
    """

    def __init__(
        self,
        message: str,
        *,
        partition: TopicPartition | None = None,
        offset: int | None = None,
        unreadable: bool = False,
    ) -> None:
        self.partition = partition
        self.offset = offset
        self.unreadable = unreadable
        super().__init__(message)


class HandlerTimeoutError(AsyncparError):
    """A handler ran for longer than its `timeout_ms` and was cancelled: an ordinary failure."""


class PublishError(AsyncparError):
    """A record was not acknowledged by the topic that it was sent to. It may be there all the same.

    `reason` is one of: unreachable, unknown_topic, too_large, forbidden, other. Only `too_large` is about the
    record; asyncpar holds what depends on it, and tries again for as long as it lasts.
    """

    def __init__(self, message: str, reason: PublishReason) -> None:
        self.reason = reason
        super().__init__(message)


class RecordBlockedError(HandlerTimeoutError):
    """A record blocked the commit for longer than it may, and `on_blocked="dead_letter"`: it is given up."""


class PoisonKeyError(AsyncparError):
    """A record was not run, because its key failed too often in a row; see `PoisonKeys`."""


class Skip(Exception):  # noqa: N818 - not an error: a decision, passed as one
    """Raised by a handler: the record is passed over on purpose and counts as done."""


class Retryable(Exception):  # noqa: N818 - as above
    """Raised by a handler: this failure may pass. The record runs again, whatever `on=` and `not_on=` say."""


class RetryAfter(Retryable):
    """Raised by a handler: run the record again in `delay_ms` milliseconds.

    It counts as an attempt, unless `is_free` is set (in a subclass, say, for what is nobody's failure).
    Raises ValueError for a delay that is no number of milliseconds from 0 to 24 days.
    """

    is_free = False
    delay_ms: float | None = None
    """None, in a subclass that does not call this class's `__init__`: the usual delay."""

    def __init__(self, message: str = "", *, delay_ms: float) -> None:
        given: object = delay_ms
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if not is_number or not 0 <= delay_ms <= _LONGEST_DELAY_MS:
            raise ValueError(
                f"RetryAfter: delay_ms={delay_ms!r} must be a number of milliseconds from 0 to "
                f"{_LONGEST_DELAY_MS} (24 days)"
            )
        self.delay_ms = delay_ms
        super().__init__(message or f"again in {delay_ms:g} ms")


class Permanent(Exception):  # noqa: N818 - as above
    """Raised by a handler: this failure will not pass. The record goes to the dead letters, or halts."""
