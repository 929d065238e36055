"""Running an operation on a connection: in the transaction that is there, or as one of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy
from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.exc import DBAPIError

from messagedb_sa.driver import switch_to_autocommit
from messagedb_sa.errors import StoreNotInstalled
from messagedb_sa.garbage import uncollected
from messagedb_sa.operations import HAS_OURS, Operation

T = TypeVar("T")
_Execute: TypeAlias = "Callable[[Connection, Executable, Mapping[str, Any]], Sequence[Any]]"

# An engine's own options may ask for server-side cursors, which autocommit mode does not have.
_FETCHED_AT_ONCE = {"stream_results": False, "yield_per": None}

# Whether an engine's database has the functions that we add to Message DB's, once it was asked. Engines that differ by
# their options alone have one dialect.
_has_ours: WeakKeyDictionary[Dialect, bool] = WeakKeyDictionary()

# What a dialect made of a statement: the SQL, and the values of the parameters that are the statement's own.
_compiled: WeakKeyDictionary[Dialect, dict[Executable, tuple[str, dict[str, Any]]]] = WeakKeyDictionary()

_IS_TESTED = sqlalchemy.__version__.startswith(("2.0.", "2.1."))

# Where SQLAlchemy tells of the server's notices.
_notices = logging.getLogger("sqlalchemy.dialects.postgresql")


def run_joined(connection: Connection, operation: Operation[T]) -> T:
    """Run it in the transaction that the connection is in."""
    return _run(connection, operation, _by_sqlalchemy)


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
        unobserved = not operation.own_sql and _is_unobserved(connection)
        return _run(connection, operation, _by_the_driver if unobserved else _by_sqlalchemy)
    finally:
        if not connection.invalidated:
            back()


def _run(connection: Connection, operation: Operation[T], execute: _Execute) -> T:
    return operation.perform(partial(_step, connection, execute))


def _step(connection: Connection, execute: _Execute, operation: Operation[T]) -> T:
    statement = operation.statement
    if operation.without_ours is not None and not _database_has_ours(connection):
        statement = operation.without_ours
    try:
        rows = execute(connection, statement, operation.parameters)
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


def _by_sqlalchemy(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    set_already = connection.get_execution_options()
    options = None if set_already.keys().isdisjoint(_FETCHED_AT_ONCE) else _FETCHED_AT_ONCE
    result = connection.execute(statement, parameters, execution_options=options)
    # The driver's own tuples: making a Row of each takes as long as fetching them.
    rows = _fetched(result.cursor)
    result.close()
    return rows


def _fetched(cursor: Any) -> Sequence[Any]:
    # The rows are here already.
    with uncollected(cursor.rowcount):
        rows: Sequence[Any] = cursor.fetchall()
    return rows


def _is_unobserved(connection: Connection) -> bool:
    """Whether nothing is asked of SQLAlchemy that it does around a statement: no listeners, no log, no options.

    That takes longer than a short statement itself. What tells is SQLAlchemy's own: with versions that this was not
    tested with, as with asynchronous drivers, a statement goes the usual way.
    """
    dialect: Any = connection.dialect
    engine: Any = connection.engine
    return (
        _IS_TESTED
        and not dialect.is_async
        and not dialect.positional
        and not connection.get_execution_options()
        and not (connection._has_events or engine._has_events or dialect._has_events)
        and not connection._echo
        and not _notices.isEnabledFor(logging.INFO)
    )


def _by_the_driver(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    known = _compiled.setdefault(connection.dialect, {})
    if statement not in known:
        compiled: Any = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
        known[statement] = (str(compiled), {name: bind.value for name, bind in compiled.binds.items()})
    sql, own = known[statement]
    both = {**own, **parameters}
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, both)
        rows = _fetched(cursor)
    except BaseException as error:  # noqa: BLE001 - as SQLAlchemy does: it raises it again
        connection._handle_dbapi_exception(error, sql, both, cursor, None)
    cursor.close()
    return rows
