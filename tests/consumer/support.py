"""What the tests of consumers share: messages to handle, handlers that fail, and waiting for what happens elsewhere."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, func, select, text

from messagedb_sa import Consumer, Message, Store
from messagedb_sa import stream_name as names
from messagedb_sa.store._consumer_streams import ConsumerKey, position_stream

from ..support import orders
from ..waits import HANG


# In seconds. Only a hang takes this long, however slow the machine is.
def write(store: Store, count: int, category: str = "account", first: int = 0) -> None:
    """Messages with numbers as data, of the types Even and Odd, in three streams."""
    for n in range(first, first + count):
        store.write(f"{category}-{n % 3}", "Odd" if n % 2 else "Even", {"n": n})


def positions(store: Store, stream: str) -> list[int]:
    """The global positions that were recorded in a position stream, in order."""
    return [message.data["position"] for message in store.read(stream, no_of_messages=-1)]


def last_position(store: Store, stream: str) -> int | None:
    """The global position that was recorded last, in the stream or in the table."""
    category = re.sub("[:+]position$", "", names.category(stream))
    recorded = {
        position_stream(category, ConsumerKey(*status[1:4])): status.position for status in store.consumers(category)
    }
    return recorded.get(stream)


class Failing:
    """A handler that keeps the numbers it is given, and raises at one of them, a limited number of times."""

    def __init__(self, at: int, times: int = 10**9) -> None:
        self.numbers: list[int] = []
        self.left = {at: times}

    def __call__(self, message: Message, *_: Any) -> None:
        n = message.data["n"]
        self.numbers.append(n)
        if self.left.get(n, 0) > 0:
            self.left[n] -= 1
            raise ValueError(f"no {n}")


@contextmanager
def running(consumer: Consumer) -> Iterator[None]:
    """Run the consumer in a thread until the end of the block. Its error, if it fails, is the error of the block."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            consumer.run()
        except BaseException as error:  # noqa: BLE001 - for the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    except BaseException as error:
        if failed:
            raise failed[0] from error
        raise
    finally:
        consumer.stop()
        thread.join(HANG)
    assert not thread.is_alive(), "the consumer does not stop"
    if failed:
        raise failed[0]


def order_numbers(store: Store) -> list[int]:
    with store.engine.connect() as connection:
        return list(connection.scalars(select(orders.c.number).order_by(orders.c.number)))


def database_time(engine: Engine) -> datetime:
    with engine.connect() as connection:
        now: datetime = connection.scalars(select(func.clock_timestamp())).one()
        return now


def is_waiting(engine: Engine, since: datetime) -> bool:
    """Whether a consumer of a category asked for messages after ``since``, and has done nothing after that.

    If ``since`` is when its last message was handled, it found none, and waits.
    """
    # In two parts, since this query is another session's last one, too.
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
        " AND query LIKE '%get_category' || '_messages%' AND query_start > :since"
    )
    with engine.connect() as connection:
        return bool(connection.scalars(query, {"since": since}).one())


AWAITED = text(
    "SELECT DISTINCT name FROM unnest(CAST(:names AS text[])) AS name JOIN pg_locks"
    " ON objid::bigint = hashtext(name)::bigint & x'ffffffff'::bigint"
    " WHERE locktype = 'advisory' AND classid = 1297302595 AND objsubid = 2 AND mode = 'ShareLock' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def names_awaited(engine: Engine, *names: str) -> set[str]:
    """Those of the categories that a session awaits."""
    with engine.connect() as connection:
        return set(connection.scalars(AWAITED, {"names": list(names)}))


def is_awaited(engine: Engine, *names: str) -> bool:
    return names_awaited(engine, *names) == set(names)


@contextmanager
def asking_apart(engine: Engine) -> Iterator[Connection]:
    """A connection to ask for sessions, in no pool: one that is out of its pool when that is disposed would stay open
    until it is garbage. In autocommit mode, since in a transaction PostgreSQL answers the same each time."""
    apart = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with apart.connect() as asking:
        yield asking


def sessions(asking: Connection) -> set[int]:
    """The processes of the other sessions in the database. ``asking`` is that of ``asking_apart``."""
    query = text(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return set(asking.scalars(query))


def terminate_all(engine: Engine) -> None:
    """End all sessions in the engine's database, and wait until they have ended."""
    # It returns false for a session that has just ended by itself.
    query = text(
        "SELECT count(pg_terminate_backend(pid, :milliseconds)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        assert connection.scalar(query, {"milliseconds": int(HANG * 1000)})
    # The other connections of its pool are among them.
    engine.dispose()
