"""The commands about parked messages, the dead letters of consumers: list, show, replay, discard."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messagedb_sa.cli._asking import confirm
from messagedb_sa.cli._command import Commands, Yes
from messagedb_sa.cli._consumers import described
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._messages import COLUMNS as MESSAGE_COLUMNS
from messagedb_sa.cli._messages import LimitOption
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from messagedb_sa import AsyncConsumer, Consumer, DeadLetter, Store

commands = Commands(
    name="parked", help="List, show, replay and discard the messages that consumers parked.", no_args_is_help=True
)

_SHORT = (
    Column("id"),
    Column("category", flexible=True),
    Column("identifier", flexible=True),
    Column("type", flexible=True),
    Column("error", flexible=True),
)
_COLUMNS = (*_SHORT, Column("failed_at"), Column("stream_name"), Column("position"), Column("global_position"))

_CategoryArgument = Annotated[
    str | None, typer.Argument(metavar="CATEGORY", help="The category that was consumed.", show_default="all")
]
_IdArguments = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="Of parked messages, as list prints them.")
]


@commands.add("list")
def list_(
    database: Database,
    output: Output,
    category: _CategoryArgument = None,
    limit: LimitOption = None,
    full: Annotated[bool, typer.Option("--full", help="Show when each failed, and its position too.")] = False,
) -> None:
    """List the parked messages that were neither handled nor discarded since."""
    columns = _COLUMNS if full or output.json else _SHORT
    with database.store() as store:
        rows = (_values(each)[: len(columns)] for each in islice(store.iter_dead_letters(category), limit))
        output.rows(columns, rows, empty="no message is parked")


@commands.add("show")
def show(
    database: Database,
    output: Output,
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a parked message, as list prints it.")],
) -> None:
    """Show a parked message, with its error and the traceback."""
    with database.store() as store:
        letter = _found(store, [id])[0]
    columns = [*(Column(name) for name in ("id", "category", "identifier", "failed_at", "error"))]
    values: list[Any] = [letter.id, letter.category, letter.identifier, letter.failed_at, letter.error]
    for each in MESSAGE_COLUMNS:
        columns.append(Column("message_id" if each.name == "id" else each.name, is_json=each.is_json))
        values.append(letter.message[each.name])
    if output.json:
        columns, values = [*columns, Column("traceback")], [*values, letter.traceback]
    output.values(columns, values)
    for line in letter.traceback.splitlines():
        output.line(line)


@commands.add("replay")
def replay(
    database: Database,
    output: Output,
    ids: _IdArguments = None,
    handlers: Annotated[
        str,
        typer.Option(
            "--handlers",
            metavar="MODULE:NAME",
            help="Your Consumer, or a function that returns it. The function gets the Store of this command's database "
            "if it takes an argument.",
        ),
    ] = "",
    yes: Yes = False,
) -> None:
    """Hand parked messages to the handlers of their consumer again: all of it, or those with these IDs."""
    if not handlers:
        raise Failure("--handlers is missing: the Consumer whose handlers get the messages", ExitCode.USAGE)
    with database.store() as store:
        consumer = _load(handlers, store)
        name = described(consumer.category, consumer.identifier)
        letters = _found(store, ids) if ids else None
        if letters is None:
            mine = (each for each in store.iter_dead_letters(consumer.category) if _is_of(each, consumer))
            number = sum(1 for _ in mine)
        else:
            number = len(letters)
            for each in letters:
                if not _is_of(each, consumer):
                    its = described(each.category, each.identifier)
                    raise Failure(f"{each.id} was parked by the consumer {its}, not by {name}", ExitCode.USAGE)
        if number:
            confirm(f"Hand {_counted(number)} to the handlers of the consumer {name} again?", yes=yes)
        handled = _replay(consumer, letters) if number else 0
    output.result(
        f"handled {handled} of {_counted(number)}",
        category=consumer.category,
        identifier=consumer.identifier,
        parked=number,
        handled=handled,
    )
    if handled < number:
        raise Failure(f"{_counted(number - handled)} not handled: messagedb parked list has the errors")


@commands.add("discard")
def discard(
    database: Database,
    output: Output,
    ids: _IdArguments = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="CATEGORY", help="All that consumers of this one parked.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Discard parked messages: nobody hands them over any more. They stay in the store."""
    if bool(ids) == bool(category):
        raise Failure("pass IDs, or --category", ExitCode.USAGE)
    with database.store() as store:
        letters = _found(store, ids) if ids else list(store.iter_dead_letters(category))
        if letters:
            confirm(f"Discard {_counted(len(letters))} of {database.shown}?", yes=yes)
        number = store.discard_dead_letters(letters) if letters else 0
    output.result(f"discarded {_counted(number)}", discarded=number)


def _values(letter: DeadLetter) -> list[Any]:
    message = letter.message
    known = {"type": message.type, "stream_name": message.stream_name, "position": message.position}
    known |= {**letter._asdict(), "global_position": message.global_position}
    return [known[each.name] for each in _COLUMNS]


def _counted(number: int) -> str:
    return f"{number} parked message{'' if number == 1 else 's'}"


def _found(store: Store, ids: list[str]) -> list[DeadLetter]:
    found = []
    for id in ids:
        letter = store.read_dead_letter(id)
        if letter is None:
            raise Failure(f"no message with the id {id} is parked: it may be handled or discarded already")
        found.append(letter)
    return found


def _is_of(letter: DeadLetter, consumer: Consumer | AsyncConsumer) -> bool:
    return (letter.category, letter.identifier) == (consumer.category, consumer.identifier)


def _replay(consumer: Consumer | AsyncConsumer, letters: list[DeadLetter] | None) -> int:
    import asyncio

    from messagedb_sa import Consumer

    return consumer.replay(letters) if isinstance(consumer, Consumer) else asyncio.run(consumer.replay(letters))


def _load(path: str, store: Store) -> Consumer | AsyncConsumer:
    """The consumer that ``module:name`` is or returns. Modules of the current folder can be imported."""
    from importlib import import_module
    from inspect import signature

    from messagedb_sa import AsyncConsumer, Consumer

    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise Failure(f"--handlers {path}: must be MODULE:NAME, such as shop.worker:consumer", ExitCode.USAGE)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        # Not one that the module itself imports in vain.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise Failure(f"--handlers {path}: there is no module {error.name}", ExitCode.USAGE) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise Failure(f"--handlers {path}: {module_name} has no {name}", ExitCode.USAGE)
        found = getattr(found, part)
    if callable(found):
        found = found(store) if signature(found).parameters else found()
    if not isinstance(found, (Consumer, AsyncConsumer)):
        reason = f"must be a Consumer or an AsyncConsumer, or return one; got {type(found).__name__}"
        raise Failure(f"--handlers {path}: {reason}", ExitCode.USAGE)
    return found
