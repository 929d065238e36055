"""How far consumers are: their recorded positions, and the messages after those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    TableValuedAlias,
    Text,
    and_,
    bindparam,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)

from messagedb_sa import _arguments as arguments
from messagedb_sa import functions
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.schema import messages
from messagedb_sa.store._consumer_streams import (
    DEAD,
    DEAD_LETTERS,
    POSITIONS,
    ConsumerKey,
    holds_positions,
)
from messagedb_sa.store._operation import Operation, Run
from messagedb_sa.store._operations import ALL
from messagedb_sa.store._position_statements import is_recorded, microseconds
from messagedb_sa.store._positions import (
    READ_TABLE_ACCESS,
    ReadAllPositions,
    ReadPositions,
    Recorded,
    TableAccess,
    time_of,
)
from messagedb_sa.store._snapshots import SNAPSHOTS
from messagedb_sa.store._statements import COLUMNS, text_parameter, unnested

T = TypeVar("T")


class ConsumerStatus(NamedTuple):
    """How far a consumer is, or one member or slot of its group.

    ``position`` is the global position up to which it has handled everything, as recorded at ``recorded_at``; None if
    it has recorded none. ``recorded_in`` tells whether that is in a "stream" or in the "table"
    consumer_positions. ``lag`` is the number of messages after the position, including those of types that it skips;
    None if they were not counted, or not all. ``waiting_since`` is the time of the first of them, None if there is
    none. A consumer does not record its position after each message: what it has handled since then counts as lag.
    Messages of streams without an id belong to no member here, whatever ``streams_without_id`` says.
    """

    category: str
    identifier: str | None
    group_member: int | None
    group_size: int | None
    position: int | None
    recorded_at: datetime | None
    lag: int | None
    waiting_since: datetime | None
    recorded_in: Literal["stream", "table"] | None


class Backlog(NamedTuple):
    """The messages after a position: their number, and the first one's global position and time, None without any."""

    size: int
    first: int | None
    since: datetime | None


class ConsumerStatuses:
    """The call behind ``Store.consumers``: what the consumers recorded, then what comes after that."""

    def __init__(
        self,
        category_name: str | None,
        lag: bool,
        max_lag: int | None = None,
        identifiers: Iterable[str | None] | None = None,
    ) -> None:
        self._category = None if category_name is None else arguments.category("category_name", category_name)
        self._counts = arguments.boolean("lag", lag)
        self._limit = None if max_lag is None else arguments.integer("max_lag", max_lag, minimum=0)
        if not lag:
            arguments.unused("max_lag", max_lag, None, "is only for lag=True")
        self._identifiers: set[str | None] | None = None
        if identifiers is not None:
            if category_name is None:
                raise InvalidArgument("identifiers", identifiers, "is only for the consumers of one category")
            if isinstance(identifiers, (str, bytes)) or not isinstance(identifiers, Iterable):
                raise InvalidArgument("identifiers", identifiers, "must be a list, also for one consumer")
            self._identifiers = {
                None if each is None else arguments.text(f"identifiers[{number}]", each)
                for number, each in enumerate(identifiers)
            }

    def perform(self, run: Run) -> list[ConsumerStatus]:
        access: TableAccess = run(READ_TABLE_ACCESS)
        if self._category is None:
            found = ReadAllPositions(access.is_readable, access.has_index).perform(run)
        else:
            found = {self._category: ReadPositions(self._category, access.is_readable, access.has_index).perform(run)}
            if self._identifiers is not None:
                found = {self._category: _only(found[self._category], self._identifiers)}
        consumers = [
            (category, key, recorded)
            for category in sorted(found)
            for key, recorded in with_all_members(found[category]).items()
        ]
        if not self._counts:
            after = _waiting(run, consumers)
        elif self._limit is None:
            after = self._counted(run, consumers)
        else:
            after = _counted_up_to(run, consumers, self._limit)
        return [
            ConsumerStatus(category, *key, recorded.position, recorded.at, lag, since, _home(recorded))
            for (category, key, recorded), (lag, since) in zip(consumers, after, strict=True)
        ]

    def _counted(self, run: Run, consumers: Sequence[_Consumer]) -> list[tuple[int | None, datetime | None]]:
        counted: list[tuple[int | None, datetime | None]] = []
        for category, each in groupby(consumers, key=lambda consumer: consumer[0]):
            positions = {key: recorded.position or 0 for _, key, recorded in each}
            counted += [(backlog.size, backlog.since) for backlog in run(backlogs(category, positions))]
        return counted


def _only(found: Mapping[ConsumerKey, Recorded], identifiers: set[str | None]) -> dict[ConsumerKey, Recorded]:
    own = {key: recorded for key, recorded in found.items() if key.identifier in identifiers}
    missing = identifiers - {key.identifier for key in own}
    return own | {ConsumerKey(identifier): Recorded() for identifier in missing}


_Consumer: TypeAlias = "tuple[str, ConsumerKey, Recorded]"


def _home(recorded: Recorded) -> Literal["stream", "table"] | None:
    if recorded.position is None:
        return None
    return "table" if recorded.in_table else "stream"


def _waiting(run: Run, consumers: Sequence[_Consumer]) -> list[tuple[int | None, datetime | None]]:
    """Of each consumer, the time of the first message after its position, and no number."""
    found = _by_kind(run, consumers, _FIRST, lambda row: time_of(row[1]))
    return [(None, since) for since in found]


def _counted_up_to(run: Run, consumers: Sequence[_Consumer], limit: int) -> list[tuple[int | None, datetime | None]]:
    """The same with the number, None if the category has more than ``limit`` messages after the position."""
    counts = _by_kind(run, consumers, _COUNTED_UP_TO, lambda row: row[1] if row[2] <= limit else None, limit=limit + 1)
    return [(count, since) for count, (_, since) in zip(counts, _waiting(run, consumers), strict=True)]


def _by_kind(
    run: Run, consumers: Sequence[_Consumer], statements: _Kinds, read: Callable[[Any], T], **parameters: int
) -> list[T]:
    """For each consumer, what the statement for its kind of category returns."""
    numbers_of: dict[int, list[int]] = {}
    for number, (category, *_) in enumerate(consumers):
        numbers_of.setdefault(2 if category == ALL else int(holds_positions(category)), []).append(number)
    found: dict[int, T] = {}
    for kind, numbers in numbers_of.items():
        these = [consumers[number] for number in numbers]
        arrays = {
            "categories": [category for category, *_ in these],
            "members": [key.group_member for _, key, _ in these],
            "sizes": [key.group_size for _, key, _ in these],
            "positions": [recorded.position or 0 for *_, recorded in these],
        }
        rows = run(Operation(statements[kind], {**arrays, **parameters}, sorted))
        found.update(zip(numbers, map(read, rows), strict=True))
    return [found[number] for number in range(len(consumers))]


def backlogs(category: str, positions: Mapping[ConsumerKey, int]) -> Operation[list[Backlog]]:
    """What each consumer has after its global position, in the order of ``positions``."""
    parameters = {
        "members": [key.group_member for key in positions],
        "sizes": [key.group_size for key in positions],
        "positions": list(positions.values()),
    }
    if category == ALL:
        return Operation(_BACKLOGS_OF_ALL, parameters, _backlogs)
    statement = _BACKLOGS_BESIDE_POSITIONS if holds_positions(category) else _BACKLOGS
    return Operation(statement, {**parameters, "category": category}, _backlogs)


def with_all_members(found: dict[ConsumerKey, Recorded]) -> dict[ConsumerKey, Recorded]:
    """In order, and with the members of their groups that have recorded nothing."""
    groups = {(key.identifier, key.group_size) for key in found if key.group_size is not None}
    for identifier, size in groups:
        for member in range(size or 0):
            found.setdefault(ConsumerKey(identifier, member, size), Recorded())
    order = sorted(found, key=lambda key: (key.identifier or "", key.group_size or 0, key.group_member or 0))
    return {key: found[key] for key in order}


def _backlogs(rows: Sequence[Any]) -> list[Backlog]:
    return [Backlog(count, first, time_of(since)) for _, count, first, since in sorted(rows)]


_category = functions.category(messages.c.stream_name)
_hash = functions.hash_64(functions.cardinal_id(messages.c.stream_name))


def _after(position: ColumnElement[int], category: ColumnElement[str] | None) -> tuple[ColumnElement[bool], list[Any]]:
    """What comes after the position, of a category or of all, and the columns of the index that has it in order.

    As one row value, which PostgreSQL looks up in messages_category only. By the primary key, it might go through all
    that other categories have after the position.
    """
    key: list[Any] = [messages.c.global_position]
    first: list[Any] = [position]
    last: list[Any] = [literal_column(str(2**63 - 1))]
    if category is not None:
        key, first, last = [_category, *key], [category, *first], [category, *last]
    return and_(tuple_(*key) > tuple_(*first), tuple_(*key) <= tuple_(*last)), key


def _backlogs_statement(which: ColumnElement[bool] | None, *, of_all: bool = False) -> Executable:
    names = ("members", "sizes", "positions")
    consumers = unnested("consumers", **{name: bindparam(name, type_=ARRAY(BigInteger())) for name in names})
    of = consumers.c
    is_after, key = _after(of.positions, None if of_all else text_parameter("category"))
    of_member = or_(of.sizes.is_(None), func.mod(func.abs(_hash), of.sizes) == of.members)
    found = select(messages.c.global_position, messages.c.time).where(is_after, of_member)
    if which is not None:
        found = found.where(which)
    # PostgreSQL does not know how many come after a position, and expects a third of the table. A limit that it does
    # not know either makes it take the index in whose order they are, in which it finds at once that there are few.
    no_limit = select(literal_column(str(2**63 - 1))).scalar_subquery()
    each = found.order_by(*key).limit(no_limit).correlate(consumers).lateral("each")
    after = select(
        func.count().label("count"),
        func.min(each.c.global_position).label("first"),
        microseconds(func.min(each.c.time)).label("since"),
    ).lateral()
    counted = select(of.number, after.c.count, after.c.first, after.c.since)
    return counted.select_from(consumers.join(after, true()))


def _all_consumers() -> TableValuedAlias:
    return unnested(
        "consumers",
        categories=bindparam("categories", type_=ARRAY(Text())),
        **{name: bindparam(name, type_=ARRAY(BigInteger())) for name in ("members", "sizes", "positions")},
    )


def _first_statement(which: ColumnElement[bool] | None) -> Executable:
    """The time of the first message after each consumer's position: by get_category_messages, or among these."""
    consumers = _all_consumers()
    of = consumers.c
    one: ColumnElement[Any] = literal_column("1", BigInteger())
    if which is None:
        # As the consumer reads, so that it uses the index of its group if there is one.
        read = functions.get_category_messages(
            of.categories, of.positions + one, one, None, of.members, of.sizes
        ).table_valued(*COLUMNS)
        first = select(read.c.time).lateral("first")
    else:
        of_category = or_(of.categories == literal_column(f"'{ALL}'"), _category == of.categories)
        of_member = or_(of.sizes.is_(None), func.mod(func.abs(_hash), of.sizes) == of.members)
        after = select(messages.c.time).where(which, messages.c.global_position > of.positions, of_category, of_member)
        first = after.order_by(messages.c.global_position).limit(one).lateral("first")
    found = select(of.number, microseconds(first.c.time))
    return found.select_from(consumers.outerjoin(first, true()))


def _counted_up_to_statement(which: ColumnElement[bool], *, of_all: bool) -> Executable:
    """Among the next messages, up to the limit: how many of these each consumer has, and how many there are."""
    consumers = _all_consumers()
    of = consumers.c
    of_member = or_(of.sizes.is_(None), func.mod(func.abs(_hash), of.sizes) == of.members)
    is_after, key = _after(of.positions, None if of_all else of.categories)
    after = select(and_(which, of_member).label("is_its")).where(is_after)
    after = after.order_by(*key).limit(bindparam("limit", type_=BigInteger()))
    following = after.correlate(consumers).subquery("following")
    counts = select(func.count().filter(following.c.is_its).label("its"), func.count().label("every")).lateral("counts")
    return select(of.number, counts.c.its, counts.c.every).select_from(consumers.join(counts, true()))


# The messages that a consumer of $all skips.
_is_position = and_(is_recorded, _category.regexp_match(literal_column(f"'{POSITIONS}'")))
_is_marked = func.jsonb_typeof(messages.c.metadata[DEAD]) == literal_column("'object'")
_is_dead_letter = and_(_is_marked, _category.regexp_match(literal_column(f"'{DEAD_LETTERS}'")))
_is_snapshot = and_(is_recorded, _category.regexp_match(literal_column(f"'{SNAPSHOTS}'")))
is_skipped = func.coalesce(or_(_is_position, _is_dead_letter, _is_snapshot), false())

_BACKLOGS = _backlogs_statement(None)
_BACKLOGS_BESIDE_POSITIONS = _backlogs_statement(not_(is_recorded))
_BACKLOGS_OF_ALL = _backlogs_statement(not_(is_skipped), of_all=True)

# Of consumers of a category, of one that holds positions too, and of $all.
_Kinds: TypeAlias = "tuple[Executable, Executable, Executable]"
_FIRST: _Kinds = (
    _first_statement(None),
    _first_statement(not_(is_recorded)),
    _first_statement(not_(is_skipped)),
)
_COUNTED_UP_TO: _Kinds = (
    _counted_up_to_statement(true(), of_all=False),
    _counted_up_to_statement(not_(is_recorded), of_all=False),
    _counted_up_to_statement(not_(is_skipped), of_all=True),
)
