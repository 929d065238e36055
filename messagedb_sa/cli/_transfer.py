"""The commands that export, import, copy and compare stores."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from messagedb_sa.cli._asking import confirm, progress
from messagedb_sa.cli._command import Commands, Yes
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure, failure_of
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from messagedb_sa import Store
    from messagedb_sa.transfer import Transferred

commands = Commands()

_STANDARD = Path("-")
_FOLLOW_SECONDS = 1.0

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="The URL of the store to read.", show_default=False)]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="The URL of the copy.", show_default=False)]
SettleSeconds = Annotated[
    float, typer.Option("--settle-seconds", help="How long to wait for open transactions that write.")
]


class Format(str, Enum):
    """Of an exported file. Each one has its function in ``export``."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    ARROW = "arrow"


_FORMATS = {".parquet": Format.PARQUET, ".arrow": Format.ARROW, ".arrows": Format.ARROW}
"""By the file's suffix; all others are JSON Lines."""


@commands.add("export")
def export(
    database: Database,
    output: Output,
    name: Annotated[str, typer.Argument(help="A stream, a category, or $all.")] = "$all",
    file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file; .gz is compressed. - is standard output.")
    ] = _STANDARD,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="The format. Default: by the file's suffix, else jsonl.", show_default=False),
    ] = None,
    position: Annotated[int | None, typer.Option("--position", help="The first to export.", show_default=False)] = None,
    settle_seconds: SettleSeconds = 30.0,
    yes: Yes = False,
) -> None:
    """Write the messages of a stream, a category or the whole store to a file: JSON Lines, Parquet or Arrow."""
    from messagedb_sa import transfer

    is_standard = file == _STANDARD
    format = format or _FORMATS.get(file.suffix, Format.JSONL)
    if is_standard and format is not Format.JSONL and sys.stdout.isatty():
        raise Failure(f"{format.value} is not for a terminal: pass --output, or redirect it", ExitCode.USAGE)
    functions = {
        Format.JSONL: transfer.export_messages,
        Format.PARQUET: transfer.export_parquet,
        Format.ARROW: transfer.export_arrow,
    }
    if not is_standard and file.is_file():
        confirm(f"{file} exists. Overwrite it?", yes=yes)
    # A bar would be in the way of messages on a terminal.
    bar = nullcontext() if is_standard else progress(f"exporting {name}")
    with database.store() as store, bar as report:
        done = functions[format](
            store,
            name,
            sys.stdout.buffer if is_standard else file,
            position=position,
            settle_seconds=settle_seconds,
            on_progress=report,
        )
    if not is_standard:
        _print_what_is_done(output, "exported", done)
    _check_that_it_is_whole(done)


@commands.add("import")
def import_(
    database: Database,
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines; .gz is compressed. - is standard input.")],
    new_global_positions: Annotated[
        bool, typer.Option("--new-global-positions", help="Import beside what the store has.")
    ] = False,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Positions of streams may be missing, since messages were removed.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Import JSON Lines, all or none, with ids, times and positions. They must come after the store's messages."""
    from messagedb_sa import transfer

    is_standard = file == _STANDARD
    database.url  # noqa: B018 - what is wrong with it comes before the question
    confirm(f"Import {'standard input' if is_standard else file} into {database.shown}?", yes=yes)
    with database.store() as store, progress("importing") as report:
        done = transfer.import_messages(
            store,
            sys.stdin.buffer if is_standard else file,
            new_global_positions=new_global_positions,
            allow_gaps=allow_gaps,
            on_progress=report,
        )
    _print_what_is_done(output, "imported", done)


@commands.add("copy")
def copy(
    output: Output,
    source: Source,
    target: Target,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Copy what is written, until Ctrl-C.")] = False,
    settle_seconds: SettleSeconds = 30.0,
    yes: Yes = False,
) -> None:
    """Copy all messages to another store, exactly. A copy that was stopped or killed goes on where it was."""
    from messagedb_sa import transfer

    with _connected(source, "SOURCE") as reading, _connected(target, "TARGET") as writing:
        confirm(f"Copy all messages of {_shown(reading)} to {_shown(writing)}?", yes=yes)
        while True:
            with progress("copying") as report:
                done = transfer.copy(reading, writing, settle_seconds=settle_seconds, on_progress=report)
            if done.messages or not follow:
                _print_what_is_done(output, "copied", done)
                output.flush()
            if not follow:
                break
            time.sleep(_FOLLOW_SECONDS)
    _check_that_it_is_whole(done)


@commands.add("verify")
def verify(
    output: Output,
    source: Source,
    target: Target,
    up_to: Annotated[
        int | None, typer.Option("--up-to", help="The last global position to compare.", show_default=False)
    ] = None,
) -> None:
    """Compare all messages of two stores, all fields and the order. Exit code 1: they differ."""
    from messagedb_sa import transfer

    with _connected(source, "SOURCE") as one, _connected(target, "TARGET") as other, progress("comparing") as report:
        done = transfer.verify(one, other, up_to=up_to, on_progress=report)
    names = ("global_position", "stream_name", "position", "id", "what")
    if done.differences:
        output.rows([Column(name, flexible=name in ("stream_name", "what")) for name in names], done.differences)
        raise Failure(f"the target differs from the source: compared up to global position {done.last_global_position}")
    output.result(
        f"equal: {done.messages} messages, up to global position {done.last_global_position}",
        messages=done.messages,
        last_global_position=done.last_global_position,
    )


@contextmanager
def _connected(url: str, name: str) -> Iterator[Store]:
    """The store of one of the two databases. If there is no connection, the error says to which."""
    from sqlalchemy.exc import DBAPIError

    database = Database(url, None, name)
    with database.store() as store:
        try:
            store.engine.connect().close()
        except DBAPIError as error:
            raise failure_of(error, database) or error from error
        yield store


def _shown(store: Store) -> str:
    from messagedb_sa._drivers.urls import shown

    return shown(store.engine.url)


def _print_what_is_done(output: Output, what: str, done: Transferred) -> None:
    output.result(
        f"{what} {done.messages} messages, up to global position {done.last_global_position}",
        messages=done.messages,
        last_global_position=done.last_global_position,
    )


def _check_that_it_is_whole(done: Transferred) -> None:
    if done.unsettled is not None:
        raise Failure(
            f"stopped before global position {done.unsettled}, since an open transaction may still write a message "
            "there; messagedb status shows which"
        )
