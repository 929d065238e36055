"""write_messages, which we add to Message DB's functions: what it does, and that a store without it does the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, NullPool, create_engine, null, select, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import (
    DuplicateMessageId,
    NewMessage,
    Store,
    StoreNotInstalled,
    WrongExpectedVersion,
    functions,
    install,
)
from messagedb_sa.errors import MessageDBError
from messagedb_sa.testing import temporary_database

from ..support import as_role, examples, numbers, statements_of, store_on

UPSTREAM = "messagedb_0001"


@pytest.fixture
def upstream(empty_database: Engine) -> Engine:
    """A store with Message DB's own functions only."""
    install.upgrade(empty_database, UPSTREAM)
    return empty_database


# ---- the function


def call(connection: Connection, **changed: Any) -> int | None:
    arguments: dict[str, Any] = {
        "ids": [uuid4(), uuid4()],
        "stream_name": "account-1",
        "types": ["Opened", "Deposited"],
        "data": [{"n": 0}, None],
    }
    return connection.scalars(select(functions.write_messages(**{**arguments, **changed}))).one()


@pytest.fixture
def connection(messagedb_engine: Engine, store: Store) -> Iterator[Connection]:
    with messagedb_engine.connect() as connection:
        yield connection


def test_it_writes_the_messages_in_order_and_gives_the_position_of_the_last(connection: Connection) -> None:
    ids = [str(uuid4()) for _ in range(100)]
    written = call(connection, ids=ids, types=[f"T{n}" for n in range(100)], data=[{"n": n} for n in range(100)])
    assert written == 99
    messages = Store(connection).read_stream("account-1")
    assert [message.id for message in messages] == ids
    assert numbers(messages) == [message.position for message in messages] == list(range(100))
    assert [message.type for message in messages] == [f"T{n}" for n in range(100)]
    assert [message.metadata for message in messages] == [None] * 100
    globals_ = [message.global_position for message in messages]
    assert globals_ == list(range(globals_[0], globals_[0] + 100))
    assert len({message.time for message in messages}) == 1


def test_none_among_data_and_metadata_is_null(connection: Connection) -> None:
    assert call(connection, metadata=[None, {"by": "me"}]) == 1
    nulls = text("SELECT data IS NULL, metadata IS NULL FROM message_store.messages ORDER BY position")
    assert [tuple(row) for row in connection.execute(nulls)] == [(False, True), (True, False)]


def test_the_expected_version_is_that_of_the_first_message(connection: Connection) -> None:
    assert call(connection, expected_version=-1) == 1
    assert call(connection, expected_version=1) == 3
    expected = r"Wrong expected version: 2 \(Stream: account-1, Stream Version: 3\)"
    with pytest.raises(DBAPIError, match=expected) as caught:
        call(connection, expected_version=2)
    assert getattr(caught.value.orig, "pgcode", None) == "P0001"


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": [], "types": [], "data": []},
        {"types": ["Opened"]},
        {"data": [{}]},
        {"data": [{}, {}, {}]},
        {"metadata": [{}]},
        {"types": null()},
        {"ids": null()},
        {"data": {"n": 1}},
        {"metadata": {"n": 1}},
    ],
)
def test_arrays_that_do_not_go_together_are_refused(connection: Connection, changed: dict[str, Any]) -> None:
    with pytest.raises(
        DBAPIError, match=r"Ids, types, data and metadata must be arrays of the same length, at least 1 \(Stream: acc"
    ):
        call(connection, **changed)


def test_it_reports_its_arguments_if_a_debug_setting_is_on(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute(text("SET LOCAL message_store.debug_write = on"))
    with caplog.at_level("INFO", "sqlalchemy.dialects.postgresql"):
        call(connection)
    assert "write_messages(ids => {" in caplog.text
    assert "last position 1" in caplog.text


@pytest.mark.parametrize("path", ["", "message_store", "pg_temp"])
def test_it_works_under_any_search_path(connection: Connection, path: str) -> None:
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
    assert call(connection, metadata=[{}, {}]) == 1


def test_the_role_message_store_may_use_it_and_writes_by_it(messagedb_engine: Engine, store: Store) -> None:
    engine = as_role(messagedb_engine, "message_store")
    with engine.connect() as connection:
        granted = text("SELECT has_function_privilege(oid, 'EXECUTE') FROM pg_proc WHERE proname = 'write_messages'")
        assert connection.scalar(granted) is True
        acl = text("SELECT proacl::text LIKE '%message_store=X/%' FROM pg_proc WHERE proname = 'write_messages'")
        assert connection.scalar(acl) is True
    seen = statements_of(engine)
    assert Store(engine).write_batch("account-1", [("Opened", {"n": 1})]) == 0
    assert "message_store.write_messages(" in seen[-1]


def test_without_the_role_it_is_granted_to_nobody(empty_database: Engine) -> None:
    install.upgrade(empty_database, role=False)
    with empty_database.connect() as connection:
        acl = text("SELECT proacl FROM pg_proc WHERE proname = 'write_messages'")
        assert connection.scalar(acl) is None


# ---- stores with and without it


def test_a_store_that_upstream_alone_installed_will_do(upstream: Engine) -> None:
    store = Store(upstream)
    seen = statements_of(upstream)
    assert store.write_batch("account-1", [("Opened", {"n": 0}), ("Deposited", {"n": 1})], expected_version=-1) == 1
    assert store.write_streams([("account-1", [("Closed", {"n": 2})], 1), ("order-1", [("Placed", {})])]) == {
        "account-1": 2,
        "order-1": 0,
    }
    assert numbers(store.read("account-1")) == [0, 1, 2]
    assert not any("message_store.write_messages(" in statement for statement in seen)


def test_it_is_asked_for_once_per_engine(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url)
    seen = statements_of(engine)
    for bind in (engine, engine, engine.execution_options(logging_token="other")):
        Store(bind).write_batch("account-1", [("Opened", {})])
    with engine.begin() as connection:
        Store(connection).write_streams([("account-1", [("Opened", {})])])
    engine.dispose()
    Store(engine).write_batch("account-1", [("Opened", {})])
    assert [("to_regprocedure" in statement) for statement in seen] == [True, False, False, False, False, False]
    engine.dispose()


def test_who_may_not_use_it_writes_without(messagedb_engine: Engine, upstream: Engine, login: Any) -> None:
    install.upgrade(upstream)
    writer = login("messagedb_writer")
    with upstream.begin() as connection:
        connection.execute(text(f"GRANT message_store TO {writer}"))
        revoked = "message_store.write_messages(varchar[], varchar, varchar[], jsonb, jsonb, bigint)"
        connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {revoked} FROM PUBLIC, message_store"))
    store = Store(as_role(upstream, writer))
    assert store.write_batch("account-1", [("Opened", {"n": 0}), ("Opened", {"n": 1})]) == 1
    with upstream.begin() as connection:
        connection.execute(text(f"REVOKE message_store FROM {writer}"))


def test_taken_away_under_a_running_engine_it_is_missed_once(messagedb_url: str, upstream: Engine) -> None:
    install.upgrade(upstream)
    store = Store(upstream)
    assert store.write_batch("account-1", [("Opened", {})]) == 0
    install.downgrade(upstream, UPSTREAM)
    with pytest.raises(StoreNotInstalled, match="write_messages"):
        store.write_batch("account-1", [("Opened", {})])
    assert store.write_batch("account-1", [("Opened", {})]) == 1


def test_its_revision_comes_and_goes_without_touching_a_message(upstream: Engine) -> None:
    store = Store(upstream)
    store.write_batch("account-1", [("Opened", {"n": 0}), ("Deposited", {"n": 1})])
    before = store.read("$all")
    install.upgrade(upstream)
    assert Store(create_engine(upstream.url, poolclass=NullPool)).write_batch("order-1", [("Placed", {})]) == 0
    install.downgrade(upstream, UPSTREAM)
    assert store.read("account") == before
    with upstream.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_proc WHERE proname = 'write_messages'")) == 0


# A few ids and streams, so that they meet each other.
IDS = [UUID(int=n) for n in range(6)]
STREAMS = ["account-1", "account-2", "account", "order-1", "é-😀"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
messages = st.builds(
    NewMessage,
    st.sampled_from(["Opened", 'with "quotes", {commas} and \\', "ü", "null", "", "\0", "\ud800"]),
    json_values,
    st.none() | json_values,
    st.none() | st.sampled_from(IDS) | st.just("no id"),
)
batches = st.lists(messages, min_size=0, max_size=4)
versions = st.none() | st.integers(-1, 4)
calls = st.tuples(st.just("write_batch"), st.sampled_from(STREAMS), batches, versions) | st.tuples(
    st.just("write_streams"),
    st.lists(st.tuples(st.sampled_from(STREAMS), batches, versions), max_size=3, unique_by=lambda write: write[0]),
)


def outcome(store: Store, call: Any) -> Any:
    method, *arguments = call
    try:
        return getattr(store, method)(*arguments)
    except MessageDBError as error:
        return type(error), str(error), vars(error).keys()


class Twins:
    """A store with write_messages and one without."""

    def __init__(self, *engines: Engine) -> None:
        self.engines = engines

    def empty(self) -> None:
        for engine in self.engines:
            with engine.begin() as connection:
                connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))

    def contents(self, *binds: Connection) -> list[Any]:
        """All messages of both, but for the time and the ids that were made up."""
        known = {str(id) for id in IDS}
        return [
            [
                message._replace(id=message.id if message.id in known else "", time=message.time.min)
                for message in Store(bind).read("$all")
            ]
            for bind in binds or self.engines
        ]


@pytest.fixture(scope="module", params=["psycopg2", "asyncpg"])
def twins(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[tuple[Twins, list[Store]]]:
    with temporary_database(messagedb_server_url) as with_it, temporary_database(messagedb_server_url) as without:
        install.upgrade(create_engine(with_it, poolclass=NullPool))
        install.upgrade(create_engine(without, poolclass=NullPool), UPSTREAM)
        with store_on(request.param, with_it) as new, store_on(request.param, without) as old:
            engines = [create_engine(url) for url in (with_it, without)]
            yield Twins(*engines), [new, old]
            for engine in engines:
                engine.dispose()


@settings(max_examples=examples(150))
@given(st.lists(calls, max_size=6))
def test_a_store_with_it_and_one_without_do_the_same(twins: tuple[Twins, list[Store]], history: list[Any]) -> None:
    both, (new, old) = twins
    both.empty()
    for each in history:
        assert outcome(new, each) == outcome(old, each), each
    with_it, without = both.contents()
    assert with_it == without


@settings(max_examples=examples(100))
@given(st.lists(calls, max_size=6))
def test_in_the_callers_transaction_too(twins: tuple[Twins, list[Store]], history: list[Any]) -> None:
    both, _ = twins
    both.empty()
    connections = [engine.connect() for engine in both.engines]
    try:
        for each in history:
            found = []
            for connection in connections:
                savepoint = connection.begin_nested()
                found.append(outcome(Store(connection), each))
                # Usable after a wrong version; to be rolled back after a duplicate.
                if found[-1].__class__ is tuple and found[-1][0] is DuplicateMessageId:
                    savepoint.rollback()
                else:
                    savepoint.commit()
            assert found[0] == found[1], each
        contents = [
            [message._replace(id="", time=message.time.min) for message in Store(c).read("$all")] for c in connections
        ]
        assert contents[0] == contents[1]
    finally:
        for connection in connections:
            connection.close()


def test_a_conflict_says_the_same_by_both_ways(twins: tuple[Twins, list[Store]]) -> None:
    both, stores = twins
    both.empty()
    for store in stores:
        store.write_batch("account-1", [("Opened", {}), ("Deposited", {})])
        with pytest.raises(WrongExpectedVersion) as caught:
            store.write_batch("account-1", [("Closed", {}), ("Closed", {})], expected_version=0)
        assert (caught.value.stream_name, caught.value.expected_version, caught.value.actual_version) == (
            "account-1",
            0,
            1,
        )
        assert len(store.read("account-1")) == 2
