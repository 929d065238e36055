"""Where consumers keep their positions, and what they could not handle: the names of these streams.

The names of positions are Eventide's, so that a consumer in another language goes on where ours stopped:
http://docs.eventide-project.org/user-guide/consumers.html
"""

from __future__ import annotations

import re
from typing import NamedTuple

from messagedb_sa import stream_name as names

RECORDED = "Recorded"
"""The type of the messages that hold a position, as ``{"position": N}``: that of the last message handled."""


_POSITION = "position"
_DEAD = "dead"


class Place(NamedTuple):
    """Who has a position in a category: a consumer by its identifier, and of a group one of its members."""

    identifier: str | None
    group_member: int | None = None
    group_size: int | None = None

    def __str__(self) -> str:
        """What stands after the ``-`` of the stream name; nothing for a consumer without an identifier."""
        member = "" if self.group_member is None else f"{self.group_member}-of-{self.group_size}"
        return "-".join(part for part in (self.identifier, member) if part)

    @classmethod
    def named(cls, stream_id: str | None) -> Place:
        found = re.fullmatch(r"(?:(.+)-)?(\d+)-of-(\d+)", stream_id or "", flags=re.DOTALL)
        return cls(found[1], int(found[2]), int(found[3])) if found else cls(stream_id)


def position_stream(category: str, place: Place) -> str:
    return _stream(category, _POSITION, str(place))


def dead_stream(category: str, identifier: str | None) -> str:
    """Where a consumer puts the messages that it could not handle."""
    return _stream(category, _DEAD, identifier or "")


def holds_positions(category: str) -> bool:
    return _POSITION in _types(category)


def holds_dead(category: str) -> bool:
    return _DEAD in _types(category)


def _types(category: str) -> list[str]:
    return category.partition(":")[2].split("+")


def _stream(category: str, type_: str, id: str) -> str:
    return f"{category}{'+' if ':' in category else ':'}{type_}{'-' if id else ''}{id}"


def position_category(category: str) -> str:
    return names.category(position_stream(category, Place(None)))
