"""The AsyncStore in the caller's transaction; what it shares with Store is tested with that, on each driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, func, insert, make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from messagedb_sa import (
    NO_STREAM,
    AsyncStore,
    DuplicateMessageId,
    InvalidArgument,
    Store,
    WrongExpectedVersion,
)

from ..support import Order, host, orders


@pytest.fixture
def tables(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[None]:
    host.create_all(messagedb_engine)
    yield
    host.drop_all(messagedb_engine)


@pytest.fixture(params=["psycopg_async", "asyncpg"])
def run(request: pytest.FixtureRequest, messagedb_url: str, tables: None) -> Callable[..., None]:
    """Runs a coroutine function on an engine of this driver."""

    def run(body: Callable[[AsyncEngine], Awaitable[None]]) -> None:
        async def awaited() -> None:
            engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{request.param}"))
            await body(engine)
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            await engine.dispose()

        asyncio.run(awaited())

    return run


def order_count(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(orders)).scalar_one()


def test_rows_and_messages_commit_together_or_not_at_all(run: Callable[..., None], messagedb_store: Store) -> None:
    async def body(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            joined = AsyncStore(connection)
            await connection.execute(insert(orders).values(number=1))
            assert await joined.write("order-1", "Placed", {}, expected_version=NO_STREAM) == 0
            assert await joined.write_batch("order-1", [("Paid", {}), ("Shipped", {})], 0) == 2
            assert await joined.write_streams([("bill-1", [("Sent", {})], NO_STREAM)]) == {"bill-1": 0}
            assert [message.type async for message in joined.iter_stream("order-1", batch_size=1)] == [
                "Placed",
                "Paid",
                "Shipped",
            ]
            await connection.rollback()
            assert messagedb_store.read("$all") == []
            await connection.execute(insert(orders).values(number=2))
            await joined.write("order-2", "Placed", {})
            await connection.commit()

    run(body)
    assert order_count(messagedb_store) == len(messagedb_store.read("$all")) == 1


@pytest.mark.parametrize("kind", ["session", "scoped"])
def test_a_session_and_its_objects_are_one_transaction(
    run: Callable[..., None], messagedb_store: Store, kind: str
) -> None:
    async def body(engine: AsyncEngine) -> None:
        session: Any = AsyncSession(engine)
        if kind == "scoped":
            session = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        joined = AsyncStore(session)
        session.add(Order(number=1))
        await joined.write("order-1", "Placed", {})
        await session.rollback()
        session.add(Order(number=2))
        await joined.write("order-2", "Placed", {}, expected_version=NO_STREAM)
        await session.commit()
        await session.close()

    run(body)
    assert [message.stream_name for message in messagedb_store.read("order")] == ["order-2"]
    assert order_count(messagedb_store) == 1


def test_a_wrong_expected_version_leaves_the_transaction_usable(
    run: Callable[..., None], messagedb_store: Store
) -> None:
    async def body(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            joined = AsyncStore(connection)
            await joined.write("order-1", "Placed", {})
            with pytest.raises(WrongExpectedVersion) as caught:
                await joined.write("order-1", "Paid", {}, expected_version=7)
            assert (caught.value.expected_version, caught.value.actual_version) == (7, 0)
            await joined.write("order-1", "Paid", {}, expected_version=0)

    run(body)
    assert [message.type for message in messagedb_store.read("order-1")] == ["Placed", "Paid"]


def test_after_another_refusal_the_host_goes_back_to_its_savepoint(run: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        id = uuid4()
        async with engine.begin() as connection:
            joined = AsyncStore(connection)
            await joined.write("order-1", "Placed", {}, id=id)
            with pytest.raises(DuplicateMessageId) as caught:
                async with connection.begin_nested():
                    await joined.write("order-2", "Placed", {}, id=id)
            assert caught.value.id == str(id)
            assert await joined.stream_version("order-1") == 0

    run(body)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_lost_race_under_an_old_snapshot_is_a_wrong_expected_version(
    run: Callable[..., None], messagedb_store: Store, level: str
) -> None:
    messagedb_store.write("order-1", "Placed", {})

    async def body(engine: AsyncEngine) -> None:
        async with engine.connect() as connection, engine.connect() as other:
            for each in (connection, other):
                await each.execution_options(isolation_level=level)
                assert await AsyncStore(each).stream_version("order-1") == 0
            await AsyncStore(other).write("order-1", "Paid", {}, expected_version=0)
            await other.commit()
            with pytest.raises(WrongExpectedVersion) as caught:
                await AsyncStore(connection).write("order-1", "Cancelled", {}, expected_version=0)
            assert (caught.value.stream_name, caught.value.actual_version) == ("order-1", None)
            await connection.rollback()

    run(body)


def test_calls_run_side_by_side_on_an_engine(run: Callable[..., None], messagedb_store: Store) -> None:
    async def body(engine: AsyncEngine) -> None:
        store = AsyncStore(engine)
        await asyncio.gather(*(store.write(f"order-{n % 5}", "Placed", {"n": n}) for n in range(50)))
        # As many connections as the pool may have.
        assert engine.pool.checkedin() == 5  # type: ignore[attr-defined]

    run(body)
    assert sorted(message.data["n"] for message in messagedb_store.read("order")) == list(range(50))


def test_iterating_is_an_async_generator_checked_at_the_call(run: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        store = AsyncStore(engine)
        with pytest.raises(InvalidArgument):
            store.iter_stream("order")
        messages = store.iter_category("order")
        assert isinstance(messages, AsyncIterator)
        assert [message async for message in messages] == []

    run(body)


def test_a_bare_url_means_psycopg(messagedb_url: str, messagedb_store: Store) -> None:
    async def body() -> None:
        store = AsyncStore.from_url(messagedb_url.replace("+psycopg2", ""), pool_size=1)
        assert store.engine.dialect.driver == "psycopg"
        assert await store.version() == "1.3.0"
        await store.engine.dispose()

    asyncio.run(body())


def test_a_synchronous_bind_is_refused_and_named(messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    with pytest.raises(InvalidArgument, match="must be an AsyncEngine"):
        AsyncStore(engine)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="must be an Engine"):
        Store(create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg")))  # type: ignore[arg-type]
