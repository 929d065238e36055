"""Messages with a time that the test gives, instead of the time at which they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from messagedb_sa import Store


@contextmanager
def backdated(store: Store, time: datetime) -> Iterator[Store]:
    """A Store for the block, whose messages get this time when the block ends: an aware datetime, past or future.

    It has the types, the tracing and the metrics of ``store``. The block is one transaction, or a part of the caller's
    if ``store`` is on a Connection or a Session. An error in the block rolls back the transaction that was made for it.
    The role needs the privilege to UPDATE the table, as its owner has it.
    """
    from sqlalchemy import Engine

    from messagedb_sa import InvalidArgument, Store

    if not isinstance(store, Store):
        raise InvalidArgument("store", store, "must be a Store")
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidArgument("time", time, "must be an aware datetime: datetime(2026, 1, 31, tzinfo=timezone.utc)")
    try:
        time = time.astimezone(timezone.utc)
    except OverflowError as error:
        raise InvalidArgument("time", time, "must be in the years 1 to 9999 in UTC") from error
    if isinstance(store.bind, Engine):
        # Whatever the engine's own options are: the statements must be one transaction, and see the messages.
        engine = store.bind.execution_options(isolation_level="READ COMMITTED")
        with engine.begin() as connection, _backdated(connection, time):
            yield Store(connection, types=store.types, tracing=store.tracing, metrics=store.metrics)
    else:
        with _backdated(store.bind, time):
            yield store


@contextmanager
def _backdated(connection: Any, time: datetime) -> Iterator[None]:
    from sqlalchemy import func, select, update

    from messagedb_sa import MessageDBError
    from messagedb_sa.schema import messages

    # A message has the time at which its transaction began.
    now = func.timezone("utc", func.now())
    began, last = connection.execute(select(now, func.max(messages.c.global_position)).select_from(messages)).one()
    yield
    if connection.scalar(select(now)) != began:
        raise MessageDBError("the block of backdated must be one transaction: do not commit in it, nor use autocommit")
    written = messages.c.global_position > (last or 0), messages.c.time == now
    connection.execute(update(messages).where(*written).values(time=time))
