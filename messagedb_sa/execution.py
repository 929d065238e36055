"""Running an operation on a connection: in the transaction that is there, or as one of its own."""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError

from messagedb_sa.driver import switch_to_autocommit
from messagedb_sa.errors import StoreNotInstalled
from messagedb_sa.operations import HAS_OURS, Operation

T = TypeVar("T")

# An engine's own options may ask for server-side cursors, which autocommit mode does not have.
_FETCHED_AT_ONCE = {"stream_results": False, "yield_per": None}


# Whether an engine's database has the functions that we add to Message DB's, once it was asked. Engines that differ by
# their options alone have one dialect.
_has_ours: WeakKeyDictionary[Dialect, bool] = WeakKeyDictionary()


def run_joined(connection: Connection, operation: Operation[T]) -> T:
    """Run it in the transaction that the connection is in."""
    set_already = connection.get_execution_options()
    options = None if set_already.keys().isdisjoint(_FETCHED_AT_ONCE) else _FETCHED_AT_ONCE
    statement = operation.statement
    if operation.without_ours is not None and not _database_has_ours(connection):
        statement = operation.without_ours
    try:
        result = connection.execute(statement, operation.parameters, execution_options=options)
        # The driver's own tuples: making a Row of each takes as long as fetching them.
        rows = result.cursor.fetchall()
        result.close()
    except DBAPIError as error:
        ours = operation.error(error)
        if isinstance(ours, StoreNotInstalled):
            _has_ours.pop(connection.dialect, None)
        if ours is None:
            raise
        raise ours from error
    return operation.result(rows)


def _database_has_ours(connection: Connection) -> bool:
    has_ours = _has_ours.get(connection.dialect)
    if has_ours is None:
        has_ours = _has_ours[connection.dialect] = run_joined(connection, HAS_OURS)
    return has_ours


def run_alone(connection: Connection, operation: Operation[T]) -> T:
    """Run it as a transaction of its own: in autocommit mode one round trip; BEGIN and COMMIT would make it three.

    Set on the driver's connection, since an isolation level of SQLAlchemy's costs psycopg2 a second round trip when
    it is reset, and none that is set on an engine goes before one that the engine has already.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    back = switch_to_autocommit(driver)
    if back is None:
        result = run_joined(connection, operation)
        connection.commit()
        return result
    try:
        return run_joined(connection, operation)
    finally:
        if not connection.invalidated:
            back()
