"""AsyncStore compared with asyncpg and psycopg 3 themselves, and the synchronous Store with psycopg 3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from itertools import count
from typing import Any, NamedTuple

import asyncpg  # type: ignore[import-untyped]
import data
import psycopg
from contenders import Ours
from data import DATA, DATA_JSON, METADATA, METADATA_JSON, TYPE
from database import libpq_url
from measure import Call, Comparison, Ratio, Samples
from psycopg_pool import AsyncConnectionPool
from report import at_least, at_most, duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Message, install
from messagedb_sa._ids import new_ids
from messagedb_sa.testing import temporary_database

OURS, BARE = "ours", "bare"
CATEGORY, STREAMS, PAGE = "account", 10, 1000
# For the consumer, which connects, and records its positions, whatever the number of messages is.
LARGE, MESSAGES = "journal", 50_000
TASKS, CONNECTIONS, WRITES = 32, 16, 10

HOW = f"""\
The drivers call the server's functions on an open connection in autocommit mode. They do not encode or decode JSON. The
event loop is asyncio's. {TASKS} tasks, each writing to its own category, are compared with the driver's own pool
(asyncpg.create_pool, and AsyncConnectionPool of psycopg_pool); all pools have {CONNECTIONS} connections. The consumer's
handler is a coroutine function that does nothing. It is compared with a loop over iter_category, of {MESSAGES:,}
messages. Values are medians of the rounds, with the quartiles of the ratios in brackets. In each round, both are
measured in random order.
"""

WRITE = "SELECT message_store.write_message({}, {}, {}, {}, {}, {})"
READ_LAST = "SELECT * FROM message_store.get_last_stream_message({})"
READ_STREAM = f"SELECT * FROM message_store.get_stream_messages({{}}, 0, {PAGE})"

Fetch = Callable[..., Awaitable[Any]]


class Row(NamedTuple):
    work: str
    figure: str
    ratio: Ratio
    bound: float
    is_speed: bool = False
    """The ratio is a share of the other's speed, and the bound is the least; else it is the time, and the most."""

    def cells(self) -> list[str]:
        bound = (at_least if self.is_speed else at_most)(self.ratio, self.bound)
        return [self.work, self.figure, shown(self.ratio), bound]


class Asyncpg:
    name = "asyncpg"
    bounds = 1.4, 1.7, 1.7

    def __init__(self, url: str) -> None:
        parsed = make_url(url).set(drivername="postgresql+asyncpg")
        self._parameters = parsed.get_dialect()().create_connect_args(parsed)[1]

    @staticmethod
    def sql(statement: str) -> str:
        return statement.format(*(f"${n + 1}" for n in range(statement.count("{}"))))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Fetch]:
        connection = await asyncpg.connect(**self._parameters)
        yield connection.fetch
        await connection.close()

    @asynccontextmanager
    async def pooled(self) -> AsyncIterator[Fetch]:
        async with asyncpg.create_pool(**self._parameters, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:

            async def fetch(sql: str, *values: Any) -> Any:
                async with pool.acquire() as connection:
                    return await connection.fetch(sql, *values)

            yield fetch


class Psycopg:
    name = "psycopg"
    bounds = 1.6, 2, 1.7

    def __init__(self, url: str) -> None:
        self._url = libpq_url(url)

    @staticmethod
    def sql(statement: str) -> str:
        return statement.replace("{}", "%s")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Fetch]:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:

            async def fetch(sql: str, *values: Any) -> Any:
                return await (await connection.execute(sql, values)).fetchall()

            yield fetch

    @asynccontextmanager
    async def pooled(self) -> AsyncIterator[Fetch]:
        size = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
        async with AsyncConnectionPool(self._url, kwargs={"autocommit": True}, open=False, **size) as pool:

            async def fetch(sql: str, *values: Any) -> Any:
                async with pool.connection() as connection:
                    return await (await connection.execute(sql, values)).fetchall()

            yield fetch


def run(url: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with temporary_database(url) as own:
        install.upgrade(create_engine(own, poolclass=NullPool))
        data.load(own, data.category(CATEGORY, STREAMS * PAGE, STREAMS))
        data.load(own, data.category(LARGE, MESSAGES, 100))
        data.settle(own)
        data.write_on(STREAMS * PAGE + MESSAGES, own)
        rows = [row for driver in (Asyncpg(own), Psycopg(own)) for row in _asynchronous(own, driver, sizes)]
        rows += _synchronous(own, sizes)
        header = ["work", OURS, "times as long, or as fast", "bound"]
    return page("For those who await", table(header, [row.cells() for row in rows]), HOW)


def _asynchronous(url: str, driver: Asyncpg | Psycopg, sizes: Sizes) -> Iterator[Row]:
    with _opened(url, driver) as (loop, store, bare, pooled):
        write, read_last, read_stream = driver.bounds
        sql = driver.sql(WRITE)

        def several(do: Callable[[int], Awaitable[Any]], number: int) -> Call:
            """So many calls in one run of the event loop, since to start and stop it takes as long as a call."""
            numbers = count()

            async def calls(_: int) -> Any:
                for _ in range(number):
                    answer = await do(next(numbers))
                return answer

            return Call(lambda given: loop.run_until_complete(calls(given)))

        def at_once(do: Callable[[int, int], Awaitable[Any]]) -> Call:
            async def task(number: int) -> None:
                for n in range(WRITES):
                    await do(number, n)

            async def all_tasks(_: int) -> None:
                await asyncio.gather(*map(task, range(TASKS)))

            return Call(lambda given: loop.run_until_complete(all_tasks(given)))

        def written(category: str) -> tuple[Any, ...]:
            return new_ids(1)[0], category, TYPE, DATA_JSON, METADATA_JSON, None

        def compared(
            work: str, ours: Callable[[int], Any], theirs: Callable[[int], Any], calls: int, rounds: int, bound: float
        ) -> Row:
            work = f"{work}, {driver.name}"
            progress(f"async: {work}")
            both = {OURS: several(ours, calls), BARE: several(theirs, calls)}
            answer = PAGE if work.startswith("read_stream") else None
            samples = Comparison(both, 1, answer).run(sizes.scaled(rounds))
            return Row(work, duration(samples.median(OURS) / calls), samples.ratio(OURS, BARE), bound)

        yield compared(
            "write",
            lambda n: store.write(f"{driver.name}Ours-{n % 100}", TYPE, DATA, METADATA),
            lambda n: bare(sql, *written(f"{driver.name}-{n % 100}")),
            25,
            40,
            write,
        )
        sql_last, sql_stream = driver.sql(READ_LAST), driver.sql(READ_STREAM)
        yield compared(
            "read_last_message",
            lambda n: store.read_last_message(_stream(n)),
            lambda n: bare(sql_last, _stream(n)),
            50,
            120,
            read_last,
        )
        yield compared(
            f"read_stream, {PAGE:,} messages",
            lambda n: store.read_stream(_stream(n)),
            lambda n: bare(sql_stream, _stream(n)),
            3,
            100,
            read_stream,
        )
        work = f"{TASKS} tasks writing to {TASKS} categories, {driver.name}"
        progress(f"async: {work}")
        both = {
            OURS: at_once(lambda task, n: store.write(f"{driver.name}Ours{task}-1", TYPE, DATA, METADATA)),
            BARE: at_once(lambda task, n: pooled(sql, *written(f"{driver.name}{task}-1"))),
        }
        samples = Comparison(both, 1).run(sizes.scaled(15))
        figure = f"{TASKS * WRITES / samples.median(OURS):,.0f} a second"
        yield Row(work, figure, samples.ratio(BARE, OURS), 0.85, is_speed=True)
        yield _consumer(loop, store, driver.name, sizes)


def _consumer(loop: asyncio.AbstractEventLoop, store: AsyncStore, driver: str, sizes: Sizes) -> Row:
    work = f"AsyncConsumer with a handler that does nothing, {driver}"
    progress(f"async: {work}")

    async def iterate(number: int) -> None:
        assert sum([1 async for _ in store.iter_category(LARGE)]) == MESSAGES

    async def handle(message: Message) -> None:
        pass

    async def consume(number: int) -> None:
        consumer = AsyncConsumer(store, LARGE, handle, f"{driver}-{number}")
        assert await consumer.run_until_caught_up(progress=False) == MESSAGES

    both = {
        OURS: Call(lambda number: loop.run_until_complete(consume(number))),
        BARE: Call(lambda number: loop.run_until_complete(iterate(number))),
    }
    samples = Comparison(both, 1).run(sizes.scaled(7))
    return Row(work, f"{MESSAGES / samples.median(OURS):,.0f} a second", samples.ratio(BARE, OURS), 0.85, is_speed=True)


def _synchronous(url: str, sizes: Sizes) -> Iterator[Row]:
    with_driver = make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    with (
        closing(Ours(with_driver)) as ours,
        psycopg.connect(libpq_url(url), autocommit=True) as connection,
    ):

        def bare(statement: str, *values: Any) -> Any:
            return connection.execute(statement.replace("{}", "%s"), values).fetchall()

        def write(stream: str) -> Any:
            return bare(WRITE, new_ids(1)[0], stream, TYPE, DATA_JSON, METADATA_JSON, None)

        works: list[tuple[str, Call, Call, int, int, float]] = [
            (
                "write",
                Call(ours.write, lambda n: f"syncOurs-{n % 100}"),
                Call(write, lambda n: f"sync-{n % 100}"),
                25,
                40,
                1.5,
            ),
            (
                "read_last_message",
                Call(ours.read_last_message, _stream),
                Call(lambda stream: bare(READ_LAST, stream), _stream),
                50,
                120,
                1.7,
            ),
            (
                f"read_stream, {PAGE:,} messages",
                Call(ours.read_stream, _stream),
                Call(lambda stream: bare(READ_STREAM, stream), _stream),
                3,
                100,
                1.7,
            ),
        ]
        for name, our_call, bare_call, block, rounds, bound in works:
            work = f"{name}, Store on psycopg"
            progress(f"async: {work}")
            samples: Samples = Comparison({OURS: our_call, BARE: bare_call}, block).run(sizes.scaled(rounds))
            yield Row(work, duration(samples.median(OURS)), samples.ratio(OURS, BARE), bound)


@contextmanager
def _opened(
    url: str, driver: Asyncpg | Psycopg
) -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncStore, Fetch, Fetch]]:
    """An event loop, and on it a store, the driver's open connection, and its pool."""
    loop = asyncio.new_event_loop()
    engine = create_async_engine(
        make_url(url).set(drivername=f"postgresql+{driver.name}"), pool_size=CONNECTIONS, max_overflow=0
    )
    stack = AsyncExitStack()

    async def entered() -> tuple[Fetch, Fetch]:
        connected = await stack.enter_async_context(driver.connected())
        return connected, await stack.enter_async_context(driver.pooled())

    yield loop, AsyncStore(engine), *loop.run_until_complete(entered())
    loop.run_until_complete(stack.aclose())
    loop.run_until_complete(engine.dispose())
    loop.close()


def _stream(number: int) -> str:
    return f"{CATEGORY}-{number % STREAMS}"
