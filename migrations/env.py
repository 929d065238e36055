"""Runs the revisions: on a connection that the caller passes in, on a database by URL, or as SQL text (--sql)."""

from __future__ import annotations

import os
from logging.config import fileConfig

from alembic import context
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, engine_from_config

from messagedb_sa.revisions import notify_as_asked, statement, version_table_schema, wait_for_turn
from messagedb_sa.schema import SCHEMA, VERSION_TABLE
from messagedb_sa.urls import with_driver

config = context.config

# A host's alembic.ini need not configure logging, and its loggers must go on working.
if config.config_file_name is not None and config.file_config.has_section("loggers"):
    fileConfig(config.config_file_name, disable_existing_loggers=False)


def database_url() -> URL:
    """The first of: ``-x url=``, the environment's MESSAGEDB_URL, sqlalchemy.url of our section, then of [alembic]."""
    url = (
        context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("MESSAGEDB_URL")
        or config.get_main_option("sqlalchemy.url")
        or config.get_section_option("alembic", "sqlalchemy.url")
    )
    if not url:
        raise CommandError("no database named: pass -x url=postgresql://…, or set MESSAGEDB_URL or sqlalchemy.url")
    return with_driver(url)


def run_migrations() -> None:
    context.run_migrations()
    # After the revisions, not in one of them: it can be asked for at any time, of a store that is at head already too.
    with Operations.context(context.get_context()):
        notify_as_asked()


def run_on(connection: Connection) -> None:
    wait_for_turn(connection)
    schema = version_table_schema(connection)
    if schema == SCHEMA:
        connection.execute(statement("0001", "schema"))
    context.configure(connection=connection, version_table=VERSION_TABLE, version_table_schema=schema)
    run_migrations()


def run_by_url() -> None:
    # Whoever waited for a turn must see what the other did: no snapshot from before the wait, and one transaction.
    engine = engine_from_config(
        {**config.get_section(config.config_ini_section, {}), "sqlalchemy.url": database_url()},
        poolclass=NullPool,
        isolation_level="READ COMMITTED",
    )
    with engine.begin() as connection:
        run_on(connection)


def write_sql() -> None:
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
    with context.begin_transaction():
        run_migrations()


if context.is_offline_mode():
    write_sql()
elif "connection" in config.attributes:
    run_on(config.attributes["connection"])
else:
    run_by_url()
