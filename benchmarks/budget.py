"""Where the time of a call goes: what is ours, SQLAlchemy's, the driver's and the server's, by subtraction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import data
from contenders import Floor, Ours
from data import DATA_JSON, METADATA_JSON, TYPE
from measure import Call, Comparison
from report import facts, progress, table
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
from messagedb_sa.arguments import new_ids
from messagedb_sa.postgres import temporary_database
from messagedb_sa.schema import message_columns

CATEGORY = "account"
MESSAGES = 100_000
OBSERVED = "observed"
LENGTH = 1000
STREAMS = MESSAGES // LENGTH

HOW = f"""\
Each line is the difference between two ways to do the same: the one that it names, and the one of the line below it,
which does without what the line is called. So the lines add up to the whole call. The ways took turns in one run, on
one store of {MESSAGES:,} messages in {STREAMS} streams; the times are medians of the rounds, in microseconds, and a
line of a few is within the noise.
"""


class Way(NamedTuple):
    """A way to do the work, and what it has that the next one does without."""

    how: str
    has: str
    call: Call


@dataclass(frozen=True)
class Access:
    ours: Ours
    engine: Engine
    """SQLAlchemy at its leanest: one round trip for a call, and none for the return to the pool."""
    observed: Ours
    """On an engine that something listens to."""
    bare: Floor
    unflushed: Floor
    """As ``bare``, with synchronous_commit off."""


def run(server: str, sizes: Sizes) -> str:
    """The report."""
    began = time.monotonic()
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
            stack.enter_context(closing(Floor(url))),
            stack.enter_context(closing(Floor(url))),
        )
        access.unflushed.cursor.execute("SET synchronous_commit = off")
        _copy_table(access.unflushed)
        data.settle(url)
        seen = access.observed
        sections = [
            _section("One write", _write(access), Call(seen.write, _stream), 10, sizes.scaled(200)),
            _section(
                "One read_last_message",
                _read_last(access),
                Call(seen.read_last_message, _stream),
                10,
                sizes.scaled(200),
            ),
            _section(
                "One read_stream of 1,000 messages",
                _read_stream(access),
                Call(seen.read_stream, _stream),
                2,
                sizes.scaled(150),
            ),
        ]
    return "\n".join(["# Budget\n", HOW, *sections, facts(server, time.monotonic() - began)])


def _section(title: str, ways: Sequence[Way], observed: Call, block: int, rounds: int) -> str:
    progress(f"budget: {title}")
    samples = Comparison({**{way.how: way.call for way in ways}, OBSERVED: observed}, block).run(rounds)
    taken = [samples.median(way.how) * 1e6 for way in ways]
    rows = [
        [way.has, f"{its - below:.0f}", f"{(its - below) / taken[0]:.0%}", way.how, f"{its:.0f}"]
        for way, (its, below) in zip(ways, pairwise([*taken, 0.0]), strict=True)
    ]
    rows.append(["**all of it**", f"**{taken[0]:.0f}**", "", "", ""])
    header = ["part", "µs", "share", "is this way, less the one below", "which takes"]
    more = samples.median(OBSERVED) * 1e6 - taken[0]
    return f"## {title}\n\n{table(header, rows)}\nWhere something listens to the engine, {more:.0f} µs more.\n"


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
        Way("write_message by psycopg2", "flush of the write-ahead log", _call(access.bare, function, values)),
        Way(
            "the same, synchronous_commit off",
            "write_message around its INSERT: PL/pgSQL, the category's lock, the stream's version",
            _call(access.unflushed, function, values),
        ),
        Way(
            "prepared INSERT into a copy of the table, synchronous_commit off",
            "the four indexes",
            _call(access.unflushed, insert_into.format("indexed"), values_with_position),
        ),
        Way(
            "the same, the copy without indexes",
            "the row in table and log, commit",
            _call(access.unflushed, insert_into.format("bare"), values_with_position),
        ),
        *_nothing(access, values),
    ]


def _read_last(access: Access) -> list[Way]:
    statement = select(functions.get_last_stream_message(bindparam("stream_name", type_=String())).table_valued(*_RAW))
    # Planned once, as get_last_stream_message's is.
    access.bare.cursor.execute(
        f"PREPARE last_message (varchar) AS SELECT {_COLUMNS} FROM message_store.messages"
        " WHERE stream_name = $1 ORDER BY position DESC LIMIT 1"
    )
    return [
        Way("Store.read_last_message", "this package", Call(access.ours.read_last_message, _stream)),
        _pooled(access, statement, lambda number: {"stream_name": _stream(number)}),
        Way(
            "get_last_stream_message by psycopg2",
            "PL/pgSQL",
            _call(access.bare, "SELECT * FROM message_store.get_last_stream_message(%s)", _stream_value),
        ),
        Way(
            "its query, prepared, by psycopg2",
            "the query, its row",
            _call(access.bare, "EXECUTE last_message (%s)", _stream_value),
        ),
        *_nothing(access, _stream_value),
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
            "get_stream_messages by psycopg2",
            "1,000 rows through the socket and into tuples",
            _call(access.bare, f"SELECT * FROM {function}", values),
        ),
        Way(
            "the same, counted by the server",
            "get_stream_messages: PL/pgSQL, its query, JSON and ids made text",
            _call(access.bare, f"SELECT count(x) FROM {function} x", values),
        ),
        *_nothing(access, values),
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


def _nothing(access: Access, values: Any) -> list[Way]:
    """What remains: the way to the server and back."""
    number = len(values(0))
    # Bound by the driver and sent, with nothing for the server to do.
    ignored = f"SELECT 1 /* {' '.join(['%s'] * number)} */"
    return [
        Way(
            "SELECT 1 by psycopg2, with the parameters in a comment",
            "parameters bound and sent",
            _call(access.bare, ignored, values),
        ),
        Way("SELECT 1 by psycopg2", "driver and round trip", _call(access.bare, "SELECT 1", lambda _: ())),
    ]


def _call(floor: Floor, statement: str, values: Any) -> Call:
    return Call(lambda parameters: floor.run(statement, *parameters), values)


def _stream(number: int) -> str:
    return f"{CATEGORY}-{number % STREAMS}"


def _stream_value(number: int) -> tuple[str]:
    return (_stream(number),)


def _copy_table(floor: Floor) -> None:
    floor.cursor.execute("CREATE SCHEMA copy")
    for name, including in (("indexed", "INCLUDING DEFAULTS INCLUDING INDEXES"), ("bare", "INCLUDING DEFAULTS")):
        floor.cursor.execute(f"CREATE TABLE copy.{name} (LIKE message_store.messages {including})")
        floor.cursor.execute(f"INSERT INTO copy.{name} SELECT * FROM message_store.messages")
        # write_message's own statements are planned once a session, too.
        floor.cursor.execute(
            f"PREPARE insert_into_{name} (uuid, text, bigint, text, jsonb, jsonb) AS"
            f" INSERT INTO copy.{name} (id, stream_name, position, type, data, metadata)"
            " VALUES ($1, $2, $3, $4, $5, $6) RETURNING position"
        )


_RAW = message_columns(decoded=False)
_COLUMNS = (
    "id::varchar, stream_name::varchar, type::varchar, position, global_position,"
    " data::varchar, metadata::varchar, time"
)
