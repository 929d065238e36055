"""What is written and read: one message, and bulk loads of its like."""

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
    """Messages numbered from ``first`` to before ``end``; stream name and position are SQL with the number as ``n``."""

    stream_name: str
    position: str
    first: int
    end: int


def category(name: str, messages: int, streams: int) -> Rows:
    """A category whose streams are written to in turn."""
    return Rows(f"'{name}-' || mod(n, {streams})", f"n / {streams}", 0, messages)


def originator(stream_name: str) -> UUID:
    """The eventsourcing package has UUIDs for stream names."""
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
    """The same into the table of the eventsourcing package, whose events are one field of bytes."""
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
    """After a checkpoint in stores of that many messages, write some more.

    The log gets each page whole when it is changed first after a checkpoint. That makes the first few thousand writes,
    whose random ids fall on as many pages, about twice as slow as those that follow.
    """
    rows = category(f"settled{messages}", messages // 20, 1 + messages // 10_000)
    for url in urls:
        load(url, rows)
    if events is not None:
        load_events(events, rows)


def settle(*urls: str) -> None:
    """After a bulk load: what the server would else do in the middle of a measurement."""
    for url in urls:
        with cursor(url) as settling:
            settling.execute("VACUUM ANALYZE")
            settling.execute("CHECKPOINT")
