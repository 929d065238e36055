"""What the tests of the store share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event, func, select

from messagedb_sa import Store

from ..support import orders


def statements_of(store: Store) -> list[str]:
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    return sent


def order_count(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(orders)).scalar_one()


def usable(connection: Connection) -> bool:
    return bool(connection.scalar(select(1)) == 1)
