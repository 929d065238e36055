"""Message DB's functions as SQLAlchemy expressions: ``select(functions.stream_version("user-1"))``.

An argument is a Python value or any column expression. If an optional argument is None, it is left out and the
database's default applies. The other optional arguments are rendered by name. All functions but write_messages and
get_query_messages, which this package adds, are Message DB's. For what they do, return and raise, see
http://docs.eventide-project.org/user-guide/message-db/server-functions.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    SQLColumnExpression,
    String,
    TableValuedAlias,
    bindparam,
    cast,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.expression import UnaryExpression
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.types import TypeEngine

from messagedb_sa.schema import SCHEMA, message_columns

__all__ = [
    "acquire_lock",
    "cardinal_id",
    "category",
    "get_category_messages",
    "get_last_stream_message",
    "get_query_messages",
    "get_stream_messages",
    "hash_64",
    "id",
    "is_category",
    "message_store_version",
    "stream_version",
    "write_message",
    "write_messages",
]

_T = TypeVar("_T")
_Expression = SQLColumnExpression[Any]


class _MessageDBFunction(GenericFunction[_T]):
    _register = False
    inherit_cache = True

    def __init_subclass__(cls) -> None:
        # Not registered: an application's own func.message_store.… must mean the same with and without this import.
        cls._register = False
        super().__init_subclass__()

    def __init__(self, *required: ColumnElement[Any], **optional: ColumnElement[Any] | None) -> None:
        named = (_named(name, argument) for name, argument in optional.items() if argument is not None)
        super().__init__(*required, *named)
        # The package attribute of GenericFunction is only a key of the func registry. It is not rendered.
        self.packagenames = (SCHEMA,)


class _MessagesFunction(_MessageDBFunction[Any]):
    inherit_cache = True

    def messages(self, name: str | None = None) -> TableValuedAlias:
        """The messages as a FROM clause: id, stream_name, type, position, global_position, data, metadata, time.

        Data and metadata are decoded. Time is an aware datetime. ``name`` is the alias in the SQL; if it is None,
        SQLAlchemy chooses one.
        """
        return self.table_valued(*message_columns(), name=name)


class category(_MessageDBFunction[str]):
    """The part of a stream name before the first ``-``, or the whole name if it has no ``-``."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class id(_MessageDBFunction[str | None]):
    """The part of a stream name after the first ``-``. NULL if it has no ``-``."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class cardinal_id(_MessageDBFunction[str | None]):
    """The id of a stream name up to its first ``+``. NULL if the name has no id."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class is_category(_MessageDBFunction[bool]):
    """True if the name has no ``-``."""

    inherit_cache = True
    type: TypeEngine[Any] = Boolean()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class hash_64(_MessageDBFunction[int]):
    """The first 8 bytes of the MD5 hash of a text, as a signed big-endian number."""

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, value: str | _Expression) -> None:
        super().__init__(_text("value", value))


class acquire_lock(_MessageDBFunction[int]):
    """Takes the lock that writers to the stream's category take, and returns its key.

    Waits until the lock is free, and holds it until the transaction ends.
    """

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class stream_version(_MessageDBFunction[int | None]):
    """The position of a stream's last message, from 0. NULL if the stream has no messages."""

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class message_store_version(_MessageDBFunction[str]):
    """The version of the Message DB interface, such as 1.3.0."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self) -> None:
        super().__init__()


class write_message(_MessageDBFunction[int]):
    """Writes a message and returns its position in the stream.

    ``expected_version`` is the position that the stream's last message must have, or -1 if the stream must not exist
    yet. None means no check. ``data`` and ``metadata`` are encoded by the engine's json_serializer. None is NULL.
    """

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(
        self,
        id: UUID | str | _Expression,
        stream_name: str | _Expression,
        type: str | _Expression,
        data: Any,
        metadata: Any = None,
        expected_version: int | _Expression | None = None,
    ) -> None:
        super().__init__(
            _uuid_text("id", id),
            _text("stream_name", stream_name),
            _text("type", type),
            _json("data", data),
            metadata=None if metadata is None else _json("metadata", metadata),
            expected_version=_number("expected_version", expected_version),
        )


class write_messages(_MessageDBFunction[int]):
    """Writes messages to a stream in order, and returns the position of the last one.

    This function is not part of Message DB: this package's revision messagedb_0002 adds it. ``ids``, ``types``,
    ``data`` and ``metadata`` are lists of the same length, or expressions: arrays for ids and types, JSON arrays for
    data and metadata. None as an item of data or metadata is NULL. None for ``metadata`` means that no message has any.
    ``expected_version`` is checked once, before the first message, as in write_message.
    """

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(
        self,
        ids: Sequence[UUID | str] | _Expression,
        stream_name: str | _Expression,
        types: Sequence[str] | _Expression,
        data: Sequence[Any] | _Expression,
        metadata: Sequence[Any] | _Expression | None = None,
        expected_version: int | _Expression | None = None,
    ) -> None:
        if isinstance(ids, (list, tuple)):
            ids = [str(id) if isinstance(id, UUID) else id for id in ids]
        super().__init__(
            _texts("ids", ids),
            _text("stream_name", stream_name),
            _texts("types", types),
            _json("data", data),
            metadata=None if metadata is None else _json("metadata", metadata),
            expected_version=_number("expected_version", expected_version),
        )


class get_stream_messages(_MessagesFunction):
    """A stream's messages in order of position, from ``position`` (inclusive, from 0).

    Returns at most ``batch_size`` messages; -1 means all. If they are None, the database's defaults apply: position 0
    and 1000 messages. ``condition`` is SQL text that is run as it is: never build it from user input. The session's
    setting message_store.sql_condition must be on.
    """

    inherit_cache = True

    def __init__(
        self,
        stream_name: str | _Expression,
        position: int | _Expression | None = None,
        batch_size: int | _Expression | None = None,
        condition: str | _Expression | None = None,
    ) -> None:
        super().__init__(
            _text("stream_name", stream_name),
            position=_number("position", position),
            batch_size=_number("batch_size", batch_size),
            condition=_optional_text("condition", condition),
        )


class get_category_messages(_MessagesFunction):
    """A category's messages in order of global position, from the global position ``position`` (inclusive, from 1).

    Returns at most ``batch_size`` messages; -1 means all. If they are None, the database's defaults apply: position 1
    and 1000 messages. ``correlation`` is a category: only messages whose metadata has a correlationStreamName in it are
    returned. A consumer group of ``consumer_group_size`` members (1 to 32767) shares the streams by cardinal id;
    ``consumer_group_member`` counts from 0. ``condition`` is the same as in get_stream_messages.
    """

    inherit_cache = True

    def __init__(
        self,
        category: str | _Expression,
        position: int | _Expression | None = None,
        batch_size: int | _Expression | None = None,
        correlation: str | _Expression | None = None,
        consumer_group_member: int | _Expression | None = None,
        consumer_group_size: int | _Expression | None = None,
        condition: str | _Expression | None = None,
    ) -> None:
        super().__init__(
            _text("category", category),
            position=_number("position", position),
            batch_size=_number("batch_size", batch_size),
            correlation=_optional_text("correlation", correlation),
            consumer_group_member=_number("consumer_group_member", consumer_group_member),
            consumer_group_size=_number("consumer_group_size", consumer_group_size),
            condition=_optional_text("condition", condition),
        )


class get_query_messages(_MessagesFunction):
    """The messages that match one of ``queries``, in order of global position.

    This function is not part of Message DB: this package's revision messagedb_0005 adds it. ``queries`` is a list of
    dicts, or an expression for such JSON: ``{"category": "course", "position": 1, "types": ["Registered"],
    "tags": ["course:1"]}``. ``position`` is inclusive, by default 1. A message matches if it has one of the types, and
    all of the tags in its metadata's list ``tags``; both may be left out. Returns at most ``batch_size`` messages; -1
    means all. None means the database's default, 1000.
    """

    inherit_cache = True

    def __init__(
        self, queries: Sequence[Mapping[str, Any]] | _Expression, batch_size: int | _Expression | None = None
    ) -> None:
        super().__init__(_json("queries", queries), batch_size=_number("batch_size", batch_size))


class get_last_stream_message(_MessagesFunction):
    """A stream's last message, or its last message of ``type``. No row if there is no such message."""

    inherit_cache = True

    def __init__(self, stream_name: str | _Expression, type: str | _Expression | None = None) -> None:
        super().__init__(_text("stream_name", stream_name), type=_optional_text("type", type))


def _argument(name: str, value: object, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    if isinstance(value, str):
        # Of a member of an enumeration, the value. Drivers may treat a subclass as something else than text.
        value = str.__str__(value)
    return value if isinstance(value, ColumnElement) else bindparam(name, value, type_, unique=True)


def _text(name: str, value: object) -> ColumnElement[Any]:
    return _argument(name, value, String())


def _optional_text(name: str, value: object | None) -> ColumnElement[Any] | None:
    return None if value is None else _argument(name, value, String())


def _number(name: str, value: object | None) -> ColumnElement[Any] | None:
    return None if value is None else _argument(name, value, BigInteger())


def _json(name: str, value: object) -> ColumnElement[Any]:
    return _argument(name, value, JSONB(none_as_null=True))


def _texts(name: str, value: object) -> ColumnElement[Any]:
    if isinstance(value, (list, tuple)):
        value = [str.__str__(each) if isinstance(each, str) else each for each in value]
    argument = _argument(name, value, ARRAY(String))
    # PostgreSQL cannot infer the type of an empty array.
    return cast(argument, ARRAY(String)) if isinstance(argument, BindParameter) else argument


def _uuid_text(name: str, value: object) -> ColumnElement[Any]:
    argument = _text(name, str(value) if isinstance(value, UUID) else value)
    # PostgreSQL does not cast a uuid to a varchar parameter implicitly.
    return argument if isinstance(argument.type, String) else cast(argument, String)


def _named(name: str, argument: ColumnElement[Any]) -> ColumnElement[Any]:
    # Quoted, since the keyword "position" is a syntax error before => without quotes.
    return UnaryExpression(argument, operator=custom_op(f'"{name}" =>'), type_=argument.type)
