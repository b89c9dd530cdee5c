"""Moments of the client that a fault on the wire meets only now and then, brought about one by one."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import GroupAuthorizationFailedError

from asyncpar.errors import AuthorizationError
from tests.adapters.aiokafka_member import eventually, member
from tests.wire.lives import PARTITIONS, SETTINGS, TOPIC
from tests.wire.mock_cluster import MockCluster


async def test_an_error_of_the_group_ends_a_fetch_that_records_have_just_woken() -> None:
    """Records, a rebalance and a refused group come in one step of the loop: the fetch says so."""
    settings = {name: SETTINGS[name] for name in ("session_timeout_ms", "heartbeat_interval_ms")}
    with MockCluster() as cluster:
        await asyncio.to_thread(cluster.create_topic, TOPIC, PARTITIONS)
        async with member(cluster.bootstrap, "group", TOPIC, **settings) as one:
            partitions = await one.joined(PARTITIONS)
            inside = one.consumer._inside
            fetching = asyncio.create_task(one.consumer.fetch(partitions, 10, 1_000))
            await eventually(lambda: inside._fetcher._fetch_waiters)
            for waiter in list(inside._fetcher._fetch_waiters):
                waiter.set_result(None)
            inside._subscription.begin_reassignment()
            consumed = asyncio.ensure_future(
                inside._coordinator._push_error_to_user(GroupAuthorizationFailedError("group"))
            )
            with pytest.raises(AuthorizationError):
                await asyncio.wait_for(fetching, 2)
            await asyncio.wait_for(consumed, 1)
