"""The commands that install, upgrade and remove the store, or print the SQL for that."""

from __future__ import annotations

import sys
from argparse import Namespace
from io import StringIO
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from messagedb_sa.cli._asking import confirm
from messagedb_sa.cli._command import Commands, Yes
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Engine

commands = Commands()

_Role = Annotated[
    bool, typer.Option("--role/--no-role", help="Create the role message_store, and grant it what it needs.")
]
_Notify = Annotated[
    bool | None,
    typer.Option(
        "--notify/--no-notify",
        help="Switch notifications on or off. Default: leave them as they are.",
        show_default=False,
    ),
]
_Discard = Annotated[
    bool, typer.Option("--discard-messages", help="Also if messages are lost by that. They cannot be brought back.")
]


@commands.add("install")
def install(database: Database, output: Output, role: _Role = True, notify: _Notify = None) -> None:
    """Install the store into a database that has none."""
    with database.engine() as engine:
        if not _has_store(engine):
            _upgrade(engine, output, "head", role, notify)
            return
        revision = _revision(engine)
        if revision != _head():
            at = "is older, or was not installed by Alembic" if revision is None else f"is at {revision}"
            raise Failure(f"{database.shown} has a store already, which {at}. To upgrade it: messagedb upgrade")
        if notify is not None:
            _upgrade(engine, output, "head", role, notify)
        else:
            output.result(f"{database.shown} has a store at {revision} already", before=revision, revision=revision)


@commands.add("upgrade")
def upgrade(
    database: Database,
    output: Output,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Such as messagedb_0004.")] = "head",
    role: _Role = True,
    notify: _Notify = None,
) -> None:
    """Upgrade the store, install it if there is none, or take over a Message DB that its own scripts installed."""
    with database.engine() as engine:
        _upgrade(engine, output, revision, role, notify)


@commands.add("downgrade")
def downgrade(
    database: Database,
    output: Output,
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="Such as messagedb_0004; base removes the store.")
    ],
    discard_messages: _Discard = False,
    yes: Yes = False,
) -> None:
    """Take the store back to an earlier revision, or remove it."""
    from messagedb_sa import install

    with database.engine() as engine:
        before = _revision(engine)
        if before is None:
            raise Failure(f"{database.shown} has no store that Alembic has installed", ExitCode.NO_STORE)
        done = "Remove the store from" if revision == "base" else f"Take the store back to {revision} in"
        lost = ", and delete its messages" if discard_messages else ""
        confirm(f"{done} {database.shown}{lost}?", yes=yes)
        try:
            install.downgrade(engine, revision, discard_messages=discard_messages)
        except install.MigrationRefused as error:
            reason, is_about_messages, _ = str(error).partition(": to allow that, pass -x discard_messages")
            raise Failure(
                f"{reason}: to allow that, pass --discard-messages" if is_about_messages else reason
            ) from error
        after = _revision(engine)
        output.result(f"The store is at {after}" if after else "The store is removed", before=before, revision=after)


@commands.add("current")
def current(database: Database, output: Output) -> None:
    """Show the revision of the store in the database, and the newest that there is."""
    with database.engine() as engine:
        revision = _revision(engine)
        if revision is None:
            taken_over = "a Message DB, but Alembic has not taken it over" if _has_store(engine) else "no store"
            raise Failure(f"{database.shown} has {taken_over}. To change that: messagedb upgrade", ExitCode.NO_STORE)
    output.values([Column("revision"), Column("newest")], [revision, _head()])


@commands.add("sql")
def sql(
    revisions: Annotated[
        str | None,
        typer.Argument(
            metavar="FROM:TO",
            help="The two revisions, such as messagedb_0004:head. Default: base:head, or the reverse.",
            show_default=False,
        ),
    ] = None,
    down: Annotated[bool, typer.Option("--downgrade", help="The SQL of a downgrade, from the later revision.")] = False,
    role: _Role = True,
    notify: _Notify = None,
    discard_messages: _Discard = False,
) -> None:
    """Print the SQL that installs or upgrades the store, for somebody else to run. Needs no database."""
    from alembic import command

    revisions = revisions or ("head:base" if down else "base:head")
    first, colon, last = revisions.partition(":")
    if not (first and colon and last):
        raise Failure(f"{revisions!r}: must be two revisions, such as base:head", ExitCode.USAGE)
    if down and (role is False or notify is not None):
        raise Failure("--role and --notify are for an upgrade: leave them out", ExitCode.USAGE)
    if discard_messages and not down:
        raise Failure("--discard-messages is for a downgrade: pass --downgrade too", ExitCode.USAGE)
    switches = {"role": role, "discard_messages": discard_messages} | ({} if notify is None else {"notify": notify})
    # All or nothing: half a script may do harm.
    with StringIO() as script:
        config = _config(*(f"{name}={'on' if on else 'off'}" for name, on in switches.items()), into=script)
        (command.downgrade if down else command.upgrade)(config, revisions, sql=True)
        sys.stdout.write(script.getvalue())


def _upgrade(engine: Engine, output: Output, revision: str, role: bool, notify: bool | None) -> None:
    from messagedb_sa import install

    before = _revision(engine)
    install.upgrade(engine, revision, role=role, notify=notify)
    after = _revision(engine)
    text = f"The store is at {after}" if before != after else f"The store was at {after} already"
    output.result(text, before=before, revision=after)


def _revision(engine: Engine) -> str | None:
    from messagedb_sa import install

    return install.current(engine)


def _has_store(engine: Engine) -> bool:
    from sqlalchemy import func, select

    from messagedb_sa.schema import messages

    with engine.connect() as connection:
        return connection.scalar(select(func.to_regclass(messages.fullname).is_not(None))) is True


def _head() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config()).get_current_head()


def _config(*switches: str, into: TextIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(cmd_opts=Namespace(x=list(switches)), output_buffer=into)
    config.set_main_option("script_location", "messagedb_sa:migrations")
    config.set_main_option("path_separator", "newline")
    return config
