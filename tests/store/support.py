"""What the tests of the store share."""

from __future__ import annotations

from sqlalchemy import Connection, event, func, select

from messagedb_sa import Store

from ..support import orders


def statements_of(store: Store) -> list[str]:
    """The statements that it sends from now on. Its engine goes the way of one that is observed for good."""
    sent: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    return sent


def order_count(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(orders)).scalar_one()


def usable(connection: Connection) -> bool:
    return bool(connection.scalar(select(1)) == 1)
