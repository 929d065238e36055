"""Stream names, taken apart in Python exactly as the database's functions of the same names do it.

A stream name is ``category[:type[+type]][-id[+id]]``: only the first ``-`` splits, and the id may hold more of them.
"""

from __future__ import annotations

from hashlib import md5

from messagedb_sa.errors import InvalidArgument

__all__ = ["MAX_GROUP_SIZE", "cardinal_id", "category", "consumer_group_member", "hash_64", "id", "is_category"]

MAX_GROUP_SIZE = 32_767
"""The largest consumer group: get_category_messages casts the size to smallint."""


def category(stream_name: str) -> str:
    """What stands before the first ``-``; the whole name where there is none."""
    return stream_name.partition("-")[0]


def id(stream_name: str) -> str | None:
    """What stands after the first ``-``; None where there is none."""
    _, separator, rest = stream_name.partition("-")
    return rest if separator else None


def cardinal_id(stream_name: str) -> str | None:
    """The id up to its first ``+``; None where there is no id."""
    stream_id = id(stream_name)
    return None if stream_id is None else stream_id.partition("+")[0]


def is_category(stream_name: str) -> bool:
    return "-" not in stream_name


def hash_64(value: str) -> int:
    """The first 8 bytes of the MD5 of the text in UTF-8, as a signed big-endian number: from -2**63 to 2**63 - 1.

    The database hashes the text in its own encoding, which must be UTF-8 for the two to agree.
    """
    return int.from_bytes(md5(value.encode(), usedforsecurity=False).digest()[:8], "big", signed=True)


def consumer_group_member(stream_name: str, size: int) -> int | None:
    """The member, from 0 to ``size - 1``, that reads the stream in a consumer group of this size (1 to 32767).

    None for a stream without an id: get_category_messages gives it to no member.
    """
    if not 1 <= size <= MAX_GROUP_SIZE:
        raise InvalidArgument("size", size, f"a consumer group has 1 to {MAX_GROUP_SIZE} members")
    cardinal = cardinal_id(stream_name)
    return None if cardinal is None else abs(hash_64(cardinal)) % size
