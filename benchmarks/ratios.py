"""Compare this package with message-db-py, bare psycopg2 and the eventsourcing package in one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import data
import upstream
from contenders import BareDriver, Batch, EventSourcing, MessageDBPy, Ours, events
from iterate import Iteration, iterated
from link import added_round_trip, link, one_way_for
from measure import Call, Comparison, Ratio, alternately, of_threads
from report import at_least, at_most, duration, page, progress, shown, table, verdict
from sizes import Sizes
from sqlalchemy import create_engine, make_url

from messagedb_sa import install
from messagedb_sa._ids import new_ids
from messagedb_sa.testing import temporary_database

OURS = "ours"
MESSAGE_DB_PY = "message-db-py"
BARE = "bare psycopg2"
EVENTS = "eventsourcing"
COMBINED = "16 threads, with combine_writes"

LINK_ROUND_TRIP = 0.001
THREADS = 16
PAGE = 1000
# With a new stream for each write, each write would be a stream's first. With one stream, it would become very long.
STREAMS = 100
MEMORY_BOUND = 60_000_000

# The categories that are read: one with 10 streams of 1,000 messages, and a large one.
ACCOUNT = "account"
ITERATED = "journal"

NOT_COMPARED = """\
Bare psycopg2 calls the server's function on an open connection in autocommit mode. It has no pool, does not encode or
decode JSON, and uses message ids of the same kind as ours. It is not measured for threads and iteration, since it would
have to be a program of its own. The memory of the iteration is what its process has more than while it was idle.

Each client has its default pool. The pool of message-db-py keeps one connection open. With 16 threads it opens and
closes other connections all the time.

For the eventsourcing package, its recorder is measured (PostgresApplicationRecorder on psycopg 3, with its own pool),
on a table of as many events. The recorder accepts and returns bytes, while the others encode and decode JSON. Its
caller must know the position of each event, while Message DB finds it. For a write it locks the whole table, while
Message DB locks the category. It stores no time and no message id. To read the last message, `select_events` is called
with `desc=True` and `limit=1`. It has no categories, so those rows are empty.
"""


BARE_IS = """\
Bare psycopg2 is the floor: it calls the same functions of the server on an open connection, and leaves JSON as text.
"""


class Urls(NamedTuple):
    ours: str
    message_db_py: str
    events: str

    def over(self, link_url: str) -> Urls:
        """The URLs of the same databases over the link."""
        far = make_url(link_url)
        names = [make_url(url).database for url in self]
        return Urls(*(far.set(database=name).render_as_string(hide_password=False) for name in names))


class Contenders(NamedTuple):
    ours: Ours
    message_db_py: MessageDBPy
    bare: BareDriver
    events: EventSourcing


@contextmanager
def connected(urls: Urls) -> Iterator[Contenders]:
    with ExitStack() as stack:
        yield Contenders(
            stack.enter_context(closing(Ours(urls.ours))),
            stack.enter_context(closing(MessageDBPy(urls.message_db_py))),
            stack.enter_context(closing(BareDriver(urls.ours))),
            stack.enter_context(closing(EventSourcing(urls.events))),
        )


@dataclass(frozen=True)
class Row:
    """A row of the report.

    ``faster`` is the speed relative to message-db-py. ``slower`` is the time relative to bare psycopg2. ``also`` is the
    verdict on one more bound.
    """

    work: str
    figure: str
    faster: Ratio
    at_least: float
    slower: Ratio | None = None
    at_most: float | None = None
    than_events: Ratio | None = None
    also: str = ""

    def against_others(self) -> list[str]:
        bound = at_least(self.faster, self.at_least) + self.also
        return [self.work, self.figure, shown(self.faster), bound, shown(self.than_events)]

    def against_bare(self) -> list[list[str]]:
        """One row, or none."""
        if self.slower is None or self.at_most is None:
            return []
        return [[self.work, shown(self.slower), at_most(self.slower, self.at_most)]]


@dataclass(frozen=True)
class Work:
    name: str
    comparison: Comparison
    rounds: int
    at_least: float
    at_most: float

    def row(self, sizes: Sizes) -> Row:
        progress(self.name)
        samples = self.comparison.run(sizes.scaled(self.rounds))
        return Row(
            self.name,
            duration(samples.median(OURS)),
            samples.ratio(MESSAGE_DB_PY, OURS),
            self.at_least,
            samples.ratio(OURS, BARE),
            self.at_most,
            samples.ratio(EVENTS, OURS) if EVENTS in self.comparison.calls else None,
        )


def run(server: str, official_sql: Path, sizes: Sizes) -> tuple[list[Row], str]:
    """Measure, and return the rows and the report."""
    with ExitStack() as stack:
        urls = Urls(*(stack.enter_context(temporary_database(server)) for _ in range(3)))
        _install(urls, official_sql)
        progress("adjusting the delay of the link of 1 ms")
        far_server = stack.enter_context(link(server, one_way_for(server, LINK_ROUND_TRIP)))
        round_trip = added_round_trip(server, far_server)
        near = stack.enter_context(connected(urls))
        far = stack.enter_context(connected(urls.over(far_server)))
        standard = near._replace(ours=stack.enter_context(closing(Ours(urls.ours, msgspec=False))))
        works = [
            Work("write", Comparison(_writes(near, "near"), 10), 200, 1.2, 1.5),
            Work("write, 1 ms away", Comparison(_writes(far, "far"), 5), 90, 2.5, 1.15),
            Work("write_batch of 100", Comparison(_batches(near, "hundred", 100), 3), 90, 8, 1.4),
            Work("write_batch of 100, without msgspec", Comparison(_batches(standard, "standard", 100), 3), 90, 8, 1.4),
            Work("write_batch of 1,000", Comparison(_batches(near, "thousand", 1000), 1), 60, 10, 1.4),
            Work("read_stream, 1,000 messages", Comparison(_stream_reads(near), 2, PAGE), 90, 2.5, 1.7),
            Work("read_stream, without msgspec", Comparison(_stream_reads(standard), 2, PAGE), 90, 2.5, 1.7),
            Work("read_category, 1,000 messages", Comparison(_category_reads(near), 2, PAGE), 90, 2.5, 1.7),
            Work("read_category, without msgspec", Comparison(_category_reads(standard), 2, PAGE), 90, 2.5, 1.7),
            Work("read_last_message", Comparison(_last_reads(near), 10), 200, 1.1, 1.7),
            Work("read_last_message, 1 ms away", Comparison(_last_reads(far), 5), 90, 2.5, 1.7),
        ]
        rows = [*(work.row(sizes) for work in works), *_threads(urls, sizes)]
        _load_large(urls, sizes)
        rows.append(_iteration(urls, sizes))
        return rows, _report(rows, round_trip, sizes)


def _report(rows: list[Row], round_trip: float, sizes: Sizes) -> str:
    others = table(
        ["work", OURS, f"times as fast as {MESSAGE_DB_PY}", "bound", f"times as fast as {EVENTS}"],
        [row.against_others() for row in rows],
    )
    bare = table(["work", f"times as long as {BARE}", "bound"], [cells for row in rows for cells in row.against_bare()])
    store = (
        f"The store has about 10,000 messages at first, and {sizes.iterated:,} more for the iteration. The link of 1\n"
        f"ms is a proxy between the sockets. It adds {round_trip * 1e3:.2f} ms to a round trip.\n"
    )
    return page("Ratios", f"{others}\n{BARE_IS}\n{bare}", f"{NOT_COMPARED}\n{store}")


def _install(urls: Urls, official_sql: Path) -> None:
    progress("installing")
    # Not the engine that is measured, which must be as new as a user's.
    engine = create_engine(urls.ours)
    install.upgrade(engine)
    engine.dispose()
    upstream.install(urls.message_db_py, official_sql)
    EventSourcing(urls.events).close()
    account = data.category(ACCOUNT, 10_000, 10)
    data.load(urls.ours, account)
    data.load(urls.message_db_py, account)
    data.load_events(urls.events, account)
    data.settle(*urls)
    data.write_on(10_000, urls.ours, urls.message_db_py, events=urls.events)


def _load_large(urls: Urls, sizes: Sizes) -> None:
    progress(f"loading {sizes.iterated:,} messages twice")
    category = data.category(ITERATED, sizes.iterated, sizes.iterated // 100)
    for url in (urls.ours, urls.message_db_py):
        data.load(url, category)
        data.settle(url)


def _writes(clients: Contenders, category: str) -> dict[str, Call]:
    def event(number: int) -> list[Any]:
        return events(Batch(f"{category}-{number % STREAMS}", 1, first=number // STREAMS))

    return {
        OURS: Call(clients.ours.write, lambda number: f"{category}Ours-{number % STREAMS}"),
        MESSAGE_DB_PY: Call(clients.message_db_py.write, lambda number: f"{category}-{number % STREAMS}"),
        BARE: Call(clients.bare.write, lambda number: f"{category}Bare-{number % STREAMS}"),
        EVENTS: Call(clients.events.write_batch, event),
    }


def _batches(clients: Contenders, category: str, size: int) -> dict[str, Call]:
    def batch(name: str, number: int) -> Batch:
        return Batch(f"{name}-{number % STREAMS}", size, first=number // STREAMS * size)

    data_json, metadata_json = (f"[{','.join([text] * size)}]" for text in (data.DATA_JSON, data.METADATA_JSON))

    def encoded(number: int) -> tuple[str, list[str], str, str]:
        return batch(f"{category}Bare", number).stream, new_ids(size), data_json, metadata_json

    return {
        OURS: Call(clients.ours.write_batch, partial(batch, f"{category}Ours")),
        MESSAGE_DB_PY: Call(clients.message_db_py.write_batch, partial(batch, category)),
        BARE: Call(clients.bare.write_batch, encoded),
        EVENTS: Call(clients.events.write_batch, lambda number: events(batch(category, number))),
    }


def _read_stream_name(number: int) -> str:
    return f"{ACCOUNT}-{number % 10}"


def _stream_reads(clients: Contenders) -> dict[str, Call]:
    reads = {
        OURS: clients.ours.read_stream,
        MESSAGE_DB_PY: clients.message_db_py.read_stream,
        BARE: clients.bare.read_stream,
        EVENTS: clients.events.read_stream,
    }
    return {name: Call(read, _read_stream_name) for name, read in reads.items()}


def _category_reads(clients: Contenders) -> dict[str, Call]:
    reads = {
        OURS: clients.ours.read_category,
        MESSAGE_DB_PY: clients.message_db_py.read_category,
        BARE: clients.bare.read_category,
    }
    return {name: Call(read, lambda _: ACCOUNT) for name, read in reads.items()}


def _last_reads(clients: Contenders) -> dict[str, Call]:
    reads = {
        OURS: clients.ours.read_last_message,
        MESSAGE_DB_PY: clients.message_db_py.read_last_message,
        BARE: clients.bare.read_last_message,
        EVENTS: clients.events.read_last_message,
    }
    return {name: Call(read, _read_stream_name) for name, read in reads.items()}


def _threads(urls: Urls, sizes: Sizes) -> Iterator[Row]:
    work = f"{THREADS} threads writing to one category"
    progress(work)
    with (
        closing(Ours(urls.ours, pool_size=THREADS)) as ours,
        closing(Ours(urls.ours, pool_size=THREADS, combine_writes=True)) as combining,
        closing(MessageDBPy(urls.message_db_py)) as message_db_py,
    ):
        writers = {OURS: ours.write, COMBINED: combining.write, MESSAGE_DB_PY: message_db_py.write}

        def streams(name: str) -> list[str]:
            return [f"threads{list(writers).index(name)}-{number}" for number in range(THREADS)]

        samples = of_threads(writers, streams, sizes)
    for name in (OURS, COMBINED):
        figure = f"{1 / samples.median(name):,.0f} a second"
        yield Row(work if name == OURS else name, figure, samples.ratio(MESSAGE_DB_PY, name), 1.5)


def _iteration(urls: Urls, sizes: Sizes) -> Row:
    work = f"iterating a category of {sizes.iterated:,}"
    progress(work)
    iterations: dict[str, list[Iteration]] = {OURS: [], MESSAGE_DB_PY: []}

    def seconds(name: str) -> float:
        iteration = iterated(name, urls.ours if name == OURS else urls.message_db_py, ITERATED)
        assert iteration.messages == sizes.iterated
        iterations[name].append(iteration)
        return iteration.seconds

    # Each is a process of its own, which has nothing from an earlier round.
    samples = alternately({name: partial(seconds, name) for name in iterations}, sizes.repetitions, first_counts=True)
    memory = max(each.memory for each in iterations[OURS])
    figure = f"{duration(samples.median(OURS))}, {memory / 1e6:.0f} MB"
    also = "; " + verdict(f"under {MEMORY_BOUND / 1e6:.0f} MB", memory < MEMORY_BOUND)
    return Row(work, figure, samples.ratio(MESSAGE_DB_PY, OURS), 2.5, also=also)
