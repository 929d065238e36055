"""What a store can do, without doing it: for each call the statement, its parameters, and how the answer is taken.

Both the store and its asynchronous twin execute these; nothing here touches a connection. The statements are built
once, so that a call costs no construction of SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timezone
from typing import Any, Generic, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Dialect,
    Executable,
    String,
    Text,
    TextClause,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from messagedb_sa import arguments, functions
from messagedb_sa import stream_name as names
from messagedb_sa.errors import (
    ConditionNotActivated,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    StoreNotInstalled,
    WrongExpectedVersion,
)
from messagedb_sa.json_text import JSONCodec
from messagedb_sa.message import Message, NewMessage
from messagedb_sa.schema import message_columns, messages

NO_STREAM = -1
"""As ``expected_version``: the stream must not exist yet."""

ALL = "$all"

T = TypeVar("T")
MessageInput: TypeAlias = "NewMessage | tuple[str, Any] | tuple[str, Any, Any]"

# No such schema, function or table.
_NOT_INSTALLED = frozenset({"3F000", "42883", "42P01"})
_BAD_JSON = frozenset({"22P02", "22P05"})


@dataclass(frozen=True)
class Operation(Generic[T]):
    """A call: ``statement`` is executed with ``parameters``, and ``result`` makes of its rows what is returned."""

    statement: Executable
    parameters: Mapping[str, Any]
    result: Callable[[Sequence[Any]], T]
    own_sql: bool = False

    def error(self, error: DBAPIError) -> MessageDBError | None:
        """What the database's refusal means, None where this package has no name for it."""
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        diagnostics = getattr(error.orig, "diag", None)
        message = getattr(diagnostics, "message_primary", None) or str(error.orig)
        if state == "P0001" and message.startswith("Wrong expected version: "):
            actual_version = int(message.rpartition("Stream Version: ")[2].rstrip(")"))
            return WrongExpectedVersion(
                self.parameters["stream_name"], self.parameters["expected_version"], actual_version
            )
        if state == "P0001" and message == "Retrieval with SQL condition is not activated":
            return ConditionNotActivated()
        if state == "23505" and getattr(diagnostics, "constraint_name", None) == "messages_id":
            # Without the privilege to read the table, there is no detail.
            found = re.search(r"\(id\)=\(([-0-9a-f]+)\)", getattr(diagnostics, "message_detail", None) or "")
            return DuplicateMessageId(found[1] if found else self.parameters.get("id"))
        # A query of the caller's own may as well lack a table or function of the caller's own.
        if state in _NOT_INSTALLED and (not self.own_sql or state == "3F000" or "message_store.messages" in message):
            return StoreNotInstalled(message)
        if state in _BAD_JSON and "data" in self.parameters:
            return InvalidArgument(
                "data", self.parameters["data"], f"the engine's json_serializer made this: {message}"
            )
        return None


@dataclass(frozen=True)
class Page(Operation[list[Message]]):
    """A read that can go on where it ended; ``by`` is the field that the position counts."""

    by: str = "position"

    def after(self, page: list[Message]) -> Page | None:
        """The page after this one, whose messages were ``page``; None where this was the last."""
        if len(page) < self.parameters["batch_size"]:
            return None
        return replace(self, parameters={**self.parameters, "position": getattr(page[-1], self.by) + 1})


class Operations:
    """The operations of a store whose engine has this dialect. Arguments are checked here, as Store documents them."""

    def __init__(self, dialect: Dialect) -> None:
        self._codec = JSONCodec(dialect)

    def write(
        self,
        stream_name: str,
        message_type: str,
        data: Any,
        metadata: Any,
        expected_version: int | None,
        id: UUID | str | None,
    ) -> Operation[int]:
        parameters = {
            "id": arguments.message_id("id", id),
            "stream_name": arguments.text("stream_name", stream_name),
            "type": arguments.text("message_type", message_type),
            "data": self._codec.encode("data", data),
            "metadata": self._codec.encode("metadata", metadata),
            "expected_version": _expected(expected_version),
        }
        return Operation(_WRITE, parameters, _scalar)

    def write_batch(
        self, stream_name: str, messages: Iterable[MessageInput], expected_version: int | None
    ) -> Operation[int]:
        if not isinstance(messages, Iterable):
            raise InvalidArgument("messages", messages, "is no list of messages")
        ids, types, data, metadata = [], [], [], []
        for number, item in enumerate(messages):
            at = f"messages[{number}]"
            if not (isinstance(item, NewMessage) or (isinstance(item, (tuple, list)) and len(item) in (2, 3))):
                raise InvalidArgument(at, item, "is no NewMessage, (type, data) or (type, data, metadata)")
            message = NewMessage(*item)
            ids.append(arguments.message_id(f"{at}.id", message.id))
            types.append(arguments.text(f"{at}.type", message.type))
            data.append(self._codec.encode(f"{at}.data", message.data))
            metadata.append(self._codec.encode(f"{at}.metadata", message.metadata))
        if not ids:
            raise InvalidArgument("messages", messages, "is empty: a batch has at least one message")
        parameters = {
            "stream_name": arguments.text("stream_name", stream_name),
            "ids": ids,
            "types": types,
            "data": data,
            "metadata": metadata,
            "expected_version": _expected(expected_version),
        }
        return Operation(_WRITE_BATCH, parameters, _scalar)

    def read(
        self,
        stream_name: str,
        sql: str | Executable | None,
        position: int,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
    ) -> Operation[list[Message]]:
        name = arguments.text("stream_name", stream_name)
        if sql is not None:
            return self._own_sql(sql, name, position, no_of_messages, consumer_group_member, consumer_group_size)
        if name != ALL and names.is_category(name):
            return self.read_category(
                name, position, no_of_messages, consumer_group_member, consumer_group_size, None, None
            )
        for argument, value in (
            ("consumer_group_member", consumer_group_member),
            ("consumer_group_size", consumer_group_size),
        ):
            if value is not None:
                raise InvalidArgument(argument, value, f"a consumer group reads a category, and {name!r} is none")
        if name == ALL:
            parameters = _from(position, no_of_messages)
            limit = None if no_of_messages == -1 else parameters["batch_size"]
            return Operation(_READ_ALL, {**parameters, "batch_size": limit}, self._messages)
        return self.read_stream(name, position, no_of_messages, None)

    def read_stream(self, stream_name: str, position: int, no_of_messages: int, condition: str | None) -> Page:
        parameters = {
            "stream_name": arguments.stream("stream_name", stream_name),
            **_from(position, no_of_messages),
            "condition": _optional("condition", condition),
        }
        return Page(_READ_STREAM, parameters, self._messages)

    def read_category(
        self,
        category_name: str,
        position: int,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
        correlation: str | None,
        condition: str | None,
    ) -> Page:
        member, size = arguments.consumer_group(consumer_group_member, consumer_group_size)
        parameters = {
            "category": arguments.category("category_name", category_name),
            **_from(position, no_of_messages),
            "correlation": None if correlation is None else arguments.category("correlation", correlation),
            "consumer_group_member": member,
            "consumer_group_size": size,
            "condition": _optional("condition", condition),
        }
        return Page(_READ_CATEGORY, parameters, self._messages, by="global_position")

    def read_last_message(self, stream_name: str, message_type: str | None) -> Operation[Message | None]:
        parameters = {
            "stream_name": arguments.stream("stream_name", stream_name),
            "type": _optional("message_type", message_type),
        }
        return Operation(_READ_LAST, parameters, lambda rows: next(iter(self._messages(rows)), None))

    def stream_version(self, stream_name: str) -> Operation[int | None]:
        return Operation(_STREAM_VERSION, {"stream_name": arguments.stream("stream_name", stream_name)}, _scalar)

    def stream_identifiers(self, category_name: str) -> Operation[list[str]]:
        parameters = {"category": arguments.category("category_name", category_name)}
        return Operation(_STREAM_IDENTIFIERS, parameters, lambda rows: [row[0] for row in rows])

    def version(self) -> Operation[str]:
        return Operation(_VERSION, {}, _scalar)

    def _own_sql(
        self,
        sql: str | Executable,
        stream_name: str,
        position: int,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
    ) -> Operation[list[Message]]:
        member, size = arguments.consumer_group(consumer_group_member, consumer_group_size)
        parameters = {
            "stream_name": stream_name,
            **_from(position, no_of_messages),
            "consumer_group_member": member,
            "consumer_group_size": size,
        }
        return Operation(_as_messages(sql), parameters, self._messages, own_sql=True)

    def _messages(self, rows: Sequence[Any]) -> list[Message]:
        if not rows:
            return []
        ids, streams, types, positions, global_positions, data, metadata, times = zip(*rows, strict=True)
        utc = timezone.utc
        return list(
            map(
                Message._make,
                zip(
                    ids,
                    streams,
                    types,
                    positions,
                    global_positions,
                    self._codec.decode(data),
                    self._codec.decode(metadata),
                    [time.replace(tzinfo=utc) for time in times],
                    strict=True,
                ),
            )
        )


def _scalar(rows: Sequence[Any]) -> Any:
    return rows[0][0]


def _from(position: int, no_of_messages: int) -> dict[str, int]:
    return {
        "position": arguments.integer("position", position),
        "batch_size": arguments.integer("no_of_messages", no_of_messages, minimum=-1),
    }


def _expected(version: int | None) -> int | None:
    return None if version is None else arguments.integer("expected_version", version, minimum=NO_STREAM)


def _optional(argument: str, value: str | None) -> str | None:
    return None if value is None else arguments.text(argument, value)


def _as_messages(sql: str | Executable) -> Executable:
    """The caller's query as one whose columns have the types of Message DB's ``message``, whatever they were."""
    if isinstance(sql, str):
        sql = text(_with_named_binds(arguments.text("sql", sql)))
    if isinstance(sql, TextClause):
        sql = sql.columns(*message_columns(decoded=False))
    if not hasattr(sql, "subquery"):
        raise InvalidArgument("sql", sql, "is no query: text or a select is needed")
    query = sql.subquery()
    missing = [each.name for each in message_columns() if each.name not in query.c]
    if missing:
        raise InvalidArgument("sql", sql, f"returns no column {', '.join(missing)}")
    return select(
        *(query.c[each.name] if each.name == "time" else cast(query.c[each.name], each.type) for each in _RAW)
    )


def _with_named_binds(sql: str) -> str:
    """psycopg2's ``%(name)s`` and ``%%`` in the form that text() takes."""

    def replaced(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "%" if match[0] == "%%" else rf"\{match[0]}"
        if match["name"] not in _OWN_SQL_PARAMETERS:
            known = ", ".join(_OWN_SQL_PARAMETERS)
            raise InvalidArgument("sql", sql, f"the parameter {match['name']} is not one of {known}")
        return f":{match['name']}"

    # The line break ends a comment that the text may end with.
    return re.sub(r"%\((?P<name>\w+)\)s|%%|:", replaced, sql.rstrip().rstrip(";")) + "\n"


_OWN_SQL_PARAMETERS = ("stream_name", "position", "batch_size", "consumer_group_member", "consumer_group_size")
_RAW = message_columns(decoded=False)


def _text(name: str) -> Any:
    return bindparam(name, type_=String())


def _number(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


def _json(name: str) -> Any:
    return cast(bindparam(name, type_=Text()), JSONB)


def _build_write_batch() -> Executable:
    new = (
        func.unnest(*(bindparam(name, type_=ARRAY(Text())) for name in ("ids", "types", "data", "metadata")))
        .table_valued(
            column("id", Text), column("type", Text), column("data", Text), column("metadata", Text),
            with_ordinality="number", name="new",
        )
        .render_derived()
    )  # fmt: skip
    # The first write takes the category's lock and checks the version; the others then need no check.
    written = (
        select(
            functions.write_message(
                new.c.id,
                _text("stream_name"),
                new.c.type,
                cast(new.c.data, JSONB),
                cast(new.c.metadata, JSONB),
                # psycopg2 sends values without types: a bare NULL in CASE would be taken for text.
                case((new.c.number == 1, cast(_number("expected_version"), BigInteger))),
            ).label("position")
        )
        .order_by(new.c.number)
        .subquery("written")
    )
    return select(func.max(written.c.position))


_WRITE = select(
    functions.write_message(
        _text("id"),
        _text("stream_name"),
        _text("type"),
        _json("data"),
        _json("metadata"),
        _number("expected_version"),
    )
)
_WRITE_BATCH = _build_write_batch()
_READ_ALL = (
    select(
        *(
            messages.c.time if each.name == "time" else cast(messages.c[each.name], each.type).label(each.name)
            for each in _RAW
        )
    )
    .where(messages.c.global_position >= _number("position"))
    .order_by(messages.c.global_position)
    .limit(_number("batch_size"))
)
_READ_STREAM = select(
    functions.get_stream_messages(
        _text("stream_name"), _number("position"), _number("batch_size"), _text("condition")
    ).table_valued(*_RAW)
)
_READ_CATEGORY = select(
    functions.get_category_messages(
        _text("category"),
        _number("position"),
        _number("batch_size"),
        _text("correlation"),
        _number("consumer_group_member"),
        _number("consumer_group_size"),
        _text("condition"),
    ).table_valued(*_RAW)
)
_READ_LAST = select(functions.get_last_stream_message(_text("stream_name"), _text("type")).table_valued(*_RAW))
_STREAM_VERSION = select(functions.stream_version(_text("stream_name")))
_identifier = functions.id(messages.c.stream_name).collate("C")
_STREAM_IDENTIFIERS = (
    select(_identifier)
    .distinct()
    .where(functions.category(messages.c.stream_name) == _text("category"), _identifier != "")
    .order_by(_identifier)
)
_VERSION = select(functions.message_store_version())
