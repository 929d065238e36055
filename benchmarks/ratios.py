"""Ours against message-db-py, the bare driver and the eventsourcing package, side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import data
import upstream
from contenders import Batch, EventSourcing, Floor, MessageDBPy, Ours, events
from database import cursor
from iterate import Iteration, iterated
from link import added_round_trip, link, one_way_for
from measure import Call, Comparison, Ratio, Samples, in_random_order, seconds_of_threads
from report import duration, facts, progress, table
from sizes import Sizes
from sqlalchemy import create_engine, make_url
from sqlalchemy.schema import CreateIndex

from messagedb_sa import install
from messagedb_sa.arguments import new_ids
from messagedb_sa.postgres import temporary_database
from messagedb_sa.schema import consumer_group_index

OURS = "ours"
RIVAL = "message-db-py"
FLOOR = "floor"
EVENTS = "eventsourcing"
UNGROUPED = "without a group"
COMBINED = "16 threads, with combine_writes"

LINK_ROUND_TRIP = 0.001
PASSES = 3
THREADS = 16
GROUP_SIZE = 10
PAGE = 1000
# A write to a stream of its own would be the first each time; writes to one alone would make it very long.
STREAMS = 100
MEMORY_BOUND = 60_000_000

# Categories that are read: 10 streams of 1,000 messages, and two large ones.
ACCOUNT = "account"
GROUPED = "ledger"
ITERATED = "journal"

NOT_COMPARED = """\
The floor is the server's function, called by psycopg2 on an open connection in autocommit mode: no pool, no JSON
encoded or decoded, ids of the same kind as ours. Threads and iteration have none: it would be a program of its own. In
its place a consumer group has our own read of the category from the same position without a group.

Each client has the pool that its users get. That of message-db-py keeps one connection open; with 16 threads it opens
and closes others all the time.

The eventsourcing package is measured at its recorder (PostgresApplicationRecorder on psycopg 3, with its own pool), on
a table of as many events. The recorder takes and gives bytes, where the others encode and decode JSON; its caller has
to know each event's position, where Message DB finds it; it locks the whole table for a write, where Message DB locks
the category; it stores neither time nor message id. Reading the last message is its `select_events` with `desc=True`
and `limit=1`. It has no categories and no consumer groups of streams, hence nothing in those rows.
"""


class Urls(NamedTuple):
    ours: str
    rival: str
    events: str

    def over(self, link_url: str) -> Urls:
        """The same databases, reached over the link."""
        far = make_url(link_url)
        names = [make_url(url).database for url in self]
        return Urls(*(far.set(database=name).render_as_string(hide_password=False) for name in names))


class Contenders(NamedTuple):
    ours: Ours
    rival: MessageDBPy
    floor: Floor
    events: EventSourcing


@contextmanager
def connected(urls: Urls) -> Iterator[Contenders]:
    with ExitStack() as stack:
        yield Contenders(
            stack.enter_context(closing(Ours(urls.ours))),
            stack.enter_context(closing(MessageDBPy(urls.rival))),
            stack.enter_context(closing(Floor(urls.ours))),
            stack.enter_context(closing(EventSourcing(urls.events))),
        )


@dataclass(frozen=True)
class Row:
    """``faster``: times as fast as message-db-py; ``slower``: times the floor's time; ``also``: one more verdict."""

    work: str
    figure: str
    faster: Ratio
    at_least: float
    slower: Ratio | None = None
    at_most: float | None = None
    than_events: Ratio | None = None
    also: str = ""
    has_floor: bool = True
    """Otherwise what stands in its place is something else."""

    def cells(self) -> list[str]:
        # What is judged is what is shown.
        faster = round(self.faster.value, 2)
        floor_verdict = ""
        if self.slower is not None and self.at_most is not None:
            slower = round(self.slower.value, 2)
            floor_verdict = verdict(slower, f"at most {self.at_most:g}", slower <= self.at_most)
        return [
            self.work,
            self.figure,
            shown(self.faster),
            verdict(faster, f"at least {self.at_least:g}", faster >= self.at_least) + self.also,
            shown(self.slower),
            floor_verdict,
            shown(self.than_events),
        ]


@dataclass(frozen=True)
class Work:
    """What is measured in several passes, some time apart, for the machine has slow minutes."""

    name: str
    comparison: Comparison
    rounds: int
    at_least: float
    at_most: float

    def row(self) -> Row:
        samples = self.comparison.samples
        return Row(
            self.name,
            duration(samples.median(OURS)),
            samples.ratio(RIVAL, OURS),
            self.at_least,
            samples.ratio(OURS, FLOOR),
            self.at_most,
            samples.ratio(EVENTS, OURS) if EVENTS in self.comparison.calls else None,
        )


def shown(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def verdict(value: float, bound: str, kept: bool) -> str:
    return bound if kept else f"**falls short**: {value:.2f}, {bound}"


def run(server: str, official_sql: Path, sizes: Sizes) -> tuple[list[Row], str]:
    """The rows, and the report that shows them."""
    began = time.monotonic()
    with ExitStack() as stack:
        urls = Urls(*(stack.enter_context(temporary_database(server)) for _ in range(3)))
        _install(urls, official_sql)
        progress("finding the delay that makes a link of 1 ms")
        far_server = stack.enter_context(link(server, one_way_for(server, LINK_ROUND_TRIP)))
        round_trip = added_round_trip(server, far_server)
        near = stack.enter_context(connected(urls))
        far = stack.enter_context(connected(urls.over(far_server)))
        bare = near._replace(ours=stack.enter_context(closing(Ours(urls.ours, msgspec=False))))
        works = [
            Work("write", Comparison(_writes(near, "near"), 25), 210, 1.2, 1.5),
            Work("write, 1 ms away", Comparison(_writes(far, "far"), 5), 90, 2.5, 1.15),
            Work("write_batch of 100", Comparison(_batches(near, 100), 3), 90, 8, 1.4),
            Work("write_batch of 1,000", Comparison(_batches(near, 1000), 1), 60, 10, 1.4),
            Work("read_stream, 1,000 messages", Comparison(_stream_reads(near), 2, PAGE), 90, 2.5, 1.7),
            Work("read_stream, without msgspec", Comparison(_stream_reads(bare), 2, PAGE), 90, 2.5, 1.7),
            Work("read_category, 1,000 messages", Comparison(_category_reads(near), 2, PAGE), 90, 2.5, 1.7),
            Work("read_category, without msgspec", Comparison(_category_reads(bare), 2, PAGE), 90, 2.5, 1.7),
            Work("read_last_message", Comparison(_last_reads(near), 25), 210, 1.1, 1.7),
            Work("read_last_message, 1 ms away", Comparison(_last_reads(far), 5), 90, 2.5, 1.7),
        ]
        for number in range(PASSES):
            for work in works:
                progress(f"{work.name}, part {number + 1} of {PASSES}")
                work.comparison.run(sizes.scaled(work.rounds / PASSES))
        rows = [*(work.row() for work in works), *_threads(urls, sizes)]
        _load_large(urls, sizes)
        rows += [*_consumer_groups(near, urls, sizes), _iteration(urls, sizes)]
        return rows, _report(rows, server, round_trip, sizes, time.monotonic() - began)


def _report(rows: list[Row], server: str, round_trip: float, sizes: Sizes, seconds: float) -> str:
    header = ["work", OURS, f"times {RIVAL}", "bound", "times the floor's time", "bound", f"times {EVENTS}"]
    return (
        "# Ratios\n\n"
        "How many times as fast as the others ours is, and how many times as long as the floor it takes: the median\n"
        "of the rounds, and its quartiles in brackets. In each round each has a turn, in random order.\n\n"
        f"{table(header, [row.cells() for row in rows])}\n"
        f"{facts(server, seconds)}"
        "- all but consumer groups and iteration on a store of about 10,000 messages at first; these on\n"
        f"  {sizes.grouped + sizes.iterated:,} more\n"
        f"- the link of 1 ms: a proxy between the sockets, which adds {round_trip * 1e3:.2f} ms to a round trip\n\n"
        f"## What is compared, and what is not\n\n{NOT_COMPARED}"
    )


def _install(urls: Urls, official_sql: Path) -> None:
    progress("installing")
    # Not the engine that is measured: it is to be as a user's is.
    engine = create_engine(urls.ours)
    install.upgrade(engine)
    engine.dispose()
    upstream.install(urls.rival, official_sql)
    EventSourcing(urls.events).close()
    _load(urls, data.category(ACCOUNT, 10_000, 10))
    data.settle(*urls)
    data.write_on(10_000, urls.ours, urls.rival, events=urls.events)


def _load_large(urls: Urls, sizes: Sizes) -> None:
    for name, messages in ((GROUPED, sizes.grouped), (ITERATED, sizes.iterated)):
        _load(urls, data.category(name, messages, messages // 100))
    engine = create_engine(urls.ours)
    with engine.begin() as connection:
        connection.execute(CreateIndex(consumer_group_index(GROUP_SIZE)))
    engine.dispose()
    progress("vacuum and checkpoint")
    data.settle(*urls)
    data.write_on(sizes.grouped + sizes.iterated, urls.ours, urls.rival, events=urls.events)


def _load(urls: Urls, category: data.Rows) -> None:
    progress(f"loading {category.end:,} messages three times")
    data.load(urls.ours, category)
    data.load(urls.rival, category)
    data.load_events(urls.events, category)


def _writes(who: Contenders, category: str) -> dict[str, Call]:
    def event(number: int) -> list[Any]:
        return events(Batch(f"{category}-{number % STREAMS}", 1, first=number // STREAMS))

    return {
        OURS: Call(who.ours.write, lambda number: f"{category}Ours-{number % STREAMS}"),
        RIVAL: Call(who.rival.write, lambda number: f"{category}-{number % STREAMS}"),
        FLOOR: Call(who.floor.write, lambda number: f"{category}Floor-{number % STREAMS}"),
        EVENTS: Call(who.events.write_batch, event),
    }


def _batches(who: Contenders, size: int) -> dict[str, Call]:
    def batch(category: str, number: int) -> Batch:
        return Batch(f"{category}{size}-{number % STREAMS}", size, first=number // STREAMS * size)

    data_json, metadata_json = (f"[{','.join([text] * size)}]" for text in (data.DATA_JSON, data.METADATA_JSON))

    def encoded(number: int) -> tuple[str, list[str], str, str]:
        return batch("batchFloor", number).stream, new_ids(size), data_json, metadata_json

    return {
        OURS: Call(who.ours.write_batch, partial(batch, "batchOurs")),
        RIVAL: Call(who.rival.write_batch, partial(batch, "batch")),
        FLOOR: Call(who.floor.write_batch, encoded),
        EVENTS: Call(who.events.write_batch, lambda number: events(batch("batch", number))),
    }


def _read_stream_name(number: int) -> str:
    return f"{ACCOUNT}-{number % 10}"


def _stream_reads(who: Contenders) -> dict[str, Call]:
    reads = {
        OURS: who.ours.read_stream,
        RIVAL: who.rival.read_stream,
        FLOOR: who.floor.read_stream,
        EVENTS: who.events.read_stream,
    }
    return {name: Call(read, _read_stream_name) for name, read in reads.items()}


def _category_reads(who: Contenders) -> dict[str, Call]:
    reads = {OURS: who.ours.read_category, RIVAL: who.rival.read_category, FLOOR: who.floor.read_category}
    return {name: Call(read, lambda _: ACCOUNT) for name, read in reads.items()}


def _last_reads(who: Contenders) -> dict[str, Call]:
    reads = {
        OURS: who.ours.read_last_message,
        RIVAL: who.rival.read_last_message,
        FLOOR: who.floor.read_last_message,
        EVENTS: who.events.read_last_message,
    }
    return {name: Call(read, _read_stream_name) for name, read in reads.items()}


def _consumer_groups(who: Contenders, urls: Urls, sizes: Sizes) -> Iterator[Row]:
    """By the position in the category. A member's page is one message in ten of what is there."""
    ours, rivals = _first_position(urls.ours), _first_position(urls.rival)
    pages = 2 * PAGE * GROUP_SIZE
    for place, offset in {"start": 0, "middle": (sizes.grouped - pages) // 2, "end": sizes.grouped - pages}.items():
        work = f"group of {GROUP_SIZE}, 1,000 of {sizes.grouped:,} messages, from the {place}"
        progress(work)
        calls = {
            OURS: Call(partial(_as_member, who.ours, ours + offset)),
            RIVAL: Call(partial(_as_member, who.rival, rivals + offset)),
            UNGROUPED: Call(partial(_as_all, who.ours, ours + offset)),
        }
        samples = Comparison(calls, 1, PAGE).run(sizes.scaled(60))
        faster, slower = samples.ratio(RIVAL, OURS), samples.ratio(OURS, UNGROUPED)
        yield Row(work, duration(samples.median(OURS)), faster, 15, slower, 1.3, has_floor=False)


def _first_position(url: str) -> int:
    with cursor(url) as asking:
        asking.execute(
            "SELECT min(global_position) FROM message_store.messages WHERE message_store.category(stream_name) = %s",
            (GROUPED,),
        )
        ((first,),) = asking.fetchall()
    position: int = first
    return position


def _as_member(reader: Ours | MessageDBPy, position: int, number: int) -> object:
    # The call that does not count is the same member's as the one that does.
    return reader.read_as_member(GROUPED, position, number // 2 % GROUP_SIZE, GROUP_SIZE)


def _as_all(reader: Ours, position: int, number: int) -> object:
    return reader.read_from(GROUPED, position)


def _threads(urls: Urls, sizes: Sizes) -> Iterator[Row]:
    work = f"{THREADS} threads writing to one category"
    progress(work)
    with (
        closing(Ours(urls.ours, pool_size=THREADS)) as ours,
        closing(Ours(urls.ours, pool_size=THREADS, combine_writes=True)) as combining,
        closing(MessageDBPy(urls.rival)) as rival,
    ):
        samples = _write_at_once({OURS: ours.write, COMBINED: combining.write, RIVAL: rival.write}, sizes)
    for name in (OURS, COMBINED):
        figure = f"{1 / samples.median(name):,.0f} a second"
        yield Row(work if name == OURS else name, figure, samples.ratio(RIVAL, name), 1.5)


def _write_at_once(writers: Mapping[str, Callable[[str], object]], sizes: Sizes) -> Samples:
    """Seconds a write. Each thread has a stream of its own; the first repetition, which connects, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for repetition in range(sizes.repetitions + 1):
        for name in in_random_order(writers):
            streams = [f"threads{list(writers).index(name)}-{number}" for number in range(THREADS)]
            taken = seconds_of_threads(writers[name], streams, sizes.writes_per_thread)
            if repetition > 0:
                seconds[name].append(taken / (THREADS * sizes.writes_per_thread))
    return Samples(seconds)


def _iteration(urls: Urls, sizes: Sizes) -> Row:
    work = f"iterating a category of {sizes.iterated:,}"
    iterations: dict[str, list[Iteration]] = {OURS: [], RIVAL: []}
    for _ in range(sizes.repetitions):
        for name in in_random_order(iterations):
            progress(f"{work}: {name}")
            iteration = iterated(name, urls.ours if name == OURS else urls.rival, ITERATED)
            assert iteration.messages == sizes.iterated
            iterations[name].append(iteration)
    samples = Samples({name: [each.seconds for each in its] for name, its in iterations.items()})
    memory = max(each.memory for each in iterations[OURS])
    figure = f"{duration(samples.median(OURS))}, {memory / 1e6:.0f} MB above an idle process"
    its_memory = median(each.memory for each in iterations[RIVAL])
    under = f"under {MEMORY_BOUND / 1e6:.0f} MB ({RIVAL}: {its_memory / 1e6:.0f})"
    also = "; " + (under if memory < MEMORY_BOUND else f"**falls short**: {memory / 1e6:.0f} MB, {under}")
    return Row(work, figure, samples.ratio(RIVAL, OURS), 2.5, also=also)
