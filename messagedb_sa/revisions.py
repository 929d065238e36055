"""What the Alembic revisions are made of: running SQL files, -x switches, waiting for other upgrades."""

from __future__ import annotations

import logging
import re
from importlib import resources
from pathlib import Path
from typing import TypeVar

from alembic import op
from alembic.util import CommandError
from sqlalchemy import Connection, TextClause, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa.driver import refusal
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.schema import SCHEMA, VERSION_TABLE

D = TypeVar("D", bool, None)

# The advisory lock that upgrades take: any pair that nobody else takes. Message DB's own locks have one 64-bit key.
_LOCK = (1297302594, 1)

logger = logging.getLogger(__name__)

try:
    MIGRATIONS = resources.files("messagedb_sa.migrations")
except ModuleNotFoundError:
    # Imported from a checkout of the repository, where the folder lies beside the package.
    MIGRATIONS = Path(__file__).parents[1] / "migrations"


class MigrationRefused(MessageDBError, CommandError):
    """A revision would lose messages, or found something that is no Message DB; nothing was changed."""


def statement(revision: str, name: str) -> TextClause:
    sql = (MIGRATIONS / "sql" / revision / f"{name}.sql").read_text("utf-8")
    # A single colon before a word would be taken for a bound parameter.
    return text(re.sub(r"(?<!:):(?=\w)", r"\:", sql))


def run(revision: str, *names: str) -> None:
    """Execute files of ``sql/<revision>/``, in this order, online or offline.

    What a file refuses with RAISE EXCEPTION becomes MigrationRefused with the same text.
    """
    for name in names:
        try:
            op.execute(statement(revision, name))
        except DBAPIError as error:
            refused = refusal(error)
            if refused.state != "P0001":
                raise
            raise MigrationRefused(refused.message) from error


def switch(name: str, *, default: D) -> bool | D:
    """The value of ``-x name=on|off`` (or yes, no); ``default`` where it is not given."""
    environment = op.get_context().environment_context
    arguments = environment.get_x_argument(as_dictionary=True) if environment else {}
    value = arguments.get(name)
    if value is None:
        return default
    if value not in ("on", "yes", "off", "no"):
        raise CommandError(f"-x {name}={value}: say yes or no, or on or off")
    return value in ("on", "yes")


def notify_as_asked() -> None:
    """Switch notifications on or off as ``-x notify=`` says; where it is not given, they stay as they are."""
    asked = switch("notify", default=None)
    if asked:
        run("0003", "notify_on")
    elif asked is not None:
        notify_off()


def notify_off() -> None:
    run("0003", "notify_off")


def warn_without_role() -> None:
    """Log that the role is missing, where it is. Offline the SQL itself warns whoever runs it."""
    if op.get_context().as_sql:
        return
    if op.get_bind().scalar(select(func.to_regrole("message_store").is_(None))):
        logger.warning(
            "role message_store and its privileges were left out: %s may not create roles. Everything else is "
            "installed; grant your application's own role what it needs, as the README shows",
            op.get_bind().scalar(select(literal_column("current_user"))),
        )


def version_table_schema(connection: Connection) -> str:
    """The schema where Alembic's record of our revisions is, or is to be.

    Where there is one it is used, whatever the search_path; else it comes into the current schema, or where the
    migrating role may not create anything there, into message_store.
    """
    recorded = text(
        "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE relname = :name AND relkind = 'r' ORDER BY nspname = current_schema() DESC NULLS LAST, nspname LIMIT 1"
    )
    free = text("SELECT current_schema() WHERE has_schema_privilege(current_schema(), 'CREATE')")
    return connection.scalar(recorded, {"name": VERSION_TABLE}) or connection.scalar(free) or SCHEMA


def wait_for_turn(connection: Connection) -> None:
    """Keep other upgrades of this database waiting until the connection's transaction ends.

    Raises InvalidArgument on a connection in autocommit mode, where each statement would be a transaction.
    """
    connection.execute(select(func.pg_advisory_xact_lock(*_LOCK)))
    held = text("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND (classid, objid) = (:a, :b))")
    if not connection.scalar(held, {"a": _LOCK[0], "b": _LOCK[1]}):
        raise InvalidArgument("bind", connection, "is in autocommit mode; a migration is one transaction")
