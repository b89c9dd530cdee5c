"""Workload P6: kill -9 with 100,000 records done above one that is stuck; what runs again?

    python benchmarks/p6.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]

What lives here: the two ways to be killed, the count of what ran twice, the target; the member is
`p6_member.py`'s. One partition, whose first record never ends; the others, of 1,000 keys at random, do.
When `--records` of them are done the member is killed with -9, and a second one reads the group's records
to their end. What the first member had done and the second one ran again is `redelivered`, and `share` is
that of all that was done. What the first had begun and not ended (`in_flight`) has to run again, and is not
counted.

- `settled`: all records of the topic are done, and a commit has had the time that its interval gives it. A
  consumer that commits contiguous offsets repeats 100 % here, as the stuck record holds its commit at 0.
- `under load`: twice as many records are there, each takes 5 ms, and the kill comes in the middle. Here the
  last commit is up to 2,000 records (`commit_every`) or 50 ms old, whichever is more, and what ended since
  then is repeated by anyone who commits in the background. That is a number, not a share, so more records
  make it a smaller part.

Exit code 1 when a record was lost, or ran out of the order of its key, counting both members, or when what
is committed in the end is not all.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.course import (  # noqa: E402 - after the path
    Course,
    Measured,
    Measurements,
    at_most,
    conduct,
    middle,
    parsed,
    parser,
    say,
    spread,
    topic_for,
)
from benchmarks.load import VALUE_BYTES, Load, check, place, produce  # noqa: E402 - likewise
from benchmarks.p6_member import Plan, ends_in, journal_of  # noqa: E402 - likewise
from tests import kafka_tools  # noqa: E402 - likewise

RECORDS = 100_000
KEYS = 1_000
WORK_SECONDS = 0.005
SETTLED_SECONDS = 2.5
"""Two commit intervals and some: after it nothing that was done is left to commit."""
SESSION_TIMEOUT_MS = 6_000
TARGET_SHARE = 0.01
SETTLED, LOADED = "settled", "under load"
_STUCK = place(KEYS, 0)
"""The stuck record has a key of its own, behind those of the load."""
_WAIT_SECONDS = 120.0
_LOOK_SECONDS = 0.002


@dataclass
class Killed(Measured):
    """What the first member had done and begun, and what the second one ran of it."""

    done: int = 0
    in_flight: int = 0
    redelivered: int = 0
    ran_again: int = 0
    """Of what was done and what was in flight."""

    @property
    def share(self) -> float:
        """What was done and ran again, of what was done."""
        return self.redelivered / self.done if self.done else 0.0


# -- one kill ------------------------------------------------------------------------------------


def killed(bootstrap: str, records: int, *, is_settled: bool) -> Killed:
    """One member killed after `records` records, the other one to the end."""
    load = Load(records if is_settled else 2 * records, KEYS, partitions=1)
    with (
        topic_for(bootstrap, "p6", load.partitions) as topic,
        tempfile.TemporaryDirectory(prefix="p6-") as folder,
    ):
        first = [kafka_tools.Record(b"stuck", _STUCK.ljust(VALUE_BYTES, b"."))]
        asyncio.run(kafka_tools.produce(bootstrap, topic, first))
        produce(bootstrap, topic, load)
        plan = Plan(
            bootstrap,
            topic,
            f"{topic}-group",
            f"{folder}/first",
            _STUCK.decode(),
            0.0 if is_settled else WORK_SECONDS,
            SESSION_TIMEOUT_MS,
            until_end=False,
        )
        _first(plan, records, SETTLED_SECONDS if is_settled else 0.0)
        asyncio.run(_until_forgotten(plan))
        second = replace(plan, journal=f"{folder}/second", stuck="", work_seconds=0.0, until_end=True)
        _second(second)
        found = judge(journal_of(Path(plan.journal)), journal_of(Path(second.journal)), load.per_key)
        found.faults += asyncio.run(_uncommitted(plan))
        return found


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.p6_member", plan.to_argument()], cwd=ROOT)


def _first(plan: Plan, records: int, then_seconds: float) -> None:
    """The member that is killed, `then_seconds` after it had done `records`."""
    member = _start(plan)
    try:
        _until(lambda: ends_in(Path(plan.journal)) >= records, member, f"{records} records are done")
        time.sleep(then_seconds)
    finally:
        member.kill()
        member.wait(_WAIT_SECONDS)


def _second(plan: Plan) -> None:
    """The member that goes on, to the end."""
    member = _start(plan)
    try:
        code = member.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{plan.group}: the second member had not read to the end in time") from None
    finally:
        member.kill()
    if code:
        raise SystemExit(f"{plan.group}: the second member ended with code {code}; see above")


def _until(condition: Callable[[], bool], member: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if member.poll() is not None:
            raise SystemExit(f"the first member ended with code {member.returncode} before: {what}")
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {_WAIT_SECONDS:.0f} s: {what}")
        time.sleep(_LOOK_SECONDS)


async def _until_forgotten(plan: Plan) -> None:
    """The broker has given the dead member up: no commit of it can arrive any more."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while await kafka_tools.group_members(plan.bootstrap, plan.group):
        if time.monotonic() > deadline:
            raise SystemExit(f"group {plan.group} still has its dead member after {_WAIT_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


async def _uncommitted(plan: Plan) -> list[str]:
    """A fault when not all is committed in the end."""
    committed = await kafka_tools.committed(plan.bootstrap, plan.group, plan.topic)
    ends = await kafka_tools.end_offsets(plan.bootstrap, plan.topic)
    await kafka_tools.delete_group(plan.bootstrap, plan.group)
    found = {number: one.offset for number, one in committed.items()}
    return [] if found == ends else [f"committed {found} instead of {ends}"]


Journal = tuple[Collection[bytes], Sequence[bytes]]
"""Places of records: `(began, ended)`."""


def judge(first: Journal, second: Journal, per_key: Sequence[int]) -> Killed:
    """What ran again, and whether each record ended, in the order of its key, the stuck one included."""
    (began, ended), (began_again, ended_again) = first, second
    done, again = set(ended), set(began_again)
    in_flight = set(began) - done
    found = Killed(done=len(done), in_flight=len(in_flight))
    found.redelivered, found.ran_again = len(done & again), len(again & (done | in_flight))
    found.faults = check([*ended, *ended_again], [*per_key, 1])[1]
    return found


# -- all rounds ----------------------------------------------------------------------------------


def measure(rounds: int, records: int, bootstrap: str) -> Measurements:
    """Both ways in each round."""
    runs: dict[str, list[Measured]] = {SETTLED: [], LOADED: []}
    for number in range(rounds):
        for name, found in runs.items():
            one = killed(bootstrap, records, is_settled=name == SETTLED)
            found.append(one)
            what = f"{one.redelivered} of {one.done} done ones again ({one.share:.2%})"
            say(number, name, f"{what}, {one.in_flight} in flight", one.faults)
    return runs


def result(runs: Measurements) -> dict[str, object]:
    """Medians; each way has the target."""
    kills = {name: [one for one in found if isinstance(one, Killed)] for name, found in runs.items()}
    shares = {name: [one.share for one in found] for name, found in kills.items()}
    return {
        "redelivered": {name: middle([one.redelivered for one in found], 0) for name, found in kills.items()},
        "in_flight": {name: middle([one.in_flight for one in found], 0) for name, found in kills.items()},
        "share": {name: middle(found, 5) for name, found in shares.items()},
        "share_spread": {name: spread(found, 5) for name, found in shares.items()},
        "targets": {name: at_most(TARGET_SHARE, middle(found, 5)) for name, found in shares.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    made = parser("P6: what kill -9 repeats with one stuck record below many done ones.")
    made.add_argument("--records", type=int, default=RECORDS, help="done when the member is killed")
    options = parsed(made, arguments)
    settings = {
        "records": options.records,
        "partitions": 1,
        "keys": f"{KEYS} at random, and one of the stuck record",
        "value_bytes": VALUE_BYTES,
        "delivery": "at least once, asyncpar's defaults",
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        SETTLED: f"no-op handler, all done, killed {SETTLED_SECONDS} s after the last one",
        LOADED: f"asyncio.sleep({WORK_SECONDS}), twice as many records, killed in the middle",
    }
    return conduct(options, Course(settings, partial(measure, options.rounds, options.records), result))


if __name__ == "__main__":
    sys.exit(main())
