"""How many messages a second a consumer hands over, and how soon after its commit a message is handled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from queue import Queue
from random import Random
from statistics import median, quantiles
from threading import Thread
from typing import Any

import data
from contenders import Ours
from measure import in_random_order
from report import duration, facts, progress, table
from sizes import Sizes
from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Message, Store, install
from messagedb_sa.postgres import temporary_database

KINDS = ("Consumer", "AsyncConsumer")
TOGETHER = (1, 10, 100, 1000)
POLLING, NOTIFIED = "polls every 100 ms", "is notified"
BOUND = 0.7

HOW = """\
A handler that does nothing, against a loop over iter_category that does nothing; positions are recorded as ever. They
take turns, each time from the start of the category. The asynchronous ones are on psycopg 3, with a coroutine for a
handler.
"""
EXACTLY_ONCE = """\
With transactional=True, a handler that inserts a row: so many messages to a transaction, by record_every.
"""
DELAY = """\
The delay is from the return of write in one thread to the begin of the handler in another, for single writes at random
moments: 0 where the handler is first.
"""


def run(server: str, sizes: Sizes) -> str:
    began = time.monotonic()
    size = sizes.grouped // 4
    with temporary_database(server) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        data.load(url, data.category("account", size, 100))
        data.settle(url)
        progress(f"consumers: {size:,} messages handed over")
        seconds = _throughput(url, size, sizes)
        exactly_once = _exactly_once(url, sizes)
        delays = {}
        for kind in (POLLING, NOTIFIED):
            progress(f"consumers: one that {kind}")
            install.upgrade(create_engine(url, poolclass=NullPool), notify=kind == NOTIFIED)
            delays[kind] = _delays(url, kind, sizes.scaled(300))
    return _report(size, seconds, exactly_once, delays, facts(server, time.monotonic() - began))


def _throughput(url: str, size: int, sizes: Sizes) -> dict[str, list[float]]:
    identifiers = (f"bench-{number}" for number in count())
    engine = create_engine(url)
    loop = asyncio.new_event_loop()
    async_engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))
    store, async_store = Store(engine), AsyncStore(async_engine)

    async def iterate() -> int:
        return sum([1 async for _ in async_store.iter_category("account")])

    async def handle(message: Message) -> None:
        pass

    def consume() -> int:
        return Consumer(store, "account", lambda message: None, next(identifiers)).run_until_caught_up(progress=False)

    def consume_asynchronously() -> int:
        consumer = AsyncConsumer(async_store, "account", handle, next(identifiers))
        return loop.run_until_complete(consumer.run_until_caught_up(progress=False))

    ways: dict[str, Any] = {
        "iter Consumer": lambda: sum(1 for _ in store.iter_category("account")),
        "Consumer": consume,
        "iter AsyncConsumer": lambda: loop.run_until_complete(iterate()),
        "AsyncConsumer": consume_asynchronously,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(sizes.scaled(15) + 1):
        for name in in_random_order(ways):
            began = time.perf_counter()
            handled = ways[name]()
            taken = time.perf_counter() - began
            assert handled == size, f"{name}: {handled} messages instead of {size}"
            if number > 0:
                seconds[name].append(taken)
    engine.dispose()
    loop.run_until_complete(async_engine.dispose())
    loop.close()
    return seconds


def _exactly_once(url: str, sizes: Sizes) -> dict[int, list[float]]:
    """Messages a second, by the number of messages in a transaction."""
    progress("consumers: exactly once, by the number of messages in a transaction")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE handled (message uuid)"))
    rates: dict[int, list[float]] = {together: [] for together in TOGETHER}
    ways = {str(together): together for together in TOGETHER}
    for number in range(sizes.scaled(7) + 1):
        for name in in_random_order(ways):
            rate = _rate(Store(engine), f"{name}-{number}", ways[name])
            if number > 0:
                rates[ways[name]].append(rate)
    engine.dispose()
    return rates


def _rate(store: Store, identifier: str, together: int) -> float:
    """Over a second, from the start of the category."""
    insert = text("INSERT INTO handled VALUES (:id)")
    handled, until = 0, time.perf_counter() + 1

    def handle(message: Message, connection: Connection) -> None:
        nonlocal handled
        connection.execute(insert, {"id": message.id})
        handled += 1
        if time.perf_counter() > until:
            consumer.stop()

    consumer = Consumer(store, "account", handle, identifier, transactional=True, record_every=together)
    consumer.run(handle_signals=False)
    return handled / (time.perf_counter() - until + 1)


def _delays(url: str, kind: str, messages: int) -> list[float]:
    random, delays = Random(1), []
    entered = Queue[float]()
    category = "notified" if kind == NOTIFIED else "polled"
    with (
        running(url, category, lambda message: entered.put(time.perf_counter())),
        closing(Ours(url)) as writer,
    ):
        for number in range(messages + 1):
            time.sleep(random.uniform(0.02, 0.3))
            writer.write(f"{category}-1")
            written = time.perf_counter()
            delay = entered.get() - written
            # A consumer trusts notifications once it has heard one.
            if number > 0:
                delays.append(max(0.0, delay))
    return delays


@contextmanager
def running(url: str, category: str, handler: Any) -> Iterator[None]:
    """A consumer in a thread."""
    engine = create_engine(url, poolclass=NullPool)
    consumer = Consumer(Store(engine), category, handler, "bench")
    thread = Thread(target=consumer.run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join()


def _report(
    size: int,
    seconds: dict[str, list[float]],
    exactly_once: dict[int, list[float]],
    delays: dict[str, list[float]],
    where: str,
) -> str:
    rows = []
    for kind in KINDS:
        shares = [iterating / its for iterating, its in zip(seconds[f"iter {kind}"], seconds[kind], strict=True)]
        low, share, high = quantiles(shares, n=4, method="inclusive")
        iterating, handed = (f"{size / median(seconds[name]):,.0f}" for name in (f"iter {kind}", kind))
        bound = f"at least {BOUND:.0%}" if share >= BOUND else f"**falls short** of {BOUND:.0%}"
        rows.append((kind, handed, iterating, f"{share:.0%} ({low:.0%} to {high:.0%})", bound))
    header = ("", "messages a second", "iterating the category", "of that", "bound")
    handed_over = table(header, rows)
    delay = table(
        ("a consumer that", "handles after, median", "99th percentile"),
        [(kind, duration(median(each)), duration(quantiles(each, n=100)[-1])) for kind, each in delays.items()],
    )
    alone = exactly_once[1]
    in_transactions = table(
        ("messages to a transaction", "messages a second", "times one"),
        [
            (str(together), f"{median(rates):,.0f}", f"{median(a / b for a, b in zip(rates, alone, strict=True)):.1f}")
            for together, rates in exactly_once.items()
        ],
    )
    parts = HOW, handed_over, EXACTLY_ONCE, in_transactions, DELAY, delay, where
    return "\n".join(["# Consumers\n", *parts])
