"""The command that prints the last messages, and those that follow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._messages import (
    FullOption,
    NameArgument,
    TypeOption,
    batch_size,
    first,
    key_of,
    of_types,
    print_messages,
    read,
)
from messagedb_sa.cli._output import Output

if TYPE_CHECKING:
    from messagedb_sa import Message, Store

commands = Commands()


@commands.add("tail")
def tail(
    database: Database,
    output: Output,
    name: NameArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many of the last messages first.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Then print messages as they are written, until Ctrl-C.")
    ] = False,
    type: TypeOption = None,
    full: FullOption = False,
) -> None:
    """Print the last messages of a stream, a category, or the whole store, the oldest first."""
    with database.store() as store:
        newest = of_types(read(store, name, backwards=True, batch_size=batch_size(lines, type)), type)
        last = list(first(newest, lines))[::-1]
        if not follow:
            print_messages(output, last, full=full, empty="there are no messages")
            return
        # Also that it reads again, after a warning that it cannot.
        logging.getLogger("messagedb_sa.subscription").setLevel(logging.INFO)
        # From the first one to print, so that what is committed late, between those of $all, comes in its order.
        begin = getattr(last[0], key_of(name)) if last else _begin(store, name, type)
        print_messages(output, _followed(store, name, begin, type), full=full, live=True)


def _begin(store: Store, name: str, types: list[str] | None) -> int | Literal["end"]:
    is_empty = next(read(store, name, backwards=True, batch_size=1), None) is None
    # What is written to an empty stream meanwhile is printed too.
    return 0 if is_empty else "end"


def _followed(store: Store, name: str, begin: int | Literal["end"], types: list[str] | None) -> Iterator[Message]:
    from messagedb_sa import Subscription

    with Subscription(store, name, begin, reconnect=True) as messages:
        yield from of_types(messages, types)
