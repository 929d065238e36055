"""Functions that the Alembic revisions share: run SQL files, read -x switches, lock out other upgrades."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TypeVar

from alembic import op
from alembic.util import CommandError
from sqlalchemy import ColumnElement, Connection, Engine, Select, TextClause, exists, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa._drivers.asynchronous import can_block
from messagedb_sa._drivers.catalog import classes, locks, namespaces
from messagedb_sa._drivers.errors import server_error
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.schema import SCHEMA, VERSION_TABLE

D = TypeVar("D", bool, None)

# The advisory lock of upgrades: two arbitrary 32-bit keys. They cannot collide with Message DB's own locks, which have
# one 64-bit key.
_LOCK = (1297302594, 1)

# The setting in which a script saves the search_path that it found.
_OUTER_SEARCH_PATH = "messagedb_sa.search_path"

_RUN_SYNC = (
    "With an AsyncEngine, write: async with engine.begin() as connection: await connection.run_sync(install.upgrade)"
)

logger = logging.getLogger("messagedb_sa.install")

try:
    MIGRATIONS = resources.files("messagedb_sa.migrations")
except ModuleNotFoundError:
    # In a checkout of the repository, the folder is beside the package.
    MIGRATIONS = Path(__file__).parents[1] / "migrations"


class MigrationRefused(MessageDBError, CommandError):
    """A revision would lose messages, or the schema message_store is not a Message DB that it can take over.

    Nothing was changed.
    """


def statement(revision: str, name: str) -> TextClause:
    """The SQL of the file ``sql/<revision>/<name>.sql``, which holds one statement."""
    # text() would read a single colon before a word as a bound parameter.
    return text(re.sub(r"(?<!:):(?=\w)", r"\:", sql_of(revision, name)))


def sql_of(revision: str, name: str) -> str:
    """The text of the file ``sql/<revision>/<name>.sql``."""
    return (MIGRATIONS / "sql" / revision / f"{name}.sql").read_text("utf-8")


def run(revision: str, *names: str) -> None:
    """Execute files of ``sql/<revision>/`` in the given order, online or offline.

    If a file raises an error with RAISE EXCEPTION, the result is MigrationRefused with the same text.
    """
    migration = op.get_context()
    for name in names:
        if migration.as_sql:
            # Not compiled: the dialect of a host's script may double each % for its driver.
            migration.impl.static_output(sql_of(revision, name).strip() + ";")
            continue
        try:
            op.execute(statement(revision, name))
        except DBAPIError as error:
            reported = server_error(error)
            if reported.state != "P0001":
                raise
            raise MigrationRefused(reported.message) from error


def switch(name: str, *, default: D) -> bool | D:
    """The value of ``-x name=on|off`` (or yes|no), or ``default`` if the switch is not given."""
    environment = op.get_context().environment_context
    arguments = environment.get_x_argument(as_dictionary=True) if environment else {}
    value = arguments.get(name)
    if value is None:
        return default
    if value not in ("on", "yes", "off", "no"):
        raise CommandError(f"-x {name}={value}: must be yes or no, or on or off")
    return value in ("on", "yes")


def apply_notify_switch() -> None:
    """Switch notifications on or off as ``-x notify=`` says. Without the switch, leave them as they are."""
    notify = switch("notify", default=None)
    if notify:
        run("0003", "notify_on")
    elif notify is not None:
        notify_off()


def notify_off() -> None:
    run("0003", "notify_off")


def warn_if_role_is_missing() -> None:
    """Log a warning if the role message_store does not exist. Offline, the SQL itself raises the warning."""
    if op.get_context().as_sql:
        return
    if op.get_bind().scalar(select(func.to_regrole("message_store").is_(None))):
        logger.warning(
            "the role message_store was not created, because %s may not create roles. Everything else is installed. "
            "Grant your application's own role the privileges that the manual lists (On a managed host)",
            op.get_bind().scalar(select(literal_column("current_user"))),
        )


def version_table_schema(connection: Connection) -> str:
    """The schema of our version table.

    If the table exists in any schema, that schema is used, whatever the search_path is. Otherwise it is the current
    schema, or message_store if the migrating role may not create tables in the current schema.
    """
    return connection.scalars(_find_version_table_schema()).one()


def begin_script() -> None:
    """Let the script of --sql find the schema of our version table when it runs, and make it the search_path.

    Alembic writes the table's name without a schema. Nothing else in the script depends on the search_path.
    """
    op.execute(statement("0001", "schema"))
    op.execute(select(func.set_config(_OUTER_SEARCH_PATH, func.current_setting("search_path"), True)))
    schema = func.quote_ident(_find_version_table_schema().scalar_subquery())
    op.execute(select(func.set_config("search_path", schema, True)))
    run("0001", "drop_empty_version_table")


def end_script() -> None:
    """Set the search_path back: the script may be a part of another one, which goes on in the same transaction."""
    op.execute(select(func.set_config("search_path", func.current_setting(_OUTER_SEARCH_PATH), True)))


def _find_version_table_schema() -> Select[str]:
    name, current = namespaces.c.nspname, func.current_schema()
    existing = (
        select(name)
        .join_from(classes, namespaces, namespaces.c.oid == classes.c.relnamespace)
        .where(classes.c.relname == VERSION_TABLE, classes.c.relkind == literal_column("'r'"), _is_ordinary(name))
        .order_by((name == current).desc().nulls_last(), name)
        .limit(1)
    )
    writable = select(current).where(func.has_schema_privilege(current, "CREATE"), _is_ordinary(current))
    return select(func.coalesce(existing.scalar_subquery(), writable.scalar_subquery(), SCHEMA))


def _is_ordinary(schema: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether it is neither PostgreSQL's own schema nor one of temporary tables. A search_path may begin with them."""
    return func.left(schema, 3) != "pg_"


@contextmanager
def connection_of(bind: Engine | Connection, argument: str = "bind") -> Iterator[Connection]:
    """The connection, or one of the engine's, in a transaction that is committed."""
    if not isinstance(bind, (Engine, Connection)):
        reason = f"must be an Engine or a Connection of SQLAlchemy; of a Store, pass its engine. {_RUN_SYNC}"
        raise InvalidArgument(argument, bind, reason)
    if bind.dialect.name != "postgresql":
        raise InvalidArgument(argument, bind, f"must be on PostgreSQL, not on {bind.dialect.name}")
    if not can_block(bind):
        raise InvalidArgument(argument, bind, f"must have a synchronous driver. {_RUN_SYNC}")
    if isinstance(bind, Connection):
        yield bind
    else:
        with bind.connect() as connection, transaction(connection):
            yield connection


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Begin a transaction on the engine's new connection, whatever the engine's options are, and commit it."""
    # End a transaction that the engine's event listeners may have begun.
    connection.commit()
    # READ COMMITTED: after the wait for another upgrade, this one must see what the other did.
    connection.execution_options(isolation_level="READ COMMITTED", schema_translate_map=None)
    with connection.begin():
        yield


def lock_out_other_upgrades(connection: Connection) -> None:
    """Wait for other upgrades of this database, and make later ones wait until the connection's transaction ends.

    Raises InvalidArgument if the connection is in autocommit mode: each statement would be its own transaction.
    """
    connection.execute(select(func.pg_advisory_xact_lock(*_LOCK)))
    ours = locks.c.pid == func.pg_backend_pid()
    held = select(exists().where(ours, locks.c.classid == _LOCK[0], locks.c.objid == _LOCK[1]))
    if not connection.scalar(held):
        raise InvalidArgument("bind", connection, "must not be in autocommit mode: a migration is one transaction")
