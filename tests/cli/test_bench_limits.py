"""What limits a bench: each state of a group has its word, and the verdict is the most frequent one."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from asyncpar.cli.bench_advice import _SHORT, _WORDS, Setting, advised
from asyncpar.cli.bench_limits import Limit, Look, Looks, Verdict, looked_at
from asyncpar.cli.bench_loop import LoopFigures
from asyncpar.cli.bench_report import Busiest, HandlerFindings, Percentiles
from asyncpar.status import GroupStatus
from tests.cli.bench_samples import IDLE, group, handler, partition

WAITING = group(partitions=(partition(in_flight=50, running=4, queued=46),))
BUSY = group(handler(running=10, ready=3), partitions=(partition(in_flight=50, queued=40),))
NONE_OF_IT = Percentiles(1, 0.01, 0.01, 0.01, 0.01, 0.01)
BILL = HandlerFindings(
    "billing",
    "bill",
    "async",
    10,
    9.5,
    1000,
    7,
    100.0,
    NONE_OF_IT,
    None,
    None,
    None,
    Busiest("orders[0]", "alice", 100, 0.1, 1.0, 1000.0),
    1000.0,
    {},
)


@pytest.mark.parametrize(
    ("seen", "look"),
    [
        (BUSY, Look("slots", "bill")),
        (group(handler(running=3, ready=3)), Look("loop")),
        (WAITING, Look("keys")),
        (
            group(partitions=(partition(in_flight=960, running=960),), in_flight=960),
            Look("buffer"),
        ),
        (group(partitions=(partition(in_flight=50, parked=50),)), Look("retries")),
        (group(partitions=(partition(in_flight=50, parked=1, queued=49),)), Look("retries")),
        (group(partitions=(partition(true_lag=500),)), Look("fetch")),
        (group(partitions=(partition(true_lag=None, log_end=None),)), Look("fetch")),
        (group(partitions=(partition(true_lag=5, in_flight=5, running=5),)), Look("input")),
        (group(partitions=(partition(state="halted", true_lag=500),)), Look("input")),
        (
            group(
                handler(running=3, ready=3),
                partitions=(partition(blocking_reason="waiting for the breaker"),),
            ),
            Look("held", "waiting for the breaker"),
        ),
        (
            group(
                handler(running=12, ready=0, executor="process", concurrency=20, children=2, busy_children=2)
            ),
            Look("children", "bill"),
        ),
        (
            group(
                handler(running=2, executor="process", concurrency=20, children=2, busy_children=2),
                partitions=(partition(in_flight=9, running=2, queued=7),),
            ),
            Look("keys"),
        ),
    ],
)
def test_a_look_says_what_records_wait_for(seen: GroupStatus, look: Look) -> None:
    """Slots before keys, keys before fetching, and nothing when there is nothing to do."""
    assert looked_at(seen) == look


@pytest.mark.parametrize(
    ("loop", "has_threads", "limit"),
    [
        (IDLE, False, "slots"),
        (LoopFigures(0.2, 0.003, 0.1, 0.95, 0.95), False, "loop"),
        (LoopFigures(0.8, 0.003, 0.1, 0.5, 0.5), False, "loop"),
        (LoopFigures(0.8, 0.02, 0.1, 0.1, 0.1), False, "blocked_loop"),
        (LoopFigures(0.8, 0.02, 0.7, 0.1, 0.1), False, "slots"),
        (LoopFigures(0.8, 0.02, 0.1, 0.1, 0.97), True, "computing"),
        (LoopFigures(0.2, 0.003, 0.1, 0.1, 0.97), False, "slots"),
    ],
)
def test_a_busy_loop_is_the_limit_whatever_waits(loop: LoopFigures, has_threads: bool, limit: Limit) -> None:
    """No setting helps a core that is used up; a loop that alone is late and computes little is blocked."""
    looks = Looks()
    for _ in range(10):
        looks.add(BUSY)
    assert looks.verdict(loop, has_threads=has_threads).limit == limit


def test_the_verdict_is_what_was_seen_most_and_names_the_second() -> None:
    """With their shares of all looks, and how much of the buffer was used."""
    looks = Looks()
    for _ in range(6):
        looks.add(WAITING)
    for _ in range(4):
        looks.add(BUSY)
    verdict = looks.verdict(IDLE, has_threads=False)
    assert (verdict.limit, verdict.share, verdict.second_share) == ("keys", 0.6, 0.4)
    assert verdict.second == Look("slots", "bill")
    assert verdict.buffer_share == 0.0
    assert looks.running("bill") == 4.0


def test_handlers_that_keep_up_are_no_limit_even_on_a_busy_loop() -> None:
    """When all that is written is done at once, nothing limits, however much the loop does for it."""
    looks = Looks()
    looks.add(group())
    assert looks.verdict(LoopFigures(0.9, 0.01, 0.1, 0.95, 0.95), has_threads=False).limit == "input"


def test_what_follows_the_last_record_says_nothing() -> None:
    """Idle looks count once more was done, as where records come seldom; not those until the time is up."""
    looks = Looks()
    for _ in range(3):
        looks.add(BUSY)
    for _ in range(100):
        looks.add(group(handler(succeeded=50)))
    verdict = looks.verdict(IDLE, has_threads=False)
    assert (looks.number, verdict.limit, verdict.share) == (4, "slots", 0.75)
    assert looks.running("bill") == 7.5
    looks.add(group(handler(succeeded=51)))
    assert (looks.number, looks.verdict(IDLE, has_threads=False).limit) == (104, "input")
    assert Looks().verdict(IDLE, has_threads=False).limit == "input"


@pytest.mark.parametrize("limit", get_args(Limit))
def test_each_limit_has_its_words(limit: Limit) -> None:
    """Two sentences: why, and what to change; none of them names what is not known."""
    advice = advised(Verdict(limit, 0.9, "bill"), [BILL], IDLE)
    assert advice.because
    assert advice.change
    assert set(get_args(Limit)) == set(_WORDS) == set(_SHORT)


def test_keys_behind_a_full_buffer_are_told_apart() -> None:
    """When as much is held as may be, a larger buffer comes first; the busiest key is named."""
    free = advised(Verdict("keys", 0.9), [BILL], IDLE)
    full = advised(Verdict("keys", 0.9, buffer_share=0.8), [BILL], IDLE)
    assert "alice, has 10.00% of the records of bill" in free.because
    assert "max_in_flight" not in free.change
    assert full.change.startswith("raise max_in_flight")


def test_a_larger_buffer_is_not_advised_where_the_busiest_key_is_the_bound() -> None:
    """Records of other keys end no sooner for being there."""
    assert BILL.busiest is not None
    near = dataclasses.replace(BILL, rate=900.0)
    assert "max_in_flight" not in advised(Verdict("keys", 0.9, buffer_share=0.8), [near], IDLE).change
    unknown = dataclasses.replace(BILL, busiest=dataclasses.replace(BILL.busiest, rate_bound=0.0))
    assert "max_in_flight" in advised(Verdict("keys", 0.9, buffer_share=0.8), [unknown], IDLE).change
    far = dataclasses.replace(BILL, rate=800.0)
    assert "max_in_flight" in advised(Verdict("keys", 0.9, buffer_share=0.8), [far], IDLE).change


def test_uvloop_is_advised_where_calls_wait_and_it_is_not_there_yet() -> None:
    """For handlers that compute it gives nothing."""
    waits = Verdict("loop", 0.9)
    assert "uvloop" in advised(waits, [BILL], IDLE).change
    assert "uvloop" not in advised(waits, [BILL], IDLE, Setting(event_loop="uvloop")).change
    quick = dataclasses.replace(BILL, handler_seconds=Percentiles(1, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5))
    assert "uvloop" not in advised(waits, [quick], IDLE).change


def test_earliest_is_advised_to_those_who_begin_at_the_end() -> None:
    """Who began with the first record has had all there is."""
    assert "--start earliest" in advised(Verdict("input", 0.9), [BILL], IDLE, Setting(True)).change
    assert "--start earliest" not in advised(Verdict("input", 0.9), [BILL], IDLE).change


def test_what_holds_records_back_has_words_of_its_own() -> None:
    """A limit, a breaker, and a cluster that does not answer."""
    because, change = advised(Verdict("held", 0.9, "waiting for the rate limit"), [BILL], IDLE)
    assert "were waiting for the rate limit" in because
    assert change.startswith("raise the rate limit")
    assert "opened" in advised(Verdict("held", 0.9, "waiting for the breaker"), [BILL], IDLE).change
    because, change = advised(Verdict("held", 0.9, "held"), [BILL], IDLE)
    assert "did not answer heartbeats" in because
    assert "brokers" in change


def test_threads_that_compute_are_told_that_slots_do_not_help() -> None:
    """They share one core, which is seen where the process uses much of one."""
    threads = dataclasses.replace(BILL, executor="thread")
    slots = Verdict("slots", 0.9, "bill")
    assert 'executor="process" does' in advised(slots, [threads], IDLE._replace(process_share=0.7)).because
    assert "process" not in advised(slots, [threads], IDLE._replace(process_share=0.3)).because
    assert "process" not in advised(slots, [BILL], IDLE._replace(process_share=0.7)).because


def test_a_loop_with_time_to_spare_is_not_named_as_the_second_limit() -> None:
    """That something was ready at that moment is no want of time."""
    also = Verdict("held", 0.6, "waiting for the rate limit", second=Look("loop"), second_share=0.4)
    assert "besides" not in advised(also, [BILL], IDLE).because
    busy = IDLE._replace(thread_share=0.6)
    assert "besides: the event loop" in advised(also, [BILL], busy).because


def test_the_second_limit_is_named_when_it_took_its_time() -> None:
    """A quarter of the looks or more."""
    second = Look("fetch")
    assert (
        "; besides: fetching (30% of the time)"
        in advised(Verdict("keys", 0.6, second=second, second_share=0.3), [BILL], IDLE).because
    )
    behind_the_loop = Verdict("loop", 0.9, second=second, second_share=0.9)
    assert "besides" not in advised(behind_the_loop, [], IDLE).because
    assert "besides" not in advised(Verdict("keys", 0.6, second=second, second_share=0.2), [], IDLE).because


def test_too_few_looks_are_no_verdict() -> None:
    """It is said, and nothing is advised."""
    advice = advised(None, [BILL], IDLE)
    assert "too soon to tell" in advice.because
    assert advice.change == ""
