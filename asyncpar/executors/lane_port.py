"""What the process bridge asks of a lane: one child process that runs batches of records of one handler.

The words of both sides, plain data. Never here: sockets, processes (`lane.py`), or what is sent when
(`process_bridge.py`). A simulation brings lanes of its own. Always: a lane runs one batch after the other, in
the order sent, and the records of a batch one after the other; what it says it has not run, it never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias


class Job(NamedTuple):
    """One attempt on one record: plain values only. Its place comes first: topic, partition, offset."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    timestamp_type: int
    attempt: int
    generation: int


Fields: TypeAlias = tuple[
    str, int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...], int, int, int, int
]
"""A `Job` as it crosses to a child: a plain tuple, made once. `Job._make` names its values."""


class Batch(NamedTuple):
    """Jobs that are sent together. `number` ascends by one from 1, per lane."""

    number: int
    jobs: Sequence[Fields]


FailureKind: TypeAlias = Literal["failed", "undecodable", "skipped", "retryable", "retry_after", "permanent"]


class JobFailure(NamedTuple):
    """How a handler ended that did not return. Never the exception itself: it may not unpickle, or do harm.

    `ancestors` are the module and qualified name of its class and of that one's bases, nearest first.
    `delay_ms` and `is_free` are a RetryAfter's.
    """

    kind: FailureKind
    ancestors: tuple[str, ...]
    message: str
    traceback: str
    delay_ms: int = 0
    is_free: bool = False


class Reply(NamedTuple):
    """A batch has ended in its lane.

    Its first `run` jobs were run: those in `failures`, by index, failed, the others succeeded. The rest were
    not, because the lane was told to stop or the lease was over. `seconds` is what the handler took for all.
    """

    number: int
    run: int
    failures: dict[int, JobFailure]
    seconds: float


class Progress(NamedTuple):
    """What a lane runs at this moment: the job at `index` of batch `number`, since `started_ns`.

    Monotonic nanoseconds. `extended_ns`: the handler asked for time until then; 0: it did not.
    """

    number: int
    index: int  # type: ignore[assignment] # in place of a tuple's own `index`, which nobody needs here
    started_ns: int
    extended_ns: int


class Death(NamedTuple):
    """A lane's process has ended, certainly: nothing of it runs any more.

    `how` in words, such as "killed by SIGSEGV" or "exited with code 3". `number` and `index`: the job that it
    ran then; number 0: none. `failures`: those of batch `number` that it had told before.
    """

    how: str
    number: int
    index: int  # type: ignore[assignment] # in place of a tuple's own `index`, which nobody needs here
    failures: dict[int, JobFailure]


class LaneStartError(Exception):
    """A child could not be started, or failed before it was ready. Says why."""


class Lane(Protocol):
    """One child process. Made not started; single-use. Called on the event loop."""

    pid: int | None
    """Of the child; None before it is ready."""

    async def start(self) -> None:
        """Until the child is ready: its module imported, its initialiser run. Raises LaneStartError."""

    def send(self, batch: Batch) -> None:
        """Hand a batch over; waits for nothing."""

    def stop_before(self, number: int) -> None:
        """Nothing more starts of batches below `number`; what runs, runs on."""

    def renew_lease(self, until_ns: int) -> None:
        """Nothing starts in the child after this moment, monotonic ns, until a later one is written.

        Before the first call nothing starts at all.
        """

    def progress(self) -> Progress | None:
        """What runs now; None while nothing does. Costs no message."""

    def told(self, number: int) -> Mapping[int, JobFailure]:
        """The failures of batch `number` that the child has told so far, by index, with all that it has sent.

        What its progress shows to lie before the job that runs, and is not among them, has succeeded. Replies
        that have come meanwhile are told first.
        """

    def kill(self) -> None:
        """SIGKILL. `on_death` follows once the process is certainly gone."""

    async def close(self, timeout_s: float) -> None:
        """Let the child end by itself, then by SIGKILL, within about `timeout_s`. No call comes any more."""


LaneFactory: TypeAlias = Callable[[Callable[[Reply], None], Callable[[Death], None]], Lane]
"""`(on_reply, on_death)` to a new lane. Replies that were sent whole before a death come before it."""
