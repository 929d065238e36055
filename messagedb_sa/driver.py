"""What database drivers say of an error and of a connection, by one name each: psycopg2, psycopg, asyncpg differ."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError

# libpq's PQTRANS_IDLE
_IDLE = 0


def can_autocommit(connection: Any) -> bool:
    """Whether the driver's connection may be switched to autocommit without a loss.

    Not inside a transaction, which a listener of the engine's may have begun, and not where the engine is read-only,
    which drivers keep in transactions only that they begin themselves.
    """
    if getattr(connection, "readonly", None) or getattr(connection, "read_only", None):
        return False
    own = getattr(connection, "driver_connection", connection)
    if hasattr(own, "is_in_transaction"):
        return not own.is_in_transaction()
    return bool(own.info.transaction_status == _IDLE)


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
