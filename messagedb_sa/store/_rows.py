"""Rows of the driver, made into what calls return: messages, positions, or our errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from typing import cast as cast_type

from messagedb_sa._drivers.times import utc_of_texts
from messagedb_sa._message_types import RegisteredTypes, not_decodable
from messagedb_sa.errors import InvalidArgument, MessageNotDecodable, WrongExpectedVersion
from messagedb_sa.message import Message
from messagedb_sa.store._gc import uncollected
from messagedb_sa.store._json_codec import JSONCodec

# Does the same as Message._make, faster.
_message = cast_type("Callable[[Iterable[Any]], Message]", partial(tuple.__new__, Message))

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = datetime.min, datetime.max
_CLASSES_OF_TIMES = frozenset({datetime, bytes})


class Undecodable(Message):
    """A message that cannot be decoded, among others that a consumer reads.

    Data and metadata are JSON text if they are what cannot be decoded. A time that Python does not have is the closest
    that it has.
    """

    error: MessageNotDecodable


class MessageRows:
    """Decodes rows with the columns ``_statements.COLUMNS``; ``types`` then make instances of the data.

    The values of a page are decoded together. If that fails, the page is read again with ``_statements.plain``, whose
    rows are decoded one by one: ``plain`` and ``first_plain`` raise MessageNotDecodable for the first message that
    cannot be decoded; with ``keeps_undecodable``, such messages are returned as Undecodable.
    """

    def __init__(self, codec: JSONCodec, types: RegisteredTypes | None, *, keeps_undecodable: bool = False) -> None:
        self._codec = codec
        self._types = types
        self._keeps_undecodable = keeps_undecodable

    def all(self, rows: Iterable[Any]) -> list[Message]:
        return self.taken([*rows])

    def taken(self, rows: Any) -> list[Message]:
        """The messages of a list of rows, which is emptied: their memory is used again at once, for the messages."""
        if not rows:
            return []
        check_classes(rows)
        with uncollected(len(rows)):
            *names, positions, global_positions, texts, metadata_texts, times = zip(*rows, strict=True)
            rows.clear()
            data, metadata = self._codec.decode(texts), self._codec.decode(metadata_texts)
            at = _utc(times)
            if self._types is None:
                return _messages(*names, positions, global_positions, data, metadata, at)
        # Outside of the block, since it runs the application's code.
        instances, unreadable = self._types.instances(names[2], data, metadata)
        with uncollected(len(instances)):
            messages = _messages(*names, positions, global_positions, instances, metadata, at)
        if unreadable is None:
            return messages
        error = not_decodable([each[len(messages)] for each in (*names, positions, global_positions)], unreadable)
        error._before = messages
        raise error from unreadable.__cause__

    def first(self, rows: Sequence[Any]) -> Message | None:
        if not rows:
            return None
        check_classes(rows)
        id, stream_name, type_, position, global_position, data, metadata, time = rows[0]
        decode = self._codec.decode_one
        fields = id, stream_name, type_, position, global_position, decode(data), decode(metadata), *_utc((time,))
        message = Message(*fields)
        return message if self._types is None else self._types.decoded(message)

    def plain(self, rows: Sequence[Any]) -> list[Message]:
        messages = [self._decoded_alone(row) for row in rows]
        return messages if self._keeps_undecodable else _each(partial(decoded, self._types), messages)

    def first_plain(self, rows: Sequence[Any]) -> Message | None:
        return next(iter(self.plain(rows)), None)

    def _decoded_alone(self, row: Sequence[Any]) -> Message:
        texts = [None if value is None else bytes(value).decode(errors="backslashreplace") for value in row]
        id, stream_name, type_, position, global_position, data, metadata, seconds, time = texts
        if seconds is None:
            raise InvalidArgument("sql", None, "must return a time for each message")
        errors: list[tuple[str, Exception]] = []

        def json_of(name: str, text: str | None) -> Any:
            try:
                # Of the type json, which the caller's own SQL may return, white space is kept.
                return self._codec.decode_one(None if text is None else text.strip())
            except (TypeError, ValueError, RecursionError) as error:
                cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
                errors.append((f"its {name} cannot be decoded: {type(error).__name__}: {error}", cause))
                return text

        numbers: tuple[Any, Any] = _integer(position), _integer(global_position)
        values = json_of("data", data), json_of("metadata", metadata)
        try:
            at = _EPOCH_UTC + timedelta(microseconds=int(Decimal(seconds) * 1_000_000))
        except (ArithmeticError, ValueError) as error:
            errors.append((f"its time must be in the years 1 to 9999, got {time}", error))
            at = (_FIRST if seconds.startswith("-") else _LAST).replace(tzinfo=timezone.utc)
        fields = id, stream_name, type_, *numbers, *values, at
        if not errors:
            return _message(fields)
        message = tuple.__new__(Undecodable, fields)
        reason = "; ".join(text for text, _ in errors)
        message.error = MessageNotDecodable(message.stream_name, *numbers, message.type, reason)
        message.error.__cause__ = errors[0][1]
        return message


def _messages(*columns: Sequence[Any]) -> list[Message]:
    """As many as the shortest column has."""
    return list(map(_message, zip(*columns, strict=False)))


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text)


def decoded(types: RegisteredTypes | None, message: Message) -> Message:
    """The message with an instance as its data, if it has one of these types. Raises MessageNotDecodable."""
    if isinstance(message, Undecodable):
        raise message.error
    return message if types is None else types.decoded(message)


def _each(decode: Callable[[Message], Message], messages: list[Message]) -> list[Message]:
    done: list[Message] = []
    try:
        done.extend(map(decode, messages))
    except MessageNotDecodable as error:
        error._before = done
        raise
    return done


def check_classes(rows: Sequence[Any]) -> None:
    """TypeError unless the values are of the classes that we expect."""
    if not rows:
        return
    row = rows[0]
    # The application may have told the driver to make other objects. All columns are of one of these types.
    if not (row[0].__class__ is str and row[3].__class__ is int and row[7].__class__ in _CLASSES_OF_TIMES):
        raise TypeError("the driver returns values of other classes")


def _utc(times: Sequence[Any]) -> list[datetime]:
    if times[0].__class__ is bytes:
        return utc_of_texts(times)
    # For psycopg2 and asyncpg, infinity is one of these two.
    if _LAST in times or _FIRST in times:
        raise ValueError("may be infinity")
    # Ten times as fast as replace(tzinfo=…).
    return [_EPOCH_UTC + (time - _EPOCH) for time in times]


def utc(time: datetime | bytes) -> datetime:
    return _utc((time,))[0]


def scalar(rows: Sequence[Any]) -> Any:
    return rows[0][0]


def first_column(rows: Sequence[Any]) -> list[Any]:
    return [row[0] for row in rows]


def position_if_as_expected(stream_name: str, expected_version: int, rows: Sequence[Any]) -> int:
    position, actual_version = rows[0]
    if position is None:
        raise WrongExpectedVersion(stream_name, expected_version, actual_version)
    return int(position)


def each_as_expected(parameters: Mapping[str, Any], rows: Sequence[Any]) -> list[int | WrongExpectedVersion]:
    return [
        WrongExpectedVersion(stream_name, expected, actual) if position is None else position
        for stream_name, expected, (_, position, actual) in zip(
            parameters["streams"], parameters["expected_versions"], sorted(rows), strict=True
        )
    ]
