"""The SQL that looks into a store, as SQLAlchemy expressions."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase, digits
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
    tuple_,
)

from messagedb_sa import functions
from messagedb_sa._drivers.catalog import activity, locks, prepared_transactions
from messagedb_sa.schema import SCHEMA, messages
from messagedb_sa.store._backwards import ALL_BACKWARDS, CATEGORY_BACKWARDS, LAST
from messagedb_sa.store._gaps import IS_OF_WRITER
from messagedb_sa.store._position_statements import microseconds
from messagedb_sa.store._statements import (
    READ_ALL,
    columns_of_messages,
    json_parameter,
    known_categories,
    newest_of_category,
    number_parameter,
    text_parameter,
    unknown_limit,
)

COUNTED = 100
"""So many messages are counted, at most, of a category that has few in the sample."""

_category = functions.category(messages.c.stream_name)
_FEW = "10"
_zero: ColumnElement[Any] = literal_column("0")
_one: ColumnElement[Any] = literal_column("1")


# ---- categories


def _estimated() -> Executable:
    """Of each category: its last message, how many messages the sample has, and if these are few, how many it has,
    up to COUNTED."""
    # The same pages each time, so that the numbers do not jump from one look to the next.
    sample = messages.tablesample(func.system(cast(bindparam("percent", type_=REAL()), REAL)), seed=_one)
    of_sample = functions.category(sample.c.stream_name)
    counts = select(of_sample.label("category"), func.count().label("messages")).group_by(of_sample)
    sampled = counts.cte("sampled").prefix_with("MATERIALIZED")
    known = known_categories()
    in_sample: ColumnElement[int] = func.coalesce(sampled.c.messages, _zero)
    last = newest_of_category(1, *_LAST, of=known.c.category).lateral("last")
    each = newest_of_category(COUNTED, _one, of=known.c.category).where(in_sample < literal_column(_FEW))
    counted = func.cardinality(func.array(each.correlate(known, sampled).scalar_subquery()))
    return select(known.c.category, *_of_last(last), in_sample, counted).select_from(
        known.join(last, true()).outerjoin(sampled, sampled.c.category == known.c.category)
    )


def _exact() -> Executable:
    counted = (
        select(
            _category.label("category"),
            func.max(messages.c.global_position).label("global_position"),
            func.count().label("messages"),
        )
        .group_by(_category)
        .subquery("counted")
    )
    return select(
        counted.c.category, counted.c.global_position, microseconds(messages.c.time), counted.c.messages
    ).join_from(counted, messages, messages.c.global_position == counted.c.global_position)


# ---- streams

_LAST = (messages.c.global_position, messages.c.time)


def _of_last(last: Any) -> tuple[ColumnElement[Any], ColumnElement[int]]:
    return last.c.global_position, microseconds(last.c.time)


def _streams() -> Executable:
    """The category's streams after ``after``, in the order of messages_stream: from one name to the next in it.

    That order is the collation's. The names of a category need not be side by side in it.
    """
    category = cast(text_parameter("category"), Text)
    # A name that comes after all of the category: a beginning of the category, and a character. It does, if it comes
    # after the category with a - , this character and a letter. Then what is before these decides: otherwise the other
    # one would be longer, and come later. So this is right for collations that compare letters first, too.
    length = func.char_length(category)
    sizes = (
        func.generate_series(func.greatest(length - _FEW_LETTERS, _zero), length)
        .table_valued("size")
        .render_derived("sizes")
    )
    marks = (
        func.regexp_split_to_table(_MARKS, literal_column("''"))
        .table_valued(column("mark", Text))
        .render_derived("marks")
    )
    mark = marks.c.mark
    name = func.left(category, sizes.c.size, type_=Text()) + mark
    is_after = category + literal_column("'-'") + mark + literal_column("'z'") < name
    nearest = select(func.min(name)).select_from(sizes.join(marks, true())).where(is_after)
    # In some collations there is none for some categories.
    last = select(messages.c.stream_name).order_by(messages.c.stream_name.desc()).limit(_one)
    ends = select(func.coalesce(nearest.scalar_subquery(), last.scalar_subquery()).label("name"))
    end = ends.cte("bound").prefix_with("MATERIALIZED")
    names = (
        select(messages.c.stream_name.label("name"))
        .where(messages.c.stream_name <= select(end.c.name).scalar_subquery())
        .order_by(messages.c.stream_name, messages.c.position)
        .limit(_one)
    )
    key = tuple_(messages.c.stream_name, messages.c.position)
    first = names.where(key > tuple_(cast(text_parameter("after"), Text), number_parameter("after_position")))
    known = select(first.subquery("first")).cte("known", recursive=True)
    following = names.where(messages.c.stream_name > known.c.name).lateral("following")
    known = known.union_all(select(following).select_from(known.join(following, true())))
    newest = (
        select(messages.c.position, *_LAST)
        .where(messages.c.stream_name == known.c.name)
        .order_by(messages.c.position.desc())
        .limit(_one)
        .lateral("last")
    )
    # Without ORDER BY: names come in order, and are looked up for as long as LIMIT wants more.
    return (
        select(known.c.name, newest.c.position, *_of_last(newest))
        .select_from(known.join(newest, true()))
        .where(functions.category(known.c.name) == text_parameter("category"))
        .limit(number_parameter("batch_size"))
    )


_FEW_LETTERS: ColumnElement[Any] = literal_column("3")
_MARKS: ColumnElement[Any] = literal_column(f"' !\"#$&()*+,./;<=>?@[]^_`{{|}}~:{digits}{ascii_lowercase}'")


def _recent(newest: Select[Any]) -> Executable:
    recent = newest.subquery("recent")
    last = select(func.max(recent.c.global_position).label("global_position")).group_by(recent.c.stream_name)
    of_stream = last.subquery("last")
    return select(messages.c.stream_name, messages.c.position, *_of_last(messages)).join_from(
        of_stream, messages, messages.c.global_position == of_stream.c.global_position
    )


# ---- activity


def _activity(newest: Select[Any]) -> Executable:
    message = newest.subquery("newest")
    key = (
        microseconds(func.date_trunc(literal_column("'minute'"), message.c.time)).label("minute"),
        functions.category(message.c.stream_name).label("category"),
        message.c.type,
    )
    return select(*key, func.count()).group_by(*(literal_column(str(number)) for number in (1, 2, 3)))


# ---- messages by metadata


def _with_fields(read: Select[Any]) -> Select[Any]:
    # CASE, since PostgreSQL would expect few messages: it would read and sort the whole table for each page.
    return read.where(case((messages.c.metadata.op("@>")(json_parameter("fields")), true())))


def _category_forwards() -> Select[Any]:
    key, category = tuple_(_category, messages.c.global_position), text_parameter("category")
    return (
        select(*columns_of_messages())
        .where(
            key >= tuple_(category, number_parameter("position")), key <= tuple_(category, literal_column(str(LAST)))
        )
        .order_by(_category, messages.c.global_position)
        .limit(unknown_limit(number_parameter("batch_size")))
    )


# ---- writers


def _open_writers() -> Executable:
    # A prepared transaction has no process. Its lock on its own number leads to its name.
    own = locks.alias("own")
    is_its_own = and_(
        own.c.locktype == "transactionid",
        own.c.granted,
        own.c.pid.is_(None),
        own.c.virtualtransaction == locks.c.virtualtransaction,
        locks.c.pid.is_(None),
    )
    prepared = prepared_transactions
    began = func.timezone(literal_column("'utc'"), func.coalesce(activity.c.xact_start, prepared.c.prepared))
    return (
        select(
            locks.c.pid,
            microseconds(began),
            cast(func.coalesce(activity.c.usename, prepared.c.owner), Text),
            activity.c.application_name,
            activity.c.state,
            activity.c.query,
            prepared.c.gid,
        )
        .select_from(
            locks.outerjoin(activity, activity.c.pid == locks.c.pid)
            .outerjoin(own, is_its_own)
            .outerjoin(prepared, prepared.c.transaction == own.c.transactionid)
        )
        .where(IS_OF_WRITER)
    )


PAGES = select(
    func.pg_relation_size(literal_column(f"'{SCHEMA}.messages'::regclass"))
    / cast(func.current_setting("block_size"), BigInteger)
)
"""The size of the table."""

ESTIMATED_CATEGORIES = _estimated()
EXACT_CATEGORIES = _exact()
STREAMS = _streams()
# By whether it is of a category.
RECENT_STREAMS = {True: _recent(CATEGORY_BACKWARDS), False: _recent(ALL_BACKWARDS)}
ACTIVITY = {True: _activity(CATEGORY_BACKWARDS), False: _activity(ALL_BACKWARDS)}
# By whether it is of a category, and backwards.
READS_BY_METADATA: Mapping[tuple[bool, bool], Executable] = {
    (True, False): _with_fields(_category_forwards()),
    (True, True): _with_fields(CATEGORY_BACKWARDS),
    (False, False): _with_fields(READ_ALL),
    (False, True): _with_fields(ALL_BACKWARDS),
}
OPEN_WRITERS = _open_writers()
