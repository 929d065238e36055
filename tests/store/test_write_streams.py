"""Writing to several streams at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import (
    NO_STREAM,
    DuplicateMessageId,
    InvalidArgument,
    NewMessage,
    Store,
    StreamWrite,
    WrongExpectedVersion,
    install,
)
from messagedb_sa.testing import temporary_server

from ..waits import released_together


def test_several_streams_are_written_each_with_its_own_expected_version(store: Store) -> None:
    store.write("order-1", "Placed", {})
    written = store.write_streams(
        [
            StreamWrite("order-1", [("Paid", {}), ("Shipped", {}, {"by": "me"})], expected_version=0),
            ("bill-1", [("Sent", {})], NO_STREAM),
            ("note-1", iter([("Taken", {})])),
        ]
    )
    assert written == {"order-1": 2, "bill-1": 0, "note-1": 0}
    assert [message.type for message in store.read("order-1")] == ["Placed", "Paid", "Shipped"]
    assert len(store.read("$all")) == 5


@pytest.mark.parametrize("revision", ["messagedb_0001", "head"])
def test_names_and_types_may_have_any_characters(empty_database: Engine, revision: str) -> None:
    install.upgrade(empty_database, revision)
    store = Store(empty_database)
    types = ['"', "\\", '\\"', "{", "}", ",", "{a,b}", "NULL", "null", " ", "%s", ":a", "é", "𝄞", "'", "\n"]
    data: list[Any] = [None, {}, [], [None], "null", '"', 0, {"a": [1, {"b": None}]}, "[1]", False]
    written = store.write_streams(
        [(f"order-{name}", [(type_, value) for type_ in types for value in data]) for name in types]
    )
    assert written == {f"order-{name}": len(types) * len(data) - 1 for name in types}
    for name in written:
        found = [(message.type, message.data) for message in store.read_stream(name)]
        assert found == [(type_, value) for type_ in types for value in data]


@pytest.mark.parametrize("wrong", ["order-1", "bill-1"])
def test_one_wrong_version_writes_to_none_of_them(store: Store, wrong: str) -> None:
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write_streams(
            [(name, [("A", {}), ("B", {})], 5 if name == wrong else NO_STREAM) for name in ("order-1", "bill-1")]
        )
    assert (caught.value.stream_name, caught.value.expected_version, caught.value.actual_version) == (wrong, 5, -1)
    assert store.read("$all") == []


def test_a_duplicate_id_writes_to_none_of_them(store: Store) -> None:
    id = uuid4()
    with pytest.raises(DuplicateMessageId) as caught:
        store.write_streams([("order-1", [NewMessage("A", {}, id=id)]), ("bill-1", [NewMessage("B", {}, id=id)])])
    assert caught.value.id == str(id)
    assert store.read("$all") == []


@pytest.mark.parametrize(
    ("writes", "argument"),
    [
        ([], "writes"),
        (None, "writes"),
        ([("order-1", [])], "writes[0].messages"),
        ([("order-1", [("A", {})]), ("order-1", [("A", {})])], "writes[1].stream_name"),
        ([("order-1", [("A", {})], -2)], "writes[0].expected_version"),
        ([("order-1", [("A", {}), ("B",)])], "writes[0].messages[1]"),
        ([("order-1", [("A", {"n": float("nan")})])], "writes[0].messages[0].data"),
        (["order-1"], "writes[0]"),
        ([("", [("A", {})])], "writes[0].stream_name"),
    ],
)
def test_bad_writes_are_refused_by_name(store: Store, writes: Any, argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        store.write_streams(writes)
    assert caught.value.argument == argument
    assert store.read("$all") == []


@pytest.mark.parametrize("revision", ["messagedb_0001", "head"])
def test_each_stream_reads_only_what_is_written_to_it(empty_database: Engine, revision: str) -> None:
    install.upgrade(empty_database, revision)

    def explained(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters

    def blocks_read(number: int) -> int:
        """From temporary files: what does not fit into the memory, and each time that it is read."""
        writes: list[Any] = [(f"a-{number}-{n}", [("T", {"text": "x" * 1000})], NO_STREAM) for n in range(number)]
        with empty_database.begin() as connection:
            operation = Store(connection)._operations.write_streams(writes)
            statement = operation.without_our_functions if revision == "messagedb_0001" else operation.statement
            assert statement is not None
            connection.execute(text("SET LOCAL work_mem = '64kB'"))
            event.listen(connection, "before_cursor_execute", explained, retval=True)
            ((((plan,),),),) = [connection.execute(statement, operation.parameters).cursor.fetchall()]
        return int(plan["Plan"]["Temp Read Blocks"])

    few, many = blocks_read(100), blocks_read(1000)
    assert few > 0
    assert many < 20 * few
    assert len(Store(empty_database).read_category("a", no_of_messages=-1)) == 1100


def test_more_categories_than_the_server_has_locks_for_are_refused() -> None:
    settings = {"max_locks_per_transaction": "10", "max_connections": "10"}
    with temporary_server(settings=settings) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        store = Store(engine)
        writes: list[Any] = [(f"a{n}-1", [("T", {})]) for n in range(5000)]
        with pytest.raises(InvalidArgument, match="max_locks_per_transaction") as caught:
            store.write_streams(writes)
        assert caught.value.argument == "writes"
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert store.read("$all") == []
        # Streams of one category share its lock.
        assert len(store.write_streams([(f"a-{n}", [("T", {})]) for n in range(5000)])) == 5000
        engine.dispose()


def test_calls_with_the_streams_in_opposite_orders_do_not_deadlock(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=4)
    names = [f"{category}-1" for category in "abcdefgh"]

    def write(n: int) -> None:
        for _ in range(25):
            Store(engine).write_streams([(name, [("T", {})]) for name in (names if n % 2 else reversed(names))])

    with ThreadPoolExecutor(4) as threads:
        # Each waits for this lock, or for one of those that wait for it.
        with released_together(store.engine, "a-1", 4):
            writing = [threads.submit(write, n) for n in range(4)]
        for each in writing:
            each.result()
    engine.dispose()
    assert [store.stream_version(name) for name in names] == [99] * 8


def test_single_writes_in_opposite_orders_can_deadlock(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c deadlock_timeout=50"})
    barrier = Barrier(2, timeout=60)

    def write(first: str, second: str) -> str:
        try:
            with engine.begin() as connection:
                Store(connection).write(first, "T", {})
                barrier.wait()
                Store(connection).write(second, "T", {})
            return "written"
        except DBAPIError as error:
            return str(error.orig.pgcode)  # type: ignore[union-attr]

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(write, ("a-1", "b-1"), ("b-1", "a-1")))
    engine.dispose()
    assert sorted(outcomes) == ["40P01", "written"]
