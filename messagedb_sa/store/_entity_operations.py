"""The calls of entities: read what is new, write a decision, write a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Executable

from messagedb_sa import _arguments as arguments
from messagedb_sa._drivers.errors import is_about_a_value
from messagedb_sa.errors import WrongExpectedVersion
from messagedb_sa.message import Message, MessageInput
from messagedb_sa.store import _entity_statements as statements
from messagedb_sa.store import _rows as rows
from messagedb_sa.store._batch import array_of_ids, array_of_texts
from messagedb_sa.store._consumer_streams import RECORDED
from messagedb_sa.store._operation import NO_OF_MESSAGES, Operation, Page, Read
from messagedb_sa.store._operations import Operations
from messagedb_sa.store._statements import NO_STREAM, READ_STREAM, WRITE, WRITE_MESSAGES


class New(NamedTuple):
    """What a read found in a stream, in order, after the version that is known, if one is.

    ``at_known`` has the position, the id and the time of the message at that version; None if there is none.
    ``snapshot`` is the one that the read began with. ``is_repeated``: the first message of the command exists. ``next``
    is the call for the messages after these.
    """

    messages: list[Message]
    at_known: tuple[int, str, datetime] | None
    snapshot: Message | None
    is_repeated: bool
    next: Page | None


class EntityOperations(Operations):
    """The operations of a store, and those of entities."""

    def read_new(
        self, stream_name: str, known_version: int, first_id: str | None, snapshots: tuple[str, int] | None = None
    ) -> Read[New]:
        """At most a page of what comes after ``known_version``; ``first_id`` is that of a command's first message.

        ``snapshots`` is their stream, and the version of the state: with it, the last of these snapshots is read, and
        what comes after the version that it has.
        """
        parameters: dict[str, Any] = {
            "stream_name": stream_name,
            "position": max(known_version, 0),
            "batch_size": NO_OF_MESSAGES,
            "condition": None,
        }
        statement: Executable = READ_STREAM
        is_union = snapshots is not None or first_id is not None
        if is_union:
            del parameters["condition"]
            statement = statements.READS[snapshots is not None, first_id is not None]
        if first_id is not None:
            parameters["first_id"] = first_id
        if snapshots is not None:
            del parameters["position"]
            parameters["snapshot_stream"], parameters["state_version"] = snapshots[0], str(snapshots[1])

        def new(
            found: Sequence[Any],
            decode: Callable[[Sequence[Any]], list[Message]],
            utc: Callable[[datetime], datetime],
        ) -> New:
            # Rows, or messages: both have the id, the stream, the type and the position first, and the time as eighth.
            own, others = found, {}
            if is_union:
                own = sorted((each for each in found if each[1] == stream_name), key=itemgetter(3))
                others = {each[1]: each for each in found if each[1] != stream_name}
            is_repeated = others.pop(statements.REPEATED, None) is not None
            snapshot = decode([*others.values()])[0] if others else None
            is_after_known = known_version != NO_STREAM or snapshot is not None
            at_known = (own[0][3], own[0][0], utc(own[0][7])) if is_after_known and own else None
            messages = decode(own[1:] if is_after_known else own)
            after = None
            if len(own) == NO_OF_MESSAGES:
                after = self.read_stream(stream_name, messages[-1].position + 1, NO_OF_MESSAGES, None)
            return New(messages, at_known, snapshot, is_repeated, after)

        def of_rows(found: Sequence[Any]) -> New:
            rows.check_classes(found)
            return new(found, self._messages.all, rows.utc)

        return Read(
            statement,
            parameters,
            of_rows,
            plain=lambda found: new(self._messages.plain(found), lambda own: [*own], lambda time: time),
        )

    def write_and_read(
        self,
        stream_name: str,
        argument: str,
        messages: Iterable[MessageInput],
        expected_version: int,
        complete: Callable[[int, Any, Any], tuple[Any, Any]],
    ) -> Operation[list[Message] | None]:
        """Writes the messages, and returns them as the store has them; None if the driver's values cannot be decoded.

        ``argument`` is the name of the messages in errors. ``complete`` gets the number, the metadata and the id of
        each, and returns both as to write.
        """
        batch = self._batch(argument, messages, stream_name, complete)
        self._spans.describe_batch({stream_name: batch.types})

        def written(result: Sequence[Any]) -> list[Message] | None:
            is_written, version, *_ = result[0]
            if not is_written:
                raise WrongExpectedVersion(stream_name, expected_version, int(version))
            try:
                read = self._messages.all([row[2:] for row in result])
            except Exception as error:
                # They are written. What the application has told the driver to convert is read in another way.
                if not is_about_a_value(error):
                    raise
                return None
            return sorted(read, key=lambda each: each.position)

        parameters = {
            "ids": array_of_ids(batch.ids),
            "stream_name": stream_name,
            "types": array_of_texts(batch.types),
            "data": batch.data,
            "metadata": batch.metadata,
            "expected_version": expected_version,
            "count": len(batch.ids),
        }
        return Operation(
            statements.WRITE_AND_READ_IF_AS_EXPECTED if self._joined else statements.WRITE_AND_READ,
            parameters,
            written,
            {stream_name: expected_version},
            our_functions=WRITE_MESSAGES,
            without_our_functions=statements.WRITE_AND_READ_ONE_BY_ONE,
        )

    def write_snapshot(self, stream_name: str, data: dict[str, Any], metadata: dict[str, Any]) -> Operation[int]:
        """Whatever class is registered for the type of snapshots."""
        its_id = arguments.message_id("id", None)
        self._spans.describe_message(stream_name, its_id, RECORDED)
        (metadata,) = self._spans.with_context([metadata])
        parameters = {
            "id": its_id,
            "stream_name": stream_name,
            "type": RECORDED,
            "data": self._codec.encode("data", data),
            "metadata": self._codec.encode("metadata", metadata),
            "expected_version": None,
        }
        return Operation(WRITE, parameters, rows.scalar)

    def as_read(self, argument: str, value: Any) -> Any:
        """A copy of the value as a read would return it."""
        return self._codec.as_read(argument, value)

    def is_registered(self, cls: type) -> bool:
        return cls in self._types.by_class
