"""What notifications cost a writer, and how soon a consumer sees a message with them and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from queue import Queue
from random import Random
from statistics import median, quantiles
from threading import Event, Thread

import data
from contenders import Batch, Ours
from measure import Call, Comparison, Samples, in_random_order, seconds_of_threads
from report import duration, facts, progress, table
from sizes import Sizes
from sqlalchemy import NullPool, create_engine

from messagedb_sa import Store, install
from messagedb_sa.postgres import temporary_database
from messagedb_sa.waiting import Waiting, listen

OFF, ON, HEARD = "off", "on", "on, and heard"
POLLING, NOTIFIED = "polls every 100 ms", "is notified"
THREADS = 16
STREAMS = 100
BATCH = 1000
POLL = 0.1

HOW = """\
Three stores that differ by the trigger alone took turns: without it, with it, and with it and a session that listens.
In the rows with threads, each has a category of its own. The consumer reads the category that it hears of, or that it
polls; the delay is from the writer's return to the end of that read, for writes at random moments.
"""


def run(server: str, sizes: Sizes) -> str:
    began = time.monotonic()
    with ExitStack() as stack:
        urls = {name: stack.enter_context(temporary_database(server)) for name in (OFF, ON, HEARD)}
        for name, url in urls.items():
            engine = create_engine(url, poolclass=NullPool)
            install.upgrade(engine, notify=name != OFF)
            data.load(url, data.category("account", 10_000, STREAMS))
        data.settle(*urls.values())
        for url in urls.values():
            data.write_on(10_000, url)
        stack.enter_context(_consumer(urls[HEARD], "nothing", lambda: None, notified=True))
        stores = {name: stack.enter_context(closing(Ours(url, pool_size=THREADS))) for name, url in urls.items()}
        costs = list(_costs(stores, sizes))
        delays = {kind: _delays(urls[HEARD], kind == NOTIFIED, sizes) for kind in (POLLING, NOTIFIED)}
    return _report(costs, delays, facts(server, time.monotonic() - began))


def _costs(stores: dict[str, Ours], sizes: Sizes) -> Iterator[tuple[str, Samples]]:
    work = "write"
    progress(f"notify: {work}")
    calls = {name: Call(ours.write, lambda n: f"account-{n % STREAMS}") for name, ours in stores.items()}
    yield work, Comparison(calls, 50).run(sizes.scaled(100))
    work = f"write_batch of {BATCH:,}"
    progress(f"notify: {work}")
    batches = {name: Call(ours.write_batch, lambda n: Batch(f"batch-{n}", BATCH)) for name, ours in stores.items()}
    yield work, Comparison(batches, 2).run(sizes.scaled(60))
    work = f"write, {THREADS} threads"
    progress(f"notify: {work}")
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    streams = [f"threads{number}-1" for number in range(THREADS)]
    for repetition in range(sizes.repetitions + 1):
        for name in in_random_order(stores):
            taken = seconds_of_threads(stores[name].write, streams, sizes.writes_per_thread)
            if repetition > 0:
                seconds[name].append(taken / (THREADS * sizes.writes_per_thread))
    yield work, Samples(seconds)


def _delays(url: str, notified: bool, sizes: Sizes) -> list[float]:
    progress(f"notify: a consumer that {NOTIFIED if notified else POLLING}")
    random, seen, delays = Random(1), Queue[float](), []
    category = "notified" if notified else "polled"
    consumer = _consumer(url, category, lambda: seen.put(time.perf_counter()), notified=notified)
    with consumer, closing(Ours(url)) as writer:
        for _ in range(sizes.scaled(200)):
            time.sleep(random.uniform(POLL, 2 * POLL))
            writer.write(f"{category}-1")
            written = time.perf_counter()
            delays.append(seen.get() - written)
    return delays


@contextmanager
def _consumer(url: str, category: str, saw: Callable[[], object], *, notified: bool) -> Iterator[None]:
    """A thread that waits, and reads the category where there may be something."""
    waiting, ended = Waiting(), Event()
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def consume() -> None:
        with engine.connect() as connection:
            store, position = Store(connection), 1
            if notified:
                listen(connection)
            ready.set()
            while not ended.is_set():
                heard = waiting.wait(60 if notified else POLL, connection if notified else None)
                if category in heard or not notified:
                    for message in store.read_category(category, position):
                        position = message.global_position + 1
                        saw()

    ready = Event()
    thread = Thread(target=consume)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        ended.set()
        waiting.wake()
        thread.join()
        waiting.close()


def _report(costs: list[tuple[str, Samples]], delays: dict[str, list[float]], where: str) -> str:
    rows = []
    for work, samples in costs:
        ratios = [f"{samples.ratio(name, OFF).value:.2f} times" for name in (ON, HEARD)]
        if "threads" in work:
            taken = [f"{1 / samples.median(name):,.0f} a second" for name in (OFF, ON, HEARD)]
        else:
            taken = [duration(samples.median(name)) for name in (OFF, ON, HEARD)]
        rows.append((work, taken[0], *(f"{each} ({ratio})" for each, ratio in zip(taken[1:], ratios, strict=True))))
    cost = table(("work", "notify=off", "notify=on", "notify=on, and a consumer listens"), rows)
    seen = table(
        ("a consumer that", "sees a message after", "95% within"),
        [(kind, duration(median(each)), duration(quantiles(each, n=20)[-1])) for kind, each in delays.items()],
    )
    return f"# Notifications\n\n{HOW}\n{cost}\n{seen}\n{where}"
