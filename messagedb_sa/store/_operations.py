"""Store operations without I/O: each checks its arguments and returns the call to perform."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Dialect, Executable

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa._message_types import MessageTypes, RegisteredTypes, registered_in
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message, MessageInput, NewMessage, StreamWrite, StreamWriteInput
from messagedb_sa.query import AppendCondition, Query
from messagedb_sa.store import _batch_statements as batch_statements
from messagedb_sa.store import _causation as causation
from messagedb_sa.store import _rows as rows
from messagedb_sa.store import _statements as statements
from messagedb_sa.store._backwards import (
    ALL_BACKWARDS,
    CATEGORY_BACKWARDS,
    CORRELATED_BACKWARDS,
    LAST,
    STREAM_BACKWARDS,
    MemberPage,
    member_backwards,
)
from messagedb_sa.store._batch import NO_MESSAGES, Batch, array_of_ids, array_of_texts, encoded_batch, iterable
from messagedb_sa.store._json_codec import JSONCodec
from messagedb_sa.store._looking_statements import READS_BY_METADATA
from messagedb_sa.store._operation import NO_OF_MESSAGES, SETTLE_SECONDS, Operation, Page, Read, SettledPage
from messagedb_sa.store._own_sql import messages_statement
from messagedb_sa.store._queries import (
    QueryPage,
    encoded_queries,
    query_page,
    written_positions,
)
from messagedb_sa.store._statements import GET_QUERY_MESSAGES, NO_STREAM, WRITE_MESSAGES
from messagedb_sa.store._write_spans import write_spans

if TYPE_CHECKING:
    from messagedb_sa.metrics import Metrics
    from messagedb_sa.tracing import Tracing

ALL = arguments.ALL


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Any = _NotGiven()
"""The default of ``data``, since None is a value of it."""

OUR_FUNCTIONS: Operation[frozenset[str]] = Operation(
    statements.HAS_OUR_FUNCTIONS, {}, lambda found: frozenset(compress(statements.OUR_FUNCTIONS, found[0]))
)
HAS_NOTIFICATIONS: Operation[bool] = Operation(statements.HAS_NOTIFICATIONS, {}, rows.scalar)


class Operations:
    """The operations of a store whose engine has this dialect. Arguments are checked as Store documents them.

    ``joined``: they run in the caller's transaction, and a wrong expected version must leave it usable. PostgreSQL
    aborts a transaction at an error, so the statement then compares the version itself and returns it as a row.

    ``types``: their instances are taken as messages, and are the data of messages that are read.

    ``tracing``, ``metrics``: build and execute a write within ``writing``.

    ``lenient``: for calls that were not made for Store. Take what Message DB takes, although Store would call it a
    mistake: metadata that is not an object, names that may be too long, negative positions, and arguments that have no
    effect.

    ``keeps_undecodable``: messages that cannot be decoded are returned as Undecodable, instead of an error.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        joined: bool,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        lenient: bool = False,
        keeps_undecodable: bool = False,
    ) -> None:
        if not (types is None or isinstance(types, MessageTypes)):
            reason = "must be a MessageTypes, with which classes were registered: types.register(Opened)"
            raise InvalidArgument("types", types, reason)
        self._spans = write_spans(tracing, metrics)
        self._instruments = None if metrics is None else metrics._instruments
        self._codec = JSONCodec(dialect)
        self._joined = joined
        self._lenient = lenient
        registered = registered_in(types)
        self._types = RegisteredTypes() if registered is None else registered
        self._messages = rows.MessageRows(self._codec, registered, keeps_undecodable=keeps_undecodable)

    # Writing

    def writing(self, stream_name: str | None = None) -> AbstractContextManager[None]:
        """Build and execute the write within this block. None: a write to several streams."""
        return self._spans.writing(stream_name)

    def write(
        self,
        stream_name: str,
        message_type: object,
        data: Any,
        metadata: Any,
        expected_version: int | None,
        id: UUID | str | None,
    ) -> Operation[int]:
        name, version = self._stream("stream_name", stream_name), _expected(expected_version)
        is_plain = data is not NOT_GIVEN
        if isinstance(message_type, str):
            if not is_plain:
                reason = "has no data: pass data, or an instance of a registered class"
                raise InvalidArgument("message_type", message_type, reason)
        elif not is_plain:
            message_type, data, metadata, _ = self._new_message("message_type", message_type, metadata)
        elif type(message_type) in self._types.by_class:
            its_class = type(message_type).__name__
            reason = f"must not be given with a {its_class}: the instance is the data; pass metadata as metadata="
            raise InvalidArgument("data", data, reason)
        its_id, type_ = arguments.message_id("id", id), arguments.text("message_type", message_type)
        if metadata is not None:
            metadata = self._metadata("metadata", metadata, name)
        if is_plain and type_ in self._types.by_name:
            self._check_data("data", type_, data, metadata)
        self._spans.describe_message(name, its_id, type_)
        (metadata,) = self._spans.with_context([metadata])
        parameters = {
            "id": its_id,
            "stream_name": name,
            "type": type_,
            "data": self._codec.encode("data", data),
            "metadata": self._codec.encode("metadata", metadata),
            "expected_version": version,
        }
        if self._joined and version is not None:
            as_expected = partial(rows.position_if_as_expected, name, version)
            return Operation(statements.WRITE_IF_AS_EXPECTED, parameters, as_expected, {name: version})
        return Operation(statements.WRITE, parameters, rows.scalar, {name: version})

    def write_each(self, writes: Sequence[Operation[int]]) -> Operation[list[Any]]:
        """Several writes to one category in one transaction, each with its position or its WrongExpectedVersion."""
        parameters = {
            key: [write.parameters[each] for write in writes]
            for key, each in (statements.WRITE_EACH_PARAMETERS | {"expected_versions": "expected_version"}).items()
        }
        return Operation(statements.WRITE_EACH, parameters, partial(rows.each_as_expected, parameters))

    def write_batch(
        self,
        stream_name: str,
        messages: Iterable[MessageInput],
        expected_version: int | None,
        condition: AppendCondition | None = None,
    ) -> Operation[int]:
        name, version = self._stream("stream_name", stream_name), _expected(expected_version)
        batch = self._batch("messages", messages, name)
        self._spans.describe_batch({name: batch.types})
        if condition is not None or (self._joined and version is not None):
            several = self._several([(name, batch, version)], condition)
            return replace(several, result=lambda found: several.result(found)[name])  # type: ignore[arg-type, return-value]
        parameters = {
            "ids": array_of_ids(batch.ids),
            "stream_name": name,
            "types": array_of_texts(batch.types),
            "data": batch.data,
            "metadata": batch.metadata,
            "expected_version": version,
        }
        return Operation(
            batch_statements.WRITE_BATCH,
            parameters,
            rows.scalar,
            {name: version},
            our_functions=WRITE_MESSAGES,
            without_our_functions=batch_statements.WRITE_BATCH_ONE_BY_ONE,
        )

    def write_streams(
        self, writes: Iterable[StreamWriteInput], condition: AppendCondition | None = None
    ) -> Operation[dict[str, int]]:
        checked: dict[str, tuple[str, Batch, int | None]] = {}
        for number, item in enumerate(iterable("writes", writes)):
            at = f"writes[{number}]"
            if not (isinstance(item, (tuple, list)) and len(item) in (2, 3)):
                reason = "must be a StreamWrite, (stream_name, messages) or (stream_name, messages, expected_version)"
                raise InvalidArgument(at, item, reason)
            write = StreamWrite(*item)
            name = self._stream(f"{at}.stream_name", write.stream_name)
            if name in checked:
                raise InvalidArgument(f"{at}.stream_name", name, "must not be in the same call twice")
            version = _expected(write.expected_version, f"{at}.expected_version")
            batch = self._batch(f"{at}.messages", write.messages, name, may_be_empty=version is not None)
            checked[name] = (name, batch, version)
        if not checked:
            raise InvalidArgument("writes", writes, "must not be empty: pass at least one stream to write to")
        written = [name for name, batch, _ in checked.values() if batch.ids]
        if not written:
            raise InvalidArgument("writes", writes, "must have a message to write: all of them are only checked")
        self._spans.describe_batch({name: checked[name][1].types for name in written})
        return self._several(checked.values(), condition)

    def _several(
        self, writes: Collection[tuple[str, Batch, int | None]], condition: AppendCondition | None
    ) -> Operation[dict[str, int]]:
        """Writes to several streams, if all are at the expected versions, and no message matches the condition."""
        locked = list(writes)
        if condition is not None:
            if not isinstance(condition, AppendCondition):
                reason = "must be an AppendCondition, such as the condition of what read_query returned"
                raise InvalidArgument("condition", condition, reason)
            written_to = {names.category(name) for name, _, _ in writes}
            # A stream without an id has its category's name: its lock is the category's.
            locked += [(each, NO_MESSAGES, None) for each in condition.after if each not in written_to]
        # Every call takes the locks of several categories in this order, so that no two calls deadlock.
        locked.sort(key=lambda write: names.hash_64(names.category(write[0])))
        expected = {name: version for name, _, version in locked}
        parameters = {
            "streams": list(expected),
            "expected_versions": list(expected.values()),
            "ids": array_of_texts([array_of_ids(batch.ids) for _, batch, _ in locked]),
            "types": array_of_texts([array_of_texts(batch.types) for _, batch, _ in locked]),
            "data": f"[{','.join([batch.data for _, batch, _ in locked])}]",
            "metadata": f"[{','.join([batch.metadata for _, batch, _ in locked])}]",
        }
        result = partial(written_positions, expected, condition)
        if condition is None:
            return Operation(
                batch_statements.WRITE_STREAMS,
                parameters,
                result,
                expected,
                our_functions=WRITE_MESSAGES,
                without_our_functions=batch_statements.WRITE_STREAMS_ONE_BY_ONE,
            )
        after = {category: position + 1 for category, position in condition.after.items()}
        # The first of the parameters, so that errors of the database's encoding look for the character here first.
        queries = encoded_queries("condition.queries", condition.queries, after, self._type_of)
        parameters = {"queries": queries, **parameters}
        return Operation(
            batch_statements.WRITE_STREAMS_IF,
            parameters,
            result,
            expected,
            our_functions=WRITE_MESSAGES | GET_QUERY_MESSAGES,
            without_our_functions=batch_statements.WRITE_STREAMS_IF_ONE_BY_ONE,
        )

    def _stream(self, argument: str, value: object) -> str:
        return (arguments.text if self._lenient else arguments.stream_to_write)(argument, value)

    def _metadata(self, argument: str, value: Any, stream_name: str) -> Any:
        return value if self._lenient else arguments.metadata_to_write(argument, value, stream_name)

    def _batch(
        self,
        argument: str,
        messages: Iterable[MessageInput],
        stream_name: str,
        complete: Callable[[int, Any, Any], tuple[Any, Any]] | None = None,
        *,
        may_be_empty: bool = False,
    ) -> Batch:
        return encoded_batch(
            argument,
            messages,
            stream_name,
            may_be_empty=may_be_empty,
            new_message=self._new_message,
            checked_metadata=self._metadata,
            registered=self._types.by_name,
            check_data=self._check_data,
            with_context=self._spans.with_context,
            codec=self._codec,
            complete=complete,
        )

    def _new_message(self, argument: str, instance: object, metadata: Any = None) -> NewMessage:
        """The instance as a message; ``argument`` is the name of the instance in this store's errors."""
        if isinstance(instance, tuple):
            reason = (
                "must be a message type, or an instance of a registered class; write_batch takes a list of messages"
            )
            raise InvalidArgument(argument, instance, reason)
        data = "data" if argument == "message_type" else f"{argument}.data"
        try:
            return self._types.message_of(instance, metadata, None, lambda value: self._codec.as_read(data, value))
        except InvalidArgument as error:
            name = argument if error.argument == "instance" else error.argument
            raise InvalidArgument(name, error.value, error.reason) from error.__cause__

    def _check_data(self, argument: str, type_: str, data: Any, metadata: Any) -> None:
        """Refuse data of a registered type that a read could not make an instance of."""
        of_metadata = f"{argument.removesuffix('data')}metadata"
        its_metadata = self._codec.as_read(of_metadata, metadata)
        unreadable = self._types.unreadable(type_, self._codec.as_read(argument, data), its_metadata)
        if unreadable is None:
            return
        if unreadable.is_version:
            reason = f"must have a schemaVersion that can be read as {type_!r}: {unreadable}"
            raise InvalidArgument(of_metadata, metadata, reason)
        reason = f"must be data that can be read as {type_!r}, but {unreadable}"
        if type(data) in self._types.by_class:
            reason = "must not be an instance: pass it as the message; MessageTypes.new_message adds metadata or an id"
        raise InvalidArgument(argument, data, reason) from unreadable.__cause__

    # Reading

    def read(
        self,
        stream_name: str,
        sql: str | Executable | None,
        position: int | None,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
        allow_holes: bool,
        settle_seconds: float,
        backwards: bool = False,
    ) -> Read[list[Message]]:
        name = arguments.text("stream_name", stream_name)
        if sql is not None or name != ALL:
            reason = f"is only for a read of {ALL!r} without sql"
            arguments.unused("allow_holes", allow_holes, False, reason)
            arguments.unused("settle_seconds", settle_seconds, SETTLE_SECONDS, reason)
        if sql is not None:
            arguments.unused("backwards", backwards, False, "is only for a read without sql, which has its own order")
            return self._read_own_sql(sql, name, position, no_of_messages, consumer_group_member, consumer_group_size)
        if name != ALL and names.is_category(name):
            member, size = consumer_group_member, consumer_group_size
            return self.read_category(name, position, no_of_messages, member, size, None, None, backwards)
        reason = f"is only for reads of a category, and {name!r} is not one"
        arguments.unused("consumer_group_member", consumer_group_member, None, reason)
        arguments.unused("consumer_group_size", consumer_group_size, None, reason)
        if name == ALL:
            return self.read_all(position, no_of_messages, allow_holes, settle_seconds, backwards)
        return self.read_stream(name, position, no_of_messages, None, backwards)

    def read_all(
        self,
        position: int | None,
        no_of_messages: int,
        allow_holes: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
        backwards: bool = False,
    ) -> Page:
        parameters = self._from(position, no_of_messages, backwards)
        if parameters["batch_size"] == -1:
            parameters["batch_size"] = None
        seconds = arguments.seconds("settle_seconds", settle_seconds)
        has_holes = arguments.boolean("allow_holes", allow_holes)
        if backwards:
            reason = "has no effect with backwards=True, which never waits for messages that are being written"
            arguments.unused("allow_holes", has_holes, False, reason)
            arguments.unused("settle_seconds", seconds, SETTLE_SECONDS, reason)
            return self._page(ALL_BACKWARDS, parameters, "global_position", backwards)
        if has_holes:
            arguments.unused("settle_seconds", seconds, SETTLE_SECONDS, "has no effect with allow_holes=True")
            return self._page(statements.READ_ALL, parameters, "global_position")
        return SettledPage(
            statements.READ_ALL,
            parameters,
            self._messages.all,
            plain=self._messages.plain,
            by="global_position",
            settle_seconds=seconds,
            instruments=self._instruments,
        )

    def read_stream(
        self,
        stream_name: str,
        position: int | None,
        no_of_messages: int,
        condition: str | None,
        backwards: bool = False,
    ) -> Page:
        parameters = {
            "stream_name": arguments.stream("stream_name", stream_name),
            **self._from(position, no_of_messages, backwards),
            "condition": _optional("condition", condition),
        }
        if backwards:
            arguments.unused("condition", condition, None, _NO_CONDITION)
            return self._page(STREAM_BACKWARDS, parameters, backwards=True)
        return self._page(statements.READ_STREAM, parameters)

    def read_category(
        self,
        category_name: str,
        position: int | None,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
        correlation: str | None,
        condition: str | None,
        backwards: bool = False,
    ) -> Page:
        member, size = arguments.consumer_group(consumer_group_member, consumer_group_size)
        parameters = {
            "category": arguments.category("category_name", category_name),
            **self._from(position, no_of_messages, backwards),
            "correlation": None if correlation is None else arguments.category("correlation", correlation),
            "consumer_group_member": member,
            "consumer_group_size": size,
            "condition": _optional("condition", condition),
        }
        if backwards:
            arguments.unused("condition", condition, None, _NO_CONDITION)
            if size is None:
                statement = CATEGORY_BACKWARDS if correlation is None else CORRELATED_BACKWARDS
                return self._page(statement, parameters, "global_position", backwards=True)
            by_category, index, by_index = member_backwards(size, correlated=correlation is not None)
            return MemberPage(
                by_category,
                parameters,
                self._messages.all,
                plain=self._messages.plain,
                by="global_position",
                backwards=True,
                index=index,
                by_index=by_index,
            )
        return self._page(statements.READ_CATEGORY, parameters, "global_position")

    def read_member_and_stream_without_id(
        self,
        category_name: str,
        position: int,
        no_of_messages: int,
        group_member: int,
        group_size: int,
        correlation: str | None,
    ) -> Page:
        page = self.read_category(category_name, position, no_of_messages, group_member, group_size, correlation, None)
        return replace(page, statement=statements.READ_MEMBER_AND_STREAM_WITHOUT_ID)

    def iter_stream(
        self, stream_name: str, position: int | None, batch_size: int, condition: str | None, backwards: bool = False
    ) -> Page:
        return self.read_stream(stream_name, position, _page_size(batch_size), condition, backwards)

    def iter_category(
        self,
        category_name: str,
        position: int | None,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
        batch_size: int,
        correlation: str | None,
        condition: str | None,
        backwards: bool = False,
    ) -> Page:
        size = _page_size(batch_size)
        return self.read_category(
            category_name, position, size, consumer_group_member, consumer_group_size, correlation, condition, backwards
        )

    def iter_all(
        self,
        position: int | None,
        batch_size: int,
        allow_holes: bool,
        settle_seconds: float,
        backwards: bool = False,
    ) -> Page:
        return self.read_all(position, _page_size(batch_size), allow_holes, settle_seconds, backwards)

    def read_query(self, queries: Query | Iterable[Query], position: int | None, no_of_messages: int) -> QueryPage:
        checked, first = AppendCondition(queries).queries, self._from(position, no_of_messages, False)
        encode = partial(encoded_queries, "queries", checked, name_of=self._type_of)
        return query_page(checked, first["position"], first["batch_size"], encode, self._messages)

    def iter_query(self, queries: Query | Iterable[Query], position: int | None, batch_size: int) -> QueryPage:
        return self.read_query(queries, position, _page_size(batch_size))

    def _type_of(self, argument: str, cls: type[Any]) -> str:
        known = self._types.by_class.get(cls)
        if known is None:
            raise InvalidArgument(argument, cls, "must be a class that is registered in the types of this store")
        return known.name

    def read_last_message(self, stream_name: str, message_type: str | None) -> Read[Message | None]:
        parameters = {
            "stream_name": arguments.text("stream_name", stream_name),
            "type": _optional("message_type", message_type),
        }
        return self._read_one(statements.READ_LAST, parameters)

    def read_message(self, id: UUID | str) -> Read[Message | None]:
        return self._read_one(statements.READ_BY_ID, {"original": arguments.existing_id("id", id)})

    def read_position(self, position_stream: str) -> Read[Message | None]:
        """The last message of a stream that holds a consumer's positions, whose name may have no id."""
        return self._read_one(statements.READ_LAST, {"stream_name": position_stream, "type": None})

    def read_again(self, message: Message) -> Read[Message | None]:
        """The message as the store has it, in new objects; None if it was deleted."""
        return self._read_one(statements.READ_BY_ID, {"original": message.id})

    def park(self, message: Message, stream_name: str, dead: dict[str, Any], id: UUID) -> Operation[None]:
        """Copy the message as the store has it to this stream, with its origin and ``dead`` added to its metadata.

        Writes nothing if the message was deleted.
        """
        parameters = {
            "id": str(id),
            "stream_name": stream_name,
            "dead": self._codec.encode("dead", dead),
            "original": message.id,
        }
        return Operation(statements.PARK, parameters, lambda _: None)

    def _read_one(self, statement: Executable, parameters: dict[str, Any]) -> Read[Message | None]:
        return Read(statement, parameters, self._messages.first, plain=self._messages.first_plain)

    def read_correlation(self, correlation_stream_name: str, position: int, no_of_messages: int) -> Page:
        return causation.read_correlation(self._messages, correlation_stream_name, position, no_of_messages)

    def iter_correlation(self, correlation_stream_name: str, position: int, batch_size: int) -> Page:
        return self.read_correlation(correlation_stream_name, position, _page_size(batch_size))

    def read_causes(self, message: Message, no_of_messages: int) -> Read[list[Message]]:
        return causation.read_causes(self._messages, message, no_of_messages)

    def read_effects(self, message: Message, no_of_messages: int) -> Read[list[Message]]:
        return causation.read_effects(self._messages, message, no_of_messages)

    def read_metadata(
        self,
        fields: Mapping[str, Any],
        category_name: str | None,
        position: int | None,
        no_of_messages: int,
        backwards: bool,
    ) -> Page:
        checked = arguments.metadata("fields", fields)
        if not checked:
            raise InvalidArgument("fields", fields, "must be a dict with at least one field")
        parameters = {
            "fields": self._codec.encode("fields", checked),
            **self._from(position, no_of_messages, backwards),
        }
        if parameters["batch_size"] == -1:
            parameters["batch_size"] = None
        if category_name is not None and category_name != ALL:
            parameters["category"] = arguments.category("category_name", category_name)
        statement = READS_BY_METADATA["category" in parameters, backwards]
        return self._page(statement, parameters, "global_position", backwards)

    def iter_metadata(
        self,
        fields: Mapping[str, Any],
        category_name: str | None,
        position: int | None,
        batch_size: int,
        backwards: bool,
    ) -> Page:
        return self.read_metadata(fields, category_name, position, _page_size(batch_size), backwards)

    def category_end(self, category_name: str) -> Operation[int]:
        """The highest global position of a category's messages, or of ``$all``; 0 if there are none."""
        if category_name == ALL:
            return Operation(statements.END_OF_ALL, {}, rows.scalar)
        parameters = {"category": arguments.category("category_name", category_name)}
        return Operation(statements.END_OF_CATEGORY, parameters, rows.scalar)

    def stream_version(self, stream_name: str) -> Operation[int]:
        parameters = {"stream_name": arguments.text("stream_name", stream_name)}
        return Operation(statements.STREAM_VERSION, parameters, rows.scalar)

    def stream_identifiers(self, category_name: str) -> Operation[list[str]]:
        parameters = {"category": arguments.category("category_name", category_name)}
        return Operation(statements.STREAM_IDENTIFIERS, parameters, rows.first_column)

    def version(self) -> Operation[str]:
        return Operation(statements.VERSION, {}, rows.scalar)

    def _read_own_sql(
        self,
        sql: str | Executable,
        stream_name: str,
        position: int | None,
        no_of_messages: int,
        consumer_group_member: int | None,
        consumer_group_size: int | None,
    ) -> Read[list[Message]]:
        member, size = arguments.consumer_group(consumer_group_member, consumer_group_size)
        statement, used = messages_statement(sql)
        parameters = {
            "stream_name": stream_name,
            "position": 0 if position is None else arguments.integer("position", position),
            "batch_size": arguments.integer("no_of_messages", no_of_messages, minimum=-1),
            "consumer_group_member": member,
            "consumer_group_size": size,
        }
        if not self._lenient:
            for argument, parameter, default in (
                ("position", "position", 0),
                ("no_of_messages", "batch_size", NO_OF_MESSAGES),
                ("consumer_group_member", "consumer_group_member", None),
                ("consumer_group_size", "consumer_group_size", None),
            ):
                if parameter not in used:
                    reason = f"has no effect, since sql does not use the parameter {parameter}"
                    arguments.unused(argument, parameters[parameter], default, reason)
        parameters = {name: value for name, value in parameters.items() if name in used}
        return Read(statement, parameters, self._messages.all, plain=self._messages.plain, own_sql=True)

    def _page(
        self, statement: Executable, parameters: dict[str, Any], by: str = "position", backwards: bool = False
    ) -> Page:
        found = self._messages
        return Page(statement, parameters, found.taken, plain=found.plain, by=by, backwards=backwards)

    def _from(self, position: int | None, no_of_messages: int, backwards: bool) -> dict[str, Any]:
        first = LAST if arguments.boolean("backwards", backwards) else 0
        minimum = -(2**63) if self._lenient else 0
        limit = arguments.integer("no_of_messages", no_of_messages, minimum=-1)
        return {
            "position": first if position is None else arguments.integer("position", position, minimum=minimum),
            # The functions take -1 for no limit, queries take NULL.
            "batch_size": None if backwards and limit == -1 else limit,
        }


_NO_CONDITION = "is only for reads forwards, to which Message DB adds it; to read backwards, pass your own sql to read"


def _page_size(batch_size: int) -> int:
    return arguments.integer("batch_size", batch_size, minimum=1)


def _expected(version: int | None, argument: str = "expected_version") -> int | None:
    return None if version is None else arguments.integer(argument, version, minimum=NO_STREAM)


def _optional(argument: str, value: str | None) -> str | None:
    return None if value is None else arguments.text(argument, value)
