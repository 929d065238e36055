"""The exit codes of the command, and the line and the code of each error."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

    from messagedb_sa.cli._database import Database


class ExitCode(IntEnum):
    """What the command ends with. The manual explains them, and scripts may rely on them."""

    DONE = 0
    FAILED = 1
    """It failed or was refused, or what you asked for is not there."""
    USAGE = 2
    """An option, an argument or the database URL is wrong, or is missing."""
    NO_CONNECTION = 3
    NO_STORE = 4
    """The database has no store, or an older one."""
    NO_PRIVILEGE = 5
    WARNINGS = 6
    """The doctor has found no error, but there are warnings."""
    INTERRUPTED = 130
    CLOSED_OUTPUT = 141
    TERMINATED = 143


class Failure(Exception):
    """The command ends with this text on standard error, and with this code."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


def failure_of(error: Exception, database: Database | None) -> Failure | None:
    """What to say of the error. None if nobody expected it: then its traceback helps more."""
    if isinstance(error, Failure):
        return error
    from sqlalchemy.exc import DBAPIError

    from messagedb_sa import errors

    if isinstance(error, errors.InvalidArgument):
        return Failure(str(error), ExitCode.USAGE)
    if isinstance(error, errors.StoreNotInstalled):
        text = f"this database has no Message DB 1.3 ({error.reason}). Install or upgrade it with: messagedb install"
        return Failure(text, ExitCode.NO_STORE)
    if any(isinstance(each, errors.MissingPrivilege) for each in (error, error.__cause__)):
        return Failure(str(error), ExitCode.NO_PRIVILEGE)
    if isinstance(error, errors.CannotSettle):
        return Failure(f"{str(error).partition('. ')[0]}. Use the URL of the primary server")
    if isinstance(error, DBAPIError):
        return _of_the_database(error, database)
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(f"{error.filename}: {error.strerror}")
    if isinstance(error, (errors.MessageDBError, OSError)) or _is_alembics(error):
        return Failure(str(error))
    return None


def _of_the_database(error: DBAPIError, database: Database | None) -> Failure:
    from sqlalchemy.exc import OperationalError, ProgrammingError

    from messagedb_sa._drivers.errors import is_lost_connection, server_error
    from messagedb_sa._drivers.urls import without_passwords

    reported = server_error(error)
    lines = without_passwords(reported.message).splitlines()
    text = "; ".join(line.strip() for line in lines if line.strip()) or type(error).__name__
    shown = database.shown if database else "the database"
    # Without a statement, it was connecting that failed.
    if error.statement is None and isinstance(error, OperationalError):
        return Failure(f"cannot connect to {shown}: {text}", ExitCode.NO_CONNECTION)
    if error.statement is None and isinstance(error, ProgrammingError):
        # libpq does not know an option of the URL.
        return Failure(f"cannot connect to {shown}: {text}", ExitCode.USAGE)
    if is_lost_connection(error):
        return Failure(f"the connection to {shown} was lost: {text}", ExitCode.NO_CONNECTION)
    if reported.state == "42501":
        return Failure(text, ExitCode.NO_PRIVILEGE)
    return Failure(f"{text}{f' (SQLSTATE {reported.state})' if reported.state else ''}")


def _is_alembics(error: Exception) -> bool:
    """Whether Alembic refuses something. Only looked up if something else has imported it, since that is slow."""
    loaded = sys.modules.get("alembic.util")
    return loaded is not None and isinstance(error, loaded.CommandError)
