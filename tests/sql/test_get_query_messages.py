"""get_query_messages, which we add to Message DB's functions, and that a store without it finds the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, NullPool, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from messagedb_sa import (
    AppendCondition,
    AppendConditionFailed,
    NewMessage,
    Query,
    Store,
    StoreNotInstalled,
    functions,
    install,
    schema,
)
from messagedb_sa.testing import temporary_database

from ..support import as_role, examples, statements_of


@pytest.fixture
def connection(messagedb_engine: Engine, store: Store) -> Iterator[Connection]:
    store.write("course-1", "Opened", {"n": 1}, {"tags": ["course:1"]})
    store.write("course-1", "Closed", {"n": 2}, {"tags": ["course:1", "by:me"]})
    store.write("student-1", "Opened", None)
    with messagedb_engine.connect() as connection:
        yield connection


def found(connection: Connection, queries: Any, batch_size: int | None = None) -> list[int]:
    messages = functions.get_query_messages(queries, batch_size).messages()
    return list(connection.scalars(select(messages.c.global_position)))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"category": "course"}, [1, 2]),
        ({"category": "course", "position": 2}, [2]),
        ({"category": "course", "position": None}, [1, 2]),
        ({"category": "course", "types": [], "tags": []}, [1, 2]),
        ({"category": "course", "types": ["Closed", "Opened"], "tags": ["course:1"]}, [1, 2]),
        ({"category": "course", "types": ["Opened"], "tags": ["by:me"]}, []),
        ({"category": "course", "tags": ["by:me", "course:1", "by:me"]}, [2]),
        ({"category": "none"}, []),
    ],
)
def test_it_returns_what_matches_a_query(connection: Connection, query: dict[str, Any], expected: list[int]) -> None:
    assert found(connection, [query]) == expected


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [1, 2, 3]), (2, [1, 2]), (0, []), (-1, [1, 2, 3])])
def test_it_returns_what_matches_one_of_several_once_and_in_order(
    connection: Connection, batch_size: int | None, expected: list[int]
) -> None:
    queries = [{"category": "student"}, {"category": "course", "types": ["Closed"]}, {"category": "course"}]
    assert found(connection, queries, batch_size) == expected


def test_its_rows_are_messages(connection: Connection) -> None:
    messages = functions.get_query_messages([{"category": "student"}]).messages()
    ((id, *fields, time),) = connection.execute(select(messages))
    assert fields == ["student-1", "Opened", 0, 3, None, None]
    columns = schema.messages.c
    assert (UUID(id), time) == tuple(connection.execute(select(columns.id, columns.time).offset(2)).one())


@pytest.mark.parametrize(
    ("queries", "error"),
    [
        ("[]", "Must have at least one query"),
        (None, "Must have at least one query"),
        ("[{}]", "Must be a category"),
        ('[{"category": null}]', "Must be a category"),
        ('[{"category": "course-1"}]', "Must be a category: course-1"),
        ('[{"category": "course"}, {"category": "a-"}]', "Must be a category: a-"),
    ],
)
def test_queries_that_are_not_queries_are_refused(connection: Connection, queries: Any, error: str) -> None:
    with pytest.raises(DBAPIError, match=error) as caught:
        connection.execute(
            text("SELECT message_store.get_query_messages(CAST(:queries AS jsonb))"), {"queries": queries}
        )
    assert getattr(caught.value.orig, "pgcode", None) == "P0001"


@pytest.mark.parametrize("path", ["", "message_store", "pg_temp"])
def test_it_works_under_any_search_path(connection: Connection, path: str) -> None:
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
    assert found(connection, [{"category": "course", "types": ["Closed"], "tags": ["by:me"]}]) == [2]


def test_the_role_message_store_may_use_it(messagedb_engine: Engine, connection: Connection) -> None:
    acl = text("SELECT proacl::text LIKE '%message_store=X/%' FROM pg_proc WHERE proname = 'get_query_messages'")
    assert connection.scalar(acl) is True
    store = Store(as_role(messagedb_engine, "message_store"))
    sent = statements_of(store.engine)
    condition = store.read_query(Query("course", tags=["by:me"])).condition
    assert store.write_batch("course-1", [("T", {})], condition=condition) == 2
    assert ["message_store.get_query_messages(" in each for each in sent] == [False, True, True]


def test_without_the_role_it_is_granted_to_nobody(empty_database: Engine) -> None:
    install.upgrade(empty_database, role=False)
    with empty_database.connect() as connection:
        acl = text("SELECT proacl FROM pg_proc WHERE proname = 'get_query_messages'")
        assert connection.scalar(acl) is None


def test_who_may_not_use_it_does_without(empty_database: Engine, login: Any) -> None:
    install.upgrade(empty_database)
    writer = login("messagedb_query_writer")
    with empty_database.begin() as connection:
        connection.execute(text(f"GRANT message_store TO {writer}"))
        function = "message_store.get_query_messages(jsonb, bigint)"
        connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC, message_store"))
    store = Store(as_role(empty_database, writer))
    condition = store.read_query(Query("course")).condition
    assert store.write_batch("course-1", [("T", {})], condition=condition) == 0
    with pytest.raises(AppendConditionFailed):
        store.write_batch("course-1", [("T", {})], condition=condition)
    with empty_database.begin() as connection:
        connection.execute(text(f"REVOKE message_store FROM {writer}"))


def test_its_revision_comes_and_goes_under_a_running_store(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0001")
    store = Store(create_engine(empty_database.url, poolclass=NullPool))
    store.write("course-1", "Opened", {})
    condition = store.read_query(Query("course")).condition
    install.upgrade(empty_database)
    assert store.write_batch("course-1", [("T", {})], condition=condition) == 1
    renewed = Store(create_engine(empty_database.url, poolclass=NullPool))
    assert len(renewed.read_query(Query("course"))) == 2
    install.downgrade(empty_database, "messagedb_0001")
    with pytest.raises(StoreNotInstalled, match="get_query_messages"):
        renewed.read_query(Query("course"))
    assert len(renewed.read_query(Query("course"))) == 2


# ---- stores with it, without it, and with the index


names = st.sampled_from(["a", "b", "c"])
some = st.lists(names, max_size=3)
queries = st.lists(st.builds(Query, names, some, some), min_size=1, max_size=3)
written = st.lists(st.tuples(names, st.sampled_from(["1", "2"]), names, st.none() | some), max_size=12)


@pytest.fixture(scope="module")
def stores(messagedb_server_url: str) -> Iterator[list[Store]]:
    with (
        temporary_database(messagedb_server_url) as with_it,
        temporary_database(messagedb_server_url) as with_index,
        temporary_database(messagedb_server_url) as without,
    ):
        engines = [create_engine(url) for url in (with_it, with_index, without)]
        for engine, revision in zip(engines, ("head", "head", "messagedb_0001"), strict=True):
            install.upgrade(engine, revision)
        with engines[1].begin() as connection:
            connection.execute(CreateIndex(schema.tags_index()))
        yield [Store(engine) for engine in engines]
        for engine in engines:
            engine.dispose()


def matches(query: Query, message: Any) -> bool:
    tags = (message.metadata or {}).get("tags", [])
    return (
        message.category == query.category
        and (not query.types or message.type in query.types)
        and set(query.tags) <= set(tags)
    )


@settings(max_examples=examples(150))
@given(written, queries, st.integers(0, 12), st.integers(-1, 4))
def test_all_stores_find_what_a_search_through_all_messages_finds(
    stores: list[Store], history: list[Any], asked: list[Query], position: int, limit: int
) -> None:
    for store in stores:
        with store.engine.begin() as connection:
            connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
            for category, id, type_, tags in history:
                metadata = None if tags is None else {"tags": tags}
                Store(connection).write_batch(f"{category}-{id}", [NewMessage(type_, {}, metadata)])
        everything = store.read("$all", no_of_messages=-1)
        expected = [message for message in everything if any(matches(query, message) for query in asked)]
        from_there = [message for message in expected if message.global_position >= position]
        assert store.read_query(asked) == expected
        limited = from_there if limit == -1 else from_there[:limit]
        assert store.read_query(asked, position, limit) == limited
        assert list(store.iter_query(asked, position, batch_size=max(limit, 1))) == from_there
        after = AppendCondition(asked, {query.category: position for query in asked})
        conflict = next((message for message in expected if message.global_position > position), None)
        if conflict is None:
            assert store.write_batch("z-1", [("T", {})], condition=after) == 0
        else:
            with pytest.raises(AppendConditionFailed) as caught:
                store.write_batch("z-1", [("T", {})], condition=after)
            error = caught.value
            assert (error.stream_name, error.type, error.global_position) == (
                conflict.stream_name,
                conflict.type,
                conflict.global_position,
            )


def test_a_store_that_upstreams_scripts_installed_will_do(official: Engine) -> None:
    session = {"options": "-c search_path=message_store,public"}
    store = Store(create_engine(official.url, poolclass=NullPool, connect_args=session))
    never = AppendCondition([Query("course", ["Opened"], ["course:1"]), Query("limit")])
    opened = NewMessage("Opened", {}, {"tags": ["course:1"]})
    assert store.write_batch("course-1", [opened], condition=never) == 0
    with pytest.raises(AppendConditionFailed):
        store.write_batch("course-1", [opened], condition=never)
    known = store.read_query(never.queries)
    assert [message.type for message in known] == ["Opened"]
    assert store.write_streams([("note-1", [("T", {})]), ("course-1", [], 0)], condition=known.condition) == {
        "note-1": 0
    }
