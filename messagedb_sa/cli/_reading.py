"""The commands that read: categories, streams, types, read and last."""

from __future__ import annotations

from typing import Annotated

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._messages import (
    COLUMNS,
    FullOption,
    LimitOption,
    NameArgument,
    TypeOption,
    batch_size,
    first,
    of_types,
    print_messages,
    values_of,
)
from messagedb_sa.cli._messages import read as read_by_name
from messagedb_sa.cli._output import Column, Output

commands = Commands()

_CategoryArgument = Annotated[str, typer.Argument(metavar="CATEGORY")]


@commands.add("categories")
def categories(
    database: Database,
    output: Output,
    exact: Annotated[
        bool, typer.Option("--exact", help="Count every message. Without it, numbers of large stores are estimates.")
    ] = False,
) -> None:
    """List the categories, with their numbers of messages and their last messages."""
    columns = [
        Column("category", flexible=True),
        Column("messages"),
        Column("is_estimate"),
        Column("last_global_position"),
        Column("last_time"),
    ]
    with database.store() as store:
        rows = (
            [each.name, each.messages, each.is_estimate, each.last_global_position, each.last_time]
            for each in store.categories(exact=exact)
        )
        output.rows(columns, rows, empty="the store has no messages")


@commands.add("streams")
def streams(
    database: Database,
    output: Output,
    category: _CategoryArgument,
    after: Annotated[
        str | None, typer.Option("--after", metavar="STREAM", help="Those that come after this one.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=0, help="At most so many.")] = None,
) -> None:
    """List the streams of a category, with their versions and their last messages."""
    columns = [
        Column("stream_name", flexible=True),
        Column("version"),
        Column("last_global_position"),
        Column("last_time"),
    ]
    with database.store() as store:
        found = store.iter_streams(category, after=after)
        rows = (
            [each.stream_name, each.version, each.last_global_position, each.last_time] for each in first(found, limit)
        )
        output.rows(columns, rows, empty=f"the category {category!r} has no messages")


@commands.add("types")
def types(
    database: Database,
    output: Output,
    category: Annotated[str | None, typer.Argument(metavar="CATEGORY", show_default="all")] = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last", metavar="N", min=1, help="Of the last N messages only, which is quick in a large store."
        ),
    ] = None,
) -> None:
    """Count the messages of each type. Reads them all, unless you pass --last."""
    from collections import Counter

    from messagedb_sa.cli._reading_statements import types_of
    from messagedb_sa.store._execute import run_alone
    from messagedb_sa.store._operation import Operation

    counts: Counter[tuple[str, str]] = Counter()
    with database.store() as store:
        if last is None:
            with store.engine.connect() as connection:
                for name, type_, number in run_alone(connection, Operation(*types_of(category), list)):
                    counts[name, type_] = number
        else:
            for each in store.activity(category, no_of_messages=last):
                counts[each.category, each.type] += each.messages
    columns = [Column("category", flexible=True), Column("type", flexible=True), Column("messages")]
    rows = ([*of, number] for of, number in sorted(counts.items()))
    output.rows(columns, rows, empty="there are no messages")


@commands.add("read")
def read(
    database: Database,
    output: Output,
    name: NameArgument,
    position: Annotated[
        int | None,
        typer.Option(
            "--position",
            "-p",
            min=0,
            help="The first one to read: in a stream its position, otherwise its global position.",
            show_default="the beginning, or with --backwards the end",
        ),
    ] = None,
    limit: LimitOption = None,
    backwards: Annotated[bool, typer.Option("--backwards", help="The newest message comes first.")] = False,
    type: TypeOption = None,
    member: Annotated[int | None, typer.Option("--member", help="Of a consumer group, from 0.", min=0)] = None,
    size: Annotated[int | None, typer.Option("--size", help="The size of the consumer group.", min=1)] = None,
    full: FullOption = False,
) -> None:
    """Print the messages of a stream, a category, or the whole store."""
    with database.store() as store:
        messages = read_by_name(
            store,
            name,
            position,
            backwards=backwards,
            member=member,
            size=size,
            batch_size=batch_size(limit, type),
        )
        print_messages(output, first(of_types(messages, type), limit), full=full, empty="there are no messages")


@commands.add("last")
def last(
    database: Database,
    output: Output,
    stream: Annotated[str, typer.Argument(metavar="STREAM")],
    type: Annotated[str | None, typer.Option("--type", "-t", metavar="TYPE", help="The last one of this type.")] = None,
) -> None:
    """Print the last message of a stream."""
    with database.store() as store:
        message = store.read_last_message(stream, type)
    if message is None:
        of_type = "" if type is None else f" of type {type!r}"
        raise Failure(f"the stream {stream!r} has no message{of_type}", ExitCode.FAILED)
    output.values(COLUMNS, values_of(message))
