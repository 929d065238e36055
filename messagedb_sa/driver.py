"""What database drivers say of an error and of a connection, by one name each: psycopg2, psycopg, asyncpg differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError

# libpq's PQTRANS_IDLE
_IDLE = 0

# admin_shutdown, crash_shutdown, cannot_connect_now
_SHUT_DOWN = frozenset({"57P01", "57P02", "57P03"})


def switch_to_autocommit(connection: Any) -> Callable[[], None] | None:
    """Put the driver's connection in autocommit mode, at no round trip; what is returned puts it back.

    None, and nothing changed, where that would lose something: inside a transaction, which a listener of the engine's
    may have begun, and where the engine is read-only, which drivers keep in transactions only that they begin
    themselves.
    """
    is_psycopg2 = hasattr(connection, "get_transaction_status")
    if is_psycopg2:
        loses = connection.readonly or connection.get_transaction_status() != _IDLE
    elif hasattr(connection, "info"):
        loses = connection.read_only or connection.info.transaction_status != _IDLE
    else:
        loses = connection.readonly or connection.driver_connection.is_in_transaction()
    if loses:
        return None
    if connection.autocommit:
        # It stays as it is: psycopg2 sends its isolation level to the server where it is set in this mode.
        return _nothing
    # psycopg2 resets the isolation level on the server, at a round trip, when it leaves autocommit mode with one set.
    level = connection.isolation_level if is_psycopg2 else None
    before = connection.autocommit
    if level is not None:
        connection.isolation_level = None
    connection.autocommit = True

    def back() -> None:
        connection.autocommit = before
        if level is not None:
            connection.isolation_level = level

    return back


def _nothing() -> None:
    pass


def lost_connection(error: DBAPIError) -> bool:
    """Whether the connection is gone, or the server is going or not yet there: another one may do."""
    state = refusal(error).state or ""
    return error.connection_invalidated or state in _SHUT_DOWN or state.startswith("08")


def of_lost_connection(error: BaseException) -> bool:
    """Whether a lost connection is among what led to the error."""
    seen: set[int] = set()
    led: list[BaseException | None] = [error]
    while led:
        each = led.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, DBAPIError) and lost_connection(each):
            return True
        # The last are an ExceptionGroup's.
        led += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return False


def close_at_once(connection: Any) -> None:
    """Without a word to the server, and without waiting, which a cancelled task can't."""
    own = getattr(connection, "driver_connection", connection)
    if hasattr(own, "terminate"):
        own.terminate()
    elif hasattr(own, "pgconn"):
        own.pgconn.finish()
    else:
        own.close()


class Refusal(NamedTuple):
    """PostgreSQL's own account of an error; None for what it, or the driver, does not tell."""

    state: str | None
    message: str
    detail: str | None
    constraint: str | None


def refusal(error: DBAPIError) -> Refusal:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    diagnostics = getattr(error.orig, "diag", None)
    if diagnostics is not None:
        message = diagnostics.message_primary or str(error.orig)
        return Refusal(state, message, diagnostics.message_detail, diagnostics.constraint_name)
    # SQLAlchemy's adapter for asyncpg has the driver's error as its cause.
    cause = getattr(error.orig, "__cause__", None)
    return Refusal(
        state,
        getattr(cause, "message", None) or str(error.orig),
        getattr(cause, "detail", None),
        getattr(cause, "constraint_name", None),
    )
