"""Credentials and rights against a broker that asks for both (SASL PLAIN, ACLs)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from asyncpar.errors import AuthenticationError, AuthorizationError
from asyncpar.records import CommitAnswer, Committed
from tests.adapters.aiokafka_member import Member, member
from tests.kafka_broker import KafkaBroker

pytestmark = pytest.mark.broker

ADMIN = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "admin",
    "sasl.password": "admin-secret",
}
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaBroker]:
    """A broker with SASL PLAIN and ACLs: `reader` may read `open` as group `mine`; `stranger` may nothing."""
    node = KafkaBroker(client=ADMIN)
    users = " ".join(f'user_{name}="{name}-secret"' for name in ("admin", "reader", "stranger"))
    node.overrides |= {
        "listeners": f"SASL_PLAINTEXT://{node.bootstrap},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"SASL_PLAINTEXT://{node.bootstrap}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        "inter.broker.listener.name": "SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            f'{LOGIN} username="admin" password="admin-secret" {users};'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }
    try:
        node.start()
        _grant(_admin(node))
        yield node
    finally:
        node.remove()


def _admin(node: KafkaBroker) -> AdminClient:
    return AdminClient({**ADMIN, "bootstrap.servers": node.bootstrap, "log_level": 0})


def _grant(admin: AdminClient) -> None:
    topics = [NewTopic(name, num_partitions=1) for name in ("open", "hidden", "closing")]
    for future in admin.create_topics(topics).values():
        future.result(20)
    literal, allow = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
    rights = [
        AclBinding(kind, name, literal, "User:reader", "*", operation, allow)
        for kind, name, operation in (
            (ResourceType.TOPIC, "open", AclOperation.READ),
            (ResourceType.GROUP, "mine", AclOperation.READ),
            (ResourceType.GROUP, "seen", AclOperation.DESCRIBE),
            (ResourceType.TOPIC, "closing", AclOperation.READ),
            (ResourceType.GROUP, "closing", AclOperation.READ),
        )
    ]
    for future in admin.create_acls(rights).values():
        future.result(20)
    # The controller has them now; the broker's authorizer hears of them a little later.
    deadline = time.monotonic() + 20
    of_reader = AclBindingFilter(
        ResourceType.ANY,
        None,
        ResourcePatternType.ANY,
        "User:reader",
        "*",
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    while len(admin.describe_acls(of_reader).result(20)) < len(rights):
        assert time.monotonic() < deadline, "the broker has not heard of the rights"


def login(user: str, password: str | None = None) -> dict[str, Any]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": user,
        "sasl_password": password or f"{user}-secret",
    }


async def test_with_rights_all_is_well(guarded: KafkaBroker) -> None:
    """A user with READ on topic and group joins and commits."""
    async with member(guarded.bootstrap, "mine", "open", **login("reader")) as m:
        (p0,) = await m.joined(1)
        assert await m.consumer.commit(m.token, {p0: Committed(0, "")}, 5.0) == {
            p0: CommitAnswer.ACKNOWLEDGED
        }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (login("reader", "wrong-hush"), "Authentication failed"),
        (login("reader") | {"sasl_mechanism": "SCRAM-SHA-256"}, "SASL SCRAM-SHA-256"),
    ],
)
async def test_refused_credentials_fail_at_once(
    guarded: KafkaBroker, settings: dict[str, Any], reason: str
) -> None:
    """A wrong password or mechanism is told in the broker's words, at once and without secrets."""
    m = Member(guarded.bootstrap, "mine", **settings)
    begin = time.monotonic()
    with pytest.raises(AuthenticationError) as caught:
        await m.start("open")
    assert time.monotonic() - begin < 5
    assert reason in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_no_right_on_the_topic(guarded: KafkaBroker) -> None:
    """A topic without rights is named at start."""
    with pytest.raises(AuthorizationError, match="no right on topic 'hidden'"):
        await Member(guarded.bootstrap, "mine", **login("reader")).start("open", "hidden")


async def test_no_right_on_the_group(guarded: KafkaBroker) -> None:
    """A group without rights is named at start."""
    with pytest.raises(AuthorizationError, match="no right on group 'other'"):
        await Member(guarded.bootstrap, "other", **login("reader")).start("open")


async def test_a_group_that_may_only_be_seen(guarded: KafkaBroker) -> None:
    """A right that suffices to find the coordinator but not to join ends the first fetches."""
    async with member(guarded.bootstrap, "seen", "open", **login("reader")) as m:
        with pytest.raises(AuthorizationError, match="no right on group 'seen'"):
            await m.read([], 1, timeout_seconds=10)


@pytest.mark.parametrize(
    ("kind", "group", "topic"),
    [(ResourceType.TOPIC, "mine", "closing"), (ResourceType.GROUP, "closing", "open")],
)
async def test_a_right_that_is_lost_is_told(
    guarded: KafkaBroker, kind: ResourceType, group: str, topic: str
) -> None:
    """Also while nothing is asked for, when the topic seems to be deleted, or only heartbeats are refused."""
    settings = login("reader") | {"metadata_max_age_ms": 200}
    async with member(guarded.bootstrap, group, topic, **settings) as m:
        await m.joined(1)
        literal, allow = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
        lost = AclBindingFilter(kind, "closing", literal, "User:reader", "*", AclOperation.READ, allow)
        admin = _admin(guarded)  # its answers live as long as it does
        for future in admin.delete_acls([lost]).values():
            future.result(20)
        with pytest.raises(AuthorizationError, match=f"no right on {kind.name.lower()} 'closing'"):
            await m.read([], 1, timeout_seconds=10)


async def test_a_stranger_sees_nothing(guarded: KafkaBroker) -> None:
    """Good credentials without rights are a matter of rights."""
    with pytest.raises(AuthorizationError):
        await Member(guarded.bootstrap, "mine", **login("stranger")).start("open")
