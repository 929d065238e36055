"""How PostgreSQL finds what the store asks for: by an index, in order, without reading what is not asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import InvalidArgument, Store, install, schema
from messagedb_sa.postgres import temporary_database
from messagedb_sa.stream_name import consumer_group_member

from .conftest import restored

# 40 streams in each of two categories, 500 messages in each; one member of a group of ten reads 4 of them or so. With
# few categories and messages, going through all of them looks cheap to PostgreSQL.
FILL = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT CASE n % 2 WHEN 0 THEN 'account-' ELSE 'order-' END || (n / 2) % 40, n / 80, 'Opened', '{}',
        '{"correlationStreamName": "transfer-1"}'
    FROM generate_series(0, 39999) AS n
"""


def filled(server_url: str, *more: Any) -> Iterator[str]:
    with temporary_database(server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text(FILL))
            for each in more:
                connection.execute(each)
        yield url


@pytest.fixture(scope="module")
def plain(messagedb_server_url: str) -> Iterator[str]:
    yield from filled(messagedb_server_url, text("ANALYZE message_store.messages"))


@pytest.fixture(scope="module", params=["analyzed", "not analyzed"])
def grouped(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[str]:
    """With the index for groups of ten. Not analyzed: PostgreSQL knows nothing of what the index holds."""
    steps = [text("ANALYZE message_store.messages"), CreateIndex(schema.consumer_group_index(10))]
    yield from filled(messagedb_server_url, *(reversed(steps) if request.param == "analyzed" else steps))


def plans(url: str, call: Callable[[Store], Any], caplog: pytest.LogCaptureFixture) -> list[str]:
    """The plan of each statement that the call runs on the table, inside of functions too, as it was executed."""
    engine = create_engine(url, poolclass=NullPool)

    def explain(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("LOAD 'auto_explain'")
            for setting in (
                "log_min_duration = 0",
                "log_nested_statements = on",
                "log_analyze = on",
                "log_timing = off",
            ):
                cursor.execute(f"SET auto_explain.{setting}")
            cursor.execute("SET client_min_messages = log")
        connection.commit()
        connection.notices.clear()

    event.listen(engine, "connect", explain)
    caplog.clear()
    with caplog.at_level("INFO", "sqlalchemy.dialects.postgresql"):
        call(Store(engine))
    found = [record.getMessage() for record in caplog.records if "plan:" in record.getMessage()]
    return [plan for plan in found if re.search(r" on messages\b", plan)]


READS: dict[str, tuple[str, Callable[[Store], Any]]] = {
    "a stream": ("Index Scan using messages_stream", lambda store: store.read_stream("account-7", 100, 50)),
    "a category": ("Index Scan using messages_category", lambda store: store.read_category("account", 20_000, 50)),
    "a category to its end": (
        "Index Scan using messages_category",
        lambda store: store.read_category("account", 39_900, -1),
    ),
    "a category by correlation": (
        "Index Scan using messages_category",
        lambda store: store.read_category("account", 20_000, 50, correlation="transfer"),
    ),
    "all": ("Index Scan using messages_pkey", lambda store: store.read("$all", position=20_000, no_of_messages=50)),
    "the last message": (
        "Index Scan Backward using messages_stream",
        lambda store: store.read_last_message("account-7"),
    ),
    "a stream's version": (
        "Index Only Scan Backward using messages_stream",
        lambda store: store.stream_version("account-7"),
    ),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_takes_from_its_index_what_it_gives_and_no_more(
    plain: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    by, call = READS[read]
    (plan,) = plans(plain, call, caplog)
    assert by in plan
    assert "Rows Removed" not in plan
    assert "Sort" not in plan


READS_OF_THE_END: dict[str, Callable[[Store], Any]] = {
    "on from there": lambda store: store.read_category("account", 40_000),
    "by correlation": lambda store: store.read_category("account", 40_000, correlation="transfer"),
    "where a consumer begins": lambda store: store._run(store._operations.category_end("account")),
}


@pytest.mark.parametrize("read", READS_OF_THE_END)
def test_a_reader_at_the_end_of_its_category_does_not_meet_what_others_wrote_after_it(
    messagedb_server_url: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nearly all messages are of its category, so that going by global position looks as good to PostgreSQL."""
    others = text(FILL.replace("account", "invoice").replace("0, 39999", "40000, 40999"))
    for url in filled(
        messagedb_server_url, text("DELETE FROM message_store.messages WHERE stream_name LIKE 'order-%'")
    ):
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.execute(text("ANALYZE message_store.messages"))
            connection.execute(others)
        (plan,) = plans(url, READS_OF_THE_END[read], caplog)
        assert re.search("Index( Only)? Scan( Backward)? using messages_category", plan)
        assert "Rows Removed" not in plan


def test_a_plan_that_was_made_for_an_empty_store_serves_a_full_one(
    messagedb_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL keeps the plan for as long as the session lasts, or until the table is analyzed."""

    def read(store: Store) -> None:
        with store.engine.connect() as connection:
            joined = Store(connection)
            for _ in range(10):
                assert joined.read_category("account") == joined.read_stream("account-7") == []
            connection.execute(text(FILL))
            assert len(joined.read_category("account", 39_900)) == 50
            assert len(joined.read_stream("account-7", 490)) == 10

    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        category, stream = plans(url, read, caplog)[-2:]
    assert "Index Scan using messages_category" in category
    assert "Index Scan using messages_stream" in stream
    assert "Rows Removed" not in category + stream
    assert "Sort" not in category + stream


def test_a_write_looks_up_the_version_by_the_index(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    version, insert = plans(plain, lambda store: store.write("account-7", "Opened", {}), caplog)
    assert "Index Only Scan Backward using messages_stream" in version
    assert "Insert on messages" in insert
    version, insert = plans(plain, lambda store: store.write_batch("account-7", [("Opened", {})] * 3), caplog)
    assert "Index Only Scan Backward using messages_stream" in version
    assert "Insert on messages" in insert


@pytest.mark.parametrize("position", [0, 1, 20_000, 39_000])
@pytest.mark.parametrize("member", range(10))
def test_with_its_index_a_member_reads_its_own_messages_only(
    grouped: str, member: int, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    (plan,) = plans(grouped, lambda store: store.read_category("account", position, 20, member, 10), caplog)
    assert "Index Scan using messages_consumer_group_of_10" in plan
    assert "Rows Removed" not in plan
    assert "Sort" not in plan


def test_with_it_each_message_is_its_members_and_no_others(grouped: str) -> None:
    store = Store(create_engine(grouped, poolclass=NullPool))
    shares = [list(store.iter_category("account", 1, member, 10)) for member in range(10)]
    assert sorted(message.global_position for share in shares for message in share) == list(range(1, 40_000, 2))
    for member, share in enumerate(shares):
        assert {consumer_group_member(message.stream_name, 10) for message in share} == {member}


def test_a_group_of_another_size_and_no_group_read_as_before(grouped: str, caplog: pytest.LogCaptureFixture) -> None:
    (plan,) = plans(grouped, lambda store: store.read_category("account", 0, 20, 3, 7), caplog)
    assert "messages_consumer_group_of_10" not in plan
    (plan,) = plans(grouped, lambda store: store.read_category("account", 0, 20), caplog)
    assert "Index Scan using messages_category" in plan


def test_without_it_the_functions_are_part_of_the_plan(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    (plan,) = plans(plain, lambda store: store.read_category("account", 0, 20, 3, 10), caplog)
    assert "Index Scan using messages_category" in plan
    condition = plan.partition("Filter: ")[2]
    assert "md5(" in condition
    assert "message_store." not in condition


def test_the_index_survives_dump_and_restore(
    grouped: str, messagedb_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with restored(grouped, messagedb_server_url) as copy:
        engine = create_engine(copy, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("ANALYZE message_store.messages"))
        assert len(Store(engine).read_category("account", no_of_messages=-1)) == 20_000
        (plan,) = plans(copy, lambda store: store.read_category("account", 0, 20, 3, 10), caplog)
        assert "Index Scan using messages_consumer_group_of_10" in plan


@pytest.mark.parametrize("size", [0, -1, 32_768, 1.5, "10", None, True])
def test_a_size_that_no_group_can_have_is_refused(size: Any) -> None:
    with pytest.raises(InvalidArgument, match="size="):
        schema.consumer_group_index(size)


def test_the_index_is_no_part_of_the_stores_metadata() -> None:
    before = {index.name for index in schema.messages.indexes}
    index = schema.consumer_group_index(10, postgresql_concurrently=True)
    assert {index.name for index in schema.messages.indexes} == before
    assert index.name == "messages_consumer_group_of_10"
    assert index.dialect_options["postgresql"]["concurrently"] is True


def test_it_is_made_beside_running_writers(messagedb_engine: Engine, store: Store) -> None:
    """As the README shows: concurrently, outside of a transaction."""
    name = "message_store.messages_consumer_group_of_3"
    index = CreateIndex(schema.consumer_group_index(3, postgresql_concurrently=True), if_not_exists=True)
    with messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(index)
        connection.execute(index)
        valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = CAST(:name AS regclass)")
        assert connection.scalar(valid, {"name": name}) is True
        connection.execute(text(f"DROP INDEX {name}"))
