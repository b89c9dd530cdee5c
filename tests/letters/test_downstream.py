"""The service in miniature is down when it is said to be down, and both sides know what was heard."""

from __future__ import annotations

import pytest

from tests.letters.downstream import Client, Downstream


async def test_calls_succeed_while_it_is_up_and_fail_while_it_is_down() -> None:
    """Connections from before an outage are of no use after it, and are not used."""
    service = Downstream()
    client = Client(service.port)
    with pytest.raises(ConnectionError, match="is down"):
        await client.tell(0, 1)
    await service.up()
    await client.tell(0, 2)
    await client.tell(1, 3)
    await service.down()
    with pytest.raises(ConnectionError):
        await client.tell(0, 4)
    with pytest.raises(ConnectionError, match="is down"):
        await client.tell(0, 5)
    await service.up()
    await client.tell(0, 6)
    await service.down()
    assert [one[1:] for one in service.heard] == [(0, 2), (1, 3), (0, 6)]
