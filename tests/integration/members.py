"""Members of a group as processes of their own, run by the command line as users do, to be killed and frozen.

What lives here: `Member`, one process. What never does: what its handlers do (`plan.py`, `member_app.py`).
Called by the fixture `members`. Always: waits are bounded, and a process that a test forgets is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from tests.cli.program import ROOT, environment
from tests.kafka_broker import free_port

FAST: dict[str, object] = {
    "session_timeout_ms": 1500,
    "heartbeat_interval_ms": 300,
    "commit_interval_ms": 100,
    "commit_every": 200,
    "max_revoke_grace_ms": 3000,
    "metadata_max_age_ms": 500,
}
"""Settings that make a group settle within seconds; the test brokers allow such short sessions."""

STEADY: dict[str, object] = {"session_timeout_ms": 10_000}
"""For a group that is to lose nobody: a machine that stands still for a second costs no member its place."""


class Told(Protocol):
    """What a member process is told to do."""

    def to_environment(self) -> dict[str, str]: ...


class Member:
    """`asyncpar run` with an app, from start to end. `log` is all it wrote on stderr."""

    APP = "tests.integration.member_app:app"
    """What it runs."""

    def __init__(
        self, plan: Told, bootstrap: str, group: str, log_path: Path, *arguments: str, **settings: object
    ) -> None:
        self.http_port = free_port()
        self._log_path = log_path
        values = {**FAST, **settings}
        command = [sys.executable, "-m", "asyncpar", "run", self.APP]
        command += ["--bootstrap-servers", bootstrap, "--group", group, "--http-port", str(self.http_port)]
        for name, value in values.items():
            command += ["--set", f"{name}={value}"]
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env=environment(**plan.to_environment()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def name(self) -> str:
        """What it is called in the history."""
        return str(self.pid)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing when the process has ended."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait: nothing of it runs any more when this returns."""
        self.send(signal.SIGKILL)
        self._process.wait(10)

    def ended(self, timeout_seconds: float = 20.0) -> int:
        """The exit code; the log is shown when the process does not end in time."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the member did not end within {timeout_seconds} s; it wrote:\n{self.log[-4000:]}"
            ) from None

    def stop(self, timeout_seconds: float = 20.0) -> int:
        """SIGTERM, then the exit code."""
        self.send(signal.SIGTERM)
        return self.ended(timeout_seconds)

    def get(self, path: str) -> str | None:
        """The body of an HTTP answer of any status; None while nobody answers. Blocks for a second at
        most.
        """
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=1) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()
        except OSError:
            return None

    def metrics(self, labels: Mapping[str, str]) -> dict[str, float]:
        """The samples with exactly these labels, by name; empty while nobody answers."""
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(self.get("/metrics") or "")
            for sample in family.samples
            if sample.labels == labels
        }

    def partition(self, number: int = 0) -> dict[str, Any] | None:
        """The status of partition `number`; None while it is not assigned."""
        body = self.get("/status")
        if body is None:
            return None
        found = [
            part
            for group in json.loads(body)["groups"]
            for part in group["partitions"]
            if part["partition"] == number
        ]
        return found[0] if found else None
