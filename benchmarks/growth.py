"""How the cost of a call grows with the number of messages in the store."""

from __future__ import annotations

import time
from contextlib import closing
from random import Random

import data
from contenders import Ours
from measure import Call, Comparison
from report import duration, facts, progress, table
from sizes import Sizes
from sqlalchemy import create_engine

from messagedb_sa import install
from messagedb_sa.postgres import temporary_database

# Ten streams of 1,000 messages, each in a category of its own, are written in turn, then the next ten: what is read at
# once lies as close together in a large store as in a small one.
TOGETHER = 10
LENGTH = 1000
BLOCK = TOGETHER * LENGTH

HOW = f"""\
One store that is loaded further between the measurements, with streams of {LENGTH:,} messages in {TOGETHER} categories,
and each call at another of its streams or places, at random. The median of the rounds.
"""


def run(server: str, sizes: Sizes) -> tuple[dict[str, dict[int, float]], str]:
    """Seconds by work and number of messages, and the report that shows them."""
    began = time.monotonic()
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
            progress(f"growth: measuring at {size:,} messages")
            with closing(Ours(url)) as ours:
                for work, taken in _measured(ours, size, sizes).items():
                    seconds.setdefault(work, {})[size] = taken
    return seconds, _report(seconds, facts(server, time.monotonic() - began), sizes)


def _rows(first: int, end: int) -> data.Rows:
    return data.Rows(
        stream_name=f"'account' || mod(n, {TOGETHER}) || '-' || n / {BLOCK}",
        position=f"mod(n, {BLOCK}) / {TOGETHER}",
        first=first,
        end=end,
    )


def _measured(ours: Ours, size: int, sizes: Sizes) -> dict[str, float]:
    random = Random(size)

    def stream(_: int) -> str:
        return f"account{random.randrange(TOGETHER)}-{random.randrange(size // BLOCK)}"

    def place(_: int) -> tuple[str, int]:
        return f"account{random.randrange(TOGETHER)}", 1 + random.randrange(size // BLOCK) * BLOCK

    # The write comes last: until then each stream has its 1,000 messages.
    reads = {
        "read_stream, 1,000 messages": (Call(ours.read_stream, stream), 2, LENGTH),
        "read_category, 1,000 messages": (Call(lambda where: ours.read_from(*where), place), 2, LENGTH),
        "read_last_message": (Call(ours.read_last_message, stream), 25, None),
        "write": (Call(ours.write, stream), 25, None),
    }
    return {
        work: Comparison({work: call}, block, answer).run(sizes.scaled(150)).median(work)
        for work, (call, block, answer) in reads.items()
    }


def _report(seconds: dict[str, dict[int, float]], about: str, sizes: Sizes) -> str:
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
    return f"# Growth\n\n{HOW}\n{table(header, rows)}\n{about}"
