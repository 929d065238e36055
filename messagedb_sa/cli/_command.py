"""Commands with the options that they share: the database, and output for people or programs."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from messagedb_sa._drivers.urls import without_passwords
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, failure_of
from messagedb_sa.cli._output import Output, discard_output, say
from messagedb_sa.cli._signals import Terminated

F = TypeVar("F", bound=Callable[..., None])

_PANEL = "Database"

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The database, such as postgresql://user@host/name. Default: MESSAGEDB_URL, then the file of --config.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="An ini file of Alembic with sqlalchemy.url. Default: alembic.ini in this folder, if there is one.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON Lines, for programs.")]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
"""The option of each command that changes or deletes something. Pass it to ``confirm``."""


class Commands(typer.Typer):
    """Commands of one module. A parameter of class Database stands for --url and --config, one of class Output for
    --json. Errors end the command with one line and an exit code."""

    def add(self, name: str) -> Callable[[F], F]:
        """As a decorator: make the function a command. Its docstring is the help."""

        def decorate(function: F) -> F:
            self.command(name)(_as_command(function))
            return function

        return decorate


def _as_command(function: Callable[..., None]) -> Callable[..., None]:
    parameters: list[inspect.Parameter] = []
    given: dict[type, str] = {}
    # Not get_type_hints: on Python 3.10 it wraps what has None as its default, and Typer then overlooks what it is.
    for each in inspect.signature(function, eval_str=True).parameters.values():
        hint = each.annotation
        if hint in (Database, Output):
            given[hint] = each.name
        else:
            # Options may stand before arguments with a default: Typer calls with names.
            parameters.append(each.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    shared: dict[str, tuple[Any, Any]] = {"context": (typer.Context, inspect.Parameter.empty)}
    if Output in given:
        shared["json"] = _JsonOption, False
    if Database in given:
        shared |= {"url": (UrlOption, None), "config": (ConfigOption, None)}
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in shared.items()
    ]

    @wraps(function)
    def command(**arguments: Any) -> None:
        context, json, url, config = (arguments.pop(name, None) for name in ("context", "json", "url", "config"))
        database = None
        if Database in given:
            # What is said after the command's name takes precedence over what is said before it.
            before = context.obj or {}
            if url is None and config is None:
                url, config = before.get("url"), before.get("config")
            database = arguments[given[Database]] = Database(url, config)
        if Output in given:
            arguments[given[Output]] = Output(json=bool(json))
        code = run_guarded(lambda: function(**arguments), database)
        if code:
            raise typer.Exit(code)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    del command.__wrapped__
    return command


def run_guarded(body: Callable[[], object], database: Database | None = None) -> int:
    """Run the body and write out what it printed; the exit code. Errors become one line on standard error."""
    try:
        body()
        sys.stdout.flush()
    except typer.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # The reader has enough, as head does.
        discard_output()
        return ExitCode.CLOSED_OUTPUT
    except KeyboardInterrupt as interrupt:
        discard_output()
        return ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, typer.BadParameter):
            raise
        failure = failure_of(error, database)
        if failure is None:
            # Nobody expected it: the traceback helps whoever looks for the mistake.
            say(without_passwords("".join(traceback.format_exception(error))), name="")
            return ExitCode.FAILED
        say(failure.text)
        return failure.code
    return ExitCode.DONE
