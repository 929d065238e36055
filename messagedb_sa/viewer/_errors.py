"""Errors as pages, each with a status code and what to do."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from messagedb_sa._drivers.errors import server_error
from messagedb_sa._drivers.urls import without_passwords
from messagedb_sa.errors import InvalidArgument, MessageDBError, MissingPrivilege, StoreNotInstalled
from messagedb_sa.viewer._pages import page


class NotFound(Exception):
    """There is no such message, or no such page."""


async def show(request: Request, error: Exception) -> Response:
    status, title = _kind(error)
    return page(request, "error.html", status, title=title, text=text_of(error))


def _kind(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, NotFound):
        return 404, "Not found"
    # Class 22 of SQLSTATE: PostgreSQL cannot make a value of what is in the address.
    is_about_a_value = isinstance(error, DBAPIError) and (server_error(error).state or "").startswith("22")
    if isinstance(error, InvalidArgument) or is_about_a_value:
        return 400, "This cannot be looked up"
    if isinstance(error, MissingPrivilege):
        return 403, "A privilege is missing"
    if isinstance(error, StoreNotInstalled):
        return 503, "No store here"
    if isinstance(error, (DBAPIError, PoolTimeout, OSError)):
        return 503, "The database does not answer"
    return 500, "Something went wrong"


def text_of(error: Exception) -> str:
    if isinstance(error, (NotFound, MessageDBError)):
        return str(error)
    if isinstance(error, HTTPException):
        return "There is no such page." if error.status_code == 404 else ""
    if isinstance(error, DBAPIError):
        # Not SQLAlchemy's text, which has the statement and its parameters.
        return without_passwords(server_error(error).message)
    if isinstance(error, (PoolTimeout, OSError)):
        return without_passwords(str(error))
    return "The log of the application says more."


# Starlette logs what only the last one handles, and raises it again for the server.
_HANDLED = (HTTPException, NotFound, MessageDBError, DBAPIError, PoolTimeout, OSError, Exception)
HANDLERS: dict[Any, Any] = dict.fromkeys(_HANDLED, show)
