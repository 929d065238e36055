"""How the time of a call grows with the number of messages in the store."""

from __future__ import annotations

from contextlib import closing
from random import Random

import data
from contenders import Ours
from measure import Call, Comparison
from report import duration, page, progress, table
from sizes import Sizes
from sqlalchemy import create_engine

from messagedb_sa import install
from messagedb_sa.testing import temporary_database

# Ten streams of 1,000 messages, each in its own category, are written round-robin, and then the next ten. So the
# messages of one read are as close together in a large store as in a small one.
CATEGORIES = 10
LENGTH = 1000
BLOCK = CATEGORIES * LENGTH

HOW = f"""\
One store, to which more messages are added between the measurements. Its streams have {LENGTH:,} messages each and are
in {CATEGORIES} categories. Each call uses a random stream or position. The times are medians of the rounds.
"""


def run(server: str, sizes: Sizes) -> tuple[dict[str, dict[int, float]], str]:
    """Measure, and return the seconds by work and number of messages, and the report."""
    seconds: dict[str, dict[int, float]] = {}
    with temporary_database(server) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        engine.dispose()
        loaded = 0
        for size in sizes.growth:
            progress(f"growth: loading {size - loaded:,} messages")
            data.load(url, _rows(loaded, size))
            data.settle(url)
            data.write_on(size, url)
            loaded = size
            with closing(Ours(url)) as ours:
                for work, taken in _measured(ours, size, sizes).items():
                    seconds.setdefault(work, {})[size] = taken
    return seconds, _report(seconds, sizes)


def _rows(first: int, end: int) -> data.Rows:
    return data.Rows(
        stream_name=f"'account' || mod(n, {CATEGORIES}) || '-' || n / {BLOCK}",
        position=f"mod(n, {BLOCK}) / {CATEGORIES}",
        first=first,
        end=end,
    )


def _measured(ours: Ours, size: int, sizes: Sizes) -> dict[str, float]:
    random = Random(size)

    def stream(_: int) -> str:
        return f"account{random.randrange(CATEGORIES)}-{random.randrange(size // BLOCK)}"

    def start(_: int) -> tuple[str, int]:
        return f"account{random.randrange(CATEGORIES)}", 1 + random.randrange(size // BLOCK) * BLOCK

    # The write is last, since a read expects streams of exactly 1,000 messages.
    reads = {
        "read_stream, 1,000 messages": (Call(ours.read_stream, stream), 2, LENGTH),
        "read_category, 1,000 messages": (Call(lambda page: ours.read_from(*page), start), 2, LENGTH),
        "read_last_message": (Call(ours.read_last_message, stream), 25, None),
        "write": (Call(ours.write, stream), 25, None),
    }
    seconds = {}
    for work, (call, block, answer) in reads.items():
        progress(f"growth: {work} of {size:,}")
        seconds[work] = Comparison({work: call}, block, answer).run(sizes.scaled(100)).median(work)
    return seconds


def _report(seconds: dict[str, dict[int, float]], sizes: Sizes) -> str:
    smallest, *larger = sizes.growth
    header = ["work", f"{smallest:,} messages", *(f"{size:,} messages" for size in larger)]
    rows = [
        [
            work,
            duration(by_size[smallest]),
            *(f"{duration(by_size[size])} ({by_size[size] / by_size[smallest]:.2f} times)" for size in larger),
        ]
        for work, by_size in seconds.items()
    ]
    return page("Growth", table(header, rows), HOW)
