"""What notifications cost a writer. (What they save a consumer is measured with consumers.)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import consumers
import data
from contenders import Batch, Ours
from measure import Call, Comparison, Samples, in_random_order, seconds_of_threads
from report import duration, facts, progress, table
from sizes import Sizes
from sqlalchemy import NullPool, create_engine

from messagedb_sa import install
from messagedb_sa.postgres import temporary_database

OFF, ON, HEARD = "off", "on", "on, and heard"
THREADS = 16
STREAMS = 100
BATCH = 1000

HOW = """\
Three stores that differ by the trigger alone took turns: without it, with it, and with it and a consumer of another
category, which listens. In the row with threads, each has a category of its own.
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
        stack.enter_context(consumers.running(urls[HEARD], "nothing", print))
        stores = {name: stack.enter_context(closing(Ours(url, pool_size=THREADS))) for name, url in urls.items()}
        costs = list(_costs(stores, sizes))
    return _report(costs, facts(server, time.monotonic() - began))


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


def _report(costs: list[tuple[str, Samples]], where: str) -> str:
    rows = []
    for work, samples in costs:
        ratios = [f"{samples.ratio(name, OFF).value:.2f} times" for name in (ON, HEARD)]
        if "threads" in work:
            taken = [f"{1 / samples.median(name):,.0f} a second" for name in (OFF, ON, HEARD)]
        else:
            taken = [duration(samples.median(name)) for name in (OFF, ON, HEARD)]
        rows.append((work, taken[0], *(f"{each} ({ratio})" for each, ratio in zip(taken[1:], ratios, strict=True))))
    cost = table(("work", "notify=off", "notify=on", "notify=on, and a consumer listens"), rows)
    return f"# Notifications\n\n{HOW}\n{cost}\n{where}"
