"""Messages on the command line: their columns, and reading them by the name of a stream, a category or the store."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from messagedb_sa import Message, Store

T = TypeVar("T")

ALL = "$all"
# As many messages are read at a time, at most.
_BATCH = 1000

SHORT = (
    Column("global_position"),
    Column("time"),
    Column("stream_name", flexible=True),
    Column("position"),
    Column("type", flexible=True),
    Column("data", flexible=True, is_json=True),
)
COLUMNS = (*SHORT, Column("metadata", flexible=True, is_json=True), Column("id"))
"""Those that a table leaves out unless it is asked for come last."""

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A stream, a category, or the whole store: '$all', in quotes.")
]
TypeOption = Annotated[
    list[str] | None,
    typer.Option("--type", "-t", metavar="TYPE", help="Only messages of this type. You can repeat it."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", "-n", min=0, help="At most so many messages.", show_default="all")
]
FullOption = Annotated[bool, typer.Option("--full", help="Show the metadata and the id too. JSON always has them.")]


def print_messages(
    output: Output, messages: Iterable[Message], *, full: bool, live: bool = False, empty: str = ""
) -> int:
    columns = COLUMNS if full or output.json else SHORT
    return output.rows(columns, (values_of(each, columns) for each in messages), live=live, empty=empty)


def values_of(message: Message, columns: Sequence[Column] = COLUMNS) -> list[Any]:
    return [message[each.name] for each in columns]


def read(
    store: Store,
    name: str,
    position: int | None = None,
    *,
    backwards: bool = False,
    member: int | None = None,
    size: int | None = None,
    batch_size: int = _BATCH,
) -> Iterator[Message]:
    """All messages from this position on, in constant memory."""
    from messagedb_sa import stream_name as names

    if name == ALL or not names.is_category(name):
        if member is not None or size is not None:
            raise Failure(f"{name!r} must be a category: only its streams are divided", ExitCode.USAGE)
        if name == ALL:
            return store.iter_all(position, backwards=backwards, batch_size=batch_size)
        return store.iter_stream(name, position, backwards=backwards, batch_size=batch_size)
    return store.iter_category(name, position, member, size, backwards=backwards, batch_size=batch_size)


def of_types(messages: Iterator[Message], types: Collection[str] | None) -> Iterator[Message]:
    return (each for each in messages if each.type in types) if types else messages


def first(found: Iterator[T], limit: int | None) -> Iterator[T]:
    # islice takes no larger number.
    return found if limit is None else islice(found, min(limit, sys.maxsize))


def batch_size(limit: int | None, types: Collection[str] | None) -> int:
    """Not more than are needed."""
    return _BATCH if limit is None or types else max(1, min(limit, _BATCH))


def key_of(name: str) -> str:
    """The field of a message that positions of this name count."""
    from messagedb_sa import stream_name as names

    return "global_position" if name == ALL or names.is_category(name) else "position"
