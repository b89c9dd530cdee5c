"""The errors of a test that does not settle, in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from asyncpar import App
from asyncpar.records import TopicPartition
from asyncpar.status import AppStatus, GroupStatus, PartitionStatus
from asyncpar.testing.unsettled import Open, halted, unsettled
from asyncpar.testing.witness import Handled

TP = TopicPartition("orders", 0)
PLACE = Open("billing", TP, 3)
ERROR = ValueError("no")
FAILED = Handled("billing", "bill", "orders", 0, 3, None, 2, "failed", ERROR)
NUMBERS = {
    "bool": False,
    "int": 0,
    "float": 0.0,
    "str": "",
}


def filled(kind: type, **values: Any) -> Any:
    """A status with nothing in it but `values`."""
    fields = {one.name: NUMBERS.get(str(one.type)) for one in dataclasses.fields(kind)}
    return kind(**{**fields, **values})


def status_of(partition: PartitionStatus | None) -> AppStatus:
    """An app that is joined, with one partition or none."""
    partitions = () if partition is None else (partition,)
    group = filled(GroupStatus, group="billing", state="joining", partitions=partitions, handlers=())
    return dataclasses.replace(App(group="billing").status(), groups=(group,))


def partition(**values: Any) -> PartitionStatus:
    """The partition of `PLACE`."""
    status: PartitionStatus = filled(PartitionStatus, group="billing", topic="orders", **values)
    return status


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (App(group="billing").status(), "orders[0] offset 3: not assigned, group billing is stopped"),
        (status_of(None), "orders[0] offset 3: not assigned, group billing is joining"),
        (
            status_of(partition()),
            "orders[0] offset 3: not begun, group billing is reading its committed offset",
        ),
        (
            status_of(partition(hwm=3, position=3)),
            "orders[0] offset 3: not fetched yet, group billing is at offset 3",
        ),
        (
            status_of(partition(hwm=3, position=3, hold_reason="its turn comes")),
            "orders[0] offset 3: not fetched yet, group billing is at offset 3; it is held: its turn comes",
        ),
        (
            status_of(partition(hwm=4, committed=3)),
            "orders[0] offset 3: done, but not committed: group billing has committed 3",
        ),
        (
            status_of(partition(hwm=3, halt_reason="offset 3: what")),
            "orders[0] offset 3: halted, offset 3: what",
        ),
        (
            status_of(partition(hwm=3, blocking_offset=3, halt_reason="offset 3: what")),
            "orders[0] halted, offset 3: what",
        ),
        (
            status_of(
                partition(
                    hwm=3,
                    blocking_offset=3,
                    blocking_reason="waiting for a retry",
                    blocking_handler="bill",
                    blocking_attempts=2,
                    blocking_duration_seconds=1.25,
                )
            ),
            (
                "orders[0] offset 3: waiting for a retry in handler bill for 1.2 s, 2 attempts failed, "
                "the last with ValueError: no"
            ),
        ),
    ],
    ids=[
        "stopped",
        "unassigned",
        "opening",
        "unfetched",
        "held",
        "uncommitted",
        "halted",
        "halted at",
        "parked",
    ],
)
def test_each_reason_has_its_words(status: AppStatus, text: str) -> None:
    """Where the record stands and what holds it up, on one line."""
    error = unsettled([(PLACE, status)], 5, [FAILED])
    assert str(error) == f"not settled after 5 s: {text}"


def test_a_halt_is_caused_by_the_error_of_its_own_record() -> None:
    """Not by what another partition, group or record raised later."""
    others = [
        dataclasses.replace(FAILED, offset=33, error=KeyError("offset")),
        dataclasses.replace(FAILED, partition=1, error=KeyError("partition")),
        dataclasses.replace(FAILED, group="mailing", error=KeyError("group")),
        dataclasses.replace(FAILED, error=None, outcome="success"),
    ]
    error = halted(partition(halt_reason="offset 3: failed 2 times"), [FAILED, *others])
    assert str(error) == "orders[0] halted in group billing, offset 3: failed 2 times"
    assert error.__cause__ is ERROR
    assert halted(partition(halt_reason="offset 4: failed"), [FAILED, *others]).__cause__ is None
