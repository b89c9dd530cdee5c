"""A parent process with two lanes, for tests that kill it, freeze it, or send signals to its group.

`python -m tests.executors.lane_parent START_METHOD HANDLER LEASE_SECONDS VALUE...`: each lane gets one batch
of all values. It prints a JSON line when all runs, one for each reply, and closes
them at a line on stdin, or forgets to at the line `forget`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time

from asyncpar.executors.lane import ChildWork, lanes
from asyncpar.executors.lane_port import Batch, Reply
from tests.executors.lane_rig import MODULE, job, until


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _replied(reply: Reply) -> None:
    _say(run=reply.run, failures=len(reply.failures))


async def main(start_method: str, handler: str, lease_seconds: float, values: list[str]) -> None:
    """Until a line comes in, or the process is ended."""
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, lambda one=one: _say(signal=one))
    child = ChildWork(MODULE, handler, handler, "g", lifespan=f"{MODULE}:lifespan")
    make = lanes(child, start_method)
    pair = [make(_replied, lambda death: _say(death=death.how)) for _ in range(2)]
    await asyncio.gather(*(lane.start() for lane in pair))
    jobs = [job(value, offset) for offset, value in enumerate(values)]
    lease_until = time.monotonic_ns() + int(lease_seconds * 1e9)
    for lane in pair:
        lane.renew_lease(lease_until)
        lane.send(Batch(1, jobs))
    await until(lambda: all(lane.progress() for lane in pair), "both run")
    _say(pids=[lane.pid for lane in pair], lease_until=lease_until)
    line = loop.create_future()
    loop.add_reader(sys.stdin, lambda: line.done() or line.set_result(None))
    await line
    if sys.stdin.readline() == "forget\n":
        raise RuntimeError("left without closing")
    for lane in pair:
        await lane.close(20)
    _say(closed=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
