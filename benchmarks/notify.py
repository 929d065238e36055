"""What notifications cost a writer. What a consumer gains from them is measured in consumers.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import consumers
import data
from contenders import Batch, Ours
from database import cursor
from measure import Call, Comparison, Samples, of_threads
from report import at_most, duration, page, progress, shown, table, verdict
from sizes import Sizes
from sqlalchemy import NullPool, create_engine

from messagedb_sa import Message, install
from messagedb_sa._drivers.notifications import AWAIT
from messagedb_sa.testing import temporary_database

OFF, ON, AWAITED = "off", "on", "on, awaited"
THREADS = 16
STREAMS = 100
BATCH = 1000
BACKLOG, HANDLER_SECONDS = 2000, 0.05
LONE_BOUND, THREADS_BOUND = 1.03, 1.11

IDLE, IDLE_BOUND = 50, 15

CATEGORIES = [f"threads{number}" for number in range(THREADS)]

HOW = """\
Three stores were measured alternately: one without the trigger, one with it, and one with it in which a session listens
and awaits all messages. In the rows with threads, each thread writes to its own category.

In the last row, each of the sixteen categories has a consumer too, in the process of the threads, with notifications
and without. They are busy: each began with 2,000 messages, and its handler takes 50 ms for one.
"""


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with ExitStack() as stack:
        urls = {name: stack.enter_context(temporary_database(server)) for name in (OFF, ON, AWAITED)}
        for name, url in urls.items():
            install.upgrade(create_engine(url, poolclass=NullPool), notify=name != OFF)
            data.load(url, data.category("account", 10_000, STREAMS))
        data.settle(*urls.values())
        for url in urls.values():
            data.write_on(10_000, url)
        engine = create_engine(urls[AWAITED], isolation_level="AUTOCOMMIT", poolclass=NullPool)
        session = stack.enter_context(engine.connect())
        session.exec_driver_sql("LISTEN message_store")
        session.execute(AWAIT, {"names": ["$all"]})
        stores = {name: stack.enter_context(closing(Ours(url, pool_size=THREADS))) for name, url in urls.items()}
        rows = list(_rows(stores, urls, sizes))
        idle = _transactions_while_idle(urls[ON], sizes)
    times = "times as long"
    header = ("work", "notify=off", "notify=on", times, "bound", "notify=on, awaited", times)
    text = f"{idle:.1f} ({verdict(f'under {IDLE_BOUND}', idle < IDLE_BOUND)})"
    results = (
        f"{table(header, rows)}\nTransactions a second of {IDLE} consumers that wait, of {IDLE} categories: {text}.\n"
    )
    return page("Notifications", results, HOW)


def _rows(stores: dict[str, Ours], urls: dict[str, str], sizes: Sizes) -> Iterator[list[str]]:
    work = "write"
    progress(f"notify: {work}")
    calls = {name: Call(ours.write, lambda n: f"account-{n % STREAMS}") for name, ours in stores.items()}
    yield _row(work, Comparison(calls, 25).run(sizes.scaled(100)), LONE_BOUND)
    work = f"write_batch of {BATCH:,}"
    progress(f"notify: {work}")
    batches = {name: Call(ours.write_batch, lambda n: Batch(f"batch-{n}", BATCH)) for name, ours in stores.items()}
    yield _row(work, Comparison(batches, 1).run(sizes.scaled(60)))
    work = f"write, {THREADS} threads"
    progress(f"notify: {work}")
    yield _row(work, _of_threads(stores, sizes), THREADS_BOUND)
    work = f"write, {THREADS} threads beside {THREADS} busy consumers"
    progress(f"notify: {work}")
    both = {name: stores[name] for name in (OFF, ON)}
    with ExitStack() as stack:
        for name in both:
            for category in CATEGORIES:
                data.load(urls[name], data.category(category, BACKLOG, 1))
                stack.enter_context(consumers.running(urls[name], category, _handle))
        yield _row(work, _of_threads(both, sizes), THREADS_BOUND)


def _handle(message: Message) -> None:
    time.sleep(HANDLER_SECONDS)


def _transactions_while_idle(url: str, sizes: Sizes) -> float:
    progress(f"notify: {IDLE} idle consumers")
    with ExitStack() as stack, cursor(url) as asking:

        def ask(question: str) -> int:
            asking.execute(question)
            ((answer,),) = asking.fetchall()
            return answer

        def transactions() -> int:
            asking.execute("SELECT pg_stat_clear_snapshot()")
            return ask("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")

        for number in range(IDLE):
            stack.enter_context(consumers.running(url, f"idle{number}", _handle))
        while ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'") < IDLE:
            time.sleep(0.1)
        # PostgreSQL counts what a session did up to a second, and an idle one up to 10 seconds, later.
        time.sleep(sizes.idle_seconds)
        before = transactions()
        time.sleep(sizes.idle_seconds)
        return (transactions() - before) / sizes.idle_seconds


def _of_threads(stores: dict[str, Ours], sizes: Sizes) -> Samples:
    streams = [f"{category}-new" for category in CATEGORIES]
    return of_threads({name: ours.write for name, ours in stores.items()}, lambda _: streams, sizes)


def _row(work: str, samples: Samples, bound: float | None = None) -> list[str]:
    def taken(name: str) -> str:
        seconds = samples.median(name)
        return f"{1 / seconds:,.0f} a second" if "threads" in work else duration(seconds)

    def with_ratio(name: str) -> tuple[str, str]:
        return (taken(name), shown(samples.ratio(name, OFF))) if name in samples.seconds else ("", "")

    kept = "" if bound is None else at_most(samples.ratio(ON, OFF), bound)
    return [work, taken(OFF), *with_ratio(ON), kept, *with_ratio(AWAITED)]
