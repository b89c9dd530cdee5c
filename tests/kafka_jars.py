"""Kafka's jars and the Java that runs them: fetched by Maven once, kept for all later runs.

What lives here: the cache and the command line of the Java machine. What never does: processes that stay
(`kafka_broker.py`). Called by `kafka_broker.py` and `conftest.py`. Always: the cache is keyed by the pom's
content and appears whole or not at all, so runs at the same time do not disturb each other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

POM = Path(__file__).parent / "kafka" / "pom.xml"
FETCH_TIMEOUT_SECONDS = 300.0
OLDEST_JAVA = 17

_LOG4J = """
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class BrokerUnavailable(RuntimeError):  # noqa: N818  (a state of the machine, not a fault)
    """This machine cannot run Kafka: no Java, no Maven, or the jars could not be fetched."""


def missing_tools() -> str | None:
    """Why Kafka cannot run here, as one line; None when it can. Looks at tools only, fetches nothing."""
    if shutil.which("java") is None:
        return f"no `java` on PATH: install Java {OLDEST_JAVA} or newer"
    text = java_version()
    found = re.search(r'version "(\d+)', text)
    if found is None or int(found[1]) < OLDEST_JAVA:
        return f"`java -version` says {text.splitlines()[0]!r}: Kafka needs Java {OLDEST_JAVA} or newer"
    if not _cache_home().is_dir() and shutil.which("mvn") is None:
        return "no `mvn` on PATH and no cached Kafka jars: install Maven"
    return None


@functools.cache
def java_version() -> str:
    """What `java -version` prints."""
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stderr.strip() or done.stdout.strip() or "nothing"


def _cache_home() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "asyncpar-tests" / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"


def kafka_home() -> Path:
    """Where Kafka's jars and log settings are; Maven fetches them once. Raises BrokerUnavailable."""
    home = _cache_home()
    if home.is_dir():
        return home
    if shutil.which("mvn") is None:
        raise BrokerUnavailable("no `mvn` on PATH and no cached Kafka jars: install Maven")
    home.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=home.parent))
    try:
        _fetch_jars(building)
        (building / "log4j2.properties").write_text(_LOG4J)
        with suppress(OSError):  # another run was first: its folder holds the same
            building.rename(home)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return home


def _fetch_jars(building: Path) -> None:
    pom = shutil.copy(POM, building / "pom.xml")
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    command.append(f"-DoutputDirectory={building / 'libs'}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BrokerUnavailable(f"Maven fetched no Kafka jars within {FETCH_TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode or not any((building / "libs").glob("kafka_*.jar")):
        output = (done.stdout + done.stderr)[-1500:].strip()
        raise BrokerUnavailable(f"Maven could not fetch Kafka's jars: {output}")


def java_command(home: Path, *options: str) -> list[str]:
    """`java` with Kafka's class path; the main class and its arguments are to follow."""
    # The class-data archive holds for one exact class path: no wildcard, whose order the file system chooses.
    jars = os.pathsep.join(str(jar) for jar in sorted((home / "libs").glob("*.jar")))
    fixed = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]
    return ["java", *fixed, *options, f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}", "-cp", jars]
