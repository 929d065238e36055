"""Message DB's functions as SQLAlchemy expressions: ``select(functions.stream_version("user-1"))``.

An argument is a Python value or any column expression. An optional argument that is None is left out, so that the
database's default holds; the others are rendered by name. What the functions (all but write_messages, which is this
package's own) do, return and raise is Message DB's:
http://docs.eventide-project.org/user-guide/message-db/server-functions.html
"""

from __future__ import annotations

from collections.abc import Sequence
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
        # Unregistered: what a host's own func.message_store.… means must not depend on our being imported.
        cls._register = False
        super().__init_subclass__()

    def __init__(self, *required: ColumnElement[Any], **optional: ColumnElement[Any] | None) -> None:
        named = (_named(name, argument) for name, argument in optional.items() if argument is not None)
        super().__init__(*required, *named)
        # GenericFunction's own package attribute is a key of the func registry; it is not rendered.
        self.packagenames = (SCHEMA,)


class _MessagesFunction(_MessageDBFunction[Any]):
    inherit_cache = True

    def messages(self, name: str | None = None) -> TableValuedAlias:
        """The messages as a FROM: columns id, stream_name, type, position, global_position, data, metadata, time.

        Data and metadata are decoded, time is aware. ``name`` is the alias in the SQL; None lets SQLAlchemy choose.
        """
        return self.table_valued(*message_columns(), name=name)


class category(_MessageDBFunction[str]):
    """What stands before the first ``-`` of a stream name."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class id(_MessageDBFunction[str | None]):
    """What stands after the first ``-`` of a stream name; NULL where there is none."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class cardinal_id(_MessageDBFunction[str | None]):
    """The id of a stream name up to its first ``+``; NULL where there is no id."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class is_category(_MessageDBFunction[bool]):
    """Whether a name holds no ``-``."""

    inherit_cache = True
    type: TypeEngine[Any] = Boolean()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class hash_64(_MessageDBFunction[int]):
    """The first 8 bytes of a text's MD5, as a signed big-endian number."""

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, value: str | _Expression) -> None:
        super().__init__(_text("value", value))


class acquire_lock(_MessageDBFunction[int]):
    """Waits for the lock that writers to the stream's category take, holds it to the transaction's end; its key."""

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class stream_version(_MessageDBFunction[int | None]):
    """The position of a stream's last message, from 0; NULL where the stream has none."""

    inherit_cache = True
    type: TypeEngine[Any] = BigInteger()

    def __init__(self, stream_name: str | _Expression) -> None:
        super().__init__(_text("stream_name", stream_name))


class message_store_version(_MessageDBFunction[str]):
    """The version of the interface, such as 1.3.0."""

    inherit_cache = True
    type: TypeEngine[Any] = String()

    def __init__(self) -> None:
        super().__init__()


class write_message(_MessageDBFunction[int]):
    """Writes a message and gives its position in the stream.

    ``expected_version``: the position of the stream's last message, -1 for a stream that must not exist yet, None
    for no check. ``data`` and ``metadata`` are encoded by the engine's json_serializer; None is NULL.
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
    """Writes messages to a stream in order, and gives the position of the last.

    Not one of Message DB's: this package's own revision messagedb_0002 adds it. ``ids``, ``types``, ``data`` and
    ``metadata`` are lists of one length, or expressions: arrays, and for data and metadata JSON arrays. None among data
    and metadata is NULL, None in place of the metadata is no metadata at all. ``expected_version`` is that of the first
    message, as in write_message.
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
            ids = [str(id) for id in ids]
        super().__init__(
            _texts("ids", ids),
            _text("stream_name", stream_name),
            _texts("types", types),
            _json("data", data),
            metadata=None if metadata is None else _json("metadata", metadata),
            expected_version=_number("expected_version", expected_version),
        )


class get_stream_messages(_MessagesFunction):
    """A stream's messages from ``position`` on (from 0; None: 0), by position.

    At most ``batch_size`` of them (None: 1000; -1: all). ``condition`` is SQL text, run as it is; the session must
    have the setting message_store.sql_condition on.
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
    """A category's messages from global position ``position`` on (from 1; None: 1), by global position.

    At most ``batch_size`` of them (None: 1000; -1: all). ``correlation`` keeps those whose metadata's
    correlationStreamName is in that category. A consumer group of ``consumer_group_size`` members (1 to 32767) shares
    the streams by cardinal id; ``consumer_group_member`` counts from 0. ``condition`` as in get_stream_messages.
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


class get_last_stream_message(_MessagesFunction):
    """A stream's message with the highest position, of ``type`` if that is given; no row where there is none."""

    inherit_cache = True

    def __init__(self, stream_name: str | _Expression, type: str | _Expression | None = None) -> None:
        super().__init__(_text("stream_name", stream_name), type=_optional_text("type", type))


def _argument(name: str, value: object, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
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
    argument = _argument(name, value, ARRAY(String))
    # An empty list has no type of its own.
    return cast(argument, ARRAY(String)) if isinstance(argument, BindParameter) else argument


def _uuid_text(name: str, value: object) -> ColumnElement[Any]:
    argument = _text(name, str(value) if isinstance(value, UUID) else value)
    # PostgreSQL does not turn a uuid into the varchar parameter by itself.
    return argument if isinstance(argument.type, String) else cast(argument, String)


def _named(name: str, argument: ColumnElement[Any]) -> ColumnElement[Any]:
    # Quoted, since "position" is a keyword that may not stand bare before =>.
    return UnaryExpression(argument, operator=custom_op(f'"{name}" =>'), type_=argument.type)
