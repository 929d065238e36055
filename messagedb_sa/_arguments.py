"""Checks of arguments: each function returns the value to send to the database, or raises InvalidArgument."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from operator import index
from typing import Any
from uuid import UUID

from messagedb_sa import stream_name as names
from messagedb_sa._ids import new_ids
from messagedb_sa._metadata_fields import CORRELATION, TAGS
from messagedb_sa.errors import InvalidArgument

ALL = "$all"
"""The name of the whole store."""

CONTAINS_NUL = "must not contain a NUL character, which PostgreSQL cannot store"


MAX_INDEXED_BYTES = 2_600
"""The longest stream name to write, in bytes of UTF-8; also its category and that of correlationStreamName together.

PostgreSQL refuses an index entry of more than 2,704 bytes. The name has an index with the position, and the two
categories have one with the global position, which need up to 31 bytes more. PostgreSQL compresses what it indexes, so
it may accept a longer name, but whether it does depends on the name.
"""


def text(argument: str, value: object) -> str:
    """A plain str: for a member of an enumeration of strings, its value.

    A subclass may have its own hash, comparison and format, and drivers may treat it as something else than text.
    """
    if value.__class__ is not str:
        if not isinstance(value, str):
            raise InvalidArgument(argument, value, "must be a string")
        value = str.__str__(value)
    if not value:
        raise InvalidArgument(argument, value, "must not be empty")
    if reason := unstorable(value):
        raise InvalidArgument(argument, value, reason)
    return value


def unstorable(value: str) -> str | None:
    """The reason why PostgreSQL cannot store the text. None if it can."""
    if "\0" in value:
        return CONTAINS_NUL
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "must not contain half of a surrogate pair, which UTF-8 cannot encode"
    return None


def stream(argument: str, value: object) -> str:
    name = text(argument, value)
    if names.is_category(name):
        reason = "must be a stream name, with a - and an id after it: to read a stream without an id, read its category"
        raise InvalidArgument(argument, value, reason)
    return name


def stream_to_write(argument: str, value: object) -> str:
    name = text(argument, value)
    if reason := too_long(name):
        raise InvalidArgument(argument, value, reason)
    return name


def too_long(*indexed: str) -> str | None:
    """The reason why PostgreSQL may refuse to index the texts together. None if it takes them."""
    # A character has at most 4 bytes.
    if 4 * sum(map(len, indexed)) <= MAX_INDEXED_BYTES:
        return None
    size = sum(len(each.encode(errors="surrogatepass")) for each in indexed)
    if size <= MAX_INDEXED_BYTES:
        return None
    return f"must have at most {MAX_INDEXED_BYTES} bytes in UTF-8, which PostgreSQL can index; got {size}"


def metadata(argument: str, value: object) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    if not isinstance(value, Mapping):
        reason = "must be a dict or None; pass a version as expected_version=, and an id as id="
        raise InvalidArgument(argument, value, reason)
    return dict(value)


def is_plain_metadata(value: Any, stream_name: str) -> bool:
    """Whether ``metadata_to_write`` returns the value itself, as far as that shows at once: for most it does."""
    if value.__class__ is not dict or TAGS in value:
        return False
    correlated = value.get(CORRELATION)
    return correlated is None or (
        correlated.__class__ is str and 4 * (len(stream_name) + len(correlated)) <= MAX_INDEXED_BYTES
    )


def metadata_to_write(argument: str, value: object, stream_name: str) -> dict[str, Any] | None:
    """As ``metadata``, if PostgreSQL can index the category of its correlationStreamName with the stream's, and queries
    find its tags."""
    checked = metadata(argument, value)
    if checked and TAGS in checked:
        tags = checked[TAGS]
        if not isinstance(tags, (list, tuple)) or not all(isinstance(each, str) and each for each in tags):
            raise InvalidArgument(argument, value, f"must have a list of texts as {TAGS}, none of them empty")
    correlated = checked.get(CORRELATION) if checked else None
    if correlated is not None:
        if not isinstance(correlated, str):
            raise InvalidArgument(argument, value, f"must have a string as {CORRELATION}")
        if reason := too_long(names.category(stream_name), names.category(correlated)):
            reason = f"the categories of the stream and of its {CORRELATION} together {reason}"
            raise InvalidArgument(argument, value, reason)
    return checked


def category(argument: str, value: object) -> str:
    name = text(argument, value)
    if not names.is_category(name):
        raise InvalidArgument(argument, value, "must be a category, without a -")
    return name


def integer(argument: str, value: object, *, minimum: int = -(2**63), maximum: int = 2**63 - 1) -> int:
    if isinstance(value, bool):
        raise InvalidArgument(argument, value, "must be an integer")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(argument, value, "must be an integer") from None
    if not minimum <= number <= maximum:
        raise InvalidArgument(argument, value, f"must be between {minimum} and {maximum}")
    return number


def boolean(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(argument, value, "must be True or False")
    return value


def seconds(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(argument, value, "must be a number of seconds")
    if not 0 <= value <= sys.float_info.max:
        raise InvalidArgument(argument, value, "must be a finite number of seconds, 0 or more")
    return float(value)


def consumer_group(
    member: object, size: object, arguments: tuple[str, str] = ("consumer_group_member", "consumer_group_size")
) -> tuple[int | None, int | None]:
    if member is None and size is None:
        return None, None
    if member is None:
        raise InvalidArgument(arguments[0], member, f"must be given with {arguments[1]}={size!r}")
    if size is None:
        raise InvalidArgument(arguments[1], size, f"must be given with {arguments[0]}={member!r}")
    number_of_members = integer(arguments[1], size, minimum=1, maximum=names.MAX_GROUP_SIZE)
    return integer(arguments[0], member, minimum=0, maximum=number_of_members - 1), number_of_members


def unused(argument: str, value: object, default: object, reason: str) -> None:
    """Refuse what has no effect, if it was given: if it is not the default."""
    if value != default:
        raise InvalidArgument(argument, value, reason)


def message_id(argument: str, value: object) -> str:
    """The id as text. For None, a new id."""
    return new_ids(1)[0] if value is None else existing_id(argument, value)


def existing_id(argument: str, value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(UUID(value))
        except ValueError:
            pass
    raise InvalidArgument(argument, value, "must be a UUID, or the text of one")
