"""What a database driver says about an error, by one name each: psycopg2, psycopg and asyncpg differ."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.exc import DBAPIError


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
