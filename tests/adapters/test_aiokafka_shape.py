"""The check of the installed client."""

from __future__ import annotations

import aiokafka
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.group_coordinator import GroupCoordinator

from asyncpar.adapters.aiokafka_shape import check_client, require_parts
from asyncpar.errors import ConfigurationError


def test_the_installed_client_fits() -> None:
    """The version that the tests run with passes its own check."""
    check_client()


def test_another_minor_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that nobody tested is named, with the one to install."""
    monkeypatch.setattr(aiokafka, "__version__", "0.15.0")
    with pytest.raises(ConfigurationError, match=r"aiokafka 0\.15\.0 is installed.*0\.14"):
        check_client()


def test_a_missing_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private method that is gone is named with its class."""
    monkeypatch.delattr(GroupCoordinator, "_send_req")
    with pytest.raises(ConfigurationError, match="GroupCoordinator has no '_send_req'"):
        check_client()


def test_a_changed_send_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """JoinGroup's own time-out needs a send that reads it before it suspends."""

    async def send(self: object, request: object) -> None: ...

    monkeypatch.setattr(AIOKafkaConnection, "send", send)
    with pytest.raises(ConfigurationError, match="AIOKafkaConnection.send is a coroutine"):
        check_client()


async def test_a_missing_attribute_is_named() -> None:
    """An attribute that objects lost is named with their class."""
    client = AIOKafkaClient()
    del client._conns
    with pytest.raises(ConfigurationError, match="AIOKafkaClient has no '_conns'"):
        require_parts(client)


def test_a_foreign_object_is_named() -> None:
    """A part of another class does not pass for the one we know."""
    with pytest.raises(ConfigurationError, match="list stands where"):
        require_parts([])
