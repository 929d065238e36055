"""Waiting until a consumer has handled what there is at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)

from messagedb_sa import _arguments as arguments
from messagedb_sa import _metadata_indexes as keys
from messagedb_sa import functions
from messagedb_sa import stream_name as names
from messagedb_sa._clock import monotonic
from messagedb_sa.errors import InvalidArgument, NotCaughtUp
from messagedb_sa.schema import messages
from messagedb_sa.store._consumer_status import is_skipped, with_all_members
from messagedb_sa.store._consumer_streams import ConsumerKey, holds_positions
from messagedb_sa.store._operation import Operation, Pause, Steps
from messagedb_sa.store._operations import ALL
from messagedb_sa.store._position_statements import is_recorded
from messagedb_sa.store._positions import READ_TABLE_ACCESS, ReadPositions, Recorded, TableAccess
from messagedb_sa.store._statements import text_parameter, unnested

WAIT_SECONDS = 10.0
"""How long a wait for a consumer lasts by default."""

# Between two looks at the positions; doubled each time, from the first to the second.
_SHORTEST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05

_HIGHEST = 2**63 - 1

_Place: TypeAlias = Literal["all", "category", "stream"]


def wait_for_consumer(
    bind: object,
    category_name: str,
    identifier: str | None,
    until: str | None,
    seconds: float,
    correlation: str | None,
    *,
    joined: bool,
) -> Steps[None]:
    """The steps of ``Store.wait_for_consumer``. ``joined``: ``bind`` is in the caller's transaction."""
    if joined:
        reason = (
            "must be an Engine to wait for a consumer: what a transaction has written is not committed yet, so no "
            "consumer can handle it"
        )
        raise InvalidArgument("bind", bind, reason)
    category = arguments.category("category_name", category_name)
    consumer = ConsumerKey(None if identifier is None else arguments.text("identifier", identifier))
    if ConsumerKey.parsed(identifier) != consumer:
        reason = "must not end like a member of a group (0-of-3): all members of the group are waited for"
        raise InvalidArgument("identifier", identifier, reason)
    waited_for = {
        "until": _until(category, until),
        "correlation": None if correlation is None else arguments.category("correlation", correlation),
    }
    deadline = monotonic() + arguments.seconds("seconds", seconds)
    pause, moment = _SHORTEST_PAUSE_SECONDS, _HIGHEST
    last: dict[ConsumerKey, int] = {}
    known: set[ConsumerKey] = set()
    access: TableAccess = yield READ_TABLE_ACCESS
    while True:
        looked = monotonic()
        everyone: dict[ConsumerKey, Recorded] = yield ReadPositions(category, access.is_readable, access.has_index)
        positions = _recorded_last(everyone, consumer)
        if known != positions.keys():
            # The first look, or it has another number of slots or members now.
            known = {*positions}
            last = yield _last_after(category, positions, waited_for, moment)
            moment = min(moment, max(last.values(), default=0))
        behind = [key for key in last if (positions[key] or 0) < last[key]]
        if not behind:
            return
        now = monotonic()
        if now >= deadline:
            furthest = min(behind, key=lambda key: positions[key] or 0)
            raise NotCaughtUp(category, identifier, positions[furthest], last[furthest])
        # A look may take long: in a store without the index, PostgreSQL reads every position that was ever recorded.
        yield Pause(min(max(pause, now - looked), deadline - now))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _until(category: str, until: str | None) -> str:
    if until is None:
        return category
    name = arguments.text("until", until)
    if category in (ALL, name) or names.category(name) == category:
        return name
    if name == ALL:
        return category
    raise InvalidArgument("until", until, f"must be the category {category!r}, a stream of it, or {ALL!r}")


def _recorded_last(everyone: dict[ConsumerKey, Recorded], consumer: ConsumerKey) -> dict[ConsumerKey, int | None]:
    """The positions of the consumer; with slots or members, of all of them, by the number that recorded last."""
    own = {key: each for key, each in everyone.items() if key.identifier == consumer.identifier}
    if not own:
        return {consumer: None}
    size = max(own, key=lambda key: own[key].order).group_size
    divided = with_all_members({key: each for key, each in own.items() if key.group_size == size})
    return {key: each.position for key, each in divided.items()}


def _last_after(
    category: str, positions: Mapping[ConsumerKey, int | None], waited_for: Mapping[str, str | None], moment: int
) -> Operation[dict[ConsumerKey, int]]:
    """The last message that each has to handle after its position, up to this moment; without those that have none."""
    until = str(waited_for["until"])
    place: _Place = "all" if until == ALL else "category" if names.is_category(until) else "stream"
    parameters = {
        **waited_for,
        "moment": moment,
        "members": [key.group_member for key in positions],
        "sizes": [key.group_size for key in positions],
        "positions": [position or 0 for position in positions.values()],
    }
    each = list(positions)
    statement = _last_statement(place, category == ALL, holds_positions(category))
    return Operation(statement, parameters, lambda rows: {each[number - 1]: last for number, last in rows})


@cache
def _last_statement(place: _Place, of_all: bool, beside_positions: bool) -> Executable:
    arrays = {name: bindparam(name, type_=ARRAY(BigInteger())) for name in ("members", "sizes", "positions")}
    consumers = unnested("consumers", **arrays)
    hashed = func.abs(functions.hash_64(functions.cardinal_id(messages.c.stream_name)))
    is_own = or_(consumers.c.sizes.is_(None), func.mod(hashed, consumers.c.sizes) == consumers.c.members)
    correlated = functions.category(keys.correlation(messages.c.metadata)) == text_parameter("correlation")
    is_read = and_(is_own, or_(text_parameter("correlation").is_(None), correlated))
    if of_all:
        is_read = and_(is_read, not_(is_skipped))
    elif beside_positions:
        is_read = and_(is_read, not_(is_recorded))
    # CASE hides from PostgreSQL how few messages this may be. For few, it would sort all instead of reading backwards.
    newest = _newest(place, consumers.c.positions, bindparam("moment", type_=BigInteger()))
    newest = newest.where(case((is_read, true())))
    last = newest.limit(literal_column("1")).lateral("last")
    is_after = last.c.global_position > consumers.c.positions
    return select(consumers.c.number, last.c.global_position).select_from(consumers.join(last, is_after))


def _newest(place: _Place, after: ColumnElement[Any], moment: ColumnElement[Any]) -> Select[Any]:
    position, until = messages.c.global_position, text_parameter("until")
    if place == "all":
        return select(position).where(position > after, position <= moment).order_by(position.desc())
    if place == "stream":
        in_time = case((position <= moment, true()))
        return select(position).where(messages.c.stream_name == until, in_time).order_by(messages.c.position.desc())
    # As in newest_of_category.
    category = functions.category(messages.c.stream_name)
    both = tuple_(category, position)
    return (
        select(position)
        .where(both > tuple_(until, after), both <= tuple_(until, moment))
        .order_by(category.desc(), position.desc())
    )
