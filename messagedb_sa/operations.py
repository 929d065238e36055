"""What a store can do, without doing it: for each call the statement, its parameters, and how the answer is taken.

Both the store and its asynchronous twin execute these; nothing here touches a connection. The statements are built
once, so that a call costs no construction of SQL.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar
from typing import cast as cast_type
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    Dialect,
    Executable,
    Integer,
    Select,
    String,
    TableValuedAlias,
    Text,
    TextClause,
    bindparam,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import visitors

from messagedb_sa import arguments, functions, settling
from messagedb_sa import stream_name as names
from messagedb_sa.driver import Refusal, refusal
from messagedb_sa.errors import (
    ConditionNotActivated,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    StoreNotInstalled,
    WrongExpectedVersion,
)
from messagedb_sa.garbage import uncollected
from messagedb_sa.json_text import JSONCodec, is_json
from messagedb_sa.message import Message, MessageInput, NewMessage, StreamWrite
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.schema import message_columns, messages

if TYPE_CHECKING:
    from messagedb_sa.tracing import Tracing

NO_STREAM = -1
"""As ``expected_version``: the stream must not exist yet."""

ALL = "$all"

NOT_GIVEN: Any = object()
"""In place of data, which may be None."""

SETTLE_SECONDS = 1.0
"""How long a read of ``$all`` waits for writers where nothing is said."""

T = TypeVar("T")
StreamWriteInput: TypeAlias = (
    "StreamWrite | tuple[str, Iterable[MessageInput]] | tuple[str, Iterable[MessageInput], int | None]"
)

# No such schema, function or table.
_NOT_INSTALLED = frozenset({"3F000", "42883", "42P01"})
_BAD_JSON = frozenset({"22P02", "22P05"})

logger = logging.getLogger(__name__)

_UNTRACED = nullcontext()


class Batch(NamedTuple):
    """Messages to be written, checked. Data and metadata are JSON arrays, with null for none."""

    ids: list[str]
    types: list[str]
    data: str
    metadata: str


@dataclass(slots=True)
class Operation(Generic[T]):
    """A call: ``statement`` is executed with ``parameters``, and ``result`` makes of its rows what is returned.

    That is a step; ``perform`` says what steps the call takes, most of them one.

    ``expected``: the streams that it writes to, with the versions expected of them. ``without_ours``: the statement in
    its place, with the same parameters, rows and errors, for a store without the functions that we add to Message DB's.
    """

    statement: Executable
    parameters: Mapping[str, Any]
    result: Callable[[Sequence[Any]], T]
    expected: Mapping[str, int | None] = field(default_factory=dict)
    own_sql: bool = False
    without_ours: Executable | None = None

    def perform(self, run: Run) -> T:
        """The call's result, by steps that ``run`` takes."""
        result: T = run(self)
        return result

    def error(self, error: DBAPIError) -> MessageDBError | None:
        """What the database's refusal means, None where this package has no name for it."""
        state, message, detail, constraint = refused = refusal(error)
        if state == "P0001" and message.startswith("Wrong expected version: "):
            actual_version = int(message.rpartition("Stream Version: ")[2].rstrip(")"))
            ((stream_name, expected_version),) = self.expected.items()
            return WrongExpectedVersion(stream_name, cast_type(int, expected_version), actual_version)
        if state == "P0001" and message == "Retrieval with SQL condition is not activated":
            return ConditionNotActivated()
        if state == "23505" and constraint == "messages_id":
            # Without the privilege to read the table, there is no detail.
            found = re.search(r"\(id\)=\(([-0-9a-f]+)\)", detail or "")
            return DuplicateMessageId(found[1] if found else self.parameters.get("id"))
        if state == "40001" or (state == "23505" and constraint == "messages_stream"):
            return self._lost_race(refused)
        # SQL of the caller's own may as well lack a table or function of the caller's own.
        lacking = "message_store.messages" if self.own_sql and state != "3F000" else "message_store"
        if state in _NOT_INSTALLED and lacking in message:
            return StoreNotInstalled(message)
        if state in _BAD_JSON and "data" in self.parameters:
            argument = next((name for name in ("data", "metadata") if not is_json(self.parameters[name])), "data")
            reason = f"the engine's json_serializer made this: {message}"
            return InvalidArgument(argument, self.parameters[argument], reason)
        return None

    def _lost_race(self, refused: Refusal) -> WrongExpectedVersion | None:
        """A writer came too late, in a transaction with an older snapshot: under REPEATABLE READ the position is taken,
        under SERIALIZABLE the transactions can't be put in an order. None where no version was expected."""
        checked = {name: version for name, version in self.expected.items() if version is not None}
        name = next(iter(checked)) if len(checked) == 1 else None
        if found := re.search(r'"position"\)=\((.*), \d+\)', refused.detail or ""):
            name = found[1]
        return WrongExpectedVersion(name, checked[name], None) if name in checked else None


Run: TypeAlias = "Callable[[Operation[Any]], Any]"


@dataclass(slots=True)
class Page(Operation[list[Message]]):
    """A read that can go on where it ended; ``by`` is the field that the position counts."""

    by: str = "position"

    def after(self, page: list[Message]) -> Page | None:
        """The page after this one, whose messages were ``page``; None where this was the last."""
        return None if len(page) < self.parameters["batch_size"] else self.at(getattr(page[-1], self.by) + 1)

    def at(self, position: int) -> Page:
        """The page from this position on."""
        return replace(self, parameters={**self.parameters, "position": position})


@dataclass(slots=True)
class SettledPage(Page):
    """A page of ``$all`` that passes over nothing that is still to come: it ends before the first number that is
    missing, unless that is settled. What it learns of that, the pages after it know."""

    settle_seconds: float = SETTLE_SECONDS
    settled: int = 0

    def perform(self, run: Run) -> list[Message]:
        def look(pause: float) -> settling.Writers:
            writers: settling.Writers = run(Operation(settling.WRITERS, {"pause": pause}, settling.writers))
            return writers

        messages, missing = self._before_missing(run(self))
        if missing is None:
            return messages
        outcome = settling.settle(look, missing, self.settle_seconds)
        if outcome.settled is not None:
            self.settled = max(self.settled, outcome.settled)
        # Again, for what came meanwhile.
        messages, missing = self._before_missing(run(self))
        if missing is not None and outcome.in_the_way and self.settle_seconds:
            logger.warning(
                "waited %.1f s for writers of $all, and stopped before global position %d; in the way: %s",
                outcome.waited,
                missing,
                ", ".join("a prepared transaction" if pid is None else f"process {pid}" for pid in outcome.in_the_way),
            )
        return messages

    def _before_missing(self, messages: list[Message]) -> tuple[list[Message], int | None]:
        end, missing = settling.before_missing(messages, max(self.parameters["position"], self.settled + 1))
        return messages if missing is None else messages[:end], missing


class Operations:
    """The operations of a store whose engine has this dialect. Arguments are checked here, as Store documents them.

    ``joined``: they run in a transaction of the caller's, which a wrong expected version must leave usable. PostgreSQL
    gives a transaction up at an error, so there the version is compared in the statement and comes back as a row.

    ``types``: their instances are taken for messages, and are the data of messages that are read.

    ``tracing``: writes are built and executed within ``writing``.
    """

    def __init__(
        self, dialect: Dialect, *, joined: bool, types: MessageTypes | None = None, tracing: Tracing | None = None
    ) -> None:
        if not (types is None or isinstance(types, MessageTypes)):
            raise InvalidArgument("types", types, "is no MessageTypes")
        if tracing is not None:
            # Here, for it imports OpenTelemetry.
            from messagedb_sa.tracing import Tracing

            if not isinstance(tracing, Tracing):
                raise InvalidArgument("tracing", tracing, "is no Tracing")
        self._codec = JSONCodec(dialect)
        self.joined = joined
        self.types = MessageTypes() if types is None else types
        self.tracing = tracing

    def writing(self, stream_name: str | None = None) -> AbstractContextManager[None]:
        """Around the building and the execution of a write; without a name, to several streams."""
        return _UNTRACED if self.tracing is None else self.tracing._writing(stream_name)

    def write(
        self,
        stream_name: str,
        message_type: object,
        data: Any,
        metadata: Any,
        expected_version: int | None,
        id: UUID | str | None,
    ) -> Operation[int]:
        name, version = arguments.text("stream_name", stream_name), _expected(expected_version)
        if isinstance(message_type, str):
            if data is NOT_GIVEN:
                raise InvalidArgument("message_type", message_type, "needs data: only an instance comes without")
        elif data is NOT_GIVEN:
            message_type, data, metadata = self.types._as_message("message_type", message_type, "metadata", metadata)
        elif type(message_type) in self.types:
            raise InvalidArgument("data", data, f"is given beside a {type(message_type).__name__}, which is the data")
        its_id, type_ = arguments.message_id("id", id), arguments.text("message_type", message_type)
        if self.tracing is not None:
            metadata = self.tracing._one(its_id, type_, metadata)
        parameters = {
            "id": its_id,
            "stream_name": name,
            "type": type_,
            "data": self._codec.encode("data", data),
            "metadata": self._codec.encode("metadata", metadata),
            "expected_version": version,
        }
        if self.joined and version is not None:
            as_expected = partial(_position_if_as_expected, name, version)
            return Operation(_WRITE_IF_AS_EXPECTED, parameters, as_expected, {name: version})
        return Operation(_WRITE, parameters, _scalar, {name: version})

    def write_each(self, writes: Sequence[Operation[int]]) -> Operation[list[Any]]:
        """Several writes to one category in one transaction, each with its position or its WrongExpectedVersion."""
        parameters = {
            **{key: [write.parameters[each] for write in writes] for key, each in _EACH.items()},
            "expected_versions": [write.parameters["expected_version"] for write in writes],
        }
        return Operation(_WRITE_EACH, parameters, partial(_each_as_expected, parameters))

    def write_batch(
        self, stream_name: str, messages: Iterable[MessageInput], expected_version: int | None
    ) -> Operation[int]:
        name, version = arguments.text("stream_name", stream_name), _expected(expected_version)
        batch = self._batch("messages", messages)
        if self.tracing is not None:
            self.tracing._batch(len(batch.ids), [name])
        if self.joined and version is not None:
            several = self._several([(name, batch, version)])
            return Operation(
                several.statement,
                several.parameters,
                lambda rows: several.result(rows)[name],
                several.expected,
                without_ours=several.without_ours,
            )
        parameters = {
            "ids": _array_of_ids(batch.ids),
            "stream_name": name,
            "types": _array_literal(batch.types),
            "data": batch.data,
            "metadata": batch.metadata,
            "expected_version": version,
        }
        return Operation(_WRITE_BATCH, parameters, _scalar, {name: version}, without_ours=_WRITE_BATCH_ONE_BY_ONE)

    def write_streams(self, writes: Iterable[StreamWriteInput]) -> Operation[dict[str, int]]:
        checked: dict[str, tuple[str, Batch, int | None]] = {}
        for number, item in enumerate(_iterable("writes", writes)):
            at = f"writes[{number}]"
            if not (isinstance(item, (tuple, list)) and len(item) in (2, 3)):
                raise InvalidArgument(at, item, "is no StreamWrite, (stream_name, messages) or one with a version")
            write = StreamWrite(*item)
            name = arguments.text(f"{at}.stream_name", write.stream_name)
            if name in checked:
                raise InvalidArgument(f"{at}.stream_name", name, "is a stream of this call already")
            batch = self._batch(f"{at}.messages", write.messages)
            checked[name] = (name, batch, _expected(write.expected_version, f"{at}.expected_version"))
        if not checked:
            raise InvalidArgument("writes", writes, "is empty: there is at least one stream to write to")
        if self.tracing is not None:
            self.tracing._batch(sum(len(batch.ids) for _, batch, _ in checked.values()), checked)
        # Whoever writes to several categories takes their locks in this order, so that nobody waits in a circle.
        return self._several(sorted(checked.values(), key=lambda write: names.hash_64(names.category(write[0]))))

    def _several(self, writes: Sequence[tuple[str, Batch, int | None]]) -> Operation[dict[str, int]]:
        """Writes to several streams, whose locks are taken in this order, if all are as expected."""
        expected = {name: version for name, _, version in writes}
        lasts = list(accumulate(len(batch.ids) for _, batch, _ in writes))
        parameters = {
            "streams": list(expected),
            "expected_versions": list(expected.values()),
            "firsts": [last - len(batch.ids) + 1 for last, (_, batch, _) in zip(lasts, writes, strict=True)],
            "lasts": lasts,
            "ids": _array_of_ids([id for _, batch, _ in writes for id in batch.ids]),
            "types": _array_literal([type_ for _, batch, _ in writes for type_ in batch.types]),
            "data": f"[{','.join([batch.data for _, batch, _ in writes])}]",
            "metadata": f"[{','.join([batch.metadata for _, batch, _ in writes])}]",
        }
        result = partial(_positions_if_as_expected, expected)
        return Operation(_WRITE_STREAMS, parameters, result, expected, without_ours=_WRITE_STREAMS_ONE_BY_ONE)

    def _batch(self, argument: str, messages: Iterable[MessageInput]) -> Batch:
        ids: list[str | None] = []
        types: list[str] = []
        data: list[Any] = []
        metadata: list[Any] = []
        known: set[str] = set()
        for number, item in enumerate(_iterable(argument, messages)):
            id = its_metadata = None
            if isinstance(item, NewMessage):
                type_, its_data, its_metadata, id = item
            elif isinstance(item, (tuple, list)) and len(item) == 2:
                type_, its_data = item
            elif isinstance(item, (tuple, list)) and len(item) == 3:
                type_, its_data, its_metadata = item
            elif isinstance(item, (tuple, list, str)):
                raise InvalidArgument(
                    f"{argument}[{number}]", item, "is no NewMessage, (type, data) or (type, data, metadata)"
                )
            else:
                type_, its_data, its_metadata = self.types._as_message(f"{argument}[{number}]", item)
            if type_.__class__ is not str or type_ not in known:
                known.add(arguments.text(f"{argument}[{number}].type", type_))
            ids.append(None if id is None else arguments.message_id(f"{argument}[{number}].id", id))
            types.append(type_)
            data.append(its_data)
            metadata.append(its_metadata)
        if not ids:
            raise InvalidArgument(argument, messages, "is empty: a batch has at least one message")
        if self.tracing is not None:
            metadata = self.tracing._each(metadata)
        fresh = iter(arguments.new_ids(ids.count(None)))
        return Batch(
            [next(fresh) if id is None else id for id in ids],
            types,
            self._codec.encode_all(data, lambda i: f"{argument}[{i}].data"),
            self._codec.encode_all(metadata, lambda i: f"{argument}[{i}].metadata"),
        )

    def read(
        self,
        stream_name: str,
        sql: str | Executable | None,
        position: int,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
        allow_holes: bool,
        settle_seconds: float,
    ) -> Operation[list[Message]]:
        name = arguments.text("stream_name", stream_name)
        if sql is not None or name != ALL:
            reason = f"is for a read of {ALL!r}, without SQL of your own"
            if allow_holes is not False:
                raise InvalidArgument("allow_holes", allow_holes, reason)
            if settle_seconds != SETTLE_SECONDS:
                raise InvalidArgument("settle_seconds", settle_seconds, reason)
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
            return self.read_all(position, no_of_messages, allow_holes, settle_seconds)
        return self.read_stream(name, position, no_of_messages, None)

    def read_all(self, position: int, no_of_messages: int, allow_holes: bool, settle_seconds: float) -> Page:
        parameters = _from(position, no_of_messages)
        if no_of_messages == -1:
            parameters["batch_size"] = None
        seconds = arguments.seconds("settle_seconds", settle_seconds)
        if arguments.boolean("allow_holes", allow_holes):
            return Page(_READ_ALL, parameters, self._messages, by="global_position")
        return SettledPage(_READ_ALL, parameters, self._messages, by="global_position", settle_seconds=seconds)

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

    def read_member_and_stream_without_id(
        self,
        category_name: str,
        position: int,
        no_of_messages: int,
        group_member: int,
        group_size: int,
        correlation: str | None,
    ) -> Page:
        """What a member of a consumer group reads, and what none of them does: the stream that is named as the
        category."""
        page = self.read_category(category_name, position, no_of_messages, group_member, group_size, correlation, None)
        return replace(page, statement=_READ_MEMBER_AND_STREAM_WITHOUT_ID)

    def read_last_message(self, stream_name: str, message_type: str | None) -> Operation[Message | None]:
        parameters = {
            "stream_name": arguments.stream("stream_name", stream_name),
            "type": _optional("message_type", message_type),
        }
        return Operation(_READ_LAST, parameters, self._first_message)

    def read_position(self, position_stream: str) -> Operation[Message | None]:
        """The last message of any stream; those of consumers' positions may have no id."""
        return Operation(_READ_LAST, {"stream_name": position_stream, "type": None}, self._first_message)

    def category_end(self, category_name: str) -> Operation[int]:
        """The highest global position of a category's messages, or of all; 0 where there are none."""
        if category_name == ALL:
            return Operation(_END_OF_ALL, {}, _scalar)
        return Operation(_END_OF_CATEGORY, {"category": arguments.category("category_name", category_name)}, _scalar)

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
        statement, bound = _as_messages(sql)
        parameters = {name: value for name, value in parameters.items() if name not in bound}
        return Operation(statement, parameters, self._own_messages, own_sql=True)

    def _own_messages(self, rows: Sequence[Any]) -> list[Message]:
        return self._messages([(*row[:-1], _naive_utc(row[-1])) for row in rows])

    def _first_message(self, rows: Sequence[Any]) -> Message | None:
        if not rows:
            return None
        id, stream_name, type_, position, global_position, data, metadata, time = rows[0]
        decode = self._codec.decode_one
        fields = id, stream_name, type_, position, global_position, decode(data), decode(metadata), *_utc([time])
        return self.types._decoded(Message(*fields))

    def _messages(self, rows: Sequence[Any]) -> list[Message]:
        if not rows:
            return []
        with uncollected(len(rows)):
            ids, streams, types, positions, global_positions, data, metadata, times = zip(*rows, strict=True)
            decoded = self._codec.decode(data), self._codec.decode(metadata)
            fields = zip(ids, streams, types, positions, global_positions, *decoded, _utc(times), strict=True)
            messages = list(map(_message, fields))
        # Not in there: it runs code of the caller's.
        return self.types._all_decoded(messages)


# As Message._make, which goes a way round.
_message = cast_type("Callable[[Iterable[Any]], Message]", partial(tuple.__new__, Message))


def _scalar(rows: Sequence[Any]) -> Any:
    return rows[0][0]


def _position_if_as_expected(stream_name: str, expected_version: int, rows: Sequence[Any]) -> int:
    position, actual_version = rows[0]
    if position is None:
        raise WrongExpectedVersion(stream_name, expected_version, actual_version)
    return int(position)


def _each_as_expected(parameters: Mapping[str, Any], rows: Sequence[Any]) -> list[int | WrongExpectedVersion]:
    return [
        WrongExpectedVersion(stream_name, expected, actual) if position is None else position
        for stream_name, expected, (_, position, actual) in zip(
            parameters["streams"], parameters["expected_versions"], sorted(rows), strict=True
        )
    ]


def _positions_if_as_expected(expected: Mapping[str, int | None], rows: Sequence[Any]) -> dict[str, int]:
    for stream_name, position, actual_version in rows:
        if position is None:
            raise WrongExpectedVersion(stream_name, cast_type(int, expected[stream_name]), actual_version)
    return {stream_name: position for stream_name, position, _ in rows}


def _array_literal(texts: Sequence[str]) -> str:
    """PostgreSQL's own notation, in one piece: drivers would quote each element."""
    quoted = {text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in set(texts)}
    return f"{{{','.join([quoted[text] for text in texts])}}}"


def _array_of_ids(ids: Sequence[str]) -> str:
    # They need no quotes.
    return f"{{{','.join(ids)}}}"


def _iterable(argument: str, value: Iterable[T]) -> Iterable[T]:
    if not isinstance(value, Iterable):
        raise InvalidArgument(argument, value, "is no list")
    return value


def _from(position: int, no_of_messages: int) -> dict[str, int | None]:
    return {
        "position": arguments.integer("position", position),
        "batch_size": arguments.integer("no_of_messages", no_of_messages, minimum=-1),
    }


def _expected(version: int | None, argument: str = "expected_version") -> int | None:
    return None if version is None else arguments.integer(argument, version, minimum=NO_STREAM)


def _optional(argument: str, value: str | None) -> str | None:
    return None if value is None else arguments.text(argument, value)


_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _utc(times: Iterable[datetime]) -> list[datetime]:
    # A tenth of the time of replace(tzinfo=…).
    return [_EPOCH_UTC + (time - _EPOCH) for time in times]


def _naive_utc(time: datetime | None) -> datetime:
    if time is None:
        raise InvalidArgument("sql", time, "returns a message without a time")
    return time if time.tzinfo is None else time.astimezone(timezone.utc).replace(tzinfo=None)


def _as_messages(sql: str | Executable) -> tuple[Executable, set[str]]:
    """The caller's query as one whose columns have the types of Message DB's ``message``, whatever they were; and the
    names of the parameters that it has values for."""
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
    statement = select(
        *(query.c[each.name] if each.name == "time" else cast(query.c[each.name], each.type) for each in _RAW)
    )
    parameters = (each for each in visitors.iterate(statement) if isinstance(each, BindParameter))
    return statement, {str(each.key) for each in parameters if not each.required}


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


_EACH = {"ids": "id", "streams": "stream_name", "types": "type", "data": "data", "metadata": "metadata"}
_OWN_SQL_PARAMETERS = ("stream_name", "position", "batch_size", "consumer_group_member", "consumer_group_size")
_RAW = message_columns(decoded=False)


def _text(name: str) -> Any:
    return bindparam(name, type_=String())


def _number(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


def _json(name: str) -> Any:
    return cast(bindparam(name, type_=Text()), JSONB)


def _texts(name: str) -> ColumnElement[Any]:
    """What ``_array_literal`` made, as an array again."""
    return cast(bindparam(name, type_=Text()), ARRAY(String))


def _elements(json_array: ColumnElement[Any]) -> ColumnElement[Any]:
    elements = func.jsonb_array_elements(json_array).table_valued(column("value", JSONB))
    return func.array(
        select(func.nullif(elements.c.value, literal_column("'null'::jsonb"))).scalar_subquery(), type_=ARRAY(JSONB)
    )


def unnested(name: str, **arrays: ColumnElement[Any]) -> TableValuedAlias:
    """The arrays side by side as columns of these names, and each row's ``number``."""
    columns = (column(key, cast_type("ARRAY[Any]", array.type).item_type) for key, array in arrays.items())
    return func.unnest(*arrays.values()).table_valued(*columns, with_ordinality="number", name=name).render_derived()


def _write_message(expected_version: Any = None) -> ColumnElement[int]:
    return functions.write_message(
        _text("id"), _text("stream_name"), _text("type"), _json("data"), _json("metadata"), expected_version
    )


def _write_if_as_expected() -> Executable:
    # OFFSET 0 keeps the steps apart. The functions are volatile: the version is read with a snapshot newer than the
    # lock, within one statement.
    locked = select(functions.acquire_lock(_text("stream_name"))).offset(literal_column("0")).subquery("locked")
    current = (
        select(func.coalesce(functions.stream_version(_text("stream_name")), NO_STREAM).label("version"))
        .select_from(locked)
        .offset(literal_column("0"))
        .subquery("current")
    )
    as_expected = current.c.version == cast(_number("expected_version"), BigInteger)
    return select(case((as_expected, _write_message())), current.c.version)


def _write_each() -> Executable:
    # Unsorted, and with OFFSET 0 to keep the steps apart: row after row takes the lock, reads the version, which the
    # rows before it may have changed, and writes. A sort would read all versions first.
    arrays: dict[str, Any] = {key: bindparam(key, type_=ARRAY(Text())) for key in _EACH}
    arrays["expected_versions"] = bindparam("expected_versions", type_=ARRAY(BigInteger()))
    new = unnested("new", **arrays)
    locked = select(new, functions.acquire_lock(new.c.streams).label("key")).offset(literal_column("0")).subquery()
    version = func.coalesce(functions.stream_version(locked.c.streams), NO_STREAM)
    current = select(locked, version.label("version")).offset(literal_column("0")).subquery()
    expected = func.coalesce(current.c.expected_versions, current.c.version)
    data, metadata = (cast(current.c[name], JSONB) for name in ("data", "metadata"))
    position = functions.write_message(current.c.ids, current.c.streams, current.c.types, data, metadata)
    return select(current.c.number, case((expected == current.c.version, position)), current.c.version)


def _write_streams(*, one_by_one: bool) -> Executable:
    # Materialized, and each step asks for the one before it: all locks are held and all versions compared before the
    # first message is written.
    wanted = unnested(
        "wanted",
        streams=bindparam("streams", type_=ARRAY(Text())),
        expected_versions=bindparam("expected_versions", type_=ARRAY(BigInteger())),
        firsts=bindparam("firsts", type_=ARRAY(Integer())),
        lasts=bindparam("lasts", type_=ARRAY(Integer())),
    )
    locked = _step(
        "locked",
        select(wanted, functions.acquire_lock(wanted.c.streams).label("key"))
        .order_by(wanted.c.number),
    )  # fmt: skip
    version = func.coalesce(functions.stream_version(locked.c.streams), NO_STREAM)
    found = _step("found", select(locked, version.label("version")))
    conflict = _step("conflict", select(found).where(found.c.expected_versions != found.c.version).limit(1))
    writes = _written_one_by_one(locked) if one_by_one else _written_by_stream(locked)
    written = _step("written", writes.where(~exists(select(conflict))))
    return union_all(
        select(written.c.streams, func.max(written.c.position), null()).group_by(written.c.streams),
        select(conflict.c.streams, null(), conflict.c.version),
    )


def _step(name: str, query: Select[Any]) -> CTE:
    return query.cte(name).prefix_with("MATERIALIZED")


def _new_of_streams() -> CTE:
    """The messages of ``write_streams``: ids and types of all streams one after the other, JSON by stream."""
    return _step(
        "new",
        select(
            _texts("ids").label("ids"),
            _texts("types").label("types"),
            _json("data").label("data"),
            _json("metadata").label("metadata"),
        ),
    )


def _written_by_stream(streams: CTE) -> Select[Any]:
    new = _new_of_streams()
    ids, types, data, metadata = _of_stream(new, streams)
    written = select(
        streams.c.streams,
        functions.write_messages(ids, streams.c.streams, types, data, metadata).label("position"),
    )
    return written.join_from(streams, new, true()).order_by(streams.c.number)


def _written_one_by_one(streams: CTE) -> Select[Any]:
    arrays = _new_of_streams()
    ids, types, data, metadata = _of_stream(arrays, streams)
    new = unnested("new_one", ids=ids, types=types, data=_elements(data), metadata=_elements(metadata)).lateral()
    written = select(streams.c.streams, _write_new(new, streams.c.streams).label("position"))
    joined = streams.join(arrays, true()).join(new, true())
    return written.select_from(joined).order_by(streams.c.number, new.c.number)


def _of_stream(new: CTE, streams: CTE) -> tuple[ColumnElement[Any], ...]:
    one = slice(streams.c.firsts, streams.c.lasts)
    number = cast(streams.c.number - 1, Integer)
    data, metadata = (json_array.op("->", return_type=JSONB())(number) for json_array in (new.c.data, new.c.metadata))
    return new.c.ids[one], new.c.types[one], data, metadata


def _write_new(new: Any, stream_name: Any, expected_version: Any = None) -> ColumnElement[int]:
    return functions.write_message(new.c.ids, stream_name, new.c.types, new.c.data, new.c.metadata, expected_version)


def _write_batch() -> Executable:
    return select(
        functions.write_messages(
            _texts("ids"),
            _text("stream_name"),
            _texts("types"),
            _json("data"),
            _json("metadata"),
            _number("expected_version"),
        )
    )


def _write_batch_one_by_one() -> Executable:
    new = unnested(
        "new",
        ids=_texts("ids"),
        types=_texts("types"),
        data=_elements(_json("data")),
        metadata=_elements(_json("metadata")),
    )
    # The first write takes the category's lock and checks the version; the others then need no check. psycopg2 sends
    # values without types: a bare NULL in CASE would be taken for text.
    expected_version = case((new.c.number == 1, cast(_number("expected_version"), BigInteger)))
    written = (
        select(_write_new(new, _text("stream_name"), expected_version).label("position"))
        .order_by(new.c.number)
        .subquery("written")
    )
    return select(func.max(written.c.position))


def newest_of_category(number: int, *columns: ColumnElement[Any]) -> Select[Any]:
    """These columns of a category's last messages, the newest first."""
    category, position = functions.category(messages.c.stream_name), messages.c.global_position
    # Bounds that have both in one are looked up in messages_category, as get_category_messages does.
    first, last = (tuple_(_text("category"), literal_column(bound)) for bound in ("0", str(2**63 - 1)))
    return (
        select(*columns)
        .where(tuple_(category, position) >= first, tuple_(category, position) <= last)
        .order_by(category.desc(), position.desc())
        .limit(literal_column(str(number)))
    )


def _raw_columns_of_messages() -> Iterator[ColumnElement[Any]]:
    for each in _RAW:
        own: ColumnElement[Any] = messages.c[each.name]
        yield own if each.name == "time" else cast(own, each.type).label(each.name)


def _read_member_and_stream_without_id() -> Executable:
    of_member = select(*_READ_CATEGORY.selected_columns)
    correlated = functions.category(messages.c.metadata["correlationStreamName"].astext) == _text("correlation")
    without_id = _READ_ALL.where(
        messages.c.stream_name == _text("category"), or_(_text("correlation").is_(None), correlated)
    )
    both = union_all(of_member, select(*without_id.subquery().c)).subquery()
    return select(both).order_by(both.c.global_position).limit(_number("batch_size"))


_WRITE = select(_write_message(_number("expected_version")))
_WRITE_IF_AS_EXPECTED = _write_if_as_expected()
_WRITE_EACH = _write_each()
_WRITE_BATCH = _write_batch()
_WRITE_BATCH_ONE_BY_ONE = _write_batch_one_by_one()
_WRITE_STREAMS = _write_streams(one_by_one=False)
_WRITE_STREAMS_ONE_BY_ONE = _write_streams(one_by_one=True)
_READ_ALL = (
    select(*_raw_columns_of_messages())
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
_READ_MEMBER_AND_STREAM_WITHOUT_ID = _read_member_and_stream_without_id()
_READ_LAST = select(functions.get_last_stream_message(_text("stream_name"), _text("type")).table_valued(*_RAW))
_END_OF_ALL = select(func.coalesce(func.max(messages.c.global_position), 0))
_END_OF_CATEGORY = select(func.coalesce(newest_of_category(1, messages.c.global_position).scalar_subquery(), 0))
_STREAM_VERSION = select(functions.stream_version(_text("stream_name")))
_identifier = functions.id(messages.c.stream_name).collate("C")
_STREAM_IDENTIFIERS = (
    select(_identifier)
    .distinct()
    .where(functions.category(messages.c.stream_name) == _text("category"), _identifier != "")
    .order_by(_identifier)
)
_VERSION = select(functions.message_store_version())
_write_messages = "message_store.write_messages(varchar[],varchar,varchar[],jsonb,jsonb,bigint)"
HAS_OURS: Operation[bool] = Operation(
    select(func.coalesce(func.has_function_privilege(func.to_regprocedure(_write_messages), "EXECUTE"), false())),
    {},
    _scalar,
)
"""Whether there are the functions that we add to Message DB's, and may be used."""

HAS_NOTIFY: Operation[bool] = Operation(
    text(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger"
        " WHERE tgrelid = pg_catalog.to_regclass('message_store.messages')"
        " AND tgname = 'messages_notify' AND tgenabled IN ('O', 'A'))"
    ),
    {},
    _scalar,
)
"""Whether writers, whoever they are, notify of the categories that they write to."""
