"""The house itself: what the README, the docs, the build files and the tests say about each other is true."""

from __future__ import annotations

import ast
import importlib.util
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import asyncpar
from asyncpar.app import App
from asyncpar.metrics import REGISTRY
from asyncpar.settings import KNOBS
from asyncpar.topics import specs_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)")

# Written in parts, so that this file does not find itself.
OF_ONE_MACHINE = [
    "/opt/" + "wheels",
    "file:" + "///",
    "/work/" + "main",
    "/tmp/" + "dev",
    "--find-" + "links /",
]
LONG_ON_PURPOSE = {
    "asyncpar/runtime/workers.py _work": "the hot loop: a further call per record costs more than the length",
}
GENERATED_OR_FOREIGN = {".git", ".venv", "site", "build", "dist", "node_modules"}


def snippets(language: str, pages: list[Path]) -> list[Any]:
    """Each fenced block of `language` as a test case that is named after its page and line."""
    found = [
        (page, text, match)
        for page in pages
        for text in [page.read_text(encoding="utf-8")]
        for match in FENCE.finditer(text)
        if match[1] == language
    ]
    return [
        pytest.param(match[2], id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}")
        for page, text, match in found
    ]


def own_files() -> Iterator[Path]:
    """Every text file that belongs to the project, whether or not it was committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        paths = [path for path in ROOT.rglob("*") if not GENERATED_OR_FOREIGN & set(path.parts)]
    return (path for path in paths if path.is_file())


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Runs a snippet as a module of its own, which is forgotten after the test."""

    def run(code: str) -> ModuleType:
        module = ModuleType("asyncpar_snippet")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), module.__dict__)
        return module

    return run


# -- README and docs -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", snippets("python", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]))
def test_python_snippets_run_and_their_handlers_are_accepted(
    code: str, imported: Callable[[str], ModuleType]
) -> None:
    """Each Python block works as a module, and what it declares passes the checks made before a start."""
    module = imported(code)
    apps = [value for value in vars(module).values() if isinstance(value, App)]
    if not apps and any(specs_of(value) for value in vars(module).values()):
        apps = [App(group="snippet")]
        apps[0].include(module)
    for app in apps:
        assert not app.handlers or app.groups()


@pytest.mark.parametrize("code", snippets("python", [ROOT / "CONTRIBUTING.md"]))
def test_examples_for_contributors_are_python(code: str) -> None:
    """The examples of style are excerpts: they parse, and each function has a docstring."""
    functions = [
        node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert functions
    assert all(ast.get_docstring(function) for function in functions)


@pytest.mark.parametrize("text", snippets("toml", PAGES))
def test_toml_snippets_name_settings_that_exist(text: str) -> None:
    """Each key of a settings file that the docs show is a knob."""
    document = tomllib.loads(text)
    tables = [document, *document.get("env", {}).values()]
    keys = {key for table in tables for key, value in table.items() if not isinstance(value, dict)}
    assert keys <= set(KNOBS)


@pytest.mark.parametrize("text", snippets("console", PAGES))
def test_commands_of_the_docs_exist(text: str) -> None:
    """Each `make` target is in the Makefile, and each `asyncpar` command and option in the command line."""
    from asyncpar.cli.main import asyncpar as command_line

    for line in re.findall(r"^\$ (.*?)(?:\s+#.*)?$", text, re.MULTILINE):
        program, *words = line.split()
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        if program == "asyncpar":
            known = {name for one in command_line.commands[words[0]].params for name in one.opts}
            assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that exists."""
    dead = [
        link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()
    ]
    assert dead == []


def test_navigation_and_pages_agree() -> None:
    """mkdocs.yml names every page, and no page that is not there."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w./-]+\.md", navigation))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_every_decision_is_in_the_index_and_says_why_and_until_when() -> None:
    """A decision without a reason, a trigger or a line in the index is a rumour."""
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for page in [*sorted((DOCS / "decisions").glob("0*.md")), DOCS / "decisions" / "template.md"]:
        text = page.read_text(encoding="utf-8")
        assert page.name in index
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## What",
            "## Why",
            "## Revisit when",
        ]


def test_every_metric_is_on_the_metrics_page() -> None:
    """The page names each metric of the registry with its prefix, kind and labels, and no other."""
    rows = re.findall(
        r"^\| `asyncpar_(\w+)` \| (\w+) \| ([^|]+) \|", (DOCS / "metrics.md").read_text(), re.MULTILINE
    )
    assert rows == [(one.name, one.kind, ", ".join(one.labels) or "-") for one in REGISTRY]


def test_metrics_that_the_docs_mention_exist() -> None:
    """No page names a metric that no code exports."""
    names = {f"asyncpar_{metric.name}" for metric in REGISTRY}
    mentioned = {name for page in PAGES for name in re.findall(r"`(asyncpar_\w+)`", page.read_text())}
    assert mentioned <= names


def test_every_public_name_is_on_the_api_page() -> None:
    """By its own entry, or with its whole module."""
    entries = set(re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name: getattr(asyncpar, name) for name in asyncpar.__all__ if name != "__version__"}
    missing = [
        name
        for name, value in named.items()
        if not {f"{value.__module__}.{value.__qualname__}", value.__module__} & entries
    ]
    assert missing == []


def test_queries_of_the_docs_name_metrics_and_labels_that_exist() -> None:
    """Each PromQL expression asks for exported series by labels that they carry."""
    text = (DOCS / "alerts.md").read_text(encoding="utf-8")
    queries = [
        *re.findall(r"^ +expr: (.*)$", text, re.MULTILINE),
        *re.findall(r"`(\w+[^`]*\(.*?asyncpar_.*?)`", text),
    ]
    labels = {f"asyncpar_{one.name}": {*one.labels, "instance"} for one in REGISTRY}
    labels |= {
        f"asyncpar_{one.name}_bucket": {*one.labels, "le"} for one in REGISTRY if one.kind == "histogram"
    }
    assert len(queries) > 20
    for query in queries:
        named = re.findall(r"\basyncpar_\w+", query)
        assert named, query
        asked = re.findall(r"(\w+)=~?\"", query)
        asked += [one for group in re.findall(r" by \(([^)]*)\)", query) for one in group.split(", ")]
        for name in named:
            assert set(asked) <= labels[name], query


def test_generated_pages_are_current() -> None:
    """Settings and metrics pages are what the code says; `make pages` writes them."""
    spec = importlib.util.spec_from_file_location("asyncpar_docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.outdated() == []


# -- build files ---------------------------------------------------------------------------------


def test_nothing_is_tied_to_one_machine() -> None:
    """No file names a folder of somebody's machine or a local package index."""
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in own_files()
        for text in OF_ONE_MACHINE
        if text.encode() in path.read_bytes()
    ]
    assert found == []


def test_lock_is_all_pins_with_hashes() -> None:
    """requirements-dev.lock holds versions and hashes, no option, index, path or asyncpar itself."""
    text = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    blocks = [block for block in text.replace("\\\n", "").splitlines() if block and not block.startswith("#")]
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+==\S+( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+$", block), block[:80]
    names = {block.split("==")[0] for block in blocks}
    assert "asyncpar" not in names


def test_lock_covers_what_the_project_declares() -> None:
    """Each dependency of the project, its extras and its build is pinned."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    declared = [*project["dependencies"], *document["build-system"]["requires"]]
    for requirements in project["optional-dependencies"].values():
        declared += requirements
    names = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in declared} - {"asyncpar"}  # type: ignore[index]
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE))
    assert names <= locked


def test_version_is_said_once() -> None:
    """pyproject.toml, the package and the newest entry of the changelog agree."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(
        r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest is not None
    assert asyncpar.__version__ == declared == newest[1]


def test_every_target_of_the_makefile_explains_itself() -> None:
    """Each phony target has a description, which `make` alone prints."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == set(re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE))


def test_the_gate_runs_what_people_run() -> None:
    """The gate is executable, demands a broker, and ends with the test command of the README."""
    gate = ROOT / ".ci" / "run"
    text = gate.read_text(encoding="utf-8")
    assert gate.stat().st_mode & stat.S_IXUSR
    assert "export ASYNCPAR_REQUIRE_BROKER=1" in text
    targets = re.search(r"^for target in (.*); do$", text, re.MULTILINE)
    assert targets is not None
    assert targets[1].split()[-1] == "test"
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


# -- files and tests -----------------------------------------------------------------------------


def test_every_exported_name_loads() -> None:
    """Each name of the front door can be imported, and importing the door loads no client."""
    for name in asyncpar.__all__:
        assert getattr(asyncpar, name) is not None
    code = "import sys, asyncpar; sys.exit('aiokafka' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_every_test_has_a_sentence() -> None:
    """Each test function of the suite says in a docstring what holds when it passes."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_file_opens_with_its_purpose() -> None:
    """Each module of the package and of the tests starts with a docstring, empty ones excepted."""
    silent = [
        str(path.relative_to(ROOT))
        for folder in ("asyncpar", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_files_and_functions_stay_readable() -> None:
    """No file of the package passes 400 lines and no function 60, docstrings left out, without a reason."""
    found = set()
    for path in (ROOT / "asyncpar").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        if text.count("\n") > 400:
            found.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > 60:
                found.add(f"{name} {node.name}")
    assert found <= LONG_ON_PURPOSE.keys()


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or first.lineno) - first.lineno + 1
