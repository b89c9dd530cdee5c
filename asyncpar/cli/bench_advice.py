"""What limits a bench, in a sentence, and another one that says what to change.

Lives here: the words for each verdict of `bench_limits.py`. Called by `bench_report.py`. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from asyncpar.cli.bench_limits import Limit, Verdict
from asyncpar.cli.bench_loop import LoopFigures

if TYPE_CHECKING:
    from asyncpar.cli.bench_report import HandlerFindings

_OFTEN = 0.5
_OF_THE_LOOP = ("loop", "computing", "blocked_loop")
_WORTH_NAMING = 0.25
_BUSY_LOOP = 0.5
_WAITING_CALL_SECONDS = 0.001
"""A call that takes longer in the mean waits for something: many of those are what uvloop is quicker with."""
_NEAR_ITS_BOUND = 0.85
_MUCH_OF_A_CORE = 0.4


class Advice(NamedTuple):
    """Why it was no faster, and what to change; nothing to change where that is not known."""

    because: str
    change: str = ""


class _Seen(NamedTuple):
    verdict: Verdict
    handlers: Sequence[HandlerFindings]
    loop: LoopFigures
    setting: Setting

    @property
    def often(self) -> str:
        return f"{self.verdict.share:.0%} of the time"

    @property
    def handler(self) -> HandlerFindings:
        """The one that the verdict is about."""
        return next(one for one in self.handlers if one.handler == self.verdict.who)


class Setting(NamedTuple):
    """What the bench had that advice depends on."""

    begins_at_end: bool = False
    """It takes only what is written from now on."""
    event_loop: str = "asyncio"


_USUAL = Setting()


def advised(
    verdict: Verdict | None,
    handlers: Sequence[HandlerFindings],
    loop: LoopFigures,
    setting: Setting = _USUAL,
) -> Advice:
    """The words for `verdict`; None: there was too little to see."""
    if verdict is None:
        return Advice("it was over too soon to tell: give it more records (asyncpar produce)")
    because, change = _WORDS[verdict.limit](_Seen(verdict, handlers, loop, setting))
    return Advice(because + _also(verdict, loop), change)


def _also(verdict: Verdict, loop: LoopFigures) -> str:
    second = verdict.second
    if second is None or verdict.limit in _OF_THE_LOOP or second.limit == verdict.limit:
        return ""  # behind a loop that has no time everything waits
    if verdict.second_share < _WORTH_NAMING:
        return ""
    if second.limit == "loop" and max(loop.thread_share, loop.late_share) < _BUSY_LOOP:
        return ""  # something was ready for it at that moment, which is no want of time
    return f"; besides: {_SHORT[second.limit]} ({verdict.second_share:.0%} of the time)"


_SHORT: dict[Limit, str] = {
    "loop": "the event loop",
    "computing": "computing in threads",
    "blocked_loop": "handlers that block the event loop",
    "slots": "slots",
    "children": "child processes",
    "keys": "records that wait behind their own key",
    "buffer": "max_in_flight",
    "held": "what holds records back",
    "retries": "records that wait for a retry",
    "fetch": "fetching",
    "input": "too little to do",
}


def _of_slots(seen: _Seen) -> Advice:
    one, share = seen.handler, seen.loop.process_share
    computing = ""
    if one.executor == "thread" and share >= _MUCH_OF_A_CORE:
        computing = (
            f"; this process used {share:.0%} of a core: where calls compute, more of them at a time do not "
            'help, executor="process" does'
        )
    return Advice(
        f"slots: all {one.slots} of {one.handler} were busy, and records of other keys waited for one "
        f"({seen.often}){computing}",
        f"raise concurrency of {one.handler} (@topic(concurrency=...)), if what it calls bears more calls at "
        "a time; or make a call quicker",
    )


def _of_children(seen: _Seen) -> Advice:
    one = seen.handler
    return Advice(
        f"child processes: all {one.slots} of {one.handler} were busy ({seen.often})",
        "raise worker_pool_size where there are cores left, or calls that wait; start instances on other "
        "machines; or let a call do less",
    )


def _of_keys(seen: _Seen) -> Advice:
    because = (
        "keys: slots were free, and what was there waited for the record before it with the same key "
        f"({seen.often})"
    )
    ordered = [(one.busiest.seconds, one.handler, one.busiest) for one in seen.handlers if one.busiest]
    if ordered:
        _, handler, busiest = max(ordered, key=lambda item: item[0])
        because += f"; the busiest, {busiest.key}, has {busiest.share:.2%} of the records of {handler}"
    change = (
        "order by a finer key (order=...), give up order where it does not matter, or make a call quicker"
    )
    bounds = [(one.rate, one.busiest.rate_bound) for one in seen.handlers if one.busiest]
    nearest = max((rate / bound for rate, bound in bounds if bound), default=0.0)
    # Where the busiest key is at its bound already, records of others would not end sooner for being there.
    if seen.verdict.buffer_share >= _OFTEN and nearest < _NEAR_ITS_BOUND:
        change = (
            "raise max_in_flight: as much was held as may be, and records of other keys may stand behind it; "
            f"else {change}"
        )
    return Advice(because, change)


def _of_buffer(seen: _Seen) -> Advice:
    return Advice(
        f"max_in_flight: all that may be held at once was running, and slots were free ({seen.often})",
        "raise max_in_flight (and max_in_flight_per_partition and max_in_flight_bytes where they are set) to "
        "twice the slots or more",
    )


def _of_loop(seen: _Seen) -> Advice:
    waits = any(one.handler_seconds.mean >= _WAITING_CALL_SECONDS for one in seen.handlers)
    quicker = 'event_loop="uvloop", ' if waits and seen.setting.event_loop != "uvloop" else ""
    return Advice(
        f"loop: the event loop was at work all the time, with {seen.loop.thread_share:.0%} of a core",
        "start more instances (the group shares its partitions between them), move what computes into "
        f'executor="process", {quicker}or let handlers do less per record',
    )


def _of_computing(seen: _Seen) -> Advice:
    return Advice(
        "computing in threads: they and the event loop share one core, of which "
        f"{seen.loop.process_share:.0%} was used",
        'move the handler that computes into executor="process", which uses all cores',
    )


def _of_blocked_loop(seen: _Seen) -> Advice:
    loop = seen.loop
    return Advice(
        f"blocked loop: the event loop came late in {loop.late_share:.0%} of the looks (p99 "
        f"{loop.late_p99_seconds * 1000:.0f} ms) and used only {loop.thread_share:.0%} of a core: a handler "
        "waits without await (time.sleep, a synchronous driver)",
        "write a handler that waits without await as a plain def, which runs in a thread, or use an async "
        "driver",
    )


def _of_hold(seen: _Seen) -> Advice:
    why = seen.verdict.who
    if why == "held":
        return Advice(
            f"held back: records were there that nothing may start ({seen.often}): the cluster did not "
            "answer heartbeats, or their partition was being taken away",
            "see the log, and whether the brokers can be reached all the time",
        )
    return Advice(
        f"held back: records were {why} ({seen.often})",
        "the log says why it opened; mend what the handler calls"
        if "breaker" in why
        else "raise the rate limit, if what the handler calls bears more",
    )


def _of_retries(seen: _Seen) -> Advice:
    failed = sum(one.failed_calls for one in seen.handlers)
    return Advice(
        f"retries: all that was held waited to be tried again ({seen.often}; {failed:,} calls failed)",
        "mend what fails; or give failing records up sooner (attempts, dead_letter), or let them wait less "
        "(base_ms, max_ms)",
    )


def _of_fetch(seen: _Seen) -> Advice:
    return Advice(
        f"fetching: slots were free and nothing was there to run, though the topics held more ({seen.often})",
        "look at the network and the broker; raise max_partition_fetch_bytes and poll_batch_size, or use "
        "--profile high_throughput",
    )


def _of_input(seen: _Seen) -> Advice:
    instead = ", or bench what is there already with --start earliest" if seen.setting.begins_at_end else ""
    return Advice(
        f"nothing here: the handlers kept up with what was written ({seen.often})",
        f"write more at a time to find the limit (asyncpar produce --rate){instead}",
    )


_WORDS: dict[Limit, Callable[[_Seen], Advice]] = {
    "loop": _of_loop,
    "computing": _of_computing,
    "blocked_loop": _of_blocked_loop,
    "slots": _of_slots,
    "children": _of_children,
    "keys": _of_keys,
    "buffer": _of_buffer,
    "held": _of_hold,
    "retries": _of_retries,
    "fetch": _of_fetch,
    "input": _of_input,
}
