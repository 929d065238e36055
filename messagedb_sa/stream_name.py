"""The parts of a stream name, computed in Python with the same results as the database functions of the same names.

A stream name is ``category[:type[+type]][-id[+id]]``. Only the first ``-`` separates: the id may contain others.

A stream may have no id. Its name is then the name of its category. Writes, ``read_last_message`` and ``stream_version``
use the name as that of the stream. ``read`` and ``read_category`` use it as that of the category, which includes the
stream. ``read_stream`` and ``iter_stream`` refuse it, as Message DB's get_stream_messages does.
"""

from __future__ import annotations

from hashlib import md5

from messagedb_sa.errors import InvalidArgument

__all__ = ["MAX_GROUP_SIZE", "cardinal_id", "category", "consumer_group_member", "hash_64", "id", "is_category"]

MAX_GROUP_SIZE = 32_767
"""The largest size of a consumer group, since Message DB's get_category_messages casts the size to smallint."""


def category(stream_name: str) -> str:
    """The part before the first ``-``, or the whole name if it has no ``-``."""
    # Of a subclass of str, partition may return the instance itself.
    return str.__str__(stream_name).partition("-")[0]


def id(stream_name: str) -> str | None:
    """The part after the first ``-``. None if the name has no ``-``."""
    _, separator, rest = stream_name.partition("-")
    return rest if separator else None


def cardinal_id(stream_name: str) -> str | None:
    """The id up to its first ``+``. None if the name has no id."""
    stream_id = id(stream_name)
    return None if stream_id is None else stream_id.partition("+")[0]


def is_category(stream_name: str) -> bool:
    """True if the name has no ``-``."""
    return "-" not in stream_name


def hash_64(value: str) -> int:
    """The first 8 bytes of the MD5 hash of the UTF-8 text, as a signed big-endian number: -2**63 to 2**63 - 1.

    The database hashes the text in its own encoding. The results agree only if this is UTF-8.
    """
    return int.from_bytes(md5(value.encode(), usedforsecurity=False).digest()[:8], "big", signed=True)


def consumer_group_member(stream_name: str, size: int) -> int | None:
    """The member that reads the stream in a consumer group: 0 to ``size - 1``, for a ``size`` of 1 to 32767.

    None if the stream has no id: Message DB's get_category_messages gives such a stream to no member.
    """
    if not 1 <= size <= MAX_GROUP_SIZE:
        raise InvalidArgument("size", size, f"must be between 1 and {MAX_GROUP_SIZE}")
    cardinal = cardinal_id(stream_name)
    return None if cardinal is None else abs(hash_64(cardinal)) % size
