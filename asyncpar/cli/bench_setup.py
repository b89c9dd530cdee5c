"""What a bench may touch: its groups, its settings, what is written for its handlers, and how that is said.

Lives here: decisions before a bench starts. Never here: running it (`bench_run.py`). Called by `bench.py`.
Always: without `--group` no offset of the app's own groups is read or changed, and without `--for-real`
nothing is written to dead-letter and retry topics.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from asyncpar.assembly import client_config, kafka_consumers, kafka_producers
from asyncpar.deduplication import Deduplicate
from asyncpar.errors import ConfigurationError
from asyncpar.groups import DeclaredGroup, DeclaredHandler
from asyncpar.middleware import Middleware
from asyncpar.ports import ConsumerFactory, Late, Producer, ProducerFactory
from asyncpar.records import OutgoingRecord, TopicPartition
from asyncpar.settings import Settings
from asyncpar.settings_sources import Loaded

if TYPE_CHECKING:
    from asyncpar.adapters.aiokafka_admin import AiokafkaAdmin

GROUP_PREFIX = "asyncpar-bench-"
NO_GROUP = "asyncpar-bench"
"""What the group of an app is called that names none."""
_CLOSE_SECONDS = 3.0
_NO_OFFSET = -1
Start = Literal["earliest", "latest"]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What the command line asked for, beside the app and its settings.

    `start` None: earliest, or where `group` has committed. `seconds` and `records` None: no such end.
    """

    target: str
    seconds: float | None = None
    records: int | None = None
    start: Start | None = None
    group: str | None = None
    for_real: bool = False
    as_json: bool = False

    def check(self) -> None:
        """Raises ConfigurationError for what contradicts itself."""
        if self.group is not None and self.start is not None:
            raise ConfigurationError(
                f"--start {self.start}: group {self.group} begins where it has committed; leave --start out, "
                "or --group, so that the bench has a group of its own"
            )
        if self.start == "latest" and self.seconds is None and self.records is None:
            raise ConfigurationError(
                "--start latest takes what is written from now on, which has no end: add --seconds or "
                "--records"
            )

    @property
    def ends_with_the_topics(self) -> bool:
        """Whether it is over when all is done that was there when it began."""
        return self.seconds is None and self.start != "latest"


class Place(NamedTuple):
    """Where a bench runs: clients, and what removes a group."""

    consumers: ConsumerFactory
    producers: ProducerFactory
    remove_group: Callable[[str], Awaitable[None]]


def kafka_place(settings: Settings) -> Place:
    """The cluster of `settings`."""

    async def remove_group(group: str) -> None:
        from asyncpar.adapters.aiokafka_admin import AiokafkaAdmin

        admin: AiokafkaAdmin = AiokafkaAdmin(client_config(settings))
        try:
            await admin.start()
            await admin.delete_group(group)
        finally:
            await admin.stop(_CLOSE_SECONDS)

    return Place(kafka_consumers(settings), kafka_producers(settings), remove_group)


def bench_settings(loaded: Loaded, request: BenchRequest) -> Loaded:
    """The app's settings with what a bench needs otherwise: where it starts, and that it is a stranger."""
    # Also in a group that is named: with its id it would put out the member that runs under it.
    changes: dict[str, str | None] = {"group_instance_id": None}
    if request.group is None:
        changes["offset_reset"] = request.start or "earliest"
    return replace(loaded, settings=loaded.settings.model_copy(update=changes))


def bench_groups(groups: Sequence[DeclaredGroup], wanted: str | None) -> dict[str, str]:
    """By the name of each of the app's groups the one that stands in for it: a new one, or `wanted`.

    Raises ConfigurationError where `wanted` would have to stand for several.
    """
    if wanted is None:
        fresh = GROUP_PREFIX + uuid.uuid4().hex[:8]
        return {group.name: fresh if at == 0 else f"{fresh}-{at + 1}" for at, group in enumerate(groups)}
    if len(groups) > 1:
        names = ", ".join(group.name for group in groups)
        raise ConfigurationError(
            f"--group {wanted}: the app has several groups ({names}), which cannot share one; leave --group "
            "out"
        )
    return {group.name: wanted for group in groups}


# -- what is written -----------------------------------------------------------------------------


def check_writes(
    groups: Sequence[DeclaredGroup], middlewares: Sequence[Middleware], request: BenchRequest
) -> None:
    """Raises ConfigurationError where a bench could lose records of the app itself, unless that is meant."""
    if request.for_real:
        return
    if any(isinstance(one, Deduplicate) for one in middlewares):
        raise ConfigurationError(
            "the app de-duplicates: what a bench handles would be noted as done, and the app itself would "
            "pass it over; bench it without Deduplicate, or add --for-real where its store is another one"
        )
    if request.group is not None and (departing := _departing(groups)):
        raise ConfigurationError(
            f"--group {request.group}: records given up by {departing[0].spec.name} would be lost to it, "
            "because a bench writes no dead letters and no records for retry topics; add --for-real to write "
            "them"
        )


def _departing(groups: Sequence[DeclaredGroup]) -> list[DeclaredHandler]:
    """The handlers whose failed records go to another topic."""
    return [
        handler
        for group in groups
        for handler in group.handlers
        if handler.dead_letter is not None or handler.spec.retry_topics
    ]


class WithheldProducer:
    """A producer that writes nothing and says that it did: what is sent is counted by who sends it."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def send(
        self,
        record: OutgoingRecord,
        timeout_s: float,  # noqa: ARG002 - the port's
        late: Late | None = None,  # noqa: ARG002 - the port's
    ) -> tuple[TopicPartition, int]:
        """As if it was there, and the broker forgot where."""
        return TopicPartition(record.topic, record.partition or 0), _NO_OFFSET

    async def partition_count(self, topic: str, timeout_s: float) -> int | None:  # noqa: ARG002 - the port's
        """Every topic is there."""
        return 1

    async def stop(self, timeout_s: float) -> None:
        """Nothing to close."""


def producers(place: Place, request: BenchRequest) -> ProducerFactory:
    """What makes the producers of a bench."""
    if request.for_real:
        return place.producers

    def withheld() -> Producer:
        return WithheldProducer()

    return withheld


# -- what is said at the start -------------------------------------------------------------------


def announcement(
    groups: Sequence[DeclaredGroup], names: Mapping[str, str], settings: Settings, request: BenchRequest
) -> list[str]:
    """What will be read, run, written and left alone, a sentence each."""
    lines = [f"bench of {request.target} on {settings.bootstrap_servers}, {_end(request)}"]
    for group in groups:
        sources = sorted(group.subscription.topics)
        sources += [f"pattern {one.pattern}" for one in group.handlers if one.pattern is not None]
        reading = f"reading {', '.join(sources)}"
        if request.group is not None:
            lines.append(
                f"{reading} as group {request.group}, from where it has committed; it commits what is done"
            )
        else:
            where = "from now on" if request.start == "latest" else "from the earliest record"
            line = f"{reading} {where}, as group {names[group.name]}, which is deleted afterwards"
            lines.append(line)
            if group.name != NO_GROUP:
                lines.append(
                    f"group {group.name} itself is not joined and its offsets are not touched: where the log "
                    f"names it below, it means {names[group.name]}"
                )
    lines.append("the handlers run for real: what they write or call is written and called once more")
    for handler in _departing(groups):
        what = "dead letters" if handler.dead_letter is not None else "records for retry topics"
        if handler.dead_letter is not None and handler.spec.retry_topics:
            what = "dead letters and records for retry topics"
        how = "are counted and not written, whatever the log says below (--for-real writes them)"
        if request.for_real:
            how = "are written"
        lines.append(f"{what} of {handler.spec.name} {how}")
    return lines


def _end(request: BenchRequest) -> str:
    ends = [f"for {request.seconds:g} s"] if request.seconds is not None else []
    ends += [f"until {request.records} records are done"] if request.records is not None else []
    ends += ["to the present end of its topics"] if request.ends_with_the_topics else []
    return " or ".join(ends) + ", whichever is first" if len(ends) > 1 else ends[0]
