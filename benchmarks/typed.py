"""What it costs to write and read instances of each kind of class, compared with plain dicts of the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import attrs
import data
import msgspec
import pydantic
from measure import Call, Comparison
from report import at_most, duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import Engine, create_engine

from messagedb_sa import MessageTypes, Store, install
from messagedb_sa.testing import temporary_database

BATCH, PAGE = 100, 1000
AT_MOST = 1.5
INSTANCES, DICTS = "instances", "plain dicts"

HOW = """\
Each class has the four fields of the data in the other tables. A dataclass has a time as a fifth; in the dict that it
is compared with, this is text. The same call is made on a store with the class, and on one without types, which writes
and reads dicts. The messages have no metadata. A write also makes sure that the instance can be read as it is. Times
are medians of the rounds; ratios are medians of the ratios of each round, with the quartiles in brackets. In each
round, both are measured in random order.
"""


@dataclass
class OfDataclass:
    accountId: str  # noqa: N815 - the name in the data
    amount: float
    currency: str
    note: str


@dataclass
class OfDataclassWithTime:
    accountId: str  # noqa: N815 - the name in the data
    amount: float
    currency: str
    note: str
    at: datetime


class OfMsgspec(msgspec.Struct):
    accountId: str  # noqa: N815 - the name in the data
    amount: float
    currency: str
    note: str


@attrs.define
class OfAttrs:
    accountId: str  # noqa: N815 - the name in the data
    amount: float
    currency: str
    note: str


class OfPydantic(pydantic.BaseModel):
    accountId: str  # noqa: N815 - the name in the data
    amount: float
    currency: str
    note: str


class Kind(NamedTuple):
    name: str
    cls: type[Any]
    data: dict[str, Any]
    at_most: float | None


AT = "2026-11-27T12:00:00.000001"
KINDS = (
    Kind("dataclass", OfDataclass, data.DATA, AT_MOST),
    Kind("dataclass with a time (by msgspec)", OfDataclassWithTime, {**data.DATA, "at": AT}, AT_MOST),
    Kind("msgspec", OfMsgspec, data.DATA, AT_MOST),
    Kind("attrs", OfAttrs, data.DATA, None),
    Kind("pydantic", OfPydantic, data.DATA, None),
)


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with temporary_database(server) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        data.settle(url)
        rows = [row for kind in KINDS for row in _rows(engine, kind, sizes)]
        engine.dispose()
        header = ["work", INSTANCES, DICTS, "times as long", "bound"]
        return page("Typed messages", table(header, rows), HOW)


def _rows(engine: Engine, kind: Kind, sizes: Sizes) -> list[list[str]]:
    types = MessageTypes()
    types.register(kind.cls, name=data.TYPE)
    plain, typed = Store(engine), Store(engine, types=types)
    in_python = {**kind.data, "at": datetime.fromisoformat(AT)} if "at" in kind.data else kind.data
    instance = kind.cls(**in_python)
    stream = f"{kind.cls.__name__}-1"
    plain.write_batch(stream, [(data.TYPE, kind.data)] * PAGE)
    assert [each.data for each in typed.read_stream(stream)] == [instance] * PAGE

    def to(category: str) -> Callable[[int], str]:
        return lambda number: f"{category}-{number % 100}"

    def read(_: int) -> str:
        return stream

    return [
        _cells(
            f"{kind.name}: `write`",
            Call(lambda name: plain.write(name, data.TYPE, kind.data), to("plain")),
            Call(lambda name: typed.write(name, instance), to("typed")),
            20,
            kind.at_most,
            sizes,
        ),
        _cells(
            f"{kind.name}: `write_batch` of {BATCH}",
            Call(lambda name: plain.write_batch(name, [(data.TYPE, kind.data)] * BATCH), to("plain")),
            Call(lambda name: typed.write_batch(name, [instance] * BATCH), to("typed")),
            3,
            kind.at_most,
            sizes,
        ),
        _cells(
            f"{kind.name}: `read_stream` of {PAGE:,}",
            Call(plain.read_stream, read),
            Call(typed.read_stream, read),
            2,
            kind.at_most,
            sizes,
        ),
    ]


def _cells(work: str, plain: Call, typed: Call, block: int, limit: float | None, sizes: Sizes) -> list[str]:
    progress(f"typed: {work}")
    samples = Comparison({INSTANCES: typed, DICTS: plain}, block).run(sizes.scaled(60))
    ratio = samples.ratio(INSTANCES, DICTS)
    bound = "" if limit is None else at_most(ratio, limit)
    return [work, duration(samples.median(INSTANCES)), duration(samples.median(DICTS)), shown(ratio), bound]
