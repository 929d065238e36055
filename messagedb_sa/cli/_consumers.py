"""The commands that list consumers, set their positions, and forget them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messagedb_sa.cli._asking import confirm
from messagedb_sa.cli._command import Commands, Yes
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from messagedb_sa import ConsumerStatus

commands = Commands(
    name="consumers", help="List consumers, set their positions, and forget them.", no_args_is_help=True
)

_SHORT = (
    Column("category", flexible=True),
    Column("identifier", flexible=True),
    Column("group_member", flexible=True),
    Column("group_size", flexible=True),
    Column("position"),
    Column("lag"),
    Column("age"),
)
COLUMNS = (*_SHORT, Column("waiting_since"), Column("recorded_at"), Column("recorded_in"))

CategoryArgument = Annotated[str, typer.Argument(metavar="CATEGORY", help="The category that it consumes, or '$all'.")]
IdentifierOption = Annotated[
    str | None, typer.Option("--identifier", "-i", metavar="TEXT", help="Which consumer of the category.")
]
_SizeOption = Annotated[int | None, typer.Option("--size", min=1, help="The size of its group, or its slots.")]


@commands.add("list")
def list_(
    database: Database,
    output: Output,
    category: Annotated[str | None, typer.Argument(metavar="CATEGORY", show_default="all")] = None,
    lag: Annotated[
        bool, typer.Option("--lag/--no-lag", help="Count the messages that wait. Slow if they are millions.")
    ] = True,
    full: Annotated[bool, typer.Option("--full", help="Show when and where the position was recorded too.")] = False,
) -> None:
    """List the consumers that have recorded a position: how many messages wait for each, and how long the first."""
    with database.store() as store:
        found = store.consumers(category, lag=lag)
    columns = COLUMNS if full or output.json else _SHORT
    output.rows(columns, (values_of(each)[: len(columns)] for each in found), empty="no consumer has a position")


@commands.add("set")
def set_(
    database: Database,
    output: Output,
    category: CategoryArgument,
    position: Annotated[
        str, typer.Argument(metavar="POSITION", help="The first global position to handle, or end: only new messages.")
    ],
    identifier: IdentifierOption = None,
    member: Annotated[int | None, typer.Option("--member", min=0, help="One member or slot only.")] = None,
    size: _SizeOption = None,
    yes: Yes = False,
) -> None:
    """Set the position at which a consumer continues. Stop it before."""
    if position != "end" and not position.isdecimal():
        raise Failure(f"POSITION {position}: must be a global position, or end", ExitCode.USAGE)
    begin: Any = position if position == "end" else int(position)
    with database.store() as store:
        now = [
            each
            for each in store.consumers(category, lag=False)
            if each.identifier == identifier and each.group_size == size and member in (None, each.group_member)
        ]
        at = ", ".join(str(each.position) for each in now) or "no position yet"
        where = "after the last message" if begin == "end" else f"with global position {begin}"
        name = described(category, identifier)
        confirm(f"Let the consumer {name} of {database.shown} (now at {at}) continue {where}?", yes=yes)
        store.set_consumer_position(category, begin, identifier, group_member=member, group_size=size)
        for each in store.consumers(category, lag=False):
            if each.identifier == identifier and each.group_size == size and member in (None, each.group_member):
                at = str(each.position)
    output.result(
        f"the consumer {name} has handled everything up to {at}",
        category=category,
        identifier=identifier,
        position=int(at),
    )


@commands.add("forget")
def forget(
    database: Database,
    output: Output,
    category: CategoryArgument,
    identifier: IdentifierOption = None,
    size: _SizeOption = None,
    yes: Yes = False,
) -> None:
    """Forget the positions of a consumer that is not used any more. If it runs again, it begins anew."""
    name = described(category, identifier)
    with database.store() as store:
        of_it = [each for each in store.consumers(category, lag=False) if each.identifier == identifier]
        if not of_it:
            raise Failure(f"the consumer {name} has no position")
        confirm(f"Forget the position of the consumer {name} of {database.shown}?", yes=yes)
        number = store.forget_consumer(category, identifier, group_size=size)
    output.result(
        f"forgot {number} positions of the consumer {name}", category=category, identifier=identifier, forgotten=number
    )


def described(category: str, identifier: str | None) -> str:
    return repr(category) if identifier is None else f"{category!r} {identifier!r}"


def values_of(status: ConsumerStatus) -> list[Any]:
    """In the order of COLUMNS."""
    known = {**status._asdict(), "age": age_of(status)}
    return [known[each.name] for each in COLUMNS]


def age_of(status: ConsumerStatus) -> timedelta:
    """How long the first message has waited, in whole seconds; 0 if none waits."""
    if status.waiting_since is None:
        return timedelta()
    waited = datetime.now(timezone.utc) - status.waiting_since
    return timedelta(seconds=max(0, int(waited.total_seconds())))
