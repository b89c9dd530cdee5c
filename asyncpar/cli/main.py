"""The command line `asyncpar`: its sub-commands, and the one way in which all of them fail.

A sub-command is a click command in a module of its own that returns its exit code; it is added to
`COMMANDS` and raises AsyncparError for what goes wrong. Nothing else ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from asyncpar import __version__
from asyncpar.cli.bench import bench
from asyncpar.cli.demo import demo
from asyncpar.cli.dlq import dlq
from asyncpar.cli.produce import produce
from asyncpar.cli.reports import error_line, report
from asyncpar.cli.run import run

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

COMMANDS: tuple[click.Command, ...] = (run, produce, bench, dlq, demo)


@click.group(
    no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="asyncpar", message="%(prog)s %(version)s")
def asyncpar() -> None:
    """Run Kafka records in parallel, in order per key, and lose none."""


for _command in COMMANDS:
    asyncpar.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. `arguments` default to those of the process."""
    try:
        code = asyncpar.main(args=arguments, prog_name="asyncpar", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "asyncpar"
        error_line(f"{error.format_message().rstrip('.')}; see {command} --help")
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        error_line("interrupted before anything was started")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the one place where every failure becomes one line
        return report(error)
    return code if isinstance(code, int) else 0
