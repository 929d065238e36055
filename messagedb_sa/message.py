"""Messages: as they are read, and as they are to be written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from messagedb_sa import stream_name as names

__all__ = ["Message", "NewMessage", "StreamWrite"]


class Message(NamedTuple):
    """A message as the store holds it: immutable, a named tuple like a SQLAlchemy Row.

    ``message.data`` and ``message["data"]`` are the same; ``dict(message)`` has the eight fields. ``data`` and
    ``metadata`` are decoded JSON, None where the store has none. ``position`` counts from 0 in its stream,
    ``global_position`` from 1 in the store, with gaps. ``time`` is aware, in UTC: when the writing transaction began.
    """

    id: str
    stream_name: str
    type: str
    position: int
    global_position: int
    data: Any
    metadata: Any
    time: datetime

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._fields:
                raise KeyError(key)
            return getattr(self, key)
        return tuple.__getitem__(self, key)

    def keys(self) -> tuple[str, ...]:
        """The names of the eight fields; what makes ``dict(message)`` work."""
        return self._fields

    @property
    def category(self) -> str:
        return names.category(self.stream_name)

    @property
    def stream_id(self) -> str | None:
        """What stands after the first ``-`` of the stream name; None where there is none."""
        return names.id(self.stream_name)

    @property
    def cardinal_id(self) -> str | None:
        """The stream id up to its first ``+``, by which consumer groups share a category; None without an id."""
        return names.cardinal_id(self.stream_name)


class NewMessage(NamedTuple):
    """A message to be written.

    ``data`` and ``metadata`` are anything that JSON can hold; None is stored as no value, which is not the same as
    an empty object. ``id`` is a UUID or its text; None means a new one, of version 7 (RFC 9562).
    """

    type: str
    data: Any
    metadata: Any = None
    id: UUID | str | None = None


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Attrs(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Model(Protocol):
    __pydantic_validator__: ClassVar[Any]


# Not any object: type checkers would take any mistake for a message.
MessageInput: TypeAlias = (
    "NewMessage | tuple[str, Any] | tuple[str, Any, Any] | _Dataclass | _Attrs | _Struct | _Model"
)  # fmt: skip


class StreamWrite(NamedTuple):
    """Messages to be written to one of several streams.

    ``expected_version`` is the position that the stream's last message must have, -1 if the stream must not exist
    yet, None for no check.
    """

    stream_name: str
    messages: Iterable[MessageInput]
    expected_version: int | None = None
