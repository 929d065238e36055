"""The functions that split stream names and hash them: category, id, cardinal_id, is_category, hash_64."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from sqlalchemy import Connection

from .support import HELPERS, column, hash_64, value


@pytest.mark.parametrize(
    ("stream_name", "category", "id", "cardinal_id", "is_category"),
    [
        ("account", "account", None, None, True),
        ("account-1", "account", "1", "1", False),
        ("account-1+2", "account", "1+2", "1", False),
        ("account-1+2+3", "account", "1+2+3", "1", False),
        ("account-1-2+3-4", "account", "1-2+3-4", "1-2", False),
        ("account:command", "account:command", None, None, True),
        ("account:command+position-1", "account:command+position", "1", "1", False),
        ("account+x", "account+x", None, None, True),
        ("account-", "account", "", "", False),
        ("account--", "account", "-", "-", False),
        ("account-+2", "account", "+2", "", False),
        ("-1", "", "1", "1", False),
        ("-", "", "", "", False),
        ("", "", None, None, True),
        ("a b-'%\"\\_", "a b", "'%\"\\_", "'%\"\\_", False),
        ("конто-ä+ö", "конто", "ä+ö", "ä", False),
        (None, None, None, None, True),
    ],
)
def test_a_stream_name_splits_at_its_first_dash_and_its_id_at_its_first_plus(
    connection: Connection,
    stream_name: str | None,
    category: str | None,
    id: str | None,
    cardinal_id: str | None,
    is_category: bool,
) -> None:
    found = [value(connection, name, stream_name=stream_name) for name in HELPERS[:4]]
    assert found == [category, id, cardinal_id, is_category]


@pytest.mark.parametrize("hashed", ["", "account", "1", "2", "конто", "a'b\\c%", "x" * 10_000, str(UUID(int=7))])
def test_hash_64_is_the_first_8_bytes_of_the_md5_big_endian_and_signed(connection: Connection, hashed: str) -> None:
    assert value(connection, "hash_64", value=hashed) == hash_64(hashed)


def test_hash_64_has_either_sign(connection: Connection) -> None:
    found = [value(connection, "hash_64", value=str(n)) for n in range(20)]
    assert found == [hash_64(str(n)) for n in range(20)]
    assert min(found) < 0 < max(found)


def test_hash_64_of_null_is_null(connection: Connection) -> None:
    assert value(connection, "hash_64", value=None) is None


@pytest.mark.parametrize(
    ("helper", "builtin"),
    [
        ("category", "split_part("),
        ("id", "strpos("),
        ("cardinal_id", "split_part("),
        ("is_category", "strpos("),
        ("hash_64", "md5("),
    ],
)
def test_the_planner_inlines_the_functions(connection: Connection, helper: str, builtin: str) -> None:
    query = (
        f"SELECT message_store.{helper}(type) FROM message_store.messages WHERE message_store.{helper}(type) IS NULL"
    )
    plan = "\n".join(column(connection, f"EXPLAIN (VERBOSE, COSTS OFF) {query}"))
    output, filter = re.findall("(?:Output|Filter): .*", plan)
    assert builtin in output
    assert builtin in filter
    assert not re.search(r"message_store\.\w+\(", plan)
