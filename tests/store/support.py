"""What the tests of the store share."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from messagedb_sa import Store

from ..support import orders


def order_count(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(orders)).scalar_one()


def usable(connection: Connection) -> bool:
    return bool(connection.scalar(select(1)) == 1)
