"""Checks of what callers pass in: each returns what is to be sent, or raises InvalidArgument before anything is."""

from __future__ import annotations

import os
import sys
import time
from operator import index
from uuid import UUID

from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument


def text(argument: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(argument, value, "is no text")
    if not value:
        raise InvalidArgument(argument, value, "is empty")
    if flaw := unstorable(value):
        raise InvalidArgument(argument, value, flaw)
    return value


def unstorable(value: str) -> str | None:
    """Why PostgreSQL can't hold the text, None if it can."""
    if "\0" in value:
        return "holds a NUL character, which PostgreSQL has no place for"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair, which is no character"
    return None


def stream(argument: str, value: object) -> str:
    name = text(argument, value)
    if names.is_category(name):
        raise InvalidArgument(argument, value, "is a category; a stream name has a - and an id after it")
    return name


def category(argument: str, value: object) -> str:
    name = text(argument, value)
    if not names.is_category(name):
        raise InvalidArgument(argument, value, "is a stream name; a category has no -")
    return name


def integer(argument: str, value: object, *, minimum: int = -(2**63), maximum: int = 2**63 - 1) -> int:
    if isinstance(value, bool):
        raise InvalidArgument(argument, value, "is no integer")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(argument, value, "is no integer") from None
    if not minimum <= number <= maximum:
        raise InvalidArgument(argument, value, f"is not between {minimum} and {maximum}")
    return number


def boolean(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(argument, value, "is neither True nor False")
    return value


def seconds(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(argument, value, "is no number of seconds")
    if not 0 <= value <= sys.float_info.max:
        raise InvalidArgument(argument, value, "is no finite number of seconds from 0 on")
    return float(value)


def consumer_group(
    member: object, size: object, arguments: tuple[str, str] = ("consumer_group_member", "consumer_group_size")
) -> tuple[int | None, int | None]:
    if member is None and size is None:
        return None, None
    if member is None:
        raise InvalidArgument(arguments[0], member, f"is needed with {arguments[1]}={size!r}")
    if size is None:
        raise InvalidArgument(arguments[1], size, f"is needed with {arguments[0]}={member!r}")
    of = integer(arguments[1], size, minimum=1, maximum=names.MAX_GROUP_SIZE)
    return integer(arguments[0], member, minimum=0, maximum=of - 1), of


def new_ids(number: int) -> list[str]:
    """UUIDs of version 7 (RFC 9562, section 5.7), in ascending order.

    They begin with the time, so that an index of ids grows at its end, where random ones fall on as many of its pages.
    After 48 bits of milliseconds, 12 go on counting in 4096ths of one (section 6.2, method 3); 62 are random.
    """
    ticks = (time.time_ns() << 12) // 1_000_000
    randoms = memoryview(os.urandom(8 * number)).cast("Q")
    digits = (f"{tick:015x}{bits >> 2 | _VARIANT:016x}" for tick, bits in enumerate(randoms, ticks))
    return [f"{d[:8]}-{d[8:12]}-7{d[12:15]}-{d[15:19]}-{d[19:]}" for d in digits]


# The two bits that the RFC asks for, before the random ones.
_VARIANT = 0b10 << 62


def message_id(argument: str, value: object) -> str:
    """The id as text; a new one for None."""
    if value is None:
        return new_ids(1)[0]
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(UUID(value))
        except ValueError:
            pass
    raise InvalidArgument(argument, value, "is no UUID")
