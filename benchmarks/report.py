"""What is said about a benchmark's runs: environment, settings, one line per run, medians, ratios, a verdict.

What lives here: words and figures. What never does: running anything. Called by `harness.py`, from where the
workloads know these functions.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import VALUE_BYTES, Load
from tests.kafka_jars import POM

if TYPE_CHECKING:
    from benchmarks.harness import Results, Row, Run

_LINE = 80


def told(run: Run) -> str:
    """One run on one line."""
    notes = [f"{run.duplicates} duplicates", *run.notes]
    verdict = "; ".join([*run.faults, *run.notes]) if run.faults else f"right, {', '.join(notes)}"
    return f"{run.rate:>10,.0f} records/s   {run.total_seconds:6.2f} s in all   {verdict}"


def environment() -> dict[str, object]:
    """What the figures were measured with."""
    import aiokafka
    import confluent_kafka

    import asyncpar

    return {
        "python": platform.python_version(),
        "asyncpar": asyncpar.__version__,
        "aiokafka": aiokafka.__version__,
        "confluent_kafka": confluent_kafka.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}, {platform.system()}",
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def broker(address: str | None) -> str:
    """The one at the address that was given, or the version of our own."""
    if address:
        return f"the one at {address}"
    version = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([^<]+)<", POM.read_text())
    return f"Kafka {version[1] if version else 'of an unknown version'}, one node of its own on this machine"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def settings(row: Row, rounds: int) -> dict[str, object]:
    """The workload."""
    return {
        "records": row.load.records,
        "rounds": rounds,
        **({"runs in each round": f"{row.passes}; of rivals 1"} if row.passes > 1 else {}),
        "partitions": row.load.partitions,
        "keys": _keys(row.load),
        "value_bytes": VALUE_BYTES,
        **row.settings,
    }


def _keys(load: Load) -> str:
    if not load.exponent:
        return f"{load.keys} at random"
    busiest = max(load.per_key)
    return f"{load.keys} by Zipf's law, exponent {load.exponent:g}; the busiest has {busiest} records"


def summary(row: Row, results: Results) -> dict[str, object]:
    """Medians, spread and, when its two contenders ran, the ratio and the row's own figures."""
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    is_compared = {row.subject, row.baseline} <= set(rates)
    compared = {**_ratio(row, rates), **row.figures(results)} if is_compared else {}
    return {
        "median_records_per_second": {name: round(rate) for name, rate in medians.items()},
        "spread": {name: [round(min(found)), round(max(found))] for name, found in rates.items()},
        **compared,
        "faults": {name: sum(len(run.faults) for run in runs) for name, runs in results.items()},
    }


def _ratio(row: Row, rates: Mapping[str, Sequence[float]]) -> dict[str, object]:
    ratios = ratios_of(rates[row.subject], rates[row.baseline])
    target = {} if row.target is None else {"target_ratio": row.target}
    return {
        "ratio_of": [row.subject, row.baseline],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        **target,
    }


def ratios_of(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Run by run, or of the medians where one ran more often; 0.0 where there is nothing to compare with."""
    if len(ours) != len(theirs):
        ours, theirs = [statistics.median(ours)], [statistics.median(theirs)]
    return [mine / yours if yours else 0.0 for mine, yours in zip(ours, theirs, strict=True)]


def show(title: str, fields: Mapping[str, object]) -> None:
    """A part of the table for people. A mapping too long for a line has one for each of its names."""
    print(f"\n{title}")
    for name, value in fields.items():
        if isinstance(value, Mapping) and len(str(value)) > _LINE:
            print(f"  {name}")
            for inner, one in value.items():
                print(f"    {inner:<24} {one}")
        else:
            print(f"  {name:<26} {value}")


def title(row: Row, rows: Sequence[Row], part: str) -> str:
    """Of a part of the table: with the row's name where there are several."""
    return f"{row.name}: {part}" if len(rows) > 1 else part


def plain(results: Results) -> dict[str, list[dict[str, object]]]:
    """The runs as JSON has them."""
    return {name: [asdict(run) | {"rate": run.rate} for run in found] for name, found in results.items()}


def exit_code(measured: Iterable[tuple[Row, Results]]) -> int:
    """1 when a contender was wrong in any run, and that is said. A rival's faults are said and are 0."""
    wrong: dict[str, bool] = {}
    for row, results in measured:
        for name, runs in results.items():
            if any(run.faults for run in runs):
                wrong[name] = name in row.rivals
    for rivals, word in (True, "wrong, but not ours"), (False, "FAILED"):
        names = [name for name, is_rival in wrong.items() if is_rival is rivals]
        if names:
            print(f"\n{word}: {' and '.join(names)} lost, reordered or did not commit records; see above")
    return 1 if False in wrong.values() else 0
