"""A program for test_crashes: consumers in processes of their own, which it kills at random points.

``crashing.py URL HOW KILLS SEED``: one consumer at a time, HOW is plainly, asynchronously, transactional, or together
for transactions of several messages; or HOW is slots, and there are four processes at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Message, Store

HANDLED = text("INSERT INTO handled (message, stream, position, slot, process) VALUES (:id, :stream, :n, :slot, :pid)")
ENDED = text("INSERT INTO ended (message, process) VALUES (:id, :pid)")


def facts(message: Message, slot: int | None = None) -> dict[str, object]:
    return {
        "id": message.id,
        "stream": message.stream_name,
        "n": message.position,
        "slot": slot,
        "pid": os.getpid(),
    }


def plainly(url: str) -> None:
    engine = create_engine(url)
    own = create_engine(url, isolation_level="AUTOCOMMIT").connect()
    Consumer(
        Store(engine), "account", lambda message: own.execute(HANDLED, facts(message)), "crashing", record_every=7
    ).run()


def transactional(url: str, record_every: int | None = None) -> None:
    def handle(message: Message, connection: Connection) -> None:
        connection.execute(HANDLED, facts(message))
        Store(connection).write(f"answer-{message.stream_id}", "Answered", {"to": message.id})

    store = Store(create_engine(url))
    Consumer(store, "account", handle, "crashing", transactional=True, record_every=record_every).run()


def together(url: str) -> None:
    transactional(url, record_every=7)


def asynchronously(url: str) -> None:
    async def main() -> None:
        engine = create_async_engine(url.replace("psycopg2", "asyncpg"))
        own = await create_async_engine(engine.url, isolation_level="AUTOCOMMIT").connect()

        async def handle(message: Message) -> None:
            await own.execute(HANDLED, facts(message))

        await AsyncConsumer(AsyncStore(engine), "account", handle, "crashing", record_every=7).run()

    asyncio.run(main())


def slots(url: str) -> None:
    from messagedb_sa.stream_name import consumer_group_member

    own = create_engine(url, isolation_level="AUTOCOMMIT").connect()

    def handle(message: Message) -> None:
        known = facts(message, consumer_group_member(message.stream_name, 4))
        own.execute(HANDLED, known)
        time.sleep(0.001)
        own.execute(ENDED, known)

    store = Store(create_engine(url, poolclass=NullPool))
    Consumer(store, "account", handle, "crashing", slots=4, record_every=7).run()


def started(consume: Callable[[str], None], url: str) -> int:
    # Forked, since to import everything anew would take longer than to consume.
    pid = os.fork()
    if pid == 0:
        try:
            consume(url)
        finally:
            os._exit(0)
    return pid


def ended(pid: int, by: int) -> None:
    os.kill(pid, by)
    os.waitpid(pid, 0)


def main(url: str, how: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    consume = {each.__name__: each for each in (plainly, asynchronously, transactional, together, slots)}[how]
    if how != "slots":
        for _ in range(kills):
            pid = started(consume, url)
            time.sleep(chance.uniform(0, 0.1))
            ended(pid, signal.SIGKILL)
        return
    running = [started(consume, url) for _ in range(4)]
    for _ in range(kills):
        time.sleep(chance.uniform(0, 0.6))
        ended(running.pop(chance.randrange(len(running))), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        # From one to five at a time.
        while len(running) < chance.randint(1, 5):
            running.append(started(consume, url))
    for pid in running:
        ended(pid, signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
