"""What a subscription reads: where it begins, its pages, and which notifications are about it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from sqlalchemy import Dialect

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa._message_types import registered_in
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.store._operation import Operation, Read
from messagedb_sa.store._operations import ALL, Operations
from messagedb_sa.store._rows import decoded

Begin: TypeAlias = "int | Literal['end']"


COMMITTED = "a subscription reads what has been committed, again and again"
"""Why its store must be on an engine."""


class Source:
    """Raises InvalidArgument if the arguments, which are those of Subscription, do not fit."""

    def __init__(
        self,
        dialect: Dialect,
        types: MessageTypes | None,
        stream_name: str,
        position: Begin,
        correlation: str | None,
        batch_size: int,
    ) -> None:
        self.name = arguments.text("stream_name", stream_name)
        if position == "end":
            first = None
        elif isinstance(position, str) or position is None:
            raise InvalidArgument("position", position, 'must be an integer or "end"')
        else:
            first = arguments.integer("position", position, minimum=0)
        size = arguments.integer("batch_size", batch_size, minimum=1)
        # Decoded one by one when they are handed out, so that one that fails takes no others with it.
        self._operations = Operations(dialect, joined=False, keeps_undecodable=True)
        self._types = registered_in(types)
        self.awaits = ALL if self.name == ALL else names.category(self.name)
        """The category that its messages are in, or ALL."""
        is_category = self.name != ALL and names.is_category(self.name)
        if not is_category:
            arguments.unused("correlation", correlation, None, f"is only for a category, and {self.name!r} is not one")
        if is_category:
            self.page = self._operations.iter_category(self.name, first or 0, None, None, size, correlation, None)
        elif self.name == ALL:
            # A read that waited for writers would keep its connection meanwhile.
            self.page = self._operations.iter_all(max(1, first or 0), size, False, 0)
        else:
            self.page = self._operations.iter_stream(self.name, first or 0, size, None)
        self.begins_at_end = first is None

    def end(self) -> Operation[int]:
        """The position of the last message."""
        if self.page.by == "position":
            return self._operations.stream_version(self.name)
        return self._operations.category_end(self.name)

    def again(self, message: Message) -> Read[Message | None]:
        return self._operations.read_again(message)

    def position_after(self, message: Message) -> int:
        position: int = getattr(message, self.page.by)
        return position + 1

    def decoded(self, message: Message) -> Message:
        return decoded(self._types, message)

    def is_in(self, categories: set[str]) -> bool:
        """Whether there may be something new, after a notification about these categories."""
        return self.awaits == ALL or self.awaits in categories
