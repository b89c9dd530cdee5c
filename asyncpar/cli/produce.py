"""`asyncpar produce TOPIC`: write records at a steady rate, so that handlers have something to do.

Owns the command, its options and what it prints. Never here: the records (`produce_load.py`), sending them
(`produce_run.py`). Called by `main.py`. Always: the summary is the last thing on stdout, also when it was
stopped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asyncpar.cli.dlq_connection import connects, settings
from asyncpar.cli.ranges import FiniteRange
from asyncpar.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncpar.cli.produce_load import LoadRequest, Values
    from asyncpar.cli.produce_run import Report

EXIT_WRITTEN = 0
EXIT_NOT_ALL = 1
EXIT_INTERRUPTED = 130
_VALUE_BYTES = 100


@click.command(short_help="Write records at a steady rate.")
@click.argument("topic")
@click.option(
    "--records",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    metavar="NUMBER",
    help="How many; 0: until Ctrl-C.",
)
@click.option(
    "--rate",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    metavar="NUMBER",
    help="So many per second, each at its time, whether or not the broker keeps up; default: as fast as it "
    "goes.",
)
@click.option(
    "--keys",
    type=click.IntRange(0, 10_000_000),
    default=1_000,
    show_default=True,
    metavar="NUMBER",
    help="Different keys, drawn at random; 0: no keys.",
)
@click.option(
    "--key-skew",
    type=FiniteRange(0, 10),
    default=0.0,
    show_default=True,
    metavar="EXPONENT",
    help="Of Zipf's law: the n-th key gets a share in proportion to n to the power of -EXPONENT.",
)
@click.option(
    "--value-bytes",
    type=click.IntRange(0, 64 * 1024 * 1024),
    metavar="NUMBER",
    help=f"Text of this length as value.  [default: {_VALUE_BYTES}]",
)
@click.option(
    "--value",
    "template",
    metavar="TEMPLATE",
    help="The value, with {{number}}, {{key}}, {{time_ms}} and {{random}} filled in.",
)
@click.option(
    "--values-from",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines: each line is a value, in turn, from the first one again after the last.",
)
@click.option(
    "--partitions",
    type=click.IntRange(1, 100_000),
    metavar="NUMBER",
    help="Make TOPIC with so many partitions where it does not exist.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="NUMBER", help="The same records each time."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, one object.")
@connects
def produce(
    topic: str,
    how: dict[str, Any],
    value_bytes: int | None,
    template: str | None,
    values_from: Path | None,
    partitions: int | None,
    as_json: bool,
    **load: Any,
) -> int:
    """Write records to TOPIC. Each says in the header x-asyncpar-intended when it was to be sent, so that
    `asyncpar bench` measures latency from then on.

    Exit codes: 0 all written, 1 some were not acknowledged, 2 the command or a setting is wrong or the topic
    does not exist, 4 the cluster cannot be reached or refuses, 130 stopped by Ctrl-C before --records were
    written.
    """
    # Imported here, so that `--help` does not pay for it.
    from asyncpar.cli.produce_load import LoadRequest, filled, from_file, of_size
    from asyncpar.cli.produce_run import as_json_fields, kafka_place, produced, summary

    if (value_bytes is not None) + (template is not None) + (values_from is not None) > 1:
        raise ConfigurationError("give one of --value-bytes, --value and --values-from")
    values: Values
    if template is not None:
        values = filled(template)
    elif values_from is not None:
        values = from_file(values_from)
    else:
        values = of_size(_VALUE_BYTES if value_bytes is None else value_bytes)
    request = LoadRequest(topic=topic, values=values, **load)
    request.check()
    chosen = settings(how)
    report = asyncio.run(produced(kafka_place(chosen), request, partitions, _note))
    if as_json:
        from asyncpar.cli.dlq_output import line

        click.echo(line(as_json_fields(report, request)))
    else:
        click.echo("\n".join(summary(report, request)))
    return exit_code(report, request)


def exit_code(report: Report, request: LoadRequest) -> int:
    """What `report` means; a signal is the ordinary end of a load without one."""
    if report.is_cut_off or (report.is_interrupted and report.acknowledged < request.records):
        return EXIT_INTERRUPTED
    return EXIT_NOT_ALL if report.not_acknowledged else EXIT_WRITTEN


def _note(text: str) -> None:
    click.echo(f"asyncpar: {text}", err=True)
