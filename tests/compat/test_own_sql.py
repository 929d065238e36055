"""SQL of the caller's own, which read takes."""

from __future__ import annotations

import psycopg2  # type: ignore[import-untyped]
import pytest

from messagedb_sa.compat import MessageDB

from .support import OWN_SQL, numbers


def test_own_sql_runs_with_the_search_path_of_the_connection(url: str, filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", OWN_SQL, position=1, no_of_messages=1)) == [2]
    elsewhere = MessageDB.from_url(url, options="-c search_path=public")
    assert elsewhere.read("account-1") == filled.read("account-1")
    with pytest.raises(psycopg2.errors.UndefinedFunction, match="get_stream_messages"):
        elsewhere.read("account-1", OWN_SQL)
    elsewhere.connection_pool.closeall()


def test_own_sql_gets_the_consumer_group(old: MessageDB) -> None:
    for n in range(20):
        old.write(f"account-{n}", "Opened", {"n": n})
    own = (
        "SELECT * FROM get_category_messages('account', %(position)s::bigint, %(batch_size)s::bigint,"
        " NULL, %(consumer_group_member)s::bigint, %(consumer_group_size)s::bigint);"
    )
    shares = [old.read("account-any", own, 0, 100, member, 2) for member in (0, 1)]
    assert shares == [old.read_category("account", 0, 100, member, 2) for member in (0, 1)]


def test_own_sql_for_all_gets_the_position_as_it_is(filled: MessageDB) -> None:
    own = "SELECT * FROM messages WHERE global_position > %(position)s ORDER BY 3 LIMIT %(batch_size)s"
    assert len(filled.read("$all", own, position=5)) == 2


def test_empty_sql_is_the_same_as_none(filled: MessageDB) -> None:
    assert filled.read("account", "") == filled.read("account")
