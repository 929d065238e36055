"""The transaction in which a handler writes, and what the consumer writes at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from messagedb_sa._drivers.errors import is_caused_by_read_only, is_lost_connection, is_temporary
from messagedb_sa.consumer._host import Host
from messagedb_sa.consumer._session import ConnectionLost, ConsumerSession, Unavailable

T = TypeVar("T")
U = TypeVar("U")


def commit(
    host: Host,
    session: ConsumerSession,
    work: Callable[[Connection], T],
    conclude: Callable[[Connection, T], U],
    *,
    calls_handlers: bool = True,
) -> U:
    """Commit what ``work`` does together with what ``conclude`` then does with the result; returns the latter's.

    Raises Unavailable if that is not possible now, for a reason other than a handler. All other errors are the
    handler's: those that it raises, and those of ``conclude`` and of the commit that are caused by what it did.
    """
    is_handling = calls_handlers
    with session.of_pool() as connection, host.watch.transaction(connection) as returned:
        try:
            with connection.begin():
                if not calls_handlers:
                    returned()
                try:
                    done = work(connection)
                finally:
                    returned()
                is_handling = False
                concluded = conclude(connection, done)
        except Exception as error:
            if connection.invalidated or (not is_handling and is_lost_connection(error)):
                # What is found after connecting again tells whether it was committed.
                raise ConnectionLost(error) from error
            if not is_handling and is_temporary(error):
                raise Unavailable(error) from error
            if is_caused_by_read_only(error) and not session.is_usable(connection):
                connection.invalidate()
                raise Unavailable(error) from error
            raise
    return concluded
