"""The streams in which consumers keep their positions, and the messages that they could not handle.

The names of position streams are Eventide's, so a consumer in another language continues where ours stopped:
http://docs.eventide-project.org/user-guide/consumers.html
"""

from __future__ import annotations

import re
from typing import NamedTuple

from messagedb_sa import stream_name as names
from messagedb_sa.message import Message
from messagedb_sa.schema import POSITIONS_CATEGORY
from messagedb_sa.store._rows import Undecodable

RECORDED = "Recorded"
"""The type of the messages that hold a position, as ``{"position": N}``: that of the last message handled.

Together with the form of the stream's name, it tells them from other messages. Snapshots have this type too.
"""

DEAD = "dead"
"""In the metadata of a dead letter, an object: the error, and what a copy does not have of the original message."""

_POSITION = "position"
_DEAD_LETTER = "dead"
_OUTCOME = "outcome"

POSITIONS = POSITIONS_CATEGORY
ONLY_DEAD_LETTERS = POSITIONS.replace(_POSITION, _DEAD_LETTER)
DEAD_LETTERS = POSITIONS.replace(_POSITION, f"{_DEAD_LETTER}([+]{_OUTCOME})?")
"""Regular expressions, of Python and of PostgreSQL, for the categories of positions, for those of dead letters, and for
these and those of what became of them."""


class ConsumerKey(NamedTuple):
    """What has a position of its own in a category: a consumer by its identifier, or one member of its group."""

    identifier: str | None
    group_member: int | None = None
    group_size: int | None = None

    def __str__(self) -> str:
        """The part of the stream name after the ``-``; empty for a consumer without an identifier."""
        member = "" if self.group_member is None else f"{self.group_member}-of-{self.group_size}"
        return "-".join(part for part in (self.identifier, member) if part)

    @classmethod
    def parsed(cls, stream_id: str | None) -> ConsumerKey:
        found = re.fullmatch(r"(?:(.+)-)?(\d+)-of-(\d+)", stream_id or "", flags=re.DOTALL)
        if found and int(found[2]) < int(found[3]) <= names.MAX_GROUP_SIZE:
            return cls(found[1], int(found[2]), int(found[3]))
        return cls(stream_id)


def position_stream(category: str, key: ConsumerKey) -> str:
    return _stream(category, _POSITION, str(key))


def position_category(category: str) -> str:
    return names.category(position_stream(category, ConsumerKey(None)))


def consumed(position_category: str) -> str:
    """The category whose consumers record their positions in this one."""
    return position_category[: -len(_POSITION) - 1]


def dead_letter_stream(category: str, identifier: str | None) -> str:
    """Where a consumer writes the messages that it could not handle."""
    return _stream(category, _DEAD_LETTER, identifier or "")


def dead_letter_category(category: str) -> str:
    return names.category(dead_letter_stream(category, None))


def parked_by(dead_letter_category: str) -> str:
    """The category whose consumers park messages in this one."""
    return dead_letter_category[: -len(_DEAD_LETTER) - 1]


def outcome_category(category: str) -> str:
    """The category that tells what became of a category's dead letters: each has a stream with its id."""
    return _stream(dead_letter_category(category), _OUTCOME, "")


def holds_positions(category: str) -> bool:
    """Whether consumers of some category record their positions here. Others may have messages of their own here."""
    return re.search(POSITIONS, category, flags=re.DOTALL) is not None


def is_position(message: Message) -> bool:
    return message.type == RECORDED and holds_positions(message.category)


def is_dead_letter(message: Message) -> bool:
    """Whether it is one, or says what became of one."""
    metadata = message.metadata
    if isinstance(metadata, dict):
        is_marked = isinstance(metadata.get(DEAD), dict)
    else:
        # The metadata of the original message may be what cannot be decoded.
        is_marked = isinstance(message, Undecodable) and isinstance(metadata, str) and f'"{DEAD}": {{' in metadata
    return is_marked and re.search(DEAD_LETTERS, message.category, flags=re.DOTALL) is not None


def _stream(category: str, type_: str, id: str) -> str:
    return f"{category}{'+' if ':' in category else ':'}{type_}{'-' if id else ''}{id}"
