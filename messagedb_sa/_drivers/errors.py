"""What a driver's error says: PostgreSQL's report, whether the same may succeed later, or a value is at fault.

This is the one home of that decision. Each function stands for one answer to an error:

- ``is_lost_connection``: connect again.
- ``is_read_only``: wait until the server, or another one, is the primary.
- ``is_temporary``: repeat the statement, or the transaction. Nothing was wrong with it: others held a lock for too
  long, or the server lacked something.
- ``is_serialization_failure``: repeat a statement that was a transaction of its own. If others' statements were in the
  transaction too, they decide.

All others are caused by what was sent. For example, 23xxx at the commit is a deferred constraint that rows violate, and
25P02 is an error that was ignored before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError, StatementError

# admin_shutdown, crash_shutdown, cannot_connect_now; idle_session_timeout, idle_in_transaction_session_timeout,
# transaction_timeout, which end the session too
_SHUT_DOWN = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"})
# deadlock_detected, lock_not_available, and query_canceled, which is also what statement_timeout reports
_DISTURBED = frozenset({"40P01", "55P03", "57014"})
# too_many_connections, disk_full, out_of_memory and others
_INSUFFICIENT_RESOURCES = "53"


# What drivers, decoders and the application's own loaders raise about a value that they cannot make an object of. Not
# Exception: a signal handler may raise its own error at any moment.
_ABOUT_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


class ServerError(NamedTuple):
    """PostgreSQL's report of an error. A field is None if PostgreSQL or the driver does not provide it."""

    state: str | None
    message: str
    detail: str | None
    constraint: str | None


def server_error(error: DBAPIError) -> ServerError:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    diagnostics = getattr(error.orig, "diag", None)
    if diagnostics is not None:
        message = diagnostics.message_primary or str(error.orig)
        return ServerError(state, message, diagnostics.message_detail, diagnostics.constraint_name)
    # SQLAlchemy's adapter for asyncpg has the driver's error as its cause.
    cause = getattr(error.orig, "__cause__", None)
    return ServerError(
        state,
        getattr(cause, "message", None) or str(error.orig),
        getattr(cause, "detail", None),
        getattr(cause, "constraint_name", None),
    )


def is_about_a_value(error: BaseException) -> bool:
    """Whether rows arrived, but no Python object could be made of a value in them. The connection is still usable."""
    its_own = error.orig if isinstance(error, StatementError) else error
    if isinstance(its_own, _ABOUT_VALUES):
        return True
    # The drivers' DataError, without the SQLSTATE that it has if it comes from the server.
    state = getattr(its_own, "sqlstate", None) or getattr(its_own, "pgcode", None)
    return state is None and any(cls.__name__ == "DataError" for cls in type(its_own).__mro__)


def reported_setting(connection: Any, name: str) -> str | None:
    """A setting that PostgreSQL tells the driver's connection by itself, such as server_encoding. No round trip."""
    if hasattr(connection, "get_parameter_status"):
        value: str | None = connection.get_parameter_status(name)
    elif hasattr(connection, "info"):
        value = connection.info.parameter_status(name)
    else:
        value = getattr(connection.driver_connection.get_settings(), name, None)
    return value


def is_lost_connection(error: BaseException) -> bool:
    """Whether the connection is gone, or the server is shutting down or starting: a new connection may work."""
    state = _state(error)
    invalidated = isinstance(error, DBAPIError) and error.connection_invalidated
    return invalidated or state in _SHUT_DOWN or state.startswith("08")


def is_read_only(error: BaseException) -> bool:
    return _state(error) == "25006"


def is_temporary(error: BaseException) -> bool:
    state = _state(error)
    return state in _DISTURBED or state.startswith(_INSUFFICIENT_RESOURCES)


def is_serialization_failure(error: BaseException) -> bool:
    return _state(error) == "40001"


def _state(error: BaseException) -> str:
    return (server_error(error).state or "") if isinstance(error, DBAPIError) else ""


def is_caused_by_lost_connection(error: BaseException) -> bool:
    """Whether the error, or any error that led to it, is a lost connection."""
    return any(map(is_lost_connection, _database_errors(error)))


def is_caused_by_read_only(error: BaseException) -> bool:
    return any(map(is_read_only, _database_errors(error)))


def _database_errors(error: BaseException) -> Iterator[DBAPIError]:
    """The error and those that led to it, if they are the database's."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, DBAPIError):
            yield each
        # An ExceptionGroup has several.
        pending += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def close_at_once(connection: Any) -> None:
    """Close the driver's connection without telling the server or waiting: a cancelled task cannot wait."""
    own = getattr(connection, "driver_connection", connection)
    if hasattr(own, "terminate"):
        own.terminate()
    elif hasattr(own, "pgconn"):
        own.pgconn.finish()
    else:
        own.close()
