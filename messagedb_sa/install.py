"""Install, upgrade and remove a store from Python, with the Alembic revisions but without an ini file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from alembic import command, context, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine
from sqlalchemy.engine.mock import MockConnection

from messagedb_sa import _arguments as arguments
from messagedb_sa._diagnosis import Diagnosis, Finding
from messagedb_sa._drivers.asynchronous import holding
from messagedb_sa._forks import PerProcess
from messagedb_sa._revisions import (
    MIGRATIONS,
    MigrationRefused,
    connection_of,
    lock_out_other_upgrades,
    statement,
    version_table_schema,
)
from messagedb_sa.schema import VERSION_TABLE

__all__ = ["NOTIFY_OFF", "NOTIFY_ON", "Finding", "MigrationRefused", "current", "diagnose", "downgrade", "upgrade"]

NOTIFY_ON = statement("0003", "notify_on")
"""The statement with which ``upgrade(notify=True)`` switches notifications on. It changes nothing if they are on.

Use it in a revision of your own, ``op.execute(install.NOTIFY_ON)``, when the store is at messagedb_0003 or later.
"""

NOTIFY_OFF = statement("0003", "notify_off")
"""The statement with which ``upgrade(notify=False)`` switches notifications off. It changes nothing if they are off."""

# Alembic has one context for the whole process.
_alembic_lock = PerProcess(Lock)


def upgrade(
    bind: Engine | Connection, revision: str = "head", *, role: bool = True, notify: bool | None = None
) -> None:
    """Install the database's store, or upgrade it to ``revision``. Does nothing if it is at this revision already.

    With an Engine, the upgrade is one transaction, which is committed. With a Connection, it is part of your
    transaction, which you commit. Concurrent upgrades wait for each other. If the database has an older Message DB,
    it is upgraded and keeps all its messages, also if Message DB's own scripts installed it.

    In a migration of your own, pass ``op.get_bind()``. With ``--sql``, the SQL becomes a part of your script. It begins
    where your script's earlier revisions have left the store, or else without a store. If the database already has a
    store, pass both revisions: ``"messagedb_0001:head"``.

    With an AsyncEngine: ``async with engine.begin() as connection: await connection.run_sync(install.upgrade)``.

    ``role=False`` leaves out the role message_store and its grants. If the migrating role may not create roles, they
    are left out too, and a warning is logged.

    ``notify`` switches the trigger that wakes consumers on or off, also if the store is already at ``revision``. None
    leaves it as it is; in a new store it is off. Switching blocks writers until the transaction ends, and switching off
    blocks readers too.

    Raises MigrationRefused if the schema message_store is not a Message DB of version 1.1 to 1.3, or if ``notify`` is
    True and ``revision`` is before messagedb_0003.
    """
    switches = [_switch("role", role)] if notify is None else [_switch("role", role), _switch("notify", notify)]
    _migrate(command.upgrade, bind, "base", revision, *switches)


def downgrade(bind: Engine | Connection, revision: str = "base", *, discard_messages: bool = False) -> None:
    """Take the database's store back to ``revision``. ``base`` removes it. Transactions are as in ``upgrade``.

    Raises MigrationRefused if messages would be lost, and says how many; to remove them, pass
    ``discard_messages=True``. The role message_store is kept if anything else uses it, in this database or another.
    """
    _migrate(command.downgrade, bind, "head", revision, _switch("discard_messages", discard_messages))


def current(bind: Engine | Connection) -> str | None:
    """The revision of the database's store. None if Alembic has not installed or upgraded it."""
    with connection_of(bind) as connection:
        options = {"version_table": VERSION_TABLE, "version_table_schema": version_table_schema(connection)}
        return MigrationContext.configure(connection, opts=options).get_current_revision()


def diagnose(bind: Engine | Connection, *, long_transaction_seconds: float = 60.0) -> list[Finding]:
    """Look for what is wrong with the database's store, or may go wrong: each finding with its remedy.

    Each check has at least one finding, "ok" if all is well. The checks see what the session's role may see, and say
    what it may not see. They are about this role and this way to connect: use those of your application. Nothing is
    changed, and no privilege is needed.

    Transactions that have been open for less than ``long_transaction_seconds`` are not reported.

    With an AsyncEngine: ``async with engine.connect() as connection: await connection.run_sync(install.diagnose)``.
    """
    seconds = arguments.seconds("long_transaction_seconds", long_transaction_seconds)
    with connection_of(bind) as connection:
        return list(Diagnosis(connection, seconds).findings())


def _switch(argument: str, value: bool) -> str:
    # A text such as "no" would be true.
    return f"{argument}={'on' if arguments.boolean(argument, value) else 'off'}"


def _migrate(
    command: Callable[..., None], bind: Engine | Connection, beginning: str, revision: str, *x_arguments: str
) -> None:
    config = Config(cmd_opts=Namespace(x=list(x_arguments)))
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    if isinstance(bind, MockConnection) and _belongs_to_a_script(bind):
        _write_sql(command, config, bind, beginning, revision)
        return
    with connection_of(bind) as connection:
        # First the database's lock, then the process's: a thread must not hold the process's lock while it waits for
        # another transaction.
        lock_out_other_upgrades(connection)
        config.attributes["connection"] = connection
        with holding(_alembic_lock.own, connection), _outer_migration_restored():
            command(config, revision)


def _belongs_to_a_script(bind: MockConnection) -> bool:
    """Whether it is what ``op.get_bind()`` returns in a migration with ``--sql``."""
    try:
        its_own: object = op.get_bind()
    except (NameError, AttributeError):
        # Alembic's, outside of a migration: before the first one of the process, and after it.
        return False
    return its_own is bind


def _write_sql(
    command: Callable[..., None], config: Config, bind: MockConnection, beginning: str, revision: str
) -> None:
    """Write the SQL to the output of the migration whose ``op.get_bind()`` the bind is."""
    migration = op.get_context()
    config.output_buffer = migration.output_buffer
    config.attributes["connection"] = bind
    # Nobody knows what the database has. An earlier revision of the script may have told.
    written = migration.opts.get("messagedb_revision", beginning)
    with _alembic_lock.own, _outer_migration_restored():
        command(config, revision if ":" in revision else f"{written}:{revision}", sql=True)
    migration.opts["messagedb_revision"] = revision.rpartition(":")[2]


@contextmanager
def _outer_migration_restored() -> Iterator[None]:
    """After the block, Alembic's ``op`` and ``context`` belong to the outer migration again.

    There is one if an application's own revision calls ``upgrade`` or ``downgrade``.
    """
    outer = [getattr(module, "_proxy", None) for module in (context, op)]
    try:
        yield
    finally:
        for proxy in outer:
            if proxy is not None:
                proxy._install_proxy()
