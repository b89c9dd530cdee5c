"""What a soak says at its end. Pure: figures in, text out. Called by `__main__.py` and `test_soak.py`."""

from __future__ import annotations

from tests.soak.soaking import Outcome
from tests.soak.trend import Judged


def summary(outcome: Outcome) -> str:
    """All of it, as lines."""
    lines = [""]
    if outcome.judged:
        head = f"{'series':<18}{'start':>10}{'end':>10}{'per hour':>12}{'growth':>10}{'allowed':>10}"
        lines += [head, *map(_row, outcome.judged), ""]
    rows: list[tuple[str, str | int]] = [
        ("one member's capacity, records/s", f"{outcome.capacity:.0f}"),
        ("rate of the soak, records/s", outcome.rate),
        ("minutes", f"{outcome.seconds / 60:.1f}"),
        ("samples", f"{outcome.samples}, {outcome.missed} missed"),
        ("CPU, share of a core", f"{outcome.cpu_share:.0%}"),
        ("records", outcome.records),
    ]
    lines += [f"{name:<38}{value}" for name, value in rows]
    found = outcome.faults_found
    if outcome.void is not None:
        lines.append(f"no verdict: {outcome.void}")
    elif found:
        lines += [f"FAILED ({len(found)}), kept: {outcome.folder}", *(f"  {text}" for text in found)]
    else:
        lines.append("ok: no slope; every record ran once, in the order of its key, and is committed")
    return "\n".join(lines)


def _row(one: Judged) -> str:
    unit = f" {one.unit}" if one.unit else ""
    verdict = "ok" if one.is_ok else f"FAILED: {one.rule}"
    figures = (
        f"{one.start:>10.1f}{one.end:>10.1f}{one.per_hour:>+12.2f}{one.growth:>+10.2f}{one.allowed:>10.2f}"
    )
    return f"{one.name + unit:<18}{figures}   {verdict}"
