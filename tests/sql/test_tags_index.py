"""The index on tags, and how PostgreSQL finds what matches a query with it and without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import AppendCondition, AppendConditionFailed, Query, Store, install, schema
from messagedb_sa.testing import temporary_database

from ..support import restored
from .test_plans import plans

# Two categories with 20,000 messages each, the courses' with odd global positions. The tag of a course is on 20
# messages, and "rare" is on none of category course.
FILL = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT CASE n % 2 WHEN 0 THEN 'course-' ELSE 'order-' END || (n / 2) % 40, n / 80, 'Opened', '{}',
        CASE WHEN n % 2 = 1 AND n % 999 = 0 THEN '{"tags": ["rare"]}'
        ELSE jsonb_build_object('tags', jsonb_build_array('course:' || n % 2000, 'all')) END
    FROM generate_series(0, 39999) AS n
"""
# What came in another category since.
FILL_MORE = """
    INSERT INTO message_store.messages (stream_name, position, type, data)
    SELECT 'busy-1', n, 'Opened', '{}' FROM generate_series(0, 9999) AS n
"""
ANALYZE = "ANALYZE message_store.messages"


def filled(server_url: str, *more: Any) -> Iterator[str]:
    with temporary_database(server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            for each in (text(FILL), *more):
                connection.execute(each)
        yield url


@pytest.fixture(scope="module")
def plain(messagedb_server_url: str) -> Iterator[str]:
    yield from filled(messagedb_server_url, text(ANALYZE))


@pytest.fixture(scope="module", params=["analyzed", "not analyzed"])
def indexed(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[str]:
    """Not analyzed: PostgreSQL knows nothing of what the index holds."""
    steps = [text(ANALYZE), CreateIndex(schema.tags_index())]
    steps = [*reversed(steps)] if request.param == "analyzed" else steps
    yield from filled(messagedb_server_url, text(FILL_MORE), *steps)


def check(*arguments: Any, after: int = 0) -> Callable[[Store], None]:
    """A conditional write whose check finds nothing; or what it finds, which is refused."""

    def call(store: Store) -> None:
        with store.engine.connect() as connection, suppress(AppendConditionFailed):
            condition = AppendCondition(Query(*arguments), after)
            Store(connection).write_batch("note-1", [("T", {})], condition=condition)

    return call


def of_query(found: list[str]) -> str:
    """The plan in get_query_messages, among those of a call."""
    (plan,) = (each for each in found if "DISTINCT ON" in each)
    return plan


BY_TAG: dict[str, Callable[[Store], Any]] = {
    "a read": lambda store: store.read_query(Query("course", tags=["course:8"])),
    "a read with a limit": lambda store: store.read_query(Query("course", tags=["course:8"]), no_of_messages=5),
    "a read of several tags": lambda store: store.read_query(Query("course", ["Opened"], ["course:8", "all"])),
    "a read by several queries": lambda store: store.read_query(
        [Query("course", tags=["course:8"]), Query("order", tags=["course:9"])]
    ),
    "a check": check("course", [], ["course:8"]),
    "a check that finds nothing": check("course", [], ["rare"]),
}


@pytest.mark.parametrize("call", BY_TAG)
def test_with_the_index_only_messages_with_the_tags_are_read(
    indexed: str, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = of_query(plans(indexed, BY_TAG[call], caplog))
    assert "Bitmap Index Scan on messages_tags" in plan
    assert "messages_category" not in plan
    assert "Seq Scan" not in plan
    removed = [int(number) for number in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
    assert sum(removed) <= 21


@pytest.mark.parametrize("tag", ["all", "course:8"])
def test_with_it_a_check_of_what_is_new_reads_only_that(
    indexed: str, tag: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = of_query(plans(indexed, check("course", [], [tag], after=39_960), caplog))
    assert "messages_tags" not in plan
    assert re.search("Index Scan using messages_(category|pkey)", plan)
    removed = [int(number) for number in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
    assert sum(removed) <= 40


@pytest.mark.parametrize(("limit", "position"), [(50, 1), (50, 20_000), (1, 1)])
def test_with_it_a_read_of_a_frequent_tag_stops_at_its_limit(
    indexed: str, limit: int, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    def read(store: Store) -> None:
        assert len(store.read_query(Query("course", tags=["all"]), position, limit)) == limit

    plan = of_query(plans(indexed, read, caplog))
    assert "messages_tags" not in plan
    assert re.search(rf"messages_category on .*actual rows={limit}\b", plan)


READS_IN_ORDER: dict[str, Callable[[Store], Any]] = {
    "by type": lambda store: store.read_query(Query("course", ["Opened"]), 20_000, 50),
    "by nothing": lambda store: store.read_query(Query("course"), 20_000, 50),
    "a check by type": check("course", ["Closed"], after=39_960),
}


@pytest.mark.parametrize("call", READS_IN_ORDER)
def test_without_tags_the_category_is_read_in_order(indexed: str, call: str, caplog: pytest.LogCaptureFixture) -> None:
    plan = of_query(plans(indexed, READS_IN_ORDER[call], caplog))
    assert "Index Scan using messages_category" in plan
    assert [int(rows) for rows in re.findall(r"messages_category on .*actual rows=(\d+)", plan)] in ([50], [0])


def test_without_the_index_a_read_stops_at_its_limit(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    def read(store: Store) -> None:
        assert len(store.read_query(Query("course", tags=["all"]), 20_000, 50)) == 50

    plan = of_query(plans(plain, read, caplog))
    assert "Index Scan using messages_category" in plan
    assert re.search(r"messages_category on .*actual rows=50", plan)


def test_without_it_a_check_of_what_is_new_reads_only_that(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    plan = of_query(plans(plain, check("course", [], ["rare"], after=39_960), caplog))
    assert "Index Scan using messages_category" in plan
    assert "Rows Removed by Filter: 20" in plan


def test_the_ends_of_the_categories_are_looked_up(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    found = plans(plain, lambda store: store.read_query([Query("course", ["T"]), Query("nobody")]), caplog)
    (plan,) = (each for each in found if "DISTINCT ON" not in each)
    assert (
        "Index Only Scan Backward using messages_category" in plan or "Index Scan Backward using messages_cat" in plan
    )
    assert "Rows Removed" not in plan


def test_messages_without_tags_are_not_in_the_index(messagedb_engine: Engine, store: Store) -> None:
    index = schema.tags_index()
    with messagedb_engine.begin() as connection:
        connection.execute(CreateIndex(index))
        written = connection.scalar(text("SELECT pg_get_indexdef('message_store.messages_tags'::regclass)"))
        connection.execute(text("DROP INDEX message_store.messages_tags"))
    assert "gin (((metadata -> 'tags'::text)) jsonb_path_ops) WHERE ((metadata -> 'tags'::text) IS NOT NULL)" in written


def test_the_index_can_be_created_concurrently_and_is_not_in_the_metadata(
    messagedb_engine: Engine, store: Store
) -> None:
    before = {index.name for index in schema.messages.indexes}
    index = CreateIndex(schema.tags_index(postgresql_concurrently=True), if_not_exists=True)
    assert {index.name for index in schema.messages.indexes} == before
    with messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(index)
        connection.execute(index)
        connection.execute(text("DROP INDEX message_store.messages_tags"))


def test_the_index_survives_dump_and_restore(
    indexed: str, messagedb_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with restored(indexed, messagedb_server_url) as copy:
        engine = create_engine(copy, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(ANALYZE))
        assert len(Store(engine).read_query(Query("course", tags=["course:8"]))) == 20
        assert "messages_tags" in of_query(plans(copy, BY_TAG["a read"], caplog))
