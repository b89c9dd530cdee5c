"""The knobs that speak to Kafka: the cluster, the group, fetching, encryption and credentials.

Plain fields with their meaning and their extremes; part of `settings.Settings`, which is what the rest
of asyncpar imports. `knob` is how every section of settings declares a field.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

MIB = 1024 * 1024


def knob(
    default: object,
    what: str,
    *,
    low: str = "",
    high: str = "",
    unset: str = "",
    ge: int | None = None,
    le: int | None = None,
    in_repr: bool = True,
) -> Any:
    """A field whose meaning and extremes are data. `unset` says what the default None stands for."""
    extremes: dict[str, Any] = {"low": low, "high": high, "unset": unset}
    return Field(default=default, description=what, ge=ge, le=le, repr=in_repr, json_schema_extra=extremes)


def _joined(value: object) -> object:
    """Lists of servers are written with commas, as Kafka does."""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    if isinstance(value, str) and not all(part.strip() for part in value.split(",")):
        raise ValueError("an address is empty; give host:port, several separated by commas")
    return value


def _existing_file(value: object) -> object:
    """A file that is missing is said here, with the setting's name, not by the client later."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and not Path(value).is_file():
        raise ValueError("there is no such file; give the path of a readable file")
    return value


Servers: TypeAlias = Annotated[str, BeforeValidator(_joined)]
ExistingFile: TypeAlias = Annotated[str, BeforeValidator(_existing_file)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
SaslMechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"]


class Section(BaseModel):
    """A group of knobs; its docstring is the heading's text on the docs page."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class GroupSettings(Section):
    """The cluster, the consumer group, and where reading starts."""

    bootstrap_servers: Servers = knob(
        "localhost:9092", "Brokers to ask first: `host:port`, several separated by commas."
    )
    group: Name | None = knob(
        None,
        "The consumer group of every handler that does not name its own.",
        unset="each handler must name one; a handler without a group is a configuration error",
    )
    client_id: Name = knob("asyncpar", "What the brokers call this program in logs, metrics and quotas.")
    group_instance_id: Name | None = knob(
        None,
        "Static membership: a restart within the session timeout causes no rebalance. "
        "Must differ between the instances of a group: where a second one starts with the same id, the older "
        "one ends with exit code 2.",
        unset="a dynamic member, which leaves the group when it stops",
    )
    offset_reset: Literal["earliest", "latest", "error"] = knob(
        "earliest",
        "Where to start when the group has no commit, or its position does not exist any more. "
        "`earliest` reads what is there, `latest` skips it, `error` halts the partition instead of choosing.",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = knob(
        "read_committed",
        "`read_committed` delivers records of committed transactions only and waits for open ones; "
        "`read_uncommitted` also delivers what is aborted later.",
    )
    session_timeout_ms: int = knob(
        10_000,
        "How long the group waits for a heartbeat before it gives this member's partitions away.",
        low="a short pause (garbage collection, a blocked loop) costs a rebalance; "
        "brokers refuse less than their `group.min.session.timeout.ms`, 6000 unless changed",
        high="the partitions of a dead instance stand still for that long",
        ge=1_000,
        le=1_800_000,
    )
    heartbeat_interval_ms: int = knob(
        3_000,
        "Time between heartbeats. At most a third of `session_timeout_ms`.",
        low="more requests to the group coordinator",
        high="rebalances are noticed later, which leaves less of the grace for draining",
        ge=50,
        le=600_000,
    )
    metadata_max_age_ms: int = knob(
        30_000,
        "How often topics and partitions are looked up again.",
        low="more requests; new topics of a pattern and new partitions are seen sooner",
        high="new topics of a pattern and new partitions wait for that long",
        ge=100,
        le=3_600_000,
    )
    startup_timeout_ms: int = knob(
        20_000,
        "How long to try to reach the cluster at start before the run ends with exit code 4.",
        low="a broker that restarts at the same moment ends the run",
        high="a wrong address is reported late",
        ge=100,
        le=3_600_000,
    )
    wait_for_topics: bool = knob(
        False, "Wait for subscribed topics that do not exist, instead of ending with exit code 2."
    )


class FetchSettings(Section):
    """How records are asked for."""

    fetch_max_wait_ms: int = knob(
        500,
        "Longest time a broker holds a fetch that has nothing to deliver. An upper bound: "
        "the runtime asks for shorter waits when partitions are about to become free.",
        low="idle partitions are asked more often: more requests, less delay",
        high="a partition that becomes free waits longer for a fetch that is under way",
        ge=1,
        le=30_000,
    )
    fetch_min_bytes: int = knob(
        1,
        "A broker answers a fetch when it has this many bytes, or when `fetch_max_wait_ms` is over.",
        low="records are delivered as soon as they are there",
        high="fewer and larger answers; a slow topic waits `fetch_max_wait_ms` for each",
        ge=1,
        le=50 * MIB,
    )
    max_partition_fetch_bytes: int = knob(
        MIB,
        "Most bytes of one partition in one answer, compressed. A larger batch is still delivered whole. A "
        "partition that alone has records may take what the others leave, up to 8 times as much.",
        low="many small fetches",
        high="the client holds up to this much per assigned partition, and 7 times as much more of one, "
        "beside `max_in_flight_bytes`",
        ge=1_024,
        le=50 * MIB,
    )
    poll_batch_size: int = knob(
        500,
        "Most records taken from the client at once.",
        low="more of the time goes into asking",
        high="the loop is held while the batch is unpacked, about 2 us for each record",
        ge=1,
        le=5_000,
    )
    client_records: bool = knob(
        False,
        "Take records as the Kafka client makes them, which costs about 0.5 us more for each, instead of "
        "reading them from what was fetched. A version of the client that asyncpar does not know is used so "
        "in any case.",
    )
    client_options: dict[str, Any] = knob(
        {},
        "Further options of the Kafka client, by its own names. "
        "What would break a guarantee (auto commit, deserializers, reset, assignors) is refused.",
        in_repr=False,
    )


class SecuritySettings(Section):
    """Encryption and credentials. Secrets are shown as `***` everywhere."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = knob(
        "PLAINTEXT", "`SSL` encrypts, `SASL` authenticates; `SASL_PLAINTEXT` sends credentials in the clear."
    )
    sasl_mechanism: SaslMechanism | None = knob(
        None, "How to authenticate.", unset="no authentication; required with a SASL protocol"
    )
    sasl_username: Name | None = knob(None, "User name for PLAIN and SCRAM.", unset="none")
    sasl_password: SecretStr | None = knob(None, "Password for PLAIN and SCRAM.", unset="none")
    sasl_oauth_token_provider: Any = knob(
        None,
        "For OAUTHBEARER: an object with `async def token() -> str`, or `module:object` that names one "
        "(a class is called without arguments).",
        unset="none",
        in_repr=False,
    )
    ssl_cafile: ExistingFile | None = knob(
        None, "PEM file of the authorities to trust.", unset="those of the system"
    )
    ssl_certfile: ExistingFile | None = knob(
        None, "PEM file of this client's certificate (mTLS).", unset="no client certificate"
    )
    ssl_keyfile: ExistingFile | None = knob(
        None, "PEM file of the certificate's private key.", unset="the key is in `ssl_certfile`"
    )
    ssl_key_password: SecretStr | None = knob(None, "Passphrase of the private key.", unset="none")
    ssl_check_hostname: bool = knob(
        True, "Verify that the certificate is for the host asked. Off, anyone with a valid one may answer."
    )
