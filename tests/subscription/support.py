"""What the tests of subscriptions share: following in another thread, on each driver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, AsyncSubscription, Message, MessageTypes, Store, Subscription

from ..waits import HANG, wait_until

# What it did last until it awaits messages, that statement, and the lock that it holds then. Between these, one may be
# missed. The names are in two parts, since this query is another session's last one, too.
LISTENS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND ("
    " state = 'idle' AND query LIKE '%pg' || '_notify%'"
    " OR state = 'active' AND query LIKE '%pg_try_advisory' || '_lock_shared%'"
    " OR state <> 'idle in transaction' AND pid IN ("
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1297302595 AND mode = 'ShareLock'))"
)


class Followed:
    """What a subscription in another thread has handed out."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.engine: Engine
        self.reads = 0
        self.error: BaseException | None = None
        self.close: Callable[[], object]
        self._subscription: Subscription | AsyncSubscription
        self.begun = threading.Event()
        self.ended = threading.Event()

    def numbers(self) -> list[Any]:
        return [message.data["n"] for message in self.messages]

    def follows(
        self, engine: Engine, subscription: Subscription | AsyncSubscription, close: Callable[[], object]
    ) -> None:
        self.engine, self._subscription, self.close = engine, subscription, close
        event.listen(engine, "before_cursor_execute", self._count)
        self.begun.set()

    def _count(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.reads += "FROM message_store." in statement

    def trusts_in_notifications(self) -> bool:
        follower = self._subscription._follower
        return follower._listening is not None and follower._listening.is_notified_of(follower)

    def wait_for_reads(self, number: int) -> None:
        """Return when it has read so often from now on."""
        before = self.reads
        wait_until(lambda: self.reads >= before + number or self.ended.is_set(), f"{number} reads were made")

    def wait_for(self, *numbers: int) -> None:
        wait_until(lambda: self.numbers() == list(numbers) or self.ended.is_set(), f"{numbers} have arrived")
        assert self.numbers() == list(numbers)


@contextmanager
def following(
    driver: str,
    url: str | URL,
    stream_name: str,
    *arguments: Any,
    types: MessageTypes | None = None,
    engine_options: dict[str, Any] | None = None,
    fails: bool = False,
    **options: Any,
) -> Iterator[Followed]:
    """Follow in a thread until the end of the block. An error, if it must not fail, is the error of the block."""
    followed = Followed()
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    body = _in_thread if driver in ("psycopg2", "psycopg") else _in_tasks

    def run() -> None:
        try:
            body(followed, with_driver, types, engine_options or {}, stream_name, *arguments, **options)
        except BaseException as error:  # noqa: BLE001 - for the test
            followed.error = error
        finally:
            followed.ended.set()
            followed.begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert followed.begun.wait(HANG)
        if followed.error is not None and not fails:
            raise followed.error
        yield followed
    finally:
        if not followed.ended.is_set():
            followed.close()
        thread.join(HANG)
    assert not thread.is_alive(), "the subscription does not end"
    if followed.error is not None and not fails:
        raise followed.error


def _in_thread(followed: Followed, url: URL, types: Any, engine_options: Any, *arguments: Any, **options: Any) -> None:
    engine = create_engine(url, **engine_options)
    with Subscription(Store(engine, types=types), *arguments, **options) as messages:
        followed.follows(engine, messages, messages.close)
        for message in messages:
            followed.messages.append(message)
    followed.ended.set()
    engine.dispose()


def _in_tasks(followed: Followed, url: URL, types: Any, engine_options: Any, *arguments: Any, **options: Any) -> None:
    async def main() -> None:
        engine = create_async_engine(url, **engine_options)
        loop = asyncio.get_running_loop()
        async with AsyncSubscription(AsyncStore(engine, types=types), *arguments, **options) as messages:
            followed.follows(
                engine.sync_engine, messages, lambda: asyncio.run_coroutine_threadsafe(messages.close(), loop).result()
            )
            async for message in messages:
                followed.messages.append(message)
        followed.ended.set()
        await engine.dispose()

    asyncio.run(main())


def listening(engine: Engine) -> list[int]:
    """The processes of the sessions that listen for subscriptions."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return list(connection.scalars(LISTENS))


def write(store: Store, *numbers: int, stream_name: str = "account-1") -> None:
    for number in numbers:
        store.write(stream_name, "Counted", {"n": number})
