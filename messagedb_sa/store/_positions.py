"""Recorded positions, in both of their homes: a message in the consumer's stream, or a row of consumer_positions.

The stream's last message says where the position is. If it is an ordinary one, the position is in it. If it is a
marker, the position is in the row that has the marker's id. So a consumer changes from one home to the other by one
write to the stream, which every other process with the same identifier notices when it records: each expects that the
stream's last message is the one that it knows. A later ordinary message, such as one of a client in another language,
counts, and the row does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from sqlalchemy import Executable, select

from messagedb_sa import stream_name as names
from messagedb_sa._ids import new_ids
from messagedb_sa.errors import WrongExpectedVersion
from messagedb_sa.message import Message
from messagedb_sa.store import _position_statements as statements
from messagedb_sa.store._consumer_streams import RECORDED, ConsumerKey, consumed, position_category
from messagedb_sa.store._operation import Operation, Run
from messagedb_sa.store._operations import Operations
from messagedb_sa.store._statements import NO_STREAM

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class TableAccess(NamedTuple):
    """What the session's role may do with the table consumer_positions; nothing if the store does not have it."""

    is_there: bool
    is_readable: bool
    is_writable: bool
    role: str
    has_index: bool
    """Of the positions in streams. The same revision makes it."""


class Recorded(NamedTuple):
    """What is recorded of a consumer, or of a member or slot of its group.

    ``position`` None: nothing is, or the consumer was forgotten. ``row_version`` None: it is in the stream. ``order``
    tells which of two was recorded later.
    """

    position: int | None = None
    at: datetime | None = None
    stream_version: int = NO_STREAM
    row_version: int | None = None
    order: tuple[int, int] = (0, 0)
    is_forgotten: bool = False

    @property
    def in_table(self) -> bool:
        return self.row_version is not None

    @property
    def version(self) -> int:
        """Counts what is recorded in its home, from 0; -1 if nothing is."""
        return self.stream_version if self.row_version is None else self.row_version

    @property
    def versions(self) -> tuple[int, int]:
        """Grows with each record, also one that changes the home."""
        return self.stream_version, -1 if self.row_version is None else self.row_version


# ---- reading


@dataclass(slots=True)
class ReadPosition:
    """The call that reads what is recorded in a position stream, or in its row.

    ``position`` is None, too, if the stream's last message is not a position; then ``stream_version`` is not -1.
    ``with_table``: the role may read the table.
    """

    stream_name: str
    with_table: bool

    def perform(self, run: Run) -> Recorded:
        found = _read(run, statements.READS_OF_STREAM, {"stream_name": self.stream_name}, self.with_table)
        return next((recorded for _, recorded in found), Recorded())


@dataclass(slots=True)
class ReadPositions:
    """The call that reads what the consumers of a category recorded last: all those that have recorded something.

    ``with_table``: the role may read the table. ``by_index``: the store has the index messages_recorded.
    """

    category: str
    with_table: bool
    by_index: bool = False

    def perform(self, run: Run) -> dict[ConsumerKey, Recorded]:
        reads = statements.READS_OF_CATEGORY_BY_INDEX if self.by_index else statements.READS_OF_CATEGORY
        found = _read(run, reads, {"category": position_category(self.category)}, self.with_table)
        return {_key(stream): recorded for stream, recorded in found if not recorded.is_forgotten}


@dataclass(slots=True)
class ReadAllPositions:
    """As ReadPositions, of the consumers of every category."""

    with_table: bool
    by_index: bool

    def perform(self, run: Run) -> dict[str, dict[ConsumerKey, Recorded]]:
        if not self.by_index:
            categories = run(Operation(statements.POSITION_CATEGORIES, {}, lambda rows: [row[0] for row in rows]))
            each = (
                (name, ReadPositions(name, self.with_table, False).perform(run)) for name in map(consumed, categories)
            )
            return {name: found for name, found in each if found}
        every: dict[str, dict[ConsumerKey, Recorded]] = {}
        for stream, recorded in _read(run, statements.READS_BY_INDEX, {}, self.with_table):
            if not recorded.is_forgotten:
                every.setdefault(consumed(names.category(stream)), {})[_key(stream)] = recorded
        return every


def _key(position_stream: str) -> ConsumerKey:
    return ConsumerKey.parsed(names.id(position_stream))


def _read(
    run: Run, reads: Sequence[Executable], parameters: dict[str, Any], with_table: bool
) -> list[tuple[str, Recorded]]:
    rows: list[Any] = run(Operation(reads[with_table], parameters, list))
    if not with_table and any(row[5] for row in rows):
        # The position is in the table. The server's error says what the role lacks, or that there is no table.
        return _read(run, reads, parameters, True)
    return [
        (stream, Recorded(position, time_of(at), version, row_version, (first, second), is_forgotten))
        for stream, version, position, at, row_version, _, first, second, is_forgotten in rows
    ]


def recent_positions(category: str, with_table: bool) -> Operation[list[tuple[ConsumerKey, tuple[int, int]]]]:
    """When consumers recorded last, as the ``order`` of Recorded, according to the last 1,000 positions in streams, and
    to those in the table. Without those that were forgotten since."""
    return Operation(statements.RECENT[with_table], {"category": position_category(category)}, _recent)


def is_marker(message: Message) -> bool:
    """Whether it says that the position is in the table."""
    return isinstance(message.metadata, dict) and message.metadata.get(statements.RECORDED_IN) == statements.TABLE


# ---- recording


def record(
    operations: Operations, stream_name: str, position: int, last: Recorded, in_table: bool
) -> Operation[Recorded]:
    """Record a position, in the table or in the stream, if ``last`` is still what was recorded last.

    Otherwise raises WrongExpectedVersion; ``actual_version`` may be None. A transaction is still usable then if the
    position stays in its home.
    """
    if not (in_table or last.in_table):
        write = operations.write(stream_name, RECORDED, {"position": position}, None, last.stream_version, None)

        def written(rows: Sequence[Any]) -> Recorded:
            return Recorded(position, stream_version=write.result(rows))

        return Operation(write.statement, write.parameters, written, write.expected)
    # No parameter may have the name of one of the table's columns: SQLAlchemy would take it for a value to set.
    of_row: dict[str, Any] = {"stream": stream_name, "row_version": last.row_version}

    def as_expected(rows: Sequence[Any]) -> int:
        if not rows:
            raise WrongExpectedVersion(stream_name, last.version, None)
        version: int = rows[0][0]
        return version

    if in_table and last.in_table:

        def updated(rows: Sequence[Any]) -> Recorded:
            return Recorded(position, None, last.stream_version, as_expected(rows))

        parameters = {**of_row, "recorded": position}
        return Operation(statements.UPDATE, parameters, updated, {stream_name: last.version})
    (id,) = new_ids(1)
    of_message = {"id": id, "data": f'{{"position": {position}}}', "expected_version": last.stream_version}
    expected = {stream_name: last.stream_version}
    if in_table:

        def taken(rows: Sequence[Any]) -> Recorded:
            return Recorded(position, None, last.stream_version + 1, as_expected(rows))

        parameters = {"stream": stream_name, "recorded": position, **of_message}
        return Operation(statements.TAKE, parameters, taken, expected)

    def left(rows: Sequence[Any]) -> Recorded:
        return Recorded(position, None, as_expected(rows))

    return Operation(statements.LEAVE, {**of_row, **of_message}, left, expected)


# ---- rows


def table_access(rows: Sequence[Any]) -> TableAccess:
    return TableAccess(*rows[0])


def _recent(rows: Sequence[Any]) -> list[tuple[ConsumerKey, tuple[int, int]]]:
    last = {id: (order, is_forgotten) for id, *order, is_forgotten in sorted(rows, key=lambda row: row[1:])}
    return [
        (ConsumerKey.parsed(id), (first, second))
        for id, ((first, second), is_forgotten) in last.items()
        if not is_forgotten
    ]


def time_of(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


READ_TABLE_ACCESS: Operation[TableAccess] = Operation(select(*statements.TABLE_ACCESS), {}, table_access)
