"""The command's groups of commands, put together."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from messagedb_sa.cli._command import ConfigOption, UrlOption, run_guarded
from messagedb_sa.cli._exit_codes import ExitCode
from messagedb_sa.cli._output import discard_output, say
from messagedb_sa.cli._signals import Terminated, handle_signals

# By the panels of the help. Each has ``commands``: a Commands, with a name if it is a group.
MODULES = {
    "Make and run a store": ("_schema", "_dev"),
    "Look at a store": ("_status", "_doctor", "_reading", "_tail", "_find", "_serve"),
    "Change what is in it": ("_writing", "_consumers", "_parked"),
    "Copy it": ("_transfer",),
}

app = typer.Typer(
    name="messagedb",
    help="Look at a Message DB store, change it, and run one on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _names in MODULES.items():
    for _name in _names:
        _commands = import_module(f"messagedb_sa.cli.{_name}").commands
        app.add_typer(_commands, rich_help_panel=_panel)
        if not isinstance(_commands.info.name, str):
            for _each in _commands.registered_commands:
                _each.rich_help_panel = _panel


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        run_guarded(lambda: print(f"messagedb {version('messagedb-sa')}"))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    url: UrlOption = None,
    config: ConfigOption = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"url": url, "config": config}


class _Said(logging.Handler):
    """Warnings, such as the one about a role that could not be made, look like the command's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def run() -> int:
    """Run the command with the arguments of the process; the exit code."""
    try:
        for name in ("stdout", "stderr"):
            # Closed by whoever has started the command.
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
            # A terminal that does not know a character shows an escape.
            getattr(sys, name).reconfigure(errors="backslashreplace")
        logging.basicConfig(handlers=[_Said()], level=logging.WARNING, format="%(message)s")
        # It logs each connection that it cannot reset, with a traceback, even after Ctrl-C. The error is raised anyway.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        handle_signals()
        app(prog_name="messagedb")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except KeyboardInterrupt as interrupt:
        code = ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
    else:
        code = 0
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        code = code or ExitCode.CLOSED_OUTPUT
    return code
