"""Running an operation on a connection: in the transaction that is there, or as one of its own."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from messagedb_sa.driver import can_autocommit
from messagedb_sa.operations import Operation

T = TypeVar("T")

# An engine's own options may ask for server-side cursors, which autocommit mode does not have.
_FETCHED_AT_ONCE = {"stream_results": False, "yield_per": None}


def run_joined(connection: Connection, operation: Operation[T]) -> T:
    """Run it in the transaction that the connection is in."""
    try:
        result = connection.execute(operation.statement, operation.parameters, execution_options=_FETCHED_AT_ONCE)
        rows = result.fetchall()
    except DBAPIError as error:
        ours = operation.error(error)
        if ours is None:
            raise
        raise ours from error
    return operation.result(rows)


def run_alone(connection: Connection, operation: Operation[T]) -> T:
    """Run it as a transaction of its own: in autocommit mode one round trip; BEGIN and COMMIT would make it three.

    Set on the driver's connection, since an isolation level of SQLAlchemy's costs psycopg2 a second round trip when
    it is reset, and none that is set on an engine goes before one that the engine has already.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    if not can_autocommit(driver):
        result = run_joined(connection, operation)
        connection.commit()
        return result
    before, driver.autocommit = driver.autocommit, True
    try:
        return run_joined(connection, operation)
    finally:
        if not connection.invalidated:
            driver.autocommit = before
