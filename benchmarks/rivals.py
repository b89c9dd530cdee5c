"""Where rivals run: an environment of its own for each, made once from its published package.

What lives here: a virtual environment with a package from PyPI, a folder with jars from Maven and a program
of ours that was compiled against them, and the cache of both. What never does: running them
(`rivals_run.py`). Called by the workloads through `harness.Row.preparations`. Always: a folder of the cache
is keyed by what it is made from and appears whole or not at all; what this machine has not got is said as
`LeftOut`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.choice import LeftOut
from tests.kafka_jars import OLDEST_JAVA, java_version

HERE = Path(__file__).resolve().parent
MAKE_TIMEOUT_SECONDS = 300.0
_ASK_TIMEOUT_SECONDS = 30.0
_LAST_LINES = 3


@dataclass(frozen=True)
class PythonEnvironment:
    """A virtual environment with `requirement`, for a Python of at least `oldest`. `script` lies beside this.

    `packages` are those whose versions are told.
    """

    requirement: str
    script: str
    packages: tuple[str, ...]
    oldest: tuple[int, int] = (3, 11)

    def prepare(self) -> str:
        """Make it, if that is not done yet; its versions. Raises LeftOut."""
        home = _made(self._home, self.requirement, self._make)
        code = "import sys, importlib.metadata as m; print(*[f'{n} {m.version(n)},' for n in sys.argv[1:]],"
        return _output([_python(home), "-c", f"{code} 'Python', sys.version.split()[0])", *self.packages])

    @property
    def command(self) -> list[str]:
        """What runs the script; its arguments are to follow."""
        return [self.python, str(HERE / self.script)]

    @property
    def python(self) -> str:
        """Its interpreter."""
        return _python(self._home)

    @property
    def _home(self) -> Path:
        return _cache() / f"{self.script.removesuffix('.py')}-{_digest(self.requirement)}"

    def _make(self, home: Path) -> None:
        _run([find_python(self.oldest), "-m", "venv", str(home)], "make a virtual environment")
        pip = [_python(home), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, self.requirement], f"install {self.requirement} by pip")


@dataclass(frozen=True)
class JavaEnvironment:
    """`main`, a class in `folder` beside this, compiled against the jars that the folder's pom.xml names.

    `packages` are the jars whose versions are told.
    """

    folder: str
    main: str
    packages: tuple[str, ...]

    def prepare(self) -> str:
        """Make it, if that is not done yet; its versions. Raises LeftOut."""
        for tool in "java", "javac", "mvn":
            if shutil.which(tool) is None:
                raise LeftOut(f"no `{tool}` on PATH: install Java {OLDEST_JAVA} or newer (a JDK) and Maven")
        home = _made(self._home, self.folder, self._make)
        jars = sorted(path.stem for path in (home / "libs").glob("*.jar"))
        known = [jar for name in self.packages for jar in jars if re.match(rf"{name}-\d", jar)]
        java = java_version().splitlines()[0]
        return ", ".join([*(re.sub(r"-(?=\d)", " ", jar, count=1) for jar in known), java])

    @property
    def command(self) -> list[str]:
        """What runs the class; its arguments are to follow."""
        path = os.pathsep.join([str(self._home / "classes"), str(self._home / "libs" / "*")])
        return ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", path, self.main]

    @property
    def _sources(self) -> tuple[Path, Path]:
        return HERE / self.folder / "pom.xml", HERE / self.folder / f"{self.main}.java"

    @property
    def _home(self) -> Path:
        return _cache() / f"{self.folder}-{_digest(*(path.read_text() for path in self._sources))}"

    def _make(self, home: Path) -> None:
        pom, source = self._sources
        libs = home / "libs"
        maven = ["mvn", "-q", "-B", "-f", str(shutil.copy(pom, home / "pom.xml"))]
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={libs}"]
        _run([*maven, *copy], "fetch its jars by Maven")
        compiler = ["javac", "-cp", str(libs / "*"), "-d", str(home / "classes")]
        _run([*compiler, str(source)], f"compile {source.name}")


# -- the cache -----------------------------------------------------------------------------------


def _cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "asyncpar-benchmarks"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _made(home: Path, what: str, make: Callable[[Path], None]) -> Path:
    """`home`, which `make` fills in a folder of another name, if it is not there yet."""
    if home.is_dir():
        return home
    print(f"making the environment of {what} in {home} (once)", flush=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=home.parent))
    try:
        make(building)
        with suppress(OSError):  # another run was first: its folder holds the same
            building.rename(home)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return home


# -- tools ---------------------------------------------------------------------------------------


@functools.cache
def find_python(oldest: tuple[int, int]) -> str:
    """One of at least this version: this interpreter, one on PATH, or one that pyenv keeps. LeftOut: none."""
    names = [shutil.which(f"python3.{minor}") for minor in range(oldest[1], oldest[1] + 4)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    kept = sorted((str(path) for path in pyenv.glob("3.*/bin/python")), key=_numbers)
    for candidate in [sys.executable, *filter(None, names), *kept]:
        with suppress(LeftOut, ValueError):
            major, minor = _output([candidate, "-c", "import sys; print(*sys.version_info[:2])"]).split()
            if (int(major), int(minor)) >= oldest:
                return candidate
    raise LeftOut("no Python {}.{} or newer: install it, or put python{}.{} on PATH".format(*oldest, *oldest))


def _numbers(path: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path)]


def _python(home: Path) -> str:
    return str(home / "bin" / "python")


def _output(command: Sequence[str]) -> str:
    return _run(command, f"run {command[0]}", _ASK_TIMEOUT_SECONDS).strip()


def _run(command: Sequence[str], what: str, seconds: float = MAKE_TIMEOUT_SECONDS) -> str:
    """What it prints. LeftOut: it could not do `what`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(f"could not {what}: {error}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-_LAST_LINES:]
        raise LeftOut(f"could not {what}: {' '.join(lines)}")
    return done.stdout
