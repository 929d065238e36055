"""Messages as PostgreSQL's own text, page after page, and up to where the whole store can be read without holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Executable

from messagedb_sa import Store
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store import _gaps as gaps
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Operation, Run
from messagedb_sa.store._statements import END_OF_ALL
from messagedb_sa.transfer import _statements as statements

SETTLE_SECONDS = 30.0
"""How long exports and copies wait for open transactions that write, by default."""


class RawMessage(NamedTuple):
    """A message whose ``data`` and ``metadata`` are PostgreSQL's text of the JSON, None for NULL.

    ``time`` is in ISO 8601 with the offset +00:00, or ``infinity`` or ``-infinity``.
    """

    id: str
    stream_name: str
    type: str
    position: int
    global_position: int
    data: str | None
    metadata: str | None
    time: str


class End(NamedTuple):
    """Every message up to ``position`` is committed or will never be. ``unsettled`` as in Transferred."""

    position: int
    unsettled: int | None


def engine_of(argument: str, store: Store) -> Engine:
    """The engine of a Store that was made on one: the call takes connections of its own."""
    if not isinstance(store, Store):
        raise InvalidArgument(argument, store, "must be a Store: Store(engine), or Store.from_url(url)")
    if not isinstance(store.bind, Engine):
        raise InvalidArgument(argument, store, "must be a Store on an Engine, not on a Connection or a Session")
    return store.bind


def raw_messages(rows: Sequence[Any]) -> list[RawMessage]:
    return [RawMessage._make(row) for row in rows]


def scalar(rows: Sequence[Any]) -> Any:
    return rows[0][0] if rows else None


def read(connection: Connection, statement: Executable, **parameters: Any) -> list[RawMessage]:
    return run_alone(connection, Operation(statement, parameters, raw_messages))


def pages(
    connection: Connection, statement: Executable, after: int, end: int, by: str = "global_position", **parameters: Any
) -> Iterator[list[RawMessage]]:
    """The pages of READ_ALL, READ_CATEGORY or READ_STREAM; ``by`` is the field that ``after`` and ``end`` count."""
    while after < end:
        page = read(connection, statement, after=after, end=end, **parameters)
        if not page:
            return
        yield page
        after = getattr(page[-1], by)


@dataclass
class SettledEnd:
    """The call that finds out up to where the store can be read after the position ``after`` without missing a message.

    If there is a gap, it waits up to ``seconds`` for the transactions that write now. It raises CannotSettle on a
    standby server.
    """

    after: int
    seconds: float

    def perform(self, run: Run) -> End:
        def look(pause: float) -> gaps.Writers:
            writers: gaps.Writers = run(Operation(gaps.WRITERS, {"pause": pause}, gaps.writers))
            return writers

        def missing() -> int | None:
            number: int | None = run(Operation(statements.GAP, {"after": self.after, "end": last}, scalar))
            return number

        last: int = run(Operation(END_OF_ALL, {}, scalar))
        gap = missing()
        if gap is None:
            return End(last, None)
        settled = gaps.settle(look, gap, self.seconds).settled
        if settled is not None:
            return End(settled, None)
        # Some of what was missing may have been committed in the meantime.
        gap = missing()
        return End(last, None) if gap is None else End(gap - 1, gap)
