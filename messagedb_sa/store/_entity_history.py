"""The stream of one entity: reads it from where its state is known, folds it, and writes events and snapshots to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import Dialect

from messagedb_sa import _arguments as arguments
from messagedb_sa._error_texts import text_of
from messagedb_sa._message_types import MessageTypes
from messagedb_sa._state_cache import Known
from messagedb_sa.entity import Entity
from messagedb_sa.errors import MessageNotDecodable
from messagedb_sa.message import Message
from messagedb_sa.store import _snapshots as snapshots
from messagedb_sa.store._entity_operations import EntityOperations, New
from messagedb_sa.store._operation import Steps
from messagedb_sa.store._statements import NO_STREAM

S = TypeVar("S")

logger = logging.getLogger("messagedb_sa.store")


class History(Generic[S]):
    def __init__(
        self,
        operations: EntityOperations,
        entity: Entity[S],
        stream_name: str,
        types: MessageTypes | None,
        dialect: Dialect,
        *,
        joined: bool,
    ) -> None:
        self.operations = operations
        self.stream_name = stream_name
        self._entity = entity
        self._fold = entity._folding(types).fold
        self._joined = joined
        # The state depends on the types. Engines that differ only in their options share a dialect.
        self._key = dialect, types, stream_name
        self._snapshots: str | None = None
        if entity._snapshot_every is not None:
            self._snapshots = arguments.stream_to_write("id", snapshots.snapshot_stream(stream_name))

    def cached(self) -> Known[S] | None:
        return None if self._entity._cache is None else self._entity._cache.get(self._key)

    def load(self, known: Known[S] | None, first_id: str | None) -> Steps[tuple[Known[S], bool]]:
        """The state as it is now, and whether the stream has the message ``first_id``, which a command writes.

        Reads what is new since ``known``, if that is still of this stream; else since the last snapshot; else all.
        """
        if known is not None:
            new: New = yield self.operations.read_new(self.stream_name, known.version, first_id)
            now = yield from self._with(new, known)
            if now is not None:
                if now.version != known.version:
                    self._keep(now)
                return now, new.is_repeated
        found = None
        if self._snapshots is not None:
            found = yield from self._from_snapshot(self._snapshots, first_id)
        if found is None:
            new = yield self.operations.read_new(self.stream_name, NO_STREAM, first_id)
            now = yield from self._with(new, self._begin())
            assert now is not None
            found = now, new.is_repeated
        self._keep(found[0])
        return found

    def write(
        self,
        known: Known[S],
        argument: str,
        messages: list[Any],
        complete: Callable[[int, Any, Any], tuple[Any, Any]],
    ) -> Steps[Known[S]]:
        """Writes the messages if nobody wrote since ``known``, and returns the state with them."""
        written: list[Message] | None
        with self.operations.writing(self.stream_name):
            written = yield self.operations.write_and_read(
                self.stream_name, argument, messages, known.version, complete
            )
        if written is None:
            written = yield self.operations.read_stream(self.stream_name, known.version + 1, len(messages), None)
        assert written
        last = written[-1]
        known = Known(self._fold(known.state, written), last.position, last.id, last.time, known.snapshot_version)
        every = self._entity._snapshot_every
        if self._snapshots and every and known.version - known.snapshot_version >= every:
            known = yield from self._write_snapshot(self._snapshots, known, last)
        self._keep(known)
        return known

    def _begin(self) -> Known[S]:
        return Known(self._entity._begin(), NO_STREAM, None, None, NO_STREAM)

    def _with(self, new: New, known: Known[S]) -> Steps[Known[S] | None]:
        """The state with all that is new. None if it is of another stream: one that was deleted or restored."""
        state, version, last_id, last_time, snapshot_version = known
        if version != NO_STREAM:
            # The message at that version shows whether the stream is still the same.
            if new.at_known is None:
                return None
            position, id, time = new.at_known
            if position != version or last_id not in (None, id) or last_time not in (None, time):
                return None
            last_id, last_time = id, time
        messages, page = new.messages, new.next
        while True:
            state = self._fold(state, messages)
            if messages:
                version, last_id, last_time = messages[-1].position, messages[-1].id, messages[-1].time
            if page is None:
                return Known(state, version, last_id, last_time, snapshot_version)
            messages = yield page
            page = page.after(messages)

    def _from_snapshot(self, stream: str, first_id: str | None) -> Steps[tuple[Known[S], bool] | None]:
        """None if the last snapshot cannot be used."""
        try:
            new: New = yield self.operations.read_new(
                self.stream_name, NO_STREAM, first_id, (stream, self._entity._state_version)
            )
        except MessageNotDecodable as error:
            if error.stream_name != stream:
                raise
            self._ignore(stream, error.position, error.reason)
            return None
        if new.snapshot is None:
            known = self._begin()
        else:
            assert self._entity._conversion is not None
            try:
                known = snapshots.decoded(self._entity._conversion, new.snapshot)
            except Exception as error:  # noqa: BLE001 - of the application's class
                self._ignore(stream, new.snapshot.position, f"{type(error).__name__}: {text_of(error)}")
                return None
        now = yield from self._with(new, known)
        if now is not None:
            return now, new.is_repeated
        assert new.snapshot is not None
        self._ignore(stream, new.snapshot.position, f"the stream has another event at version {known.version}, or none")
        return None

    def _write_snapshot(self, stream: str, known: Known[S], last: Message) -> Steps[Known[S]]:
        """The decision is written, so it does not fail if its snapshot does; unless that aborts a transaction."""
        entity = self._entity
        is_encoded = False
        try:
            assert entity._conversion is not None
            of_class = entity._conversion, entity._state_class, entity._state_version
            data, metadata = snapshots.encoded(*of_class, known, last, self.operations.as_read)
            with self.operations.writing(stream):
                operation = self.operations.write_snapshot(stream, data, metadata)
                is_encoded = True
                yield operation
        except Exception as error:
            if is_encoded and self._joined:
                raise
            logger.warning("wrote no snapshot to %s: %s: %s", stream, type(error).__name__, text_of(error))
            return known
        return known._replace(snapshot_version=known.version)

    def _keep(self, known: Known[S]) -> None:
        # The caller's transaction may be rolled back.
        if self._entity._cache is not None and not self._joined and known.version != NO_STREAM:
            self._entity._cache.put(self._key, known)

    def _ignore(self, stream: str, position: int, reason: str) -> None:
        logger.warning("ignored the snapshot at position %d of %s: %s", position, stream, reason)
