"""What a Store or an AsyncStore can be made on; anything else is refused, and the error says what to do instead."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm.base import Mapped

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, InvalidArgument, Store, install
from messagedb_sa.compat import MessageDB

# Nothing connects here.
engine = create_engine("postgresql+psycopg2://db/shop")
async_engine = create_async_engine("postgresql+asyncpg://db/shop")
sqlite = create_engine("sqlite://")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


def of_driver(name: str) -> Engine:
    """An engine on a driver that is not installed."""
    return create_engine(f"postgresql+{name}://db/shop", module=psycopg2)


def get_session() -> Session:
    return Session(engine)


async def get_connection() -> Any: ...


SYNC = "must be an Engine, a Connection or a Session of SQLAlchemy; "
ASYNC = "must be an AsyncEngine, an AsyncConnection or an AsyncSession of SQLAlchemy; "
BY_CREATE_ASYNC_ENGINE = "make it with create_async_engine, and pass that to AsyncStore"
UNBOUND = "must be bound to one engine for all its classes, such as Session(engine)"


@pytest.mark.parametrize(
    ("make", "bind", "reason"),
    [
        (Store, async_engine, f"{SYNC}pass this to AsyncStore"),
        (Store, async_engine.connect(), f"{SYNC}pass this to AsyncStore"),
        (Store, AsyncSession(async_engine), f"{SYNC}pass this to AsyncStore"),
        (Store, async_scoped_session(async_sessionmaker(), print), f"{SYNC}pass this to AsyncStore"),
        (Store, async_sessionmaker(async_engine), f"{SYNC}call it, and pass what it returns to AsyncStore"),
        (Store, sessionmaker(engine), f"{SYNC}call it, and pass what it returns to Store"),
        (Store, Session, f"{SYNC}call it, and pass what it returns to Store"),
        (Store, AsyncSession, f"{SYNC}call it, and pass what it returns to AsyncStore"),
        (Store, "postgresql://db/shop", f"{SYNC}call Store.from_url(url)"),
        (Store, engine.url, f"{SYNC}call Store.from_url(url)"),
        (Store, engine.begin(), f"{SYNC}enter it, and pass what it gives: with engine.begin() as connection"),
        (Store, get_session, f"{SYNC}call it, and pass what it returns"),
        (Store, None, SYNC.removesuffix("; ")),
        (AsyncStore, engine, f"{ASYNC}pass this to Store"),
        (AsyncStore, Session(engine), f"{ASYNC}pass this to Store"),
        (AsyncStore, scoped_session(sessionmaker(engine)), f"{ASYNC}pass this to Store"),
        (AsyncStore, sessionmaker(engine), f"{ASYNC}call it, and pass what it returns to Store"),
        (AsyncStore, async_sessionmaker(async_engine), f"{ASYNC}call it, and pass what it returns to AsyncStore"),
        (AsyncStore, AsyncSession, f"{ASYNC}call it, and pass what it returns to AsyncStore"),
        (AsyncStore, "postgresql://db/shop", f"{ASYNC}call AsyncStore.from_url(url)"),
        (AsyncStore, async_engine.sync_engine, f"{ASYNC}{BY_CREATE_ASYNC_ENGINE}"),
        # a session without an engine, or with one for some classes only
        (Store, Session(), UNBOUND),
        (Store, Session(binds={Order: engine}), UNBOUND),
        (Store, scoped_session(sessionmaker()), UNBOUND),
        (AsyncStore, AsyncSession(), UNBOUND),
        # other databases and drivers
        (Store, sqlite, "must be on PostgreSQL, not on sqlite"),
        (Store, Session(sqlite), "must be on PostgreSQL, not on sqlite"),
        (Store, of_driver("pg8000"), "must use the driver psycopg2 or psycopg, not pg8000, which is not supported"),
        (
            Store,
            Session(of_driver("pg8000")),
            "must use the driver psycopg2 or psycopg, not pg8000, which is not supported",
        ),
        (
            Store,
            async_engine.sync_engine,
            f"must be on a synchronous driver; {BY_CREATE_ASYNC_ENGINE}",
        ),
        (
            Store,
            create_engine("postgresql+psycopg_async://db/shop"),
            f"must be on a synchronous driver; {BY_CREATE_ASYNC_ENGINE}",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(make: Callable[[Any], object], bind: object, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(bind)
    assert (caught.value.argument, caught.value.value, caught.value.reason) == ("bind", bind, reason)


def test_a_coroutine_is_to_be_awaited() -> None:
    coroutine = get_connection()
    with contextlib.closing(coroutine), pytest.raises(InvalidArgument, match="await it, and pass the result"):
        AsyncStore(coroutine)  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_the_drivers_own_connection_is_not_an_engine(messagedb_url: str, driver: str) -> None:
    made = create_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
    with made.connect() as connection:
        raw: Any = connection.connection.driver_connection
        with pytest.raises(InvalidArgument, match="pass the engine that this connection of the driver comes from"):
            Store(raw)
    made.dispose()


def test_the_connection_that_run_sync_passes_is_fine(messagedb_url: str, store: Store) -> None:
    async def written() -> int:
        made = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        async with made.begin() as connection:
            position = await connection.run_sync(lambda each: Store(each).write("account-1", "T", {}))
        await made.dispose()
        return position

    assert asyncio.run(written()) == 0
    assert store.stream_version("account-1") == 0


# ---- URLs

EXAMPLE = "must be a URL, such as postgresql://user@host/database"


@pytest.mark.parametrize(
    ("make", "url", "reason"),
    [
        (Store, "postgresql+asyncpg://db/shop", "psycopg2 or psycopg, not asyncpg; for that, call AsyncStore.from_url"),
        (Store, "postgresql+psycopg_async://db/shop", "not psycopg_async; for that, call AsyncStore.from_url(url)"),
        (
            AsyncStore,
            "postgresql+psycopg2://db",
            "psycopg or asyncpg, not psycopg2; for that, call Store.from_url(url)",
        ),
        (Store, "postgresql+pg8000://db/shop", "must use the driver psycopg2 or psycopg, not pg8000"),
        (AsyncStore, "postgresql+aiopg://db/shop", "must use the driver psycopg or asyncpg, not aiopg"),
        (Store, "sqlite://", "must begin with postgresql://, not with sqlite://"),
        (AsyncStore, "sqlite+aiosqlite://", "must begin with postgresql://, not with sqlite://"),
        (Store, "host=db dbname=shop", EXAMPLE),
        (Store, "postgresql://db:port/shop", EXAMPLE),
        (Store, None, EXAMPLE),
        (Store, engine, f"{EXAMPLE}; pass this to Store"),
        (Store, async_engine, f"{EXAMPLE}; pass this to AsyncStore"),
    ],
)
def test_a_url_that_does_not_fit_is_refused_with_a_way_out(make: Any, url: object, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make.from_url(url)
    assert caught.value.argument == "url"
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("missing", "code", "remedy"),
    [
        ("psycopg", "Store.from_url('postgresql+psycopg://db')", 'pip install "messagedb-sa[psycopg]"'),
        ("psycopg2", "Store.from_url('postgresql://db')", "pip install psycopg2-binary"),
        ("psycopg", "AsyncStore.from_url('postgresql://db')", 'pip install "messagedb-sa[psycopg]"'),
        ("asyncpg", "AsyncStore.from_url('postgresql+asyncpg://db')", 'pip install "messagedb-sa[asyncpg]"'),
        ("greenlet", "AsyncStore.from_url('postgresql+asyncpg://db')", 'pip install "messagedb-sa[asyncpg]"'),
        ("greenlet", "AsyncStore(None)", 'pip install "messagedb-sa[asyncpg]"'),
    ],
)
def test_a_missing_driver_says_what_to_install(missing: str, code: str, remedy: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom messagedb_sa import AsyncStore, Store\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("messagedb_sa.errors.MessageDBError: ")
    assert last.removesuffix(", or [psycopg]").endswith(remedy)


# ---- others that take a store or an engine

ON_ENGINE = "must be a Store on an Engine: a consumer commits its own transactions"
ON_ASYNC_ENGINE = "must be an AsyncStore on an AsyncEngine: a consumer commits its own transactions"


@pytest.mark.parametrize(
    ("make", "store", "reason"),
    [
        (Consumer, AsyncStore(async_engine), f"{ON_ENGINE}; for this store, use AsyncConsumer"),
        (Consumer, Store(Session(engine)), ON_ENGINE),
        (Consumer, engine, f"{ON_ENGINE}; pass Store(engine)"),
        (Consumer, "postgresql://db", f"{ON_ENGINE}; for a URL, pass Store.from_url(url)"),
        (Consumer, engine.url, f"{ON_ENGINE}; for a URL, pass Store.from_url(url)"),
        (Consumer, MessageDB(connection_pool=engine), f"{ON_ENGINE}; pass its attribute store"),
        (Consumer, None, ON_ENGINE),
        (AsyncConsumer, Store(engine), f"{ON_ASYNC_ENGINE}; for this store, use Consumer"),
        (AsyncConsumer, AsyncStore(AsyncSession(async_engine)), ON_ASYNC_ENGINE),
        (AsyncConsumer, async_engine, f"{ON_ASYNC_ENGINE}; pass AsyncStore(engine)"),
    ],
)
def test_a_consumer_says_what_store_it_needs(make: Any, store: object, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(store, "account", print)
    assert (caught.value.argument, caught.value.value, caught.value.reason) == ("store", store, reason)


@pytest.mark.parametrize("bind", [async_engine, "postgresql://db", Session(engine), Store(engine)])
@pytest.mark.parametrize("call", [install.upgrade, install.downgrade, install.current])
def test_installing_says_what_it_takes(call: Callable[[Any], object], bind: object) -> None:
    with pytest.raises(InvalidArgument, match=r"must be an Engine or a Connection of SQLAlchemy.+run_sync\("):
        call(bind)


def test_installing_needs_postgresql() -> None:
    with pytest.raises(InvalidArgument, match="must be on PostgreSQL, not on sqlite"):
        install.upgrade(sqlite)


def test_a_switch_of_installing_is_not_a_word(empty_database: Engine) -> None:
    with pytest.raises(InvalidArgument, match="notify='no': must be True or False"):
        install.upgrade(empty_database, notify="no")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="role='app': must be True or False"):
        install.upgrade(empty_database, role="app")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="discard_messages='no': must be True or False"):
        install.downgrade(empty_database, discard_messages="no")  # type: ignore[arg-type]


def test_an_option_of_a_store_is_checked_when_it_is_made() -> None:
    with pytest.raises(InvalidArgument, match="combine_writes='no': must be True or False"):
        Store(engine, combine_writes="no")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"types=.*: must be a MessageTypes, with which classes were registered"):
        Store(engine, types=[Order])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"tracing=True: must be a Tracing, such as Tracing\(\), or None"):
        Store(engine, tracing=True)  # type: ignore[arg-type]
