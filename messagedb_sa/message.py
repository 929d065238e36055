"""Messages: what you read from a store, and what you write to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeAlias
from uuid import UUID

# Python 3.10's own has neither generic named tuples nor defaults of type variables. Alembic and
# SQLAlchemy require this package, so it is always there.
from typing_extensions import NamedTuple, TypeVar

from messagedb_sa import _arguments as arguments
from messagedb_sa import _metadata_fields as fields
from messagedb_sa import stream_name as names
from messagedb_sa._json_values import json_value
from messagedb_sa.errors import InvalidArgument

__all__ = ["Message", "MessageInput", "NewMessage", "StreamWrite", "StreamWriteInput", "follow"]

D_co = TypeVar("D_co", covariant=True, default=Any)


class Message(NamedTuple, Generic[D_co]):
    """A message that was read from a store. It is immutable: a named tuple, like a SQLAlchemy Row.

    ``Message[Deposited]`` is a message whose data is a Deposited; in annotations, ``Message`` has data of any kind.

    ``message.data`` and ``message["data"]`` are the same, and ``dict(message)`` has all eight fields. ``data`` and
    ``metadata`` are decoded JSON, or None if the store has NULL. ``position`` counts from 0 in the stream, without
    gaps. ``global_position`` counts from 1 in the store, with gaps. ``time`` is an aware datetime in UTC: the start of
    the transaction that wrote the message.
    """

    id: str
    stream_name: str
    type: str
    position: int
    global_position: int
    data: D_co
    metadata: Any
    time: datetime

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._fields:
                raise KeyError(key)
            return getattr(self, key)
        return tuple.__getitem__(self, key)

    def keys(self) -> tuple[str, ...]:
        """The names of the eight fields, so that ``dict(message)`` works."""
        return self._fields

    def as_json_dict(self) -> dict[str, Any]:
        """All eight fields as values that JSON has, for ``json.dumps`` and for the answers of a web application.

        ``time`` is text in ISO 8601, such as ``2026-11-23T12:00:00.000000+00:00``. An instance as ``data`` becomes its
        JSON data, in the form of its class's schema version; ``type`` and ``metadata`` stay those of the stored
        message. Data and metadata are copies.

        Raises InvalidArgument for data that JSON does not have, as the engine's own json_deserializer may make it.
        """
        return {
            **self._asdict(),
            "data": json_value("data", self.data),
            "metadata": json_value("metadata", self.metadata),
            "time": self.time.isoformat(timespec="microseconds"),
        }

    @property
    def category(self) -> str:
        """The part of the stream name before the first ``-``, or the whole name if it has no ``-``."""
        return names.category(self.stream_name)

    @property
    def stream_id(self) -> str | None:
        """The part of the stream name after the first ``-``. None if it has no ``-``."""
        return names.id(self.stream_name)

    @property
    def cardinal_id(self) -> str | None:
        """The stream id up to its first ``+``. None if the stream has no id.

        Consumer groups share a category by it: streams with the same cardinal id go to the same member.
        """
        return names.cardinal_id(self.stream_name)


class NewMessage(NamedTuple):
    """A message to write.

    ``data`` is any value that JSON can represent, and ``metadata`` is a JSON object. None is stored as NULL, which is
    not the same as an empty object. ``id`` is a UUID or its text. None means a new UUID of version 7 (RFC 9562).
    """

    type: str
    data: Any
    metadata: Mapping[str, Any] | None = None
    id: UUID | str | None = None


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Attrs(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Model(Protocol):
    __pydantic_validator__: ClassVar[Any]


# Not Any: with it, type checkers would accept every mistake as a message.
MessageInput: TypeAlias = (
    NewMessage | tuple[str, Any] | tuple[str, Any, Mapping[str, Any] | None] | _Dataclass | _Attrs | _Struct | _Model
)
"""What ``write_batch`` takes as a message, for annotations."""


class StreamWrite(NamedTuple):
    """Messages to write to one stream, in a call that writes to several streams.

    ``expected_version`` is the position that the stream's last message must have, or -1 if the stream must not exist
    yet. None means no check.
    """

    stream_name: str
    messages: Iterable[MessageInput]
    expected_version: int | None = None


StreamWriteInput: TypeAlias = (
    StreamWrite | tuple[str, Iterable[MessageInput]] | tuple[str, Iterable[MessageInput], int | None]
)
"""What ``write_streams`` takes as a write to one stream, for annotations."""


def follow(message: Message, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of a message that answers ``message``, as Eventide's ``follow`` makes it; pass it to a write.

    Its causation fields name ``message``: causationMessageStreamName, causationMessagePosition and
    causationMessageGlobalPosition. It takes over correlationStreamName, replyStreamName and properties of the metadata
    of ``message``, and nothing else: neither localProperties nor your own fields. What has another type than Eventide
    gives it is not taken over.

    ``metadata`` is added to this, and wins: its properties are added one by one, and a field that is None is left out,
    so that ``{"replyStreamName": None}`` ends a request. InvalidArgument is raised if it has causation fields.
    """
    if not isinstance(message, Message):
        raise InvalidArgument("message", message, "must be a Message, as reads and consumers return it")
    own = arguments.metadata("metadata", metadata) or {}
    followed: dict[str, Any] = {
        fields.CAUSATION_STREAM: message.stream_name,
        fields.CAUSATION_POSITION: message.position,
        fields.CAUSATION_GLOBAL_POSITION: message.global_position,
    }
    if not followed.keys().isdisjoint(own):
        raise InvalidArgument("metadata", metadata, f"must not have {', '.join(followed)}, which follow sets")
    before = message.metadata if isinstance(message.metadata, dict) else {}
    for name in (fields.CORRELATION, fields.REPLY_STREAM):
        if isinstance(before.get(name), str):
            followed[name] = before[name]
    followed |= own
    properties = own.get(fields.PROPERTIES, {})
    if properties is not None:
        if not isinstance(properties, Mapping):
            raise InvalidArgument("metadata", metadata, f"must have a mapping as {fields.PROPERTIES}, or None")
        inherited = before.get(fields.PROPERTIES)
        followed[fields.PROPERTIES] = deepcopy(inherited if isinstance(inherited, dict) else {}) | dict(properties)
    return {
        name: value for name, value in followed.items() if value is not None and (name != fields.PROPERTIES or value)
    }
