"""How far consumers are: their recorded positions, and what waits for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    String,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
)

from messagedb_sa import arguments, functions, positions
from messagedb_sa.operations import ALL, Operation, newest_of_category, unnested
from messagedb_sa.positions import Place
from messagedb_sa.schema import messages

__all__ = ["ConsumerStatus"]


class ConsumerStatus(NamedTuple):
    """A consumer, or of a group one of its members or slots.

    ``position`` is the global position up to which it has handled everything, as recorded at ``recorded_at``; None for
    a member of a group that has recorded none. ``lag`` is the number of messages after that, those of types that it
    passes over among them, and ``waiting_since`` the time of the first of these, None where there is none. A consumer
    records now and then, not with each message: what it has handled since counts as waiting. Messages of streams
    without an id are no member's here, whatever ``streams_without_id`` says.
    """

    category: str
    identifier: str | None
    group_member: int | None
    group_size: int | None
    position: int | None
    recorded_at: datetime | None
    lag: int
    waiting_since: datetime | None


class Waiting(NamedTuple):
    """The number of messages, and the global position and time of the first, None where there is none."""

    lag: int
    first: int | None
    since: datetime | None


class Recorded(NamedTuple):
    position: int | None
    at: datetime | None


def recorded(category: str) -> Operation[dict[Place, Recorded]]:
    """The consumers of a category, by what they recorded last; members of their groups that recorded nothing too."""
    name = arguments.category("category_name", category)
    return Operation(_RECORDED, {"category": positions.position_category(name)}, _by_place)


def recent(category: str) -> Operation[list[tuple[Place, int]]]:
    """Whose the last 1,000 positions are that consumers of a category recorded, with the messages' global positions."""
    parameters = {"category": positions.position_category(category)}
    return Operation(_RECENT, parameters, lambda rows: [(Place.named(stream_id), at) for stream_id, at in rows])


def waiting(category: str, places: Sequence[Place], after: Sequence[int]) -> Operation[list[Waiting]]:
    """What each place has after its global position."""
    parameters = {
        "members": [place.group_member for place in places],
        "sizes": [place.group_size for place in places],
        "positions": list(after),
    }
    if category == ALL:
        return Operation(_WAITING_OF_ALL, parameters, _counts)
    return Operation(_WAITING, {**parameters, "category": category}, _counts)


def statuses(category: str, found: dict[Place, Recorded], counts: list[Waiting]) -> list[ConsumerStatus]:
    return [
        ConsumerStatus(category, *place, recorded.position, recorded.at, each.lag, each.since)
        for (place, recorded), each in zip(found.items(), counts, strict=True)
    ]


def _by_place(rows: Sequence[Any]) -> dict[Place, Recorded]:
    found: dict[Place, Recorded] = {}
    groups: dict[tuple[str | None, int], set[int]] = defaultdict(set)
    for stream_id, position, time in rows:
        place = Place.named(stream_id)
        found[place] = Recorded(position, time.replace(tzinfo=timezone.utc))
        if place.group_member is not None and place.group_size is not None:
            groups[place.identifier, place.group_size].add(place.group_member)
    for (identifier, size), members in groups.items():
        for member in set(range(size)) - members:
            found[Place(identifier, member, size)] = Recorded(None, None)
    order = sorted(found, key=lambda place: (place.identifier or "", place.group_size or 0, place.group_member or 0))
    return {place: found[place] for place in order}


def _counts(rows: Sequence[Any]) -> list[Waiting]:
    return [
        Waiting(count, first, None if since is None else since.replace(tzinfo=timezone.utc))
        for _, count, first, since in sorted(rows)
    ]


_category = functions.category(messages.c.stream_name)
_hash = functions.hash_64(functions.cardinal_id(messages.c.stream_name))
_position = messages.c.data["position"]
_recorded_position = case((func.jsonb_typeof(_position) == literal_column("'number'"), _position))


def _recorded() -> Executable:
    last = (
        select(messages.c.stream_name, func.max(messages.c.position).label("position"))
        .where(_category == bindparam("category", type_=String()), _recorded_position.is_not(None))
        .group_by(messages.c.stream_name)
        .subquery("last")
    )
    of_last = and_(messages.c.stream_name == last.c.stream_name, messages.c.position == last.c.position)
    return select(
        functions.id(messages.c.stream_name), cast(_recorded_position, BigInteger), messages.c.time
    ).join_from(last, messages, of_last)


def _waiting(which: ColumnElement[bool]) -> Executable:
    names = ("members", "sizes", "positions")
    arrays: dict[str, Any] = {name: bindparam(name, type_=ARRAY(BigInteger())) for name in names}
    places = unnested("places", **arrays)
    after = (
        select(
            func.count().label("count"),
            func.min(messages.c.global_position).label("first"),
            func.min(messages.c.time).label("since"),
        )
        .where(
            which,
            messages.c.global_position > places.c.positions,
            or_(
                places.c.sizes.is_(None),
                func.mod(func.abs(_hash), places.c.sizes) == places.c.members,
            ),
        )
        .lateral()
    )
    counted = select(places.c.number, after.c.count, after.c.first, after.c.since)
    return counted.select_from(places.join(after, true()))


# As a consumer of $all does.
_types = func.string_to_array(func.substring(_category, ":(.*)"), "+")
_passed_over = case(
    (literal_column("'position'") == func.any(_types), messages.c.type == literal_column(f"'{positions.RECORDED}'")),
    else_=literal_column("'dead'") == func.any(_types),
)
_RECORDED = _recorded()
_RECENT = newest_of_category(1000, functions.id(messages.c.stream_name), messages.c.global_position)
_WAITING = _waiting(_category == bindparam("category", type_=String()))
_WAITING_OF_ALL = _waiting(not_(func.coalesce(_passed_over, false())))
