"""Consumers administered from outside: their position is set, or they are forgotten.

Both write a message to the consumer's position stream, whose last message counts wherever the position is kept. So a
role that may write messages may do this, nothing is deleted, and a consumer that is running notices it when it records.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Dialect

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store._consumer_streams import RECORDED, ConsumerKey, position_stream
from messagedb_sa.store._operation import Run
from messagedb_sa.store._operations import ALL, Operations
from messagedb_sa.store._position_statements import FORGOTTEN
from messagedb_sa.store._positions import READ_TABLE_ACCESS, ReadPositions, TableAccess


class SetPosition:
    """The call behind ``Store.set_consumer_position``."""

    def __init__(
        self,
        dialect: Dialect,
        category_name: str,
        position: int | Literal["end"],
        identifier: str | None,
        group_member: int | None,
        group_size: int | None,
    ) -> None:
        self._operations = Operations(dialect, joined=False)
        self._category = arguments.category("category_name", category_name)
        if position == "end":
            self._begin: int | None = None
        elif isinstance(position, str):
            raise InvalidArgument("position", position, 'must be a global position or "end"')
        else:
            self._begin = arguments.integer("position", position, minimum=0)
        identifier, size = _identifier(identifier), _size(self._category, group_size)
        members: Iterable[int | None] = [None] if size is None else range(size)
        if group_member is not None:
            members = [arguments.consumer_group(group_member, size, ("group_member", "group_size"))[0]]
        self._keys = [ConsumerKey(identifier, member, size) for member in members]
        # The last member's stream has the longest name.
        if too_long := arguments.too_long(position_stream(self._category, self._keys[-1])):
            reason = f"the name of the stream for its positions {too_long}"
            raise InvalidArgument("identifier", identifier, reason)

    def perform(self, run: Run) -> None:
        if self._begin is None:
            handled: int = run(self._operations.category_end(self._category))
        else:
            handled = max(0, self._begin - 1)
        _record(run, self._operations, self._category, self._keys, handled)


class ForgetConsumer:
    """The call behind ``Store.forget_consumer``."""

    def __init__(self, dialect: Dialect, category_name: str, identifier: str | None, group_size: int | None) -> None:
        self._operations = Operations(dialect, joined=False)
        self._category = arguments.category("category_name", category_name)
        self._identifier = _identifier(identifier)
        self._size = _size(self._category, group_size)

    def perform(self, run: Run) -> int:
        access: TableAccess = run(READ_TABLE_ACCESS)
        found = ReadPositions(self._category, access.is_readable, access.has_index).perform(run)
        keys = [key for key in found if key.identifier == self._identifier and self._size in (None, key.group_size)]
        _record(run, self._operations, self._category, keys, None)
        return len(keys)


def _record(run: Run, operations: Operations, category: str, keys: list[ConsumerKey], handled: int | None) -> None:
    """Write the position up to which all is handled to each stream; None: the consumer has none any more."""
    if keys:
        data, metadata = {"position": handled}, {FORGOTTEN: True} if handled is None else None
        streams = (position_stream(category, key) for key in keys)
        run(operations.write_each([operations.write(name, RECORDED, data, metadata, None, None) for name in streams]))


def _identifier(identifier: object) -> str | None:
    checked = None if identifier is None else arguments.text("identifier", identifier)
    if ConsumerKey.parsed(checked) != ConsumerKey(checked):
        reason = "must not end like a member of a group (0-of-3); pass group_size="
        raise InvalidArgument("identifier", checked, reason)
    return checked


def _size(category: str, group_size: object) -> int | None:
    if group_size is None:
        return None
    if category == ALL:
        raise InvalidArgument("group_size", group_size, f"must be None for {ALL}, which is not divided")
    return arguments.integer("group_size", group_size, minimum=1, maximum=names.MAX_GROUP_SIZE)
