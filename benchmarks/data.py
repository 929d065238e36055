"""The test data: a message to write, and bulk loads of similar messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import md5
from uuid import UUID

from database import cursor

TYPE = "Deposited"
DATA = {"accountId": "a-17", "amount": 129.5, "currency": "EUR", "note": "rent for May"}
METADATA = {"correlationStreamName": "transfer-81", "by": "teller 7"}
DATA_JSON = json.dumps(DATA)
METADATA_JSON = json.dumps(METADATA)

CHUNK = 100_000

_DATA = (
    "jsonb_build_object('accountId', 'a-' || mod(n, 1000), 'amount', mod(n, 100000) / 100.0,"
    " 'currency', 'EUR', 'note', 'rent for May')"
)
_METADATA = "jsonb_build_object('correlationStreamName', 'transfer-' || mod(n, 1000), 'by', 'teller ' || mod(n, 10))"


@dataclass(frozen=True)
class Rows:
    """Messages with the numbers from ``first`` to ``end - 1``.

    ``stream_name`` and ``position`` are SQL expressions, in which ``n`` is the number.
    """

    stream_name: str
    position: str
    first: int
    end: int


def category(name: str, messages: int, streams: int) -> Rows:
    """A category whose messages go to its streams round-robin."""
    return Rows(f"'{name}-' || mod(n, {streams})", f"n / {streams}", 0, messages)


def originator(stream_name: str) -> UUID:
    """The UUID that stands for the stream name, since the eventsourcing package names streams by UUIDs."""
    return UUID(md5(stream_name.encode()).hexdigest())


def load(url: str, rows: Rows) -> None:
    _insert(
        url,
        "INSERT INTO message_store.messages (stream_name, position, type, data, metadata)"
        f" SELECT {rows.stream_name}, {rows.position}, '{TYPE}', {_DATA}, {_METADATA}"
        " FROM generate_series(%s::bigint, %s::bigint) AS n ORDER BY n",
        rows,
    )


def load_events(url: str, rows: Rows) -> None:
    """Load the same rows into the table of the eventsourcing package, where an event is one column of bytes."""
    _insert(
        url,
        "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
        f" SELECT md5({rows.stream_name})::uuid, {rows.position}, '{TYPE}',"
        f" convert_to(jsonb_build_object('data', {_DATA}, 'metadata', {_METADATA})::text, 'UTF8')"
        " FROM generate_series(%s::bigint, %s::bigint) AS n ORDER BY n",
        rows,
    )


def _insert(url: str, statement: str, rows: Rows) -> None:
    with cursor(url) as loading:
        loading.execute("SET synchronous_commit = off")
        for first in range(rows.first, rows.end, CHUNK):
            end = min(first + CHUNK, rows.end)
            loading.execute(statement, (first, end - 1))


def write_on(messages: int, *urls: str, events: str | None = None) -> None:
    """Write some more messages after a checkpoint, in stores that have ``messages`` messages.

    PostgreSQL logs a whole page when it changes for the first time after a checkpoint. The first few thousand writes
    have random ids, which go to as many pages of the index, so they take about twice as long as later ones.
    """
    rows = category(f"settled{messages}", messages // 20, 1 + messages // 10_000)
    for url in urls:
        load(url, rows)
    if events is not None:
        load_events(events, rows)


def settle(*urls: str) -> None:
    """Vacuum and checkpoint after a bulk load, so that the server does not do it during a measurement."""
    for url in urls:
        with cursor(url) as settling:
            settling.execute("VACUUM ANALYZE")
            settling.execute("CHECKPOINT")
