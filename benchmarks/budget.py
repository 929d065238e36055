"""Where the time of a call goes: to this package, SQLAlchemy, the driver and the server, by subtraction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import data
from contenders import BareDriver, Ours
from data import DATA_JSON, METADATA_JSON, TYPE
from measure import Call, Comparison
from report import page, progress, table
from sizes import Sizes
from sqlalchemy import (
    BigInteger,
    Engine,
    Executable,
    String,
    Text,
    bindparam,
    cast,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from messagedb_sa import functions, install
from messagedb_sa._ids import new_ids
from messagedb_sa.schema import message_columns
from messagedb_sa.testing import temporary_database

CATEGORY = "account"
MESSAGES = 100_000
OBSERVED = "observed"
LENGTH = 1000
STREAMS = MESSAGES // LENGTH

HOW = f"""\
Each line compares two ways to do the same work: its own way, and the way of the next line, which does it without the
part that the line is named after. The part's time is the difference, so all parts add up to the whole call. The ways
were measured alternately in one run, on one store of {MESSAGES:,} messages in {STREAMS} streams. The times are medians
of the rounds, in microseconds. A part of a few microseconds is within the noise.
"""


class Way(NamedTuple):
    """A way to do the work, and the part that it has and the next way does not have."""

    name: str
    part: str
    call: Call


@dataclass(frozen=True)
class Access:
    ours: Ours
    engine: Engine
    """SQLAlchemy with as few round trips as possible: one for a call, and none for the return to the pool."""
    observed: Ours
    """On an engine with an event listener."""
    bare: BareDriver
    unflushed: BareDriver
    """The same as ``bare``, with synchronous_commit off."""


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    with temporary_database(server) as url, ExitStack() as stack:
        progress(f"budget: loading {MESSAGES:,} messages")
        engine = create_engine(url)
        install.upgrade(engine)
        engine.dispose()
        data.load(url, data.category(CATEGORY, MESSAGES, STREAMS))
        lean = create_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
        stack.callback(lean.dispose)
        observed = Ours(url)
        event.listen(observed.store.engine, "before_cursor_execute", lambda *_: None)
        access = Access(
            stack.enter_context(closing(Ours(url))),
            lean,
            stack.enter_context(closing(observed)),
            stack.enter_context(closing(BareDriver(url))),
            stack.enter_context(closing(BareDriver(url))),
        )
        access.unflushed.cursor.execute("SET synchronous_commit = off")
        _copy_table(access.unflushed)
        data.settle(url)
        sections = [
            _section("One write", _write(access), Call(observed.write, _stream), 10, sizes.scaled(200)),
            _section(
                "One read_last_message",
                _read_last(access),
                Call(observed.read_last_message, _stream),
                10,
                sizes.scaled(200),
            ),
            _section(
                "One read_stream of 1,000 messages",
                _read_stream(access),
                Call(observed.read_stream, _stream),
                2,
                sizes.scaled(150),
            ),
        ]
    return page("Budget", "\n".join(sections), HOW)


def _section(title: str, ways: Sequence[Way], observed: Call, block: int, rounds: int) -> str:
    progress(f"budget: {title}")
    samples = Comparison({**{way.name: way.call for way in ways}, OBSERVED: observed}, block).run(rounds)
    times = [samples.median(way.name) * 1e6 for way in ways]
    rows = [
        [way.part, f"{own - following:.0f}", f"{(own - following) / times[0]:.0%}", way.name, f"{own:.0f}"]
        for way, (own, following) in zip(ways, pairwise([*times, 0.0]), strict=True)
    ]
    rows.append(["**whole call**", f"**{times[0]:.0f}**", "", "", ""])
    header = ["part", "µs", "share", "way with this part", "its whole time, µs"]
    more = samples.median(OBSERVED) * 1e6 - times[0]
    return f"## {title}\n\n{table(header, rows)}\nIf the engine has an event listener, it takes {more:.0f} µs more.\n"


def _write(access: Access) -> list[Way]:
    statement = select(
        functions.write_message(
            bindparam("id", type_=String()),
            bindparam("stream_name", type_=String()),
            bindparam("type", type_=String()),
            cast(bindparam("data", type_=Text()), JSONB),
            cast(bindparam("metadata", type_=Text()), JSONB),
            bindparam("expected_version", type_=BigInteger()),
        )
    )
    names = ("id", "stream_name", "type", "data", "metadata", "expected_version")

    def values(number: int) -> tuple[Any, ...]:
        return new_ids(1)[0], _stream(number), TYPE, DATA_JSON, METADATA_JSON, None

    def values_with_position(number: int) -> tuple[Any, ...]:
        return new_ids(1)[0], _stream(number), MESSAGES + number, TYPE, DATA_JSON, METADATA_JSON

    def by_name(number: int) -> dict[str, Any]:
        return dict(zip(names, values(number), strict=True))

    function = "SELECT message_store.write_message(%s, %s, %s, %s, %s, %s)"
    insert_into = "EXECUTE insert_into_{} (%s, %s, %s, %s, %s, %s)"
    return [
        Way("Store.write", "this package", Call(access.ours.write, _stream)),
        _pooled(access, statement, by_name),
        Way("write_message with psycopg2", "flush of the write-ahead log", _call(access.bare, function, values)),
        Way(
            "the same, synchronous_commit off",
            "write_message without its INSERT: PL/pgSQL, the category's lock, the stream's version",
            _call(access.unflushed, function, values),
        ),
        Way(
            "prepared INSERT into a copy of the table, synchronous_commit off",
            "the four indexes",
            _call(access.unflushed, insert_into.format("indexed"), values_with_position),
        ),
        Way(
            "the same, the copy without indexes",
            "the row in the table and the log, commit",
            _call(access.unflushed, insert_into.format("bare"), values_with_position),
        ),
        *_round_trip(access, values),
    ]


def _read_last(access: Access) -> list[Way]:
    statement = select(functions.get_last_stream_message(bindparam("stream_name", type_=String())).table_valued(*_RAW))
    # Prepared, so that it is planned once, as the query in get_last_stream_message is.
    access.bare.cursor.execute(
        f"PREPARE last_message (varchar) AS SELECT {_COLUMNS} FROM message_store.messages"
        " WHERE stream_name = $1 ORDER BY position DESC LIMIT 1"
    )
    return [
        Way("Store.read_last_message", "this package", Call(access.ours.read_last_message, _stream)),
        _pooled(access, statement, lambda number: {"stream_name": _stream(number)}),
        Way(
            "get_last_stream_message with psycopg2",
            "PL/pgSQL",
            _call(access.bare, "SELECT * FROM message_store.get_last_stream_message(%s)", _stream_value),
        ),
        Way(
            "its query, prepared, with psycopg2",
            "the query and its row",
            _call(access.bare, "EXECUTE last_message (%s)", _stream_value),
        ),
        *_round_trip(access, _stream_value),
    ]


def _read_stream(access: Access) -> list[Way]:
    statement = select(
        functions.get_stream_messages(
            bindparam("stream_name", type_=String()),
            bindparam("position", type_=BigInteger()),
            bindparam("batch_size", type_=BigInteger()),
        ).table_valued(*_RAW)
    )

    def values(number: int) -> tuple[Any, ...]:
        return _stream(number), 0, LENGTH

    def by_name(number: int) -> dict[str, Any]:
        return {"stream_name": _stream(number), "position": 0, "batch_size": LENGTH}

    function = "message_store.get_stream_messages(%s, %s, %s)"
    return [
        Way("Store.read_stream", "this package", Call(access.ours.read_stream, _stream)),
        _pooled(access, statement, by_name),
        Way(
            "get_stream_messages with psycopg2",
            "1,000 rows sent through the socket and made into tuples",
            _call(access.bare, f"SELECT * FROM {function}", values),
        ),
        Way(
            "the same, but the server only counts the rows",
            "get_stream_messages: PL/pgSQL, its query, JSON and ids converted to text",
            _call(access.bare, f"SELECT count(x) FROM {function} x", values),
        ),
        *_round_trip(access, values),
    ]


def _pooled(access: Access, statement: Executable, parameters: Any) -> Way:
    compiled: Any = statement.compile(dialect=access.engine.dialect)  # type: ignore[attr-defined]
    sql = str(compiled)

    def with_pool(values: dict[str, Any]) -> object:
        with access.engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute(sql, values)
            rows = cursor.fetchall()
            cursor.close()
            return rows

    return Way(
        "its statement on a cursor from an engine", "SQLAlchemy's pool and Connection", Call(with_pool, parameters)
    )


def _round_trip(access: Access, values: Any) -> list[Way]:
    """The last two ways of each section: a statement that does nothing, with and without parameters."""
    number = len(values(0))
    # The driver binds and sends the parameters, and the server ignores them.
    ignored = f"SELECT 1 /* {' '.join(['%s'] * number)} */"
    return [
        Way(
            "SELECT 1 with psycopg2, with the parameters in a comment",
            "parameters bound and sent",
            _call(access.bare, ignored, values),
        ),
        Way("SELECT 1 with psycopg2", "driver and round trip", _call(access.bare, "SELECT 1", lambda _: ())),
    ]


def _call(driver: BareDriver, statement: str, values: Any) -> Call:
    return Call(lambda parameters: driver.run(statement, *parameters), values)


def _stream(number: int) -> str:
    return f"{CATEGORY}-{number % STREAMS}"


def _stream_value(number: int) -> tuple[str]:
    return (_stream(number),)


def _copy_table(driver: BareDriver) -> None:
    driver.cursor.execute("CREATE SCHEMA copy")
    for name, including in (("indexed", "INCLUDING DEFAULTS INCLUDING INDEXES"), ("bare", "INCLUDING DEFAULTS")):
        driver.cursor.execute(f"CREATE TABLE copy.{name} (LIKE message_store.messages {including})")
        driver.cursor.execute(f"INSERT INTO copy.{name} SELECT * FROM message_store.messages")
        # Prepared, since the statements in write_message are planned once a session too.
        driver.cursor.execute(
            f"PREPARE insert_into_{name} (uuid, text, bigint, text, jsonb, jsonb) AS"
            f" INSERT INTO copy.{name} (id, stream_name, position, type, data, metadata)"
            " VALUES ($1, $2, $3, $4, $5, $6) RETURNING position"
        )


_RAW = message_columns(decoded=False)
_COLUMNS = (
    "id::varchar, stream_name::varchar, type::varchar, position, global_position,"
    " data::varchar, metadata::varchar, time"
)
