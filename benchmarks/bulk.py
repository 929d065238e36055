"""What many messages at once cost, compared with PostgreSQL's COPY of as many rows into the same table."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import data
from database import connect
from measure import alternately
from report import at_most, duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import NullPool, create_engine

from messagedb_sa import Store, install
from messagedb_sa._ids import new_ids
from messagedb_sa.testing import temporary_database
from messagedb_sa.transfer import copy, export_messages, import_messages

COPY = "COPY"
STREAMS = (100, 1000)
LINEAR = 1.2

HOW = """\
COPY is PostgreSQL's own, from text in memory with psycopg2, into the table `message_store.messages` with all its
indexes. It checks no versions. Its rows have the same data and ids of the same kind. Before each call, the table is
emptied, and there is a checkpoint. To encode JSON and to read a file is part of the time; the text for COPY is made
before. `import_messages` reads a file of `export_messages` and keeps the global positions, and `copy` reads another
store on the same server.
"""


class Work(NamedTuple):
    name: str
    messages: int
    call: Callable[[], object]


class Bench:
    def __init__(self, url: str) -> None:
        self.connection = connect(url)
        self.cursor = self.connection.cursor()

    def empty(self) -> None:
        self.cursor.execute("TRUNCATE message_store.messages RESTART IDENTITY")
        self.cursor.execute("CHECKPOINT")

    def copy(self, text: str) -> None:
        columns = "id, stream_name, type, position, data, metadata"
        self.cursor.copy_expert(f"COPY message_store.messages ({columns}) FROM STDIN", io.StringIO(text))

    def seconds(self, call: Callable[[], object], messages: int) -> float:
        self.empty()
        began = time.perf_counter()
        call()
        taken = time.perf_counter() - began
        self.cursor.execute("SELECT count(*) FROM message_store.messages")
        ((written,),) = self.cursor.fetchall()
        assert written == messages, f"{written} messages instead of {messages}"
        return taken


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with (
        temporary_database(server) as url,
        temporary_database(server) as source_url,
        TemporaryDirectory(prefix="messages-") as folder,
    ):
        bench = Bench(url)
        store, source = (Store(create_engine(each, poolclass=NullPool)) for each in (url, source_url))
        for each in (store, source):
            install.upgrade(each.engine)
        progress(f"bulk: exporting {sizes.bulk:,} messages")
        data.load(source_url, data.category("account", sizes.bulk, 100))
        data.settle(source_url)
        file = Path(folder, "messages.jsonl")
        export_messages(source, "$all", file)
        tenth = sizes.bulk // 10
        works = [
            *(_batch(store, number) for number in (tenth, sizes.bulk)),
            Work(f"`import_messages` of {sizes.bulk:,}", sizes.bulk, lambda: import_messages(store, file)),
            Work(f"`copy` of {sizes.bulk:,}", sizes.bulk, lambda: copy(source, store)),
        ]
        rows = [row for number in (tenth, sizes.bulk) for row in _against_copy(bench, works, number, sizes)]
        streams = _streams(bench, store, sizes)
        bench.connection.close()
    header = ["work", "time", "messages a second", "times as long as COPY"]
    linear = ["work", "time", "a stream", "a stream, times as long", "bound"]
    return page("Many messages at once", f"{table(header, rows)}\n{table(linear, streams)}", HOW)


def _batch(store: Store, number: int) -> Work:
    messages = [(data.TYPE, data.DATA, data.METADATA)] * number
    return Work(f"`write_batch` of {number:,}", number, lambda: store.write_batch("account-1", messages))


def _against_copy(bench: Bench, works: list[Work], messages: int, sizes: Sizes) -> list[list[str]]:
    works = [work for work in works if work.messages == messages]
    progress(f"bulk: {messages:,} messages")
    text = _text(messages)
    calls = {COPY: lambda: bench.copy(text), **{work.name: work.call for work in works}}
    # Each begins with an empty table, so the first round is like the others.
    samples = alternately(
        {name: partial(bench.seconds, call, messages) for name, call in calls.items()},
        sizes.repetitions,
        first_counts=True,
    )
    return [
        [
            name if name != COPY else f"COPY of {messages:,}",
            duration(samples.median(name)),
            f"{messages / samples.median(name):,.0f}",
            shown(samples.ratio(name, COPY)) if name != COPY else "",
        ]
        for name in calls
    ]


def _text(messages: int) -> str:
    return "".join(
        f"{id}\taccount-1\t{data.TYPE}\t{number}\t{data.DATA_JSON}\t{data.METADATA_JSON}\n"
        for number, id in enumerate(new_ids(messages))
    )


def _streams(bench: Bench, store: Store, sizes: Sizes) -> list[list[str]]:
    progress("bulk: write_streams")
    few, many = STREAMS

    def seconds_a_stream(number: int) -> float:
        message = (data.TYPE, data.DATA, data.METADATA)
        writes = [(f"account-{stream}", [message]) for stream in range(number)]
        return bench.seconds(lambda: store.write_streams(writes), number) / number

    calls = {str(number): partial(seconds_a_stream, number) for number in STREAMS}
    samples = alternately(calls, sizes.scaled(40))
    ratio = samples.ratio(str(many), str(few))
    return [
        [
            f"`write_streams` of {number:,} streams",
            duration(samples.median(str(number)) * number),
            duration(samples.median(str(number))),
            *(cells if number == many else ("", "")),
        ]
        for number in STREAMS
        for cells in [(shown(ratio), at_most(ratio, LINEAR))]
    ]
