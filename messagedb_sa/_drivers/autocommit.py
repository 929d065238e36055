"""Autocommit mode, switched on the driver's own connection, at no round trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# libpq's PQTRANS_IDLE and PQTRANS_ACTIVE
_IDLE = 0
_ACTIVE = 1


class AutocommitMode:
    """What a connection's mode was. ``switch_on`` changes it, ``switch_back`` restores it, also after a half change."""

    __slots__ = ("_autocommit", "_connection", "_level")

    def __init__(self, connection: Any, is_psycopg2: bool) -> None:
        self._connection = connection
        self._autocommit = connection.autocommit
        # psycopg2 resets the isolation level on the server, at a round trip, if it leaves autocommit mode with one set.
        # In autocommit mode already, it sends a level that is set to the server: leave it alone.
        self._level = None if self._autocommit or not is_psycopg2 else connection.isolation_level

    def switch_on(self) -> None:
        if not self._autocommit:
            if self._level is not None:
                self._connection.isolation_level = None
            self._connection.autocommit = True

    def switch_back(self) -> None:
        if not self._autocommit:
            self._connection.autocommit = False
            if self._level is not None:
                self._connection.isolation_level = self._level


def autocommit_mode(connection: Any) -> AutocommitMode | None:
    """The mode of the driver's connection, to be switched; nothing is changed yet.

    None in three cases: a transaction is open, which a listener of the engine may have begun; the engine is read-only,
    since drivers make only those transactions read-only that they begin themselves; or ``needs_transactions``.
    """
    is_psycopg2 = hasattr(connection, "get_transaction_status")
    if is_psycopg2:
        loses = connection.readonly or connection.get_transaction_status() != _IDLE
    elif hasattr(connection, "info"):
        loses = connection.read_only or connection.info.transaction_status != _IDLE
    else:
        loses = (
            connection.readonly or connection.driver_connection.is_in_transaction() or needs_transactions(connection)
        )
    return None if loses else AutocommitMode(connection, is_psycopg2)


def is_executing(connection: Any) -> bool:
    """Whether the driver was interrupted in the middle of a statement. asyncpg ends the statement itself."""
    if hasattr(connection, "get_transaction_status"):
        return bool(connection.get_transaction_status() == _ACTIVE)
    return hasattr(connection, "info") and bool(connection.info.transaction_status == _ACTIVE)


def needs_transactions(connection: Any) -> bool:
    """Whether it is asyncpg's, set up for a connection pooler that gives each transaction to another session.

    asyncpg then prepares each statement anew, or under a name of its own. In autocommit mode, a statement would be
    prepared in one session and executed in another. (With statement_cache_size=0 alone, it is sent again each time.)
    """
    name = getattr(connection, "_prepared_statement_name_func", None)
    has_names = name is not getattr(connection, "_default_name_func", None)
    return has_names or getattr(connection, "_prepared_statement_cache", ()) is None


def switch_to_transactions(connection: Any) -> Callable[[], None]:
    """Leave autocommit mode on a connection that needs transactions, and return a function that switches it back.

    What the connection has prepared in earlier transactions is in other sessions, and is forgotten.
    """
    if (
        hasattr(connection, "get_transaction_status")
        or hasattr(connection, "info")
        or not needs_transactions(connection)
    ):
        return _change_nothing
    prepared = getattr(connection, "_prepared_statement_cache", None)
    if prepared is not None:
        prepared.clear()
    if not connection.autocommit:
        return _change_nothing
    level = connection.isolation_level
    connection.isolation_level = None

    def switch_back() -> None:
        connection.isolation_level = level

    return switch_back


def mode_kept(connection: Any) -> Callable[[], None]:
    """Return a function that puts the driver's connection back into the mode, autocommit or not, that it is in now."""
    before = connection.autocommit
    is_psycopg2 = hasattr(connection, "get_transaction_status")
    level = connection.isolation_level if is_psycopg2 else None

    def put_back() -> None:
        connection.autocommit = before
        if is_psycopg2:
            connection.isolation_level = level

    return put_back


def _change_nothing() -> None:
    pass
