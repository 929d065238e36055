"""Runs the revisions: on a connection that the caller passes, on a database with a URL, or as SQL text (--sql)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, MetaData, NullPool, engine_from_config
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.exc import DBAPIError

from messagedb_sa._drivers.asynchronous import run_blocking
from messagedb_sa._drivers.urls import shown
from messagedb_sa._revisions import (
    apply_notify_switch,
    begin_script,
    connection_of,
    end_script,
    lock_out_other_upgrades,
    statement,
    transaction,
    version_table_schema,
)
from messagedb_sa._url_sources import VARIABLE, first_url, interpolation_explained, urls_of
from messagedb_sa.schema import SCHEMA, VERSION_TABLE

config = context.config


def set_up_logging() -> None:
    """As the ini file says. If it says nothing, show on the command line what Alembic's own template shows there."""
    # An ini file without a name is one that the caller has put together.
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        # The application's loggers must continue to work.
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    elif hasattr(config.cmd_opts, "cmd") and not getattr(config.cmd_opts, "quiet", False):
        logging.basicConfig(format="%(levelname)-5.5s [%(name)s] %(message)s")
        logging.getLogger("alembic").setLevel(logging.INFO)


def engine_options() -> tuple[str, dict[str, Any]]:
    """Where the URL is set, and what engine_from_config takes."""

    def sources() -> Iterator[tuple[str, str | None]]:
        yield "-x url=", context.get_x_argument(as_dictionary=True).get("url")
        yield VARIABLE, os.environ.get("MESSAGEDB_URL")
        yield from urls_of(config)

    remedy = "pass -x url=postgresql://…, or set MESSAGEDB_URL, or set sqlalchemy.url in the ini file"
    try:
        source, url = first_url(sources(), remedy)
        with interpolation_explained():
            options = config.get_section(config.config_ini_section, {})
    except ValueError as error:
        raise CommandError(str(error)) from error
    return source, {**options, "sqlalchemy.url": url}


def run_by_url() -> None:
    source, options = engine_options()

    def run(engine: Engine) -> None:
        try:
            connection = engine.connect()
        except Exception as error:
            # asyncpg raises TypeError for a parameter that it does not know.
            reason = str(error.orig if isinstance(error, DBAPIError) else error) or type(error).__name__
            raise CommandError(f"{source}: cannot connect to {shown(engine.url)}: {reason}") from error
        with connection, transaction(connection):
            run_on(connection)

    run_blocking(engine_from_config(options, poolclass=NullPool), run)


def run_on(connection: Connection) -> None:
    lock_out_other_upgrades(connection)
    schema = version_table_schema(connection)
    context.configure(
        connection=connection,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        # For alembic check, which then says whether all revisions were run. There is nothing else to compare.
        target_metadata=MetaData(),
        include_name=lambda *_: False,
    )
    if schema == SCHEMA and not only_looks():
        context.execute(statement("0001", "schema"))
    run_migrations()


def write_sql() -> None:
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
    # A script that we are a part of has a transaction of its own.
    is_part = isinstance(config.attributes.get("connection"), MockConnection)
    with nullcontext() if is_part else context.begin_transaction():
        with Operations.context(context.get_context()):
            begin_script()
        run_migrations()
        with Operations.context(context.get_context()):
            end_script()


def run_migrations() -> None:
    context.run_migrations()
    # Not in a revision: the switch must also work for a store that is already at head.
    if not only_looks():
        with Operations.context(context.get_context()):
            apply_notify_switch()


def only_looks() -> bool:
    """Whether the command is alembic current, which changes nothing."""
    return bool(context.get_context().opts.get("dont_mutate"))


set_up_logging()
if context.is_offline_mode():
    write_sql()
elif config.attributes.get("connection") is not None:
    with connection_of(config.attributes["connection"], 'attributes["connection"]') as connection:
        run_on(connection)
else:
    run_by_url()
