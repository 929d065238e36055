"""The official Message DB 1.3.1, from npm, for comparing with ours; without npm these tests are skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from messagedb_sa.testing import temporary_database

OFFICIAL_PATH = "SET search_path = message_store, public"


NO_PATH = "SET search_path = ''"


SCHEMA = "'message_store'::regnamespace"


@contextmanager
def empty_database(server_url: str) -> Iterator[Engine]:
    with temporary_database(server_url) as url:
        yield create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def answer(connection: Connection, sql: str, values: dict[str, Any] | None = None) -> Any:
    """The rows, or what an application is told about the error."""
    try:
        result = connection.exec_driver_sql(sql, values)
        return [tuple(row) for row in result] if result.returns_rows else []
    except DBAPIError as error:
        told: Any = error.orig
        # What follows is the query's text from an open quote on: see DIFFERENCES.
        message = re.sub(r"^(unterminated .*) at or near .*", r"\1", told.diag.message_primary, flags=re.DOTALL)
        return told.pgcode, message, told.diag.constraint_name, told.diag.column_name


def answers(engine: Engine, *statements: str) -> list[Any]:
    """In a new session."""
    with engine.connect() as connection:
        return [answer(connection, sql) for sql in statements]
