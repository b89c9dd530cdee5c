"""The results page of the docs and its plots, from the JSON that is kept in `benchmarks/results`.

    python -m benchmarks.page [FILE ...]

What lives here: which files there are, and the command. What never does: a figure, a word or a line of them:
see `page_results.py`, `page_text.py` and `page_plots.py`. FILEs are the JSON of runs (`<workload>.json`, as
`all.py` writes it): they are kept in `benchmarks/results` first, without what is bulky. Called by
`make results`, and by `docs/generate.py`, which also says whether the page is current. Always: the same
results give the same files, on any machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.page_plots import plots
from benchmarks.page_results import Found, kept, read
from benchmarks.page_svg import svg
from benchmarks.page_text import Workload, page

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
README = HERE / "README.md"
_ROW = re.compile(r"^\| `(\w+)\.py` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def workloads() -> list[Workload]:
    """All of them, in the order of the table in `benchmarks/README.md`. ValueError when there is no such."""
    found: list[Workload] = []
    for name, question, against, target in _ROW.findall(README.read_text(encoding="utf-8")):
        found.append(
            Workload(name, question, found[-1].against if against == "the same" else against, target)
        )
    if not found:
        raise ValueError(f"{README}: no table of workloads")
    return found


def results(folder: Path = RESULTS) -> dict[str, Found]:
    """What is kept, by workload and in their order. ValueError when a file is no benchmark's JSON."""
    files = [(one.name, folder / f"{one.name}.json") for one in workloads()]
    return {name: read(path) for name, path in files if path.exists()}


def files(found: Mapping[str, Found]) -> dict[str, str]:
    """The page and its plots by their names below `docs/`."""
    drawn = plots(found)
    return {
        "benchmarks.md": page(workloads(), found, drawn),
        **{f"benchmarks/{name}.svg": svg(plot) for name, plot in drawn.items()},
    }


def keep(paths: Sequence[Path], folder: Path = RESULTS) -> None:
    """Put the JSON of runs there. ValueError, and nothing is kept, when one of them is not of a workload."""
    known = [one.name for one in workloads()]
    found = {path.stem: kept(read(path)) for path in paths}
    for name in found.keys() - set(known):
        raise ValueError(f"{name}.json: there is no workload {name!r}; there are {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in found.items():
        (folder / f"{name}.json").write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")


def write(docs: Path = DOCS) -> None:
    """The page and its plots, of what is kept; plots that there are no figures for any more go."""
    made = files(results())
    (docs / "benchmarks").mkdir(exist_ok=True)
    for path in (docs / "benchmarks").glob("*.svg"):
        if f"benchmarks/{path.name}" not in made:
            path.unlink()
    for name, text in made.items():
        (docs / name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep, then write. Returns the exit code: 2 when a file cannot be used."""
    parser = argparse.ArgumentParser(description="The results page, from benchmarks/results.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON of runs, to be kept first")
    options = parser.parse_args(arguments)
    try:
        keep(options.files)
        write()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
