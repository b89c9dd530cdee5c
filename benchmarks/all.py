"""All workloads one after the other, each with a JSON file of its own.

    python benchmarks/all.py [--into FOLDER] [--only NAME ...] [--bootstrap-servers host:port] [--rounds N]

What lives here: the list of the workloads, and going on after one that failed. What never does: measuring.
Each runs as a command of its own, with its sizes' defaults, so on a broker of its own unless one is given,
and takes minutes; `<name>.json` and `<name>.txt` (what it printed) come into the folder, by default
`build/benchmarks`. Exit code 1 when any of them failed, and it is said which.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "benchmarks"
WORKLOADS = (
    *(f"p{number}" for number in range(1, 12)),
    "s1",
    "s2",
    "threads",
    "busy_partition",
)
WITHOUT_BROKER = frozenset({"p11"})
MOST_SECONDS = 3_600.0
"""Of one workload: then it is killed, with all that it has started."""


def run(name: str, into: Path, options: Sequence[str], scripts: Path = HERE) -> int:
    """The exit code of one workload, whose output is shown and kept; below 0 when it was killed."""
    command = [sys.executable, str(scripts / f"{name}.py"), "--json", str(into / f"{name}.json"), *options]
    with (
        (into / f"{name}.txt").open("w") as kept,
        # A group of its own: what it has started is ended with it.
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process,
    ):
        timer = threading.Timer(MOST_SECONDS, _end, [process])
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                kept.write(line)
            return process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; 1 when any failed."""
    parser = argparse.ArgumentParser(description="All workloads, one after the other.")
    parser.add_argument("--into", type=Path, default=FOLDER, help="where the JSON goes; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=WORKLOADS, metavar="NAME")
    parser.add_argument("--bootstrap-servers", help="a real broker; default: each starts one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    return run_all(options.only, options.into, options.rounds, options.bootstrap_servers)


def run_all(names: Sequence[str], into: Path, rounds: int, broker: str | None, scripts: Path = HERE) -> int:
    """Each of `names`, whatever becomes of the others; 1 when any failed."""
    failed: list[str] = []
    for name in names:
        began = time.monotonic()
        print(f"\n=== {name} ===", flush=True)
        given = ["--bootstrap-servers", broker] if broker and name not in WITHOUT_BROKER else []
        code = run(name, into, ["--rounds", str(rounds), *given], scripts)
        print(f"=== {name}: exit code {code}, {time.monotonic() - began:.0f} s ===", flush=True)
        if code != 0:
            failed.append(f"{name} (exit code {code})")
    print(f"\n{len(names) - len(failed)} of {len(names)} workloads ended well; their JSON is in {into}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
