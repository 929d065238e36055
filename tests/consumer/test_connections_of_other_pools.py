"""A pool that is not SQLAlchemy's, beneath an engine: what a consumer gives back is as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg2  # type: ignore[import-untyped]
import psycopg2.extensions  # type: ignore[import-untyped]
import pytest
from sqlalchemy import (
    AssertionPool,
    Connection,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, Consumer, HandlerFailed, Message, Store, install

from ..support import DRIVERS, Awaited, consumer_on
from ..waits import wait_until
from .support import is_awaited, running, write


class OtherPool:
    """Gives out connections; closing one of them gives it back, as it is."""

    def __init__(self) -> None:
        self.idle: list[Any] = []
        self.opened: list[Any] = []

    def _kept(self, base: Any) -> Any:
        pool = self

        class Kept(base):  # type: ignore[misc]
            __slots__ = ()

            def close(self) -> None:
                pool.idle.append(self)

        class KeptAsync(base):  # type: ignore[misc]
            __slots__ = ()

            async def close(self, *, timeout: float | None = None) -> None:
                pool.idle.append(self)

        return KeptAsync if base in (psycopg.AsyncConnection, asyncpg.Connection) else Kept

    def get(self, driver: str, url: str) -> Any:
        if self.idle:
            return self.idle.pop()
        address = {"host": make_url(url).query["host"], "user": "postgres"}
        if driver == "psycopg2":
            kept = self._kept(psycopg2.extensions.connection)
            new = psycopg2.connect(**address, dbname=make_url(url).database, connection_factory=kept)
        else:
            new = self._kept(psycopg.Connection).connect(**address, dbname=make_url(url).database)
        self.opened.append(new)
        return new

    async def get_async(self, driver: str, url: str) -> Any:
        if self.idle:
            return self.idle.pop()
        address = {"host": make_url(url).query["host"], "user": "postgres"}
        if driver == "asyncpg":
            kept = self._kept(asyncpg.Connection)
            new = await asyncpg.connect(**address, database=make_url(url).database, connection_class=kept)
        else:
            new = await self._kept(psycopg.AsyncConnection).connect(**address, dbname=make_url(url).database)
        self.opened.append(new)
        return new


@contextmanager
def store_on_other_pool(driver: str, url: str) -> Iterator[tuple[Any, OtherPool]]:
    pool = OtherPool()
    named = f"postgresql+{driver}://"
    if driver in ("psycopg2", "psycopg"):
        yield Store(create_engine(named, creator=lambda: pool.get(driver, url), poolclass=NullPool)), pool
        for each in pool.opened:
            super(type(each), each).close()
        return
    loop = asyncio.new_event_loop()
    engine = create_async_engine(named, async_creator=lambda: pool.get_async(driver, url), poolclass=NullPool)
    yield Awaited(AsyncStore(engine), loop), pool
    for each in pool.opened:
        loop.run_until_complete(super(type(each), each).close())
    loop.close()


def facts(store: Any, count: int) -> list[dict[str, Any]]:
    """What differs between sessions, of all the pool's connections."""

    def of_one(connection: Connection) -> dict[str, Any]:
        driver: Any = connection.connection.driver_connection
        transaction = text("SELECT pg_current_xact_id()::text")
        scalars = {
            "channels": "SELECT count(*) FROM pg_listening_channels()",
            "locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            "signature": "SELECT coalesce(current_setting('messagedb_sa.slots', true), '')",
        }
        return {
            **{name: connection.scalar(text(sql)) for name, sql in scalars.items()},
            "in a transaction": connection.scalar(transaction) == connection.scalar(transaction),
            "settings": list(
                connection.execute(text("SELECT name, setting FROM pg_settings WHERE setting <> reset_val"))
            ),
            "level": getattr(driver, "isolation_level", None),
            "handlers": len(getattr(driver, "_notify_handlers", ())),
            "notifications": list(driver.notifies) if hasattr(driver, "get_dsn_parameters") else [],
        }

    if isinstance(store, Store):
        connections = [store.engine.connect() for _ in range(count)]
        found = [of_one(each) for each in connections]
        for each in connections:
            each.close()
        return found

    async def awaited() -> list[dict[str, Any]]:
        connections = [await store.bind.connect() for _ in range(count)]
        found = [await each.run_sync(of_one) for each in connections]
        for each in connections:
            await each.close()
        return found

    loop: asyncio.AbstractEventLoop = store._loop
    store.bind = store._store.bind
    return loop.run_until_complete(awaited())


@pytest.fixture
def notify(store: Store) -> Iterator[None]:
    install.upgrade(store.engine, notify=True)
    yield
    install.upgrade(store.engine, notify=False)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("options", [{}, {"slots": 2}, {"transactional": True}], ids=str)
def test_a_connection_goes_back_as_it_was(
    notify: None, store: Store, messagedb_url: str, driver: str, options: dict[str, Any]
) -> None:
    write(store, 6)
    handled: list[Message] = []
    with store_on_other_pool(driver, messagedb_url) as (own, pool):
        before = facts(own, 2)
        assert [each["in a transaction"] for each in before] == [True, True]
        consumer_on(
            own, "account", lambda message, *_: handled.append(message), "mailer", **options
        ).run_until_caught_up()
        assert len(handled) == 6
        assert len(pool.idle) == len(pool.opened) == 2
        assert facts(own, 2) == before


@pytest.mark.parametrize("driver", DRIVERS)
def test_so_does_one_whose_consumer_failed(notify: None, store: Store, messagedb_url: str, driver: str) -> None:
    write(store, 1)

    def fail(message: Message) -> None:
        raise KeyError

    with store_on_other_pool(driver, messagedb_url) as (own, pool):
        before = facts(own, 1)
        with pytest.raises(HandlerFailed):
            consumer_on(own, "account", fail, "mailer", slots=2).run_until_caught_up()
        assert len(pool.idle) == len(pool.opened) == 1
        assert facts(own, 1) == before


@pytest.mark.parametrize("driver", DRIVERS)
def test_so_does_one_whose_consumer_awaited_messages(
    notify: None, store: Store, messagedb_url: str, driver: str
) -> None:
    with store_on_other_pool(driver, messagedb_url) as (own, pool):
        before = facts(own, 1)
        with running(consumer_on(own, "account", print, "mailer")):
            wait_until(lambda: is_awaited(store.engine, "account"))
        assert len(pool.idle) == len(pool.opened) == 1
        assert facts(own, 1) == before


@pytest.mark.parametrize("pool", [AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool])
def test_the_pools_of_sqlalchemy_keep_nothing_of_a_consumer(
    notify: None, store: Store, messagedb_url: str, pool: Any
) -> None:
    """Its connection has left them, and is closed."""
    write(store, 1)
    engine = create_engine(messagedb_url, poolclass=pool)
    before = facts(Store(engine), 1)
    Consumer(Store(engine), "account", print, "mailer", slots=2).run_until_caught_up()
    assert facts(Store(engine), 1) == before
    engine.dispose()
    listening = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%UNLIS' || 'TEN%'")
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as asking:
        wait_until(lambda: asking.scalar(listening) == 0)
