"""Dead letters: the messages that consumers parked, listed, replayed and discarded.

A dead letter is never changed or deleted, so that a role that may write messages may do all of this. What became of it
is written to a stream of its own, the outcome stream, whose last message counts: Failed, Handled or Discarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Dialect

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.store import _dead_letter_statements as statements
from messagedb_sa.store._batch import iterable
from messagedb_sa.store._consumer_streams import DEAD, dead_letter_category, outcome_category, parked_by
from messagedb_sa.store._dead_letter_statements import DISCARDED, FAILED, HANDLED
from messagedb_sa.store._json_codec import JSONCodec
from messagedb_sa.store._operation import Operation, Run
from messagedb_sa.store._rows import MessageRows

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class DeadLetter(NamedTuple):
    """A message that a consumer parked, and that was neither handled nor discarded since.

    ``id`` is that of the dead letter, ``category`` and ``identifier`` are the consumer's. ``message`` is the message
    that failed, with its own id, stream, positions and time, as it was stored when it was parked. Its data is plain,
    even if its type has a class; a part that cannot be decoded is JSON text. ``error`` and ``traceback`` are those of
    the last failure, at ``failed_at``.
    """

    id: str
    category: str
    identifier: str | None
    message: Message
    error: str
    traceback: str
    failed_at: datetime


class DeadLetterOperations:
    """The operations on dead letters of a store whose engine has this dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._codec = JSONCodec(dialect)

    def pages(
        self, category_name: str | None, batch_size: int, no_of_messages: int | None
    ) -> DeadLetterPage | AllDeadLetters:
        if category_name is not None:
            return self.page(category_name, batch_size, no_of_messages)
        return AllDeadLetters(self, arguments.integer("batch_size", batch_size, minimum=1), _last(no_of_messages))

    def read(self, id: UUID | str) -> ReadDeadLetter:
        # For None, message_id makes one.
        return ReadDeadLetter(self._codec, arguments.message_id("id", "" if id is None else id))

    def page(self, category_name: str, batch_size: int, no_of_messages: int | None = None) -> DeadLetterPage:
        category = arguments.category("category_name", category_name)
        size = arguments.integer("batch_size", batch_size, minimum=1)
        return DeadLetterPage(self._codec, category, size, no_of_messages=_last(no_of_messages))

    def open_letter(self, category: str, id: str) -> Operation[DeadLetter | None]:
        """The dead letter as it is now; None if it was resolved, or if another transaction is replaying it.

        If this is in a transaction, no other one can replay the dead letter until the end.
        """

        def found(rows: Sequence[Any]) -> DeadLetter | None:
            ours = [row for row in rows if row[-1]]
            return next(iter(_letters(self._codec, category, ours)), None)

        return Operation(statements.OPEN, {"id": id, **_categories(category)}, found)

    def discard(self, dead_letters: Iterable[DeadLetter]) -> Operation[int]:
        letters = list(iterable("dead_letters", dead_letters))
        for number, letter in enumerate(letters):
            if not isinstance(letter, DeadLetter):
                reason = "must be a DeadLetter, as iter_dead_letters returns them"
                raise InvalidArgument(f"dead_letters[{number}]", letter, reason)
        return self._outcome(DISCARDED, letters)

    def handled(self, letter: DeadLetter) -> Operation[int]:
        return self._outcome(HANDLED, [letter])

    def failed(self, letter: DeadLetter, dead: dict[str, Any]) -> Operation[int]:
        return self._outcome(FAILED, [letter], dead)

    def parked_again(self, category: str, id: str, dead: dict[str, Any]) -> Operation[int]:
        """Open the dead letter again if it was resolved: its message has failed once more."""
        return self._write([_outcome_stream(category, id)], FAILED, dead, if_open=False)

    def _outcome(self, type_: str, letters: list[DeadLetter], dead: dict[str, Any] | None = None) -> Operation[int]:
        """Write what became of these; returns how many of them were still open. Nothing is written for the others."""
        streams = {_outcome_stream(each.category, each.id) for each in letters}
        # Every call takes the locks of several categories in this order, so that no two calls deadlock.
        in_order = sorted(streams, key=lambda stream: (names.hash_64(names.category(stream)), stream))
        return self._write(in_order, type_, dead or {}, if_open=True)

    def _write(self, streams: list[str], type_: str, dead: dict[str, Any], *, if_open: bool) -> Operation[int]:
        parameters = {
            "streams": streams,
            "type": type_,
            "metadata": self._codec.encode("dead", {DEAD: dead}),
            "if_open": if_open,
        }
        return Operation(statements.WRITE_OUTCOMES, parameters, len)


@dataclass(slots=True)
class DeadLetterPage:
    """A page of the dead letters of a category's consumers, in the order in which they were parked first.

    ``no_of_messages``: those among the last so many. None when it is known where these begin, and for all.
    """

    codec: JSONCodec
    category: str
    batch_size: int
    stream_name: str | None = None
    position: int = 0
    no_of_messages: int | None = None
    _next: int | None = None

    def perform(self, run: Run) -> list[DeadLetter]:
        if self.no_of_messages is not None:
            last = {"category": dead_letter_category(self.category), "no_of_messages": self.no_of_messages}
            row = run(Operation(statements.FIRST_OF_LAST, last, _first_of_all))
            self.position, self.no_of_messages = (0 if row is None else row[0]), None
        rows = run(
            Operation(
                statements.PAGE,
                {
                    "stream_name": self.stream_name,
                    "position": self.position,
                    "batch_size": self.batch_size,
                    **_categories(self.category),
                },
                list,
            )
        )
        self._next = None if len(rows) < self.batch_size else int(bytes(rows[-1][1])) + 1
        return _letters(self.codec, self.category, rows)

    def after(self, _: object) -> DeadLetterPage | None:
        return None if self._next is None else replace(self, position=self._next)


@dataclass(slots=True)
class AllDeadLetters:
    """A page of the dead letters of all categories, one category after another."""

    operations: DeadLetterOperations
    batch_size: int
    no_of_messages: int | None = None
    categories: list[str] | None = None
    page: DeadLetterPage | None = None

    def perform(self, run: Run) -> list[DeadLetter]:
        if self.categories is None:
            self.categories = run(Operation(statements.CATEGORIES, {}, lambda rows: sorted(name for (name,) in rows)))
        if self.page is None and self.categories:
            category = parked_by(self.categories.pop(0))
            self.page = self.operations.page(category, self.batch_size, self.no_of_messages)
        return [] if self.page is None else self.page.perform(run)

    def after(self, found: Any) -> AllDeadLetters | None:
        following = None if self.page is None else self.page.after(found)
        return replace(self, page=following) if following or self.categories else None


@dataclass(slots=True)
class ReadDeadLetter:
    """The call behind ``Store.read_dead_letter``."""

    codec: JSONCodec
    id: str

    def perform(self, run: Run) -> DeadLetter | None:
        category = run(Operation(statements.CATEGORY_OF, {"id": self.id}, _first_of_all))
        if category is None:
            return None
        consumed = parked_by(category[0])
        letters: list[DeadLetter] = run(
            Operation(
                statements.READ,
                {"id": self.id, **_categories(consumed)},
                lambda rows: _letters(self.codec, consumed, rows),
            )
        )
        return _first_of_all(letters)


def _last(no_of_messages: int | None) -> int | None:
    return None if no_of_messages is None else arguments.integer("no_of_messages", no_of_messages, minimum=1)


def _first_of_all(rows: Sequence[T]) -> T | None:
    return next(iter(rows), None)


def _categories(category: str) -> dict[str, str]:
    return {"category": dead_letter_category(category), "outcomes": outcome_category(category)}


def _outcome_stream(category: str, id: str) -> str:
    return f"{outcome_category(category)}-{id}"


# ---- rows


def _letters(codec: JSONCodec, category: str, rows: Sequence[Any]) -> list[DeadLetter]:
    """Without what other clients wrote to the streams, and is not a dead letter."""
    original = MessageRows(codec, None, keeps_undecodable=True)
    found = []
    for row in rows:
        values = (_text(value) for value in row[: len(statements.LETTER_COLUMNS)])
        id, _, stream, failed_at, error, traceback, *columns = values
        its_id, its_stream, _, position, global_position, _, _, time = columns
        if its_id is None or its_stream is None or not (_is_integer(position) and _is_integer(global_position)):
            continue
        as_bytes = [None if each is None else each.encode(errors="replace") for each in columns[:-1]]
        seconds = _seconds(time).encode()
        (message,) = original.plain([[*as_bytes, seconds, (time or "").encode()]])
        identifier = names.id(stream or "")
        at = _EPOCH + timedelta(microseconds=int(failed_at or 0))
        found.append(DeadLetter(id or "", category, identifier, message, error or "", traceback or "", at))
    return found


def _text(value: Any) -> str | None:
    return None if value is None else bytes(value).decode(errors="backslashreplace")


def _is_integer(text: str | None) -> bool:
    return text is not None and len(text) < 20 and text.isascii() and text.isdigit()


def _seconds(time: str | None) -> str:
    """Since 1970. A time that Python does not have is infinite."""
    try:
        at = datetime.fromisoformat(time or "")
    except ValueError:
        return "-Infinity" if (time or "").startswith("-") or (time or "").endswith("BC") else "Infinity"
    return str(Decimal((at.replace(tzinfo=timezone.utc) - _EPOCH) // timedelta(microseconds=1)) / 1_000_000)
