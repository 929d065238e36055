"""Cancelling the task of an asynchronous consumer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from messagedb_sa import AsyncConsumer, AsyncStore, Message, Store

from ..waits import HANG, wait_in_task_until, wait_until
from .support import asking_apart, last_position, sessions, write


async def in_pool(engine: AsyncEngine) -> set[Any]:
    """The processes of the sessions in its pool."""
    pool: Any = engine.pool
    connections = [await engine.connect() for _ in range(pool.checkedin())]
    found = {await each.scalar(select(func.pg_backend_pid())) for each in connections}
    for each in connections:
        await each.close()
    return found


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_consumer_records_what_it_handled(
    store: Store, messagedb_url: str, driver: str, listens: bool
) -> None:
    """Also if it is in the middle of a statement of its own, which costs the connection. Statements that SQLAlchemy's
    events are to see go through SQLAlchemy, others directly to the driver."""
    handled: list[Message] = []
    interrupted = 0

    async def handle(message: Message) -> None:
        handled.append(message)

    async def main() -> None:
        nonlocal interrupted
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        if listens:
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
        writer = AsyncStore(engine)
        for n in range(30):
            await writer.write("account-1", "Opened", {"n": n})
            consumer = AsyncConsumer(writer, "account", handle, "mailer", poll_seconds=0)
            host = consumer._loop.own._host
            task = asyncio.create_task(consumer.run())
            await wait_in_task_until(lambda: len(handled) > n)  # noqa: B023
            # At another step of its work each time.
            for _ in range(n):
                await asyncio.sleep(0)
            if n % 5 == 0:
                await wait_in_task_until(lambda: host.asked_at() is not None)  # noqa: B023
            interrupted += host.asked_at() is not None
            # Every other time once more, while it shuts down.
            for _ in range(1 + n % 2):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            if n % 2 == 0:
                assert last_position(store, "account:position-mailer") == handled[-1].global_position
            else:
                # The server may still do what the first one had asked for, and record its position.
                kept = before | await in_pool(engine)
                await wait_in_task_until(lambda: sessions(asking) <= kept)  # noqa: B023
                await AsyncConsumer(writer, "account", handle, "mailer").run_until_caught_up()
                del handled[n + 1 :]
        await engine.dispose()

    with asking_apart(store.engine) as asking:
        before = sessions(asking)
        asyncio.run(main())
        assert interrupted >= 6
        # The test itself read positions on another one.
        store.engine.dispose()
        wait_until(lambda: sessions(asking) <= before)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_consumer_continues_with_the_message_it_was_handling(
    store: Store, messagedb_url: str, driver: str
) -> None:
    write(store, 3)
    begun: list[int] = []

    async def handle(message: Message) -> None:
        begun.append(message.data["n"])
        if len(begun) == 2:
            await asyncio.sleep(3600)

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        consumer = AsyncConsumer(AsyncStore(engine), "account", handle, "mailer")
        task = asyncio.create_task(consumer.run())
        await wait_in_task_until(lambda: len(begun) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await consumer.run_until_caught_up()
        await engine.dispose()

    asyncio.run(main())
    assert begun == [0, 1, 1, 2]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_that_is_made_while_the_consumer_is_cancelled_goes_back_to_the_pool(
    store: Store, messagedb_url: str, driver: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[bool] = []

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        pool: Any = engine.pool
        task = asyncio.create_task(AsyncConsumer(AsyncStore(engine), "account", print, "mailer").run())

        def cancel(*_: Any) -> None:
            cancelled.append(task.cancel())
            if times == 2:
                # The consumer cancels its attempt to connect, and waits for the end of it. This one goes on.
                with pytest.raises(asyncio.CancelledError):
                    await_only(asyncio.sleep(HANG))
                cancelled.append(task.cancel())

        event.listen(engine.sync_engine, "checkout", cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_in_task_until(lambda: pool.checkedout() == 0)
        await engine.dispose()

    asyncio.run(main())
    assert cancelled == [True] * times
    assert "garbage collector" not in caplog.text
