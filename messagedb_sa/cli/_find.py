"""The command that finds messages by their id, their metadata or their correlation, and shows why they were written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._messages import COLUMNS, FullOption, LimitOption, first, print_messages, values_of
from messagedb_sa.cli._output import Column, Output, print_tree, time_text

if TYPE_CHECKING:
    from messagedb_sa import Message, Store

commands = Commands()

# A tree is held in memory.
_TREE = 1000


@commands.add("find")
def find(
    database: Database,
    output: Output,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="The id of a message.", show_default=False)] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata",
            "-m",
            metavar="KEY=TEXT",
            help="Metadata has this text; or pass a JSON object. You can repeat it. Reads message after message.",
        ),
    ] = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="STREAM", help="The correlationStreamName in the metadata.")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="CATEGORY", help="For --metadata: in this category only.")
    ] = None,
    backwards: Annotated[bool, typer.Option("--backwards", help="For --metadata: the newest message first.")] = False,
    limit: LimitOption = None,
    tree: Annotated[
        bool,
        typer.Option("--tree", help="Below each message, those that it caused; of an ID, also what led to it."),
    ] = False,
    full: FullOption = False,
) -> None:
    """Find messages by id, metadata or correlation."""
    if sum(map(bool, (id, metadata, correlation))) != 1:
        raise Failure("pass one of ID, --metadata and --correlation", ExitCode.USAGE)
    if (category or backwards) and not metadata:
        raise Failure("--category and --backwards are for --metadata", ExitCode.USAGE)
    with database.store() as store:
        wanted: Message | None = None
        if id:
            wanted = store.read_message(id)
            if wanted is None:
                raise Failure(f"there is no message with the id {id}")
            found: Iterator[Message] = iter(_family(store, wanted, limit or _TREE) if tree else [wanted])
        elif metadata:
            found = store.iter_metadata(_fields(metadata), category, backwards=backwards)
        else:
            found = store.iter_correlation(str(correlation))
        if tree:
            _print_tree(output, list(first(found, limit or _TREE)), wanted, full=full)
        elif not print_messages(output, first(found, limit), full=full or bool(id)):
            raise Failure("there is no such message")


def _fields(given: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for each in given:
        if each.lstrip().startswith("{"):
            try:
                some = json.loads(each)
            except ValueError as error:
                raise Failure(f"--metadata {each}: must be a JSON object: {error}", ExitCode.USAGE) from None
        else:
            key, equals, value = each.partition("=")
            if not key or not equals:
                raise Failure(f"--metadata {each}: must be KEY=TEXT, or a JSON object", ExitCode.USAGE)
            some = {key: value}
        if twice := sorted(fields.keys() & some.keys()):
            raise Failure(f"--metadata {each}: {twice[0]} is given twice", ExitCode.USAGE)
        fields |= some
    return fields


# ---- causes and effects


def _family(store: Store, message: Message, limit: int) -> list[Message]:
    """What led to the message, and what all of that led to."""
    causes = store.read_causes(message, limit)
    root = next(iter(causes), message)
    family = {each.id: each for each in (root, *store.read_effects(root, limit), *causes, message)}
    return sorted(family.values(), key=lambda each: each.global_position)


def _print_tree(output: Output, messages: list[Message], wanted: Message | None, *, full: bool) -> None:
    if not messages:
        raise Failure("there is no such message")
    ordered = list(_depth_first(messages))
    if output.json:
        columns = (Column("depth"), *COLUMNS)
        output.rows(columns, ([depth, *values_of(each)] for depth, each in ordered))
        return
    print_tree((depth, _line(each, full=full), wanted is not None and each.id == wanted.id) for depth, each in ordered)


def _line(message: Message, *, full: bool) -> str:
    where = f"{message.type}  {message.stream_name} {message.position}"
    when = f"{message.global_position}  {time_text(message.time)}"
    return f"{where}  {when}  {message.id}" if full else f"{where}  {when}"


def _depth_first(messages: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Each message with its depth, after the one that caused it. One whose cause is not among them has depth 0."""
    by_place = {(each.stream_name, each.position): each for each in messages}
    effects: dict[tuple[str, int] | None, list[Message]] = {}
    for message in by_place.values():
        cause = _cause(message)
        effects.setdefault(cause if cause in by_place else None, []).append(message)
    seen: set[tuple[str, int]] = set()
    # Of a circle, which other clients can write, no message comes first: then the oldest one does.
    for root in chain(effects.get(None, []), by_place.values()):
        todo = [(0, root)]
        while todo:
            depth, message = todo.pop()
            place = message.stream_name, message.position
            if place not in seen:
                seen.add(place)
                yield depth, message
                todo += [(depth + 1, each) for each in reversed(effects.get(place, []))]


def _cause(message: Message) -> tuple[str, int] | None:
    metadata = message.metadata if isinstance(message.metadata, dict) else {}
    stream, position = (metadata.get(f"causationMessage{name}") for name in ("StreamName", "Position"))
    return (stream, position) if isinstance(stream, str) and isinstance(position, int) else None
