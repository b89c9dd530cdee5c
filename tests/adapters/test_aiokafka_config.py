"""`ClientConfig`: what is derived, what is refused, what is hidden."""

from __future__ import annotations

import pytest
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from asyncpar.adapters.aiokafka_config import ClientConfig, consumer_options
from asyncpar.errors import ConfigurationError


def test_timeouts_follow_from_the_grace() -> None:
    """A rebalance lasts grace + heartbeat + 2 s, and a request outlives it by 5 s."""
    config = ClientConfig(max_revoke_grace_ms=7_000, heartbeat_interval_ms=1_000)
    assert (config.rebalance_timeout_ms, config.request_timeout_ms) == (10_000, 15_000)
    options = consumer_options(config, "g")
    assert (options["rebalance_timeout_ms"], options["request_timeout_ms"]) == (10_000, 15_000)


def test_laws_are_built_in() -> None:
    """Neither auto-commit, nor a reset policy, nor a deserializer, nor a second assignor is passed on."""
    options = consumer_options(ClientConfig(), "g")
    assert options["enable_auto_commit"] is False
    assert options["auto_offset_reset"] == "none"
    assert options["partition_assignment_strategy"] == (RoundRobinPartitionAssignor,)
    assert not {"key_deserializer", "value_deserializer"} & set(options)


@pytest.mark.parametrize(
    "name",
    [
        "enable_auto_commit",
        "value_deserializer",
        "auto_offset_reset",
        "group_id",
        "bootstrap_servers",
        "max_poll_records",
    ],
)
def test_an_option_that_breaks_a_law_is_refused(name: str) -> None:
    """An option of the client that asyncpar owns is refused by name, whatever its value."""
    with pytest.raises(ConfigurationError, match=rf"client_options\['{name}'\] is not allowed"):
        ClientConfig(client_options={name: None})


def test_an_unknown_option_is_refused_with_a_near_name() -> None:
    """A misspelt option names what was probably meant."""
    with pytest.raises(ConfigurationError, match="did you mean 'check_crcs'"):
        ClientConfig(client_options={"check_crc": False})


def test_other_options_reach_the_client() -> None:
    """What breaks nothing is passed on as it is."""
    options = consumer_options(ClientConfig(client_options={"check_crcs": False, "client_rack": "a"}), "g")
    assert (options["check_crcs"], options["client_rack"]) == (False, "a")


@pytest.mark.parametrize("wish", ["range", ["Range"], RangePartitionAssignor, (RangePartitionAssignor,)])
def test_range_can_be_asked_for(wish: object) -> None:
    """An assignor is given by name or class, alone or in a sequence of one."""
    config = ClientConfig(client_options={"partition_assignment_strategy": wish})
    assert consumer_options(config, "g")["partition_assignment_strategy"] == (RangePartitionAssignor,)


@pytest.mark.parametrize(
    "wish",
    ["sticky", [], StickyPartitionAssignor, [RangePartitionAssignor, RoundRobinPartitionAssignor], None],
)
def test_other_assignors_are_refused(wish: object) -> None:
    """Sticky is broken in the client and two assignors double the joins: neither is taken."""
    with pytest.raises(ConfigurationError, match="exactly one of 'range' and 'roundrobin'"):
        ClientConfig(client_options={"partition_assignment_strategy": wish})


def test_secrets_are_in_no_repr() -> None:
    """Passwords and options, which may hold some, do not appear in the repr."""
    config = ClientConfig(
        sasl_password="hush-1", ssl_key_password="hush-2", client_options={"client_rack": "hush-3"}
    )
    assert "hush" not in repr(config)


@pytest.mark.parametrize("servers", ["", "host:port", "a:1,:2"])
def test_malformed_servers_are_refused(servers: str) -> None:
    """Bootstrap servers that cannot be read are a configuration error, not an unreachable broker."""
    with pytest.raises(ConfigurationError, match="bootstrap_servers"):
        ClientConfig(bootstrap_servers=servers)


def test_servers_are_split() -> None:
    """Several servers, IPv6 included, are read with their ports."""
    assert ClientConfig(bootstrap_servers="a:1, [::1]:2").servers() == [("a", 1), ("::1", 2)]


def test_isolation_level_is_checked() -> None:
    """Only Kafka's two isolation levels exist."""
    with pytest.raises(ConfigurationError, match="isolation_level"):
        ClientConfig(isolation_level="serializable")
