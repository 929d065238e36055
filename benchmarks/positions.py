"""How many messages a second several processes handle, with their positions in the table and in streams."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from threading import Thread
from typing import Any

import data
from database import cursor
from measure import Samples, alternately
from report import at_least, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import Connection, NullPool, create_engine, text

from messagedb_sa import Consumer, Message, Store, install
from messagedb_sa.testing import temporary_database

PROCESSES = 4
TABLE, STREAM = "table", "stream"
BOUND = 2.0

DELAYS = (0, 2000)
"""Microseconds that are added to each flush to disk, to stand for another disk."""

HOW = f"""\
{PROCESSES} processes share a category with `slots={PROCESSES}` and `transactional=True`. The handler inserts a row, and
each message has a transaction of its own. What they commit in a second is counted, once each has a slot. Positions in
streams and in the table are measured alternately. A network disk may take milliseconds for a flush: commit_delay adds
them.
"""


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    identifiers = (f"bench-{number}" for number in count())
    with temporary_database(server) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        data.load(url, data.category("account", sizes.consumed, 100))
        with cursor(url) as creating:
            creating.execute("CREATE TABLE handled (message uuid, process int)")
        data.settle(url)
        rows = []
        for delay in DELAYS:
            progress(f"positions: {PROCESSES} processes, {delay} µs more a flush")
            calls = {home: partial(_seconds, url, identifiers, home, delay, sizes) for home in (TABLE, STREAM)}
            # The processes are new in each round, so the first is like the others.
            rows.append(_row(delay, alternately(calls, max(2, sizes.repetitions // 2), first_counts=True)))
    header = ("disk", "messages a second, in streams", "in the table", "times as fast", "bound")
    return page("Positions", table(header, rows), HOW)


def _row(delay: int, samples: Samples) -> list[str]:
    ratio = samples.ratio(STREAM, TABLE)
    disk = f"{delay / 1000:.0f} ms more a flush" if delay else "this machine's"
    rates = [f"{1 / samples.median(home):,.0f}" for home in (STREAM, TABLE)]
    return [disk, *rates, shown(ratio), at_least(ratio, BOUND) if delay else ""]


def _seconds(url: str, identifiers: Iterator[str], home: str, delay: int, sizes: Sizes) -> float:
    """Seconds a message."""
    with cursor(url) as looking:

        def one(sql: str) -> int:
            looking.execute(sql)
            found: int = looking.fetchone()[0]
            return found

        looking.execute("TRUNCATE handled")
        with _processes(url, next(identifiers), home, delay):
            # The first process takes all slots, and gives the others theirs when it looks again.
            while one("SELECT count(DISTINCT process) FROM handled") < PROCESSES:
                time.sleep(0.1)
            counted = "SELECT count(*) FROM handled"
            before, began = one(counted), time.perf_counter()
            time.sleep(sizes.counted_seconds)
            handled = one(counted) - before
            return (time.perf_counter() - began) / handled


@contextmanager
def _processes(url: str, identifier: str, home: str, delay: int) -> Iterator[None]:
    # A forked process need not import all modules again, which takes longer than what is measured.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    processes = [context.Process(target=_consume, args=(url, identifier, home, delay, stop)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in processes:
            process.join()


def _consume(url: str, identifier: str, home: Any, delay: int, stop: Any) -> None:
    insert = text("INSERT INTO handled VALUES (:id, :process)")

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert, {"id": message.id, "process": os.getpid()})

    slower = {"options": f"-c commit_delay={delay} -c commit_siblings=0"}
    store = Store(create_engine(url, connect_args=slower))
    consumer = Consumer(store, "account", handle, identifier, transactional=True, slots=PROCESSES, positions=home)

    def stop_it() -> None:
        stop.wait()
        consumer.stop()

    Thread(target=stop_it, daemon=True).start()
    consumer.run(handle_signals=False)
