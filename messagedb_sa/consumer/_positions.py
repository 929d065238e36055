"""Positions: where a partition begins, and recording how far it is."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable

from messagedb_sa._clock import monotonic
from messagedb_sa.consumer._log import ConsumerLog
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._session import ConsumerSession
from messagedb_sa.errors import (
    ConsumerError,
    GroupChanged,
    InvalidArgument,
    MissingPrivilege,
    PositionConflict,
    WrongExpectedVersion,
)
from messagedb_sa.store._consumer_status import backlogs, with_all_members
from messagedb_sa.store._consumer_streams import RECORDED, ConsumerKey, position_stream
from messagedb_sa.store._operation import Operation, Page
from messagedb_sa.store._operations import ALL, Operations
from messagedb_sa.store._positions import ReadPosition, ReadPositions, Recorded, is_marker, recent_positions, record
from messagedb_sa.store._statements import NO_STREAM


class Superseded(BaseException):
    """Another consumer has recorded a position of a partition of ours. Not an Exception, like ConnectionLost."""

    def __init__(self, conflict: PositionConflict) -> None:
        super().__init__(conflict)
        self.conflict = conflict


class Positions:
    def __init__(self, settings: Settings, session: ConsumerSession, operations: Operations, log: ConsumerLog) -> None:
        self._settings = settings
        self._session = session
        self._operations = operations
        self._log = log
        self._others_recorded_at = (0, 0)
        # Whether positions are recorded in the table.
        self._in_table = False

    # Where a partition begins

    def begin(self) -> None:
        """After connecting: decide where positions are recorded, and find out when this consumer last recorded with
        another number of slots or members."""
        self._in_table = self._records_in_table()
        recent = self._session.run(recent_positions(self._settings.category, self._reads_table))
        self._others_recorded_at = max((at for key, at in recent if self._is_divided_otherwise(key)), default=(0, 0))

    def _records_in_table(self) -> bool:
        wanted, access = self._settings.positions, self._session.table_access
        if wanted is None:
            return self._settings.transactional and access.is_writable
        if wanted == "table" and not access.is_there:
            reason = (
                "needs the table message_store.consumer_positions, which the revision messagedb_0004 makes: upgrade "
                'the store with messagedb_sa.install.upgrade(engine), or pass positions="stream"'
            )
            raise InvalidArgument("positions", wanted, reason)
        if wanted == "table":
            self._require_table("positions='table'")
        return wanted == "table"

    def _require_table(self, what: str) -> None:
        access = self._session.table_access
        if not access.is_writable:
            raise MissingPrivilege(
                access.role,
                f"{what} needs SELECT, INSERT and UPDATE on the table consumer_positions, and SELECT on the sequence "
                "messages_global_position_seq",
            )

    @property
    def _reads_table(self) -> bool:
        return self._session.table_access.is_readable

    def stream_of(self, member: int | None) -> str:
        return position_stream(self._settings.category, self._settings.key(member))

    def partition(self, member: int | None, before: Partition | None = None) -> Partition:
        """The partition as it is recorded. ``before`` is the partition before the connection was lost; what it knows is
        kept if it still holds."""
        stream = self.stream_of(member)
        last = self._read(stream)
        recorded = last.position or 0
        begins = last.position is None or last.order < self._others_recorded_at
        if begins:
            recorded = max(recorded, self._first_position() - 1)
        position, handled = recorded, None
        if before is not None and self._still_holds(before, last):
            position, handled = max(recorded, before.position), before.last
        partition = Partition(
            self._settings.key(member),
            stream,
            self._page(member, position + 1),
            position,
            recorded,
            last,
            # If it is ahead, its position is due: the next session may be as short as the last one.
            monotonic() + (0 if position > recorded else self._settings.record_seconds),
            alone_until=0 if before is None else before.alone_until,
            last=handled,
        )
        if begins and self._settings.begin is not None:
            try:
                self.record(partition)
            except Superseded as superseded:
                raise superseded.conflict from superseded.__cause__
        self._log(logging.INFO, "starts reading", partition, global_position=position + 1)
        return partition

    def _still_holds(self, before: Partition, recorded: Recorded) -> bool:
        """Whether all messages up to the partition's position are handled, although it is not recorded.

        A transactional consumer has recorded all that it has handled. If something was recorded since, that counts. And
        the server may be another one: a standby that was promoted and had not received everything. It gives the global
        positions that it lacks to other messages.
        """
        last = before.last
        if self._settings.transactional or last is None or recorded.versions > before.last_record.versions:
            return False
        found = self._session.run(self._page(before.key.group_member, last.global_position, batch_size=1))
        if any((each.global_position, each.id) == (last.global_position, last.id) for each in found):
            return True
        text = (
            "does not find the message that it handled last, as after a failover to a standby that lagged behind: "
            "continues from the recorded position, which is on the server"
        )
        self._log(logging.WARNING, text, before, last)
        return False

    def _page(self, member: int | None, position: int, batch_size: int | None = None) -> Page:
        category, size = self._settings.category, self._settings.group_size
        batch_size, correlation = batch_size or self._settings.batch_size, self._settings.correlation
        if category == ALL:
            return self._operations.read_all(position, batch_size)
        if member is not None and size is not None and self._settings.streams_without_id in ("refuse", member):
            return self._operations.read_member_and_stream_without_id(
                category, position, batch_size, member, size, correlation
            )
        return self._operations.read_category(category, position, batch_size, member, size, correlation, None)

    def _first_position(self) -> int:
        category, begin = self._settings.category, self._settings.begin
        if begin == "end":
            return self._session.run(self._operations.category_end(category)) + 1
        if begin is not None:
            return begin
        recorded = with_all_members(
            self._session.run(ReadPositions(category, self._reads_table, self._session.table_access.has_index))
        )
        others = {key: each.position for key, each in recorded.items() if self._is_divided_otherwise(key)}
        if others:
            after = {key: position or 0 for key, position in others.items()}
            firsts = [each.first for each in self._session.run(backlogs(category, after)) if each.first is not None]
            streams = sorted(position_stream(category, key) for key, position in others.items() if position is not None)
            raise GroupChanged(streams, min(firsts) if firsts else max(after.values()) + 1)
        return 1

    def _is_divided_otherwise(self, key: ConsumerKey) -> bool:
        """Whether it is this consumer, with another number of slots or members."""
        return key.identifier == self._settings.identifier and key.group_size != self._settings.group_size

    # Recording

    def record(self, partition: Partition) -> None:
        operation = self.recording(self._operations, partition, partition.position)
        recorded = self.unless_superseded(partition, lambda: self._session.run(operation))
        self.recorded(partition, partition.position, recorded)
        self._log(logging.DEBUG, "recorded its position", partition, global_position=partition.position)

    def recording(self, operations: Operations, partition: Partition, position: int) -> Operation[Recorded]:
        return record(operations, partition.position_stream, position, partition.last_record, self._in_table)

    def recorded(self, partition: Partition, position: int, recorded: Recorded) -> None:
        partition.recorded, partition.last_record = position, recorded
        partition.unrecorded = partition.skipped = 0
        partition.recorded_at = monotonic()
        partition.record_by = partition.recorded_at + self._settings.record_seconds

    def unless_superseded(self, partition: Partition, write: Callable[[], Recorded]) -> Recorded:
        last = partition.last_record
        try:
            return write()
        except WrongExpectedVersion as error:
            actual = error.actual_version
            if actual is None:
                found = self._session.run(ReadPosition(partition.position_stream, self._reads_table))
                if found.versions == last.versions:
                    # At a higher isolation level, any other transaction may have come in between.
                    raise
                actual = found.version
            raise Superseded(PositionConflict(partition.position_stream, last.version, actual)) from error

    def _read(self, stream: str) -> Recorded:
        recorded = self._session.run(ReadPosition(stream, self._reads_table))
        if recorded.in_table:
            # Also to take it to the stream.
            self._require_table("this consumer's position, which is in a table,")
        if recorded.position is not None or recorded.is_forgotten or recorded.stream_version == NO_STREAM:
            return recorded
        last = self._session.run(self._operations.read_position(stream))
        found = "nothing" if last is None else f"{last.type} with {reprlib.repr(last.data)}"
        if last is not None and is_marker(last):
            raise ConsumerError(
                f"the position of stream {stream!r} was in the table message_store.consumer_positions, but its row is "
                "gone. Restore the row, or set the position with store.set_consumer_position"
            )
        raise ConsumerError(
            f"stream {stream!r} must hold this consumer's positions, as {RECORDED} with {{'position': 1}}; its last "
            f"message is {found}. If another client writes to that stream, choose another identifier for this consumer"
        )
