"""How many messages a second a consumer passes to its handler, and how soon after the commit a message is handled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from queue import Queue
from random import Random
from statistics import median, quantiles
from threading import Thread
from typing import Any

import calibration
import data
from contenders import Ours
from measure import Ratio, Samples, alternately
from report import page, progress, table, verdict
from sizes import Sizes
from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Message, Store, install
from messagedb_sa.testing import temporary_database

HANDLED, ITERATED = "handled", "iterated"
TRANSACTION_SIZES = (1, 10, 100, 1000)
POLLING, NOTIFIED = "polls every 100 ms", "is notified"
BOUNDS = {"Consumer": 0.7, "AsyncConsumer": 0.85}
NOTIFIED_BOUND = 0.002

HANDLING = """\
A consumer whose handler does nothing, compared with a loop over `iter_category` that does nothing:
"""
EXACTLY_ONCE = """\
With `transactional=True`, a handler that inserts a row, and `record_every` as the number of messages in a transaction:
"""
DELAY = """\
How soon a message is handled after `write` returned:
"""
HOW = """\
The consumer records its positions as usual. Consumer and loop are measured alternately, each time from the start of the
category. The asynchronous ones use psycopg 3, and the handler is a coroutine function.

The delay is the time from the return of write in one thread to the start of the handler in another thread, for single
writes at random times. If the handler starts before write returns, the delay is 0.
"""


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    size = sizes.consumed
    with temporary_database(server) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        data.load(url, data.category("account", size, 100))
        data.settle(url)
        progress(f"consumers: handling {size:,} messages")
        throughput = _throughput(url, size, sizes)
        exactly_once = _exactly_once(url, sizes)
        delays = {}
        for kind in (POLLING, NOTIFIED):
            progress(f"consumers: the delay of a consumer that {kind}")
            install.upgrade(create_engine(url, poolclass=NullPool), notify=kind == NOTIFIED)
            calibration.take()
            delays[kind] = _delays(url, kind, sizes.scaled(150))
    return _report(size, throughput, exactly_once, delays)


def _throughput(url: str, size: int, sizes: Sizes) -> dict[str, Samples]:
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

    ways: dict[str, dict[str, Callable[[], int]]] = {
        "Consumer": {HANDLED: consume, ITERATED: lambda: sum(1 for _ in store.iter_category("account"))},
        "AsyncConsumer": {HANDLED: consume_asynchronously, ITERATED: lambda: loop.run_until_complete(iterate())},
    }
    samples = {
        kind: alternately({name: partial(_seconds, call, size) for name, call in calls.items()}, sizes.scaled(10))
        for kind, calls in ways.items()
    }
    engine.dispose()
    loop.run_until_complete(async_engine.dispose())
    loop.close()
    return samples


def _seconds(call: Callable[[], int], size: int) -> float:
    began = time.perf_counter()
    handled = call()
    taken = time.perf_counter() - began
    assert handled == size, f"{handled} messages instead of {size}"
    return taken


def _exactly_once(url: str, sizes: Sizes) -> Samples:
    """Seconds a message, by the number of messages in a transaction."""
    progress("consumers: exactly once, with several numbers of messages in a transaction")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE handled (message uuid)"))
    identifiers = (f"once-{number}" for number in count())
    calls = {
        f"{size:,}": partial(_seconds_a_message, Store(engine), identifiers, size, sizes.counted_seconds)
        for size in TRANSACTION_SIZES
    }
    samples = alternately(calls, sizes.scaled(5))
    engine.dispose()
    return samples


def _seconds_a_message(store: Store, identifiers: Iterator[str], transaction_size: int, seconds: float) -> float:
    """Measured for some time from the start of the category."""
    insert = text("INSERT INTO handled VALUES (:id)")
    handled, began = 0, time.perf_counter()

    def handle(message: Message, connection: Connection) -> None:
        nonlocal handled
        connection.execute(insert, {"id": message.id})
        handled += 1
        if time.perf_counter() - began > seconds:
            consumer.stop()

    consumer = Consumer(store, "account", handle, next(identifiers), transactional=True, record_every=transaction_size)
    consumer.run(handle_signals=False)
    return (time.perf_counter() - began) / handled


def _delays(url: str, kind: str, messages: int) -> list[float]:
    random, delays = Random(1), []
    handler_starts = Queue[float]()
    category = "notified" if kind == NOTIFIED else "polled"
    with (
        running(url, category, lambda message: handler_starts.put(time.perf_counter())),
        closing(Ours(url)) as writer,
    ):
        for number in range(messages + 1):
            time.sleep(random.uniform(0.02, 0.15))
            writer.write(f"{category}-1")
            written = time.perf_counter()
            delay = handler_starts.get() - written
            # The first does not count: the consumer may have just begun to wait.
            if number > 0:
                delays.append(max(0.0, delay))
    return delays


@contextmanager
def running(url: str, category: str, handler: Any) -> Iterator[None]:
    """Run a consumer in a thread during the block."""
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
    throughput: dict[str, Samples],
    exactly_once: Samples,
    delays: dict[str, list[float]],
) -> str:
    rows = []
    for kind, samples in throughput.items():
        share = samples.ratio(ITERATED, HANDLED)
        handled, iterating = (f"{size / samples.median(name):,.0f}" for name in (HANDLED, ITERATED))
        bound = verdict(f"at least {BOUNDS[kind]:.0%}", round(share.value, 2) >= BOUNDS[kind])
        rows.append((kind, handled, iterating, _percent(share), bound))
    header = ("", "messages a second", "loop over iter_category", "share of the loop's speed", "bound")
    handling = table(header, rows)
    delay = table(
        ("a consumer that", "99th percentile", "median delay", "bound"),
        [
            (
                kind,
                *(f"{each * 1e3:.1f} ms" for each in (quantiles(delays[kind], n=100)[-1], median(delays[kind]))),
                verdict("at most 2 ms", median(delays[kind]) <= NOTIFIED_BOUND) if kind == NOTIFIED else "",
            )
            for kind in delays
        ],
    )
    singly, *_ = exactly_once.seconds
    in_transactions = table(
        ("messages in a transaction", "messages a second", "times as fast as 1"),
        [
            (number, f"{1 / exactly_once.median(number):,.0f}", f"{exactly_once.ratio(singly, number).value:.1f}")
            for number in exactly_once.seconds
        ],
    )
    return page("Consumers", "\n".join([HANDLING, handling, EXACTLY_ONCE, in_transactions, DELAY, delay]), HOW)


def _percent(share: Ratio) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%}{', wide' if share.is_wide else ''})"
