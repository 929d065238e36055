"""Looking into a store: its categories and streams, what was written lately, and who is writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store import _looking_statements as statements
from messagedb_sa.store._backwards import LAST
from messagedb_sa.store._operation import Operation, Run
from messagedb_sa.store._operations import ALL
from messagedb_sa.store._positions import time_of
from messagedb_sa.store._rows import scalar

SAMPLED_PAGES = 1000


class CategorySummary(NamedTuple):
    """A category, and its last message.

    ``messages`` is their number. If ``is_estimate``, it is made of a sample, and may be off by some percent, more for a
    category that has a small share of the messages.
    """

    name: str
    messages: int
    last_global_position: int
    last_time: datetime
    is_estimate: bool


class StreamSummary(NamedTuple):
    """A stream, and its last message, whose position is the ``version``."""

    stream_name: str
    version: int
    last_global_position: int
    last_time: datetime


class Activity(NamedTuple):
    """The number of messages of one category and type that were written in one minute, which begins at ``minute``."""

    minute: datetime
    category: str
    type: str
    messages: int


class OpenWriter(NamedTuple):
    """A transaction that has written messages, or is about to, and has not ended. Reads of ``$all`` may wait for it.

    ``since`` is when it began, or when it was prepared. ``process_id`` is that of its session; a prepared transaction
    has none, but a name, ``prepared``. ``state`` and ``query`` are those of pg_stat_activity: the session is executing
    that query, or it was its last one. PostgreSQL shows ``since``, ``state`` and ``query`` of other roles' sessions
    only to members of pg_read_all_stats, such as pg_monitor; otherwise they are None.
    """

    process_id: int | None
    since: datetime | None
    user_name: str | None
    application_name: str | None
    state: str | None
    query: str | None
    prepared: str | None


class CategorySummaries:
    """The call behind ``Store.categories``."""

    def __init__(self, exact: bool) -> None:
        self._exact = arguments.boolean("exact", exact)

    def perform(self, run: Run) -> list[CategorySummary]:
        if self._exact:
            return sorted(run(Operation(statements.EXACT_CATEGORIES, {}, _counted)))
        pages: int = run(Operation(statements.PAGES, {}, scalar))
        percent = 100 * min(1, SAMPLED_PAGES / max(pages, 1))

        def estimated(rows: Sequence[Any]) -> list[CategorySummary]:
            return [_estimated(percent, *row) for row in rows]

        return sorted(run(Operation(statements.ESTIMATED_CATEGORIES, {"percent": percent}, estimated)))


def _counted(rows: Sequence[Any]) -> list[CategorySummary]:
    return [CategorySummary(name, number, last, _time(time), False) for name, last, time, number in rows]


def _estimated(percent: float, name: str, last: int, time: int, in_sample: int, counted: int) -> CategorySummary:
    is_estimate = percent < 100 and counted in (0, statements.COUNTED)
    number = max(in_sample, counted)
    if is_estimate:
        number = max(number, round(in_sample * 100 / percent))
    return CategorySummary(name, number, last, _time(time), is_estimate)


@dataclass(slots=True)
class StreamPage:
    """A page of a category's streams, in the order of the index messages_stream."""

    category: str
    batch_size: int
    after_stream: str | None = None

    @classmethod
    def first(cls, category_name: str, batch_size: int, after: str | None) -> StreamPage:
        category = arguments.category("category_name", category_name)
        if category == ALL:
            raise InvalidArgument("category_name", category, "must be a category, such as categories returns")
        size = arguments.integer("batch_size", batch_size, minimum=1)
        if after is not None and names.category(arguments.text("after", after)) != category:
            raise InvalidArgument("after", after, f"must be a stream of the category {category!r}")
        return cls(category, size, after)

    def perform(self, run: Run) -> list[StreamSummary]:
        # Before the category's own stream, or after all messages of this one.
        after, position = (self.category, -1) if self.after_stream is None else (self.after_stream, LAST)
        parameters = {
            "category": self.category,
            "after": after,
            "after_position": position,
            "batch_size": self.batch_size,
        }
        found: list[StreamSummary] = run(Operation(statements.STREAMS, parameters, _streams))
        return found

    def after(self, page: list[StreamSummary]) -> StreamPage | None:
        return None if len(page) < self.batch_size else replace(self, after_stream=page[-1].stream_name)


def recent_streams(category_name: str | None, no_of_messages: int) -> Operation[list[StreamSummary]]:
    def newest_first(rows: Sequence[Any]) -> list[StreamSummary]:
        return sorted(_streams(rows), key=attrgetter("last_global_position"), reverse=True)

    return Operation(*_newest(statements.RECENT_STREAMS, category_name, no_of_messages), newest_first)


def activity(category_name: str | None, no_of_messages: int) -> Operation[list[Activity]]:
    def counted(rows: Sequence[Any]) -> list[Activity]:
        return sorted(Activity(_time(minute), *others) for minute, *others in rows)

    return Operation(*_newest(statements.ACTIVITY, category_name, no_of_messages), counted)


def open_writers() -> Operation[list[OpenWriter]]:
    return Operation(statements.OPEN_WRITERS, {}, _writers)


def _newest(by_category: Any, category_name: str | None, no_of_messages: int) -> tuple[Any, dict[str, Any]]:
    is_of_category = category_name is not None and category_name != ALL
    size = arguments.integer("no_of_messages", no_of_messages, minimum=0)
    parameters: dict[str, Any] = {"position": LAST, "batch_size": size}
    if is_of_category:
        parameters["category"] = arguments.category("category_name", category_name)
    return by_category[is_of_category], parameters


def _streams(rows: Sequence[Any]) -> list[StreamSummary]:
    return [StreamSummary(name, version, last, _time(time)) for name, version, last, time in rows]


def _writers(rows: Sequence[Any]) -> list[OpenWriter]:
    found = [
        OpenWriter(pid, time_of(since), user, program, state, None if query == _HIDDEN else query or None, prepared)
        for pid, since, user, program, state, query, prepared in rows
    ]
    return sorted(found, key=lambda each: (each.since is None, each.since, each.process_id or 0))


_HIDDEN = "<insufficient privilege>"


def _time(microseconds: int) -> datetime:
    time = time_of(microseconds)
    assert time is not None
    return time
