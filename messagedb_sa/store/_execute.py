"""Performs calls on a connection: in the transaction that it is in, or as transactions of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import is_exit_exception

from messagedb_sa._drivers.autocommit import autocommit_mode, is_executing, switch_to_transactions
from messagedb_sa._drivers.errors import reported_setting
from messagedb_sa._drivers.native import SQLALCHEMY_IS_TESTED, fetch
from messagedb_sa._drivers.times import leave_times
from messagedb_sa.errors import StoreNotInstalled
from messagedb_sa.store._gc import uncollected
from messagedb_sa.store._operation import Call, Operation
from messagedb_sa.store._operations import OUR_FUNCTIONS

T = TypeVar("T")
_Execute: TypeAlias = "Callable[[Connection, Executable, Mapping[str, Any]], Sequence[Any]]"

# An engine's own options may ask for server-side cursors, which do not work in autocommit mode.
_FETCHED_AT_ONCE = {"stream_results": False, "yield_per": None}

# The option of a consumer's own connection. It is in effect already: for a statement, it asks for nothing.
_AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}

# Which of the functions that we add to Message DB's a database has, once it was asked. Engines that differ only in
# their options share a dialect.
_our_functions: WeakKeyDictionary[Dialect, frozenset[str]] = WeakKeyDictionary()

# What a dialect makes of a statement: the SQL, and the values of the statement's own parameters.
_compiled: WeakKeyDictionary[Dialect, dict[Executable, tuple[str, dict[str, Any], list[str] | None]]] = (
    WeakKeyDictionary()
)

# SQLAlchemy logs the server's notices here.
_notices = logging.getLogger("sqlalchemy.dialects.postgresql")


def run_joined(connection: Connection, call: Call[T]) -> T:
    """Perform it in the transaction that the connection is in."""
    return call.perform(partial(_run, connection, _by_sqlalchemy))


def run_alone(connection: Connection, call: Call[T]) -> T:
    """Perform it with each statement as its own transaction: in autocommit mode, one round trip instead of three.

    The mode is switched on the driver's connection. SQLAlchemy's isolation level costs psycopg2 a second round trip
    when it is reset, and it does not override one that the engine has as an option.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    mode = autocommit_mode(driver)
    if mode is None:
        return _run_in_a_transaction(connection, driver, call)
    execute = _by_the_driver if _is_unobserved(connection) else _by_sqlalchemy
    try:
        mode.switch_on()
        return call.perform(partial(_run, connection, execute))
    finally:
        # An error of the driver's replaces neither a result nor an error. A signal handler may interrupt this, too.
        try:
            if not connection.invalidated:
                mode.switch_back()
        except BaseException as error:
            # In autocommit mode, the next transaction on it would not be one.
            connection.invalidate(error)
            if not isinstance(error, connection.dialect.loaded_dbapi.Error):
                raise


def _run_in_a_transaction(connection: Connection, driver: DBAPIConnection, call: Call[T]) -> T:
    switch_back = switch_to_transactions(driver)
    try:
        result = run_joined(connection, call)
        connection.commit()
    except BaseException:
        # A consumer goes on with this connection.
        with suppress(DBAPIError):
            connection.rollback()
        raise
    finally:
        switch_back()
    return result


def _run(connection: Connection, execute: _Execute, operation: Operation[T]) -> T:
    statement = operation.statement
    if operation.own_sql:
        execute = _by_sqlalchemy
    if operation.without_our_functions is not None and not operation.our_functions <= _our_functions_of(
        connection, execute
    ):
        statement = operation.without_our_functions
    try:
        rows = execute(connection, statement, operation.parameters)
    except DBAPIError as error:
        ours = operation.error(error, partial(_setting, connection))
        if isinstance(ours, StoreNotInstalled):
            _our_functions.pop(connection.dialect, None)
        if ours is None:
            raise
        raise ours from error
    except BaseException as error:
        # A signal handler's exception may have interrupted the driver while it waited for the server.
        if not connection.invalidated and is_executing(connection.connection.dbapi_connection):
            connection.invalidate(error)
        raise
    return operation.result(rows)


def _setting(connection: Connection, name: str) -> str | None:
    return None if connection.invalidated else reported_setting(connection.connection.dbapi_connection, name)


def _our_functions_of(connection: Connection, execute: _Execute) -> frozenset[str]:
    names = _our_functions.get(connection.dialect)
    if names is None:
        names = _our_functions[connection.dialect] = OUR_FUNCTIONS.perform(partial(_run, connection, execute))
    return names


def _by_sqlalchemy(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    set_already = connection.get_execution_options()
    options = None if set_already.keys().isdisjoint(_FETCHED_AT_ONCE) else _FETCHED_AT_ONCE
    result = connection.execute(statement, parameters, execution_options=options)
    # The driver's own tuples: to make Rows of them takes as long as to fetch them.
    try:
        rows = _fetched(result.cursor)
    except BaseException as error:  # noqa: BLE001 - SQLAlchemy raises it again, as when it fetches by itself
        connection._handle_dbapi_exception(error, None, None, result.cursor, result.context)
    result.close()
    return rows


def _fetched(cursor: Any) -> Sequence[Any]:
    # The rows have already arrived: this only makes Python objects.
    with uncollected(cursor.rowcount):
        rows: Sequence[Any] = cursor.fetchall()
    return rows


def _is_unobserved(connection: Connection) -> bool:
    """Whether SQLAlchemy is asked to do nothing around a statement: no event listeners, no log, no options.

    What it does around a short statement takes longer than the statement. This reads SQLAlchemy's private attributes:
    versions that we have not tested, and asynchronous drivers, take the usual way.
    """
    dialect: Any = connection.dialect
    engine: Any = connection.engine
    options = connection.get_execution_options()
    return (
        SQLALCHEMY_IS_TESTED
        and (not options or options == _AUTOCOMMIT)
        and not (connection._has_events or engine._has_events or dialect._has_events)
        and not connection._echo
        and not _notices.isEnabledFor(logging.INFO)
    )


def _by_the_driver(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    known = _compiled.setdefault(connection.dialect, {})
    if statement not in known:
        compiled: Any = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
        own_values = {name: bind.value for name, bind in compiled.binds.items()}
        known[statement] = (str(compiled), own_values, compiled.positiontup)
    sql, own, order = known[statement]
    named = {**own, **parameters}
    both: Any = named if order is None else tuple([named[name] for name in order])
    executed: str | None = sql
    cursor: Any = None
    try:
        if connection.dialect.is_async:
            return fetch(connection.connection.dbapi_connection, sql, both)
        cursor = connection.connection.cursor()
        leave_times(cursor)
        cursor.execute(sql, both)
        # As in SQLAlchemy, an error while rows are fetched has no statement.
        executed = both = None
        rows = _fetched(cursor)
    except connection.dialect.loaded_dbapi.Error as error:
        connection._handle_dbapi_exception(error, executed, both, cursor, None)
    except BaseException as error:
        # Not the driver's, so it is not wrapped. It may come from a signal handler, or from the encoding of a text.
        if is_exit_exception(error):
            connection.invalidate(error)
        raise
    cursor.close()
    return rows
