"""Writes what the docs take from code and from results of benchmarks. With `--check` it only compares.

What lives here: which page comes from where, and the page of the metrics. What never does: a name, a
default or an explanation; those stand in the code. Called by `make pages`, `make docs` and the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

from asyncpar.cli import settings_page
from asyncpar.metrics import HISTOGRAM_BOUNDS, REGISTRY

DOCS = Path(__file__).parent

_METRICS_INTRODUCTION = f"""\
# Metrics

<!-- Written by `make pages` from asyncpar/metrics.py. Do not edit. -->

Served at `/metrics` in the Prometheus text format, or in OpenMetrics to a scraper that accepts it. A series
lives as long as what it describes: those of a partition that was taken away are gone with the next scrape.
Counters start at 0 with the process.

Histograms measure seconds, in {len(HISTOGRAM_BOUNDS)} buckets at powers of two, from
{HISTOGRAM_BOUNDS[0] * 1e6:.2f} microseconds to {HISTOGRAM_BOUNDS[-1]:.0f} seconds. `App.metrics()` returns
the same values, without the prefix. [What to alert on](alerts.md) has rules that use them.

| metric | kind | labels | what it says |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The table of the registry as Markdown, in its order."""
    rows = [
        f"| `asyncpar_{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |"
        for metric in REGISTRY
    ]
    return _METRICS_INTRODUCTION + "\n".join(rows) + "\n"


def proof_page() -> str:
    """The page on proof as it is, with its tables made anew. ValueError names a table without a place."""
    _import_from(DOCS, DOCS.parent)  # the tables' module, and the lists in tests/
    from proof_tables import filled

    return filled((DOCS / "proof.md").read_text(encoding="utf-8"))


def benchmark_pages() -> dict[str, str]:
    """The page of the benchmarks and its plots. ValueError when a kept result cannot be read."""
    _import_from(DOCS.parent)
    from benchmarks import page

    return page.files(page.results())


def _import_from(*folders: Path) -> None:
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


PAGES = {"settings.md": settings_page.page, "metrics.md": metrics_page, "proof.md": proof_page}


def made() -> dict[str, str]:
    """Everything that is written, by its name below `docs/`."""
    return {name: page() for name, page in PAGES.items()} | benchmark_pages()


def outdated() -> list[str]:
    """Names of the files that differ from what the code and the results say."""
    return [
        name
        for name, text in made().items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those that are not current. Returns the exit code."""
    if arguments == ["--check"]:
        names = outdated()
        for name in names:
            print(f"docs/{name} is not current: run `make pages` and commit it", file=sys.stderr)
        return 1 if names else 0
    for name, text in made().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
