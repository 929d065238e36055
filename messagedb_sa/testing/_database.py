"""Temporary databases on an existing server."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from messagedb_sa._drivers.urls import for_blocking_code, with_database_first, with_driver


@contextlib.contextmanager
def temporary_database(server_url: str, *, template: str | None = None) -> Iterator[str]:
    """Create a database with a random name, yield its URL, and drop the database after the block.

    The database is a copy of the database ``template``, or empty if ``template`` is None. PostgreSQL can copy a
    template only while no one is connected to it. After the block, the database is dropped even if clients are still
    connected. If this process is killed, the database is not dropped. A forked child process that leaves the block does
    not drop it either.

    The database in ``server_url`` is not changed; it is used to connect. If the URL has none, that is ``postgres``. The
    yielded URL has the driver and password of ``server_url``. If the URL has no driver, it is psycopg2.
    """
    from sqlalchemy import NullPool, create_engine

    url = with_database_first(with_driver(server_url))
    name = f"messagedb_{secrets.token_hex(8)}"
    admin_url = for_blocking_code(url if url.database else url.set(database="postgres"))
    engine = create_engine(admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    quoted = engine.dialect.identifier_preparer.quote_identifier
    creator = os.getpid()
    template_clause = "" if template is None else f" TEMPLATE {quoted(template)}"
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {quoted(name)}{template_clause}")
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        if os.getpid() == creator:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")
