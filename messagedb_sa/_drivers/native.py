"""Statements on an asynchronous driver's own connection, past SQLAlchemy's adapter: one switch of greenlets each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy.util import await_only

# What goes past SQLAlchemy depends on attributes of it that other versions may not have.
SQLALCHEMY_IS_TESTED = sqlalchemy.__version__.startswith(("2.0.", "2.1."))


def fetch(connection: Any, sql: str, parameters: Mapping[str, Any] | tuple[Any, ...]) -> Sequence[Any]:
    """Execute a statement as a transaction of its own, and return the driver's rows.

    ``connection`` is the adapter's, which must be idle and in autocommit mode. asyncpg takes its parameters as a tuple.
    Errors are those that the adapter raises. Call it in a greenlet.
    """
    driver = connection.driver_connection
    if not isinstance(parameters, tuple):
        return await_only(_fetch_by_psycopg(driver, sql, parameters))
    try:
        rows: Sequence[Any] = await_only(driver.fetch(sql, *parameters))
    except Exception as error:
        connection._handle_exception(error)
        raise
    return rows


async def _fetch_by_psycopg(driver: Any, sql: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
    async with driver.cursor() as cursor:
        await cursor.execute(sql, parameters)
        rows: Sequence[Any] = await cursor.fetchall()
        return rows
