"""What it costs to load an entity, and to decide on it, compared with plain reads and writes of the same messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import data
from measure import Call, Comparison
from report import at_most, duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import create_engine

from messagedb_sa import Entity, Message, Store, applies, install
from messagedb_sa.testing import temporary_database

SHORT, LONG, EVERY = 100, 10_000, 100

HOW = f"""\
A short stream has {SHORT} events, a long one has {LONG:,}. The entity is a dataclass with a method for the events'
type. With snapshots, there is one every {EVERY} events, and {EVERY - 1} events come after the last one. Times are
medians of the rounds; ratios are medians of the ratios of each round, with the quartiles in brackets. In each round,
both calls of a row are made in random order.
"""


@dataclass
class Account:
    balance: float = 0
    deposits: int = 0

    @applies(data.TYPE)
    def deposited(self, message: Message) -> None:
        self.balance += message.data["amount"]
        self.deposits += 1


class Row(NamedTuple):
    work: str
    base: str
    calls: tuple[Callable[[Any], object], Callable[[Any], object]]
    at_most: float | None


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with temporary_database(server) as url:
        engine = create_engine(url)
        store = Store(engine)
        install.upgrade(engine)
        progress("entities: loading")
        data.load(url, data.category("account", SHORT * 10, 10))
        data.load(url, data.category("ledger", LONG * 10, 10))
        data.settle(url)
        rows = [_cells(row, sizes) for row in _rows(store)]
        engine.dispose()
        header = ["work", "time", "compared with", "times as long", "bound"]
        return page("Entities", table(header, rows), HOW)


def _rows(store: Store) -> list[Row]:
    short, long = Entity("account", Account), Entity("ledger", Account, snapshot_every=EVERY)
    cached = Entity("ledger", Account, cache=10)
    for id in map(str, range(10)):
        # A snapshot at the end, and as many events after it as there can be.
        store.decide(long, id, lambda state: (data.TYPE, data.DATA))
        store.write_batch(long.stream_name(id), [(data.TYPE, data.DATA)] * (EVERY - 1))
        assert store.load(long, id) == store.load(cached, id)
        assert store.load(long, id).state.deposits == LONG + EVERY

    def load(entity: Entity[Account]) -> Callable[[int], object]:
        return lambda number: store.load(entity, str(number % 10))

    def decide(number: int) -> None:
        store.decide(Entity("decided", Account), str(number), lambda state: (data.TYPE, data.DATA))

    def by_hand(number: int) -> None:
        stream = f"byHand-{number}"
        store.read_stream(stream)
        store.write_batch(stream, [(data.TYPE, data.DATA)], expected_version=-1)

    return [
        Row(
            f"load of {SHORT} events",
            "`read_stream` of them",
            (load(short), lambda number: store.read_stream(f"account-{number % 10}")),
            1.3,
        ),
        Row(f"load of {LONG:,} with snapshots", f"load of {SHORT}", (load(long), load(short)), 2),
        Row(
            f"load of {LONG:,} from the cache",
            "`read_stream` of no messages",
            (load(cached), lambda number: store.read_stream(f"nothing-{number % 10}")),
            1.5,
        ),
        Row("decide on a new entity", "`read_stream` and `write_batch`", (decide, by_hand), None),
    ]


def _cells(row: Row, sizes: Sizes) -> list[str]:
    progress(f"entities: {row.work}")
    calls = {row.work: Call(row.calls[0]), row.base: Call(row.calls[1])}
    samples = Comparison(calls, 5).run(sizes.scaled(100))
    ratio = samples.ratio(row.work, row.base)
    bound = "" if row.at_most is None else at_most(ratio, row.at_most)
    return [row.work, duration(samples.median(row.work)), row.base, shown(ratio), bound]
