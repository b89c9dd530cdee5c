"""The counts by which a soak knows that every record ran once."""

from __future__ import annotations

import asyncio

import pytest

from tests.soak.ledger import Ledger


def test_records_in_the_order_of_their_keys_are_counted() -> None:
    """By partition; keys may pass each other."""
    ledger = Ledger()
    for partition, offset, key in [(0, 5, b"a"), (0, 3, b"b"), (0, 6, b"a"), (1, 0, b"c")]:
        with ledger.handling(partition, offset, key):
            pass
    assert ledger.handled == {0: 3, 1: 1}
    assert ledger.faults == []


@pytest.mark.parametrize("second", [4, 5])
def test_a_key_that_steps_back_or_stands_still_is_a_fault(second: int) -> None:
    """A record out of order, and one that runs twice."""
    ledger = Ledger()
    for offset in (5, second):
        with ledger.handling(0, offset, b"a"):
            pass
    assert ledger.fault_count == 1
    assert f"offset {second} of key b'a' begins after offset 5" in ledger.faults[0]


def test_a_call_that_fails_is_no_handled_record() -> None:
    """It is not counted, and its key does not run any more."""
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.handling(0, 5, b"a"):
        raise ZeroDivisionError
    with ledger.handling(0, 6, b"a"):
        pass
    assert ledger.handled == {0: 1}
    assert ledger.fault_count == 0


async def test_two_records_of_a_key_at_once_are_a_fault() -> None:
    """Although their order is right; of many such faults only the first are kept."""
    ledger = Ledger()

    async def work(offset: int) -> None:
        with ledger.handling(0, offset, b"a"):
            await asyncio.sleep(0)

    await asyncio.gather(*(work(offset) for offset in range(9)))
    assert ledger.fault_count == 8
    assert len(ledger.faults) == 5
    assert "offset 1 begins while its key b'a' runs" in ledger.faults[0]
