"""What writes cost that join the caller's transaction, compared with the bare driver in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import data
from measure import Call, Comparison
from report import duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import BigInteger, Connection, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from messagedb_sa import Store, install
from messagedb_sa._ids import new_ids
from messagedb_sa.testing import temporary_database

OURS, BARE = "ours", "bare psycopg2"
BATCH = 100
STREAMS = 100

HOW = f"""\
Both calls of a row are made in the same open transaction, on the same connection: the bare driver is a cursor of the
Connection's or Session's own psycopg2 connection, and calls write_message, or write_messages for a batch of {BATCH}. It
does not encode JSON, and uses ids of the same kind. The commit is not part of the time.

In the last row of each kind, the time is that of a whole transaction: an object added to the Session, or a row inserted
with Core, the write of one message, and the commit. For the bare driver, only the write of the message differs.
"""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    note: Mapped[str]


class Row(NamedTuple):
    work: str
    calls: dict[str, Call]
    block: int
    rounds: int


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with temporary_database(server) as url, ExitStack() as stack:
        engine = create_engine(url)
        stack.callback(engine.dispose)
        install.upgrade(engine)
        Base.metadata.create_all(engine)
        data.load(url, data.category("account", 10_000, STREAMS))
        data.settle(url)
        data.write_on(10_000, url)
        connection = stack.enter_context(closing(engine.connect()))
        session = stack.enter_context(closing(Session(engine)))
        rows = [_cells(row, sizes) for row in (*_rows("Connection", connection), *_rows("Session", session))]
    header = ["work", OURS, BARE, "times as long"]
    return page("Joined writes", table(header, rows), HOW)


def _rows(kind: str, bind: Connection | Session) -> list[Row]:
    # Created once: a Store on a Session uses whatever connection the session has.
    store = Store(bind)

    def started(number: int) -> str:
        """The stream's name, in a new transaction every 26 calls, which is a block and the call before it."""
        if number % 26 == 0:
            bind.commit()
        return f"{kind}-{number % STREAMS}"

    def write(stream: str) -> object:
        return store.write(stream, data.TYPE, data.DATA, data.METADATA)

    def bare(stream: str) -> object:
        return _run(bind, _WRITE, (new_ids(1)[0], stream, data.TYPE, data.DATA_JSON, data.METADATA_JSON, None))

    messages = [(data.TYPE, data.DATA, data.METADATA)] * BATCH
    many = [json.dumps([value] * BATCH) for value in (data.DATA, data.METADATA)]

    def write_batch(stream: str) -> object:
        return store.write_batch(stream, messages)

    def bare_batch(stream: str) -> object:
        return _run(bind, _WRITE_BATCH, (new_ids(BATCH), stream, [data.TYPE] * BATCH, *many, None))

    def whole(written: Callable[[str], object]) -> Callable[[str], object]:
        def transaction(stream: str) -> None:
            if isinstance(bind, Session):
                bind.add(Order(note=stream))
                bind.flush()
            else:
                bind.execute(_INSERT, {"note": stream})
            written(stream)
            bind.commit()

        return transaction

    return [
        Row(f"{kind}: write", {OURS: Call(write, started), BARE: Call(bare, started)}, 25, 100),
        Row(
            f"{kind}: write_batch of {BATCH}",
            {OURS: Call(write_batch, started), BARE: Call(bare_batch, started)},
            2,
            60,
        ),
        Row(
            f"{kind}: {'an object' if kind == 'Session' else 'a row'}, a write, commit",
            {OURS: Call(whole(write), started), BARE: Call(whole(bare), started)},
            10,
            80,
        ),
    ]


_WRITE = "SELECT message_store.write_message(%s, %s, %s, %s, %s, %s)"
_WRITE_BATCH = "SELECT message_store.write_messages(%s::varchar[], %s, %s::varchar[], %s, %s, %s)"
_INSERT = Order.__table__.insert()  # type: ignore[attr-defined]


def _run(bind: Connection | Session, statement: str, parameters: tuple[Any, ...]) -> object:
    connection = bind.connection() if isinstance(bind, Session) else bind
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def _cells(row: Row, sizes: Sizes) -> list[str]:
    progress(f"joined: {row.work}")
    samples = Comparison(row.calls, row.block).run(sizes.scaled(row.rounds))
    return [row.work, *(duration(samples.median(name)) for name in (OURS, BARE)), shown(samples.ratio(OURS, BARE))]
