"""Install, upgrade and remove a store from Python: the Alembic revisions, without an ini file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from alembic import command, context, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine

from messagedb_sa.errors import InvalidArgument
from messagedb_sa.revisions import MIGRATIONS, MigrationRefused, statement, version_table_schema, wait_for_turn
from messagedb_sa.schema import VERSION_TABLE

__all__ = ["NOTIFY_OFF", "NOTIFY_ON", "MigrationRefused", "current", "downgrade", "upgrade"]

NOTIFY_ON = statement("0003", "notify_on")
"""What ``upgrade(notify=True)`` executes, for a revision of your own: ``op.execute(install.NOTIFY_ON)``, at
messagedb_0003 or later. Where notifications are on already, nothing happens."""

NOTIFY_OFF = statement("0003", "notify_off")
"""What ``upgrade(notify=False)`` executes. Where notifications are off already, nothing happens."""

# Alembic's context is one for the whole process.
_alembic = Lock()


def upgrade(
    bind: Engine | Connection, revision: str = "head", *, role: bool = True, notify: bool | None = None
) -> None:
    """Bring the database's store to ``revision``; where it is there already, nothing happens.

    On an Engine in one transaction of its own, committed. On a Connection in the caller's transaction, which the
    caller commits. Several at the same time wait for each other. An older Message DB, installed by whomever, is
    taken over with all its messages.

    ``role=False`` leaves out the role message_store and its grants. Where the migrating role may not create roles,
    they are left out with a logged warning.

    ``notify`` switches on or off the trigger by which a writer wakes consumers, at head as well; None leaves it as it
    is, which in a new store is off. Writers wait while it is switched, and to switch it off readers too.

    Raises MigrationRefused where the schema message_store holds something else than Message DB 1.1 to 1.3, and where
    notifications are asked of a ``revision`` before messagedb_0003.
    """
    asked = [] if notify is None else [f"notify={'on' if notify else 'off'}"]
    with _config(bind, f"role={'on' if role else 'off'}", *asked) as config:
        command.upgrade(config, revision)


def downgrade(bind: Engine | Connection, revision: str = "base", *, discard_messages: bool = False) -> None:
    """Take the database's store back to ``revision``; ``base`` removes it. Transactions as with ``upgrade``.

    Raises MigrationRefused, which says how many there are, rather than lose messages, unless ``discard_messages``.
    The role message_store stays if anything else uses it, in this database or another.
    """
    with _config(bind, f"discard_messages={'yes' if discard_messages else 'no'}") as config:
        command.downgrade(config, revision)


def current(bind: Engine | Connection) -> str | None:
    """The revision of the database's store, None if Alembic did not install one here."""
    with _connection(bind) as connection:
        record = {"version_table": VERSION_TABLE, "version_table_schema": version_table_schema(connection)}
        return MigrationContext.configure(connection, opts=record).get_current_revision()


@contextmanager
def _config(bind: Engine | Connection, *x_arguments: str) -> Iterator[Config]:
    config = Config(cmd_opts=Namespace(x=list(x_arguments)))
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    with _connection(bind) as connection:
        # Before the process's lock: whoever holds that one never waits for another database transaction.
        wait_for_turn(connection)
        config.attributes["connection"] = connection
        with _alembic, _inside_another_migration():
            yield config


@contextmanager
def _inside_another_migration() -> Iterator[None]:
    """A host's own revision may call this: Alembic's ``op`` and ``context`` are then the host's again afterwards."""
    outer = [getattr(module, "_proxy", None) for module in (context, op)]
    try:
        yield
    finally:
        for proxy in outer:
            if proxy is not None:
                proxy._install_proxy()


@contextmanager
def _connection(bind: Engine | Connection) -> Iterator[Connection]:
    if isinstance(bind, Connection):
        yield bind
    elif isinstance(bind, Engine):
        # Whoever waited for a turn must see what the other did: no snapshot from before the wait, and one transaction.
        with bind.connect() as connection:
            # What the engine's listeners may have begun.
            connection.commit()
            connection.execution_options(isolation_level="READ COMMITTED", schema_translate_map=None)
            with connection.begin():
                yield connection
    else:
        raise InvalidArgument("bind", bind, "an Engine or a Connection of SQLAlchemy is needed")
