"""How PostgreSQL finds what the store asks for: by an index, in order, without reading what is not asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.schema import CreateIndex, DropIndex

from messagedb_sa import Entity, InvalidArgument, NotCaughtUp, Store, install, schema, transfer
from messagedb_sa.stream_name import consumer_group_member
from messagedb_sa.testing import temporary_database

from ..support import restored

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
    "a stream backwards": (
        "Index Scan Backward using messages_stream",
        lambda store: store.read_stream("account-7", 300, 50, backwards=True),
    ),
    "a category backwards": (
        "Index Scan Backward using messages_category",
        lambda store: store.read_category("account", no_of_messages=50, backwards=True),
    ),
    "a category backwards by correlation": (
        "Index Scan Backward using messages_category",
        lambda store: store.read_category("account", 20_000, 50, correlation="transfer", backwards=True),
    ),
    "all backwards": (
        "Index Scan Backward using messages_pkey",
        lambda store: store.read("$all", position=20_000, no_of_messages=50, backwards=True),
    ),
    "the last global position of a category": (
        "Index Scan Backward using messages_category",
        lambda store: store.last_global_position("account"),
    ),
    "the last global position of all": (
        "Index Only Scan Backward using messages_pkey",
        lambda store: store.last_global_position("$all"),
    ),
}

EXPORTS = {"$all": "messages_pkey", "account": "messages_category", "account-7": "messages_stream"}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_takes_from_its_index_what_it_gives_and_no_more(
    plain: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = plans(plain, lambda store: transfer.export_messages(store, name, BytesIO(), position=100), caplog)
    pages = [plan for plan in found if "pg_column_size" in plan]
    assert pages
    for plan in pages:
        assert re.search(f"(using|on) {EXPORTS[name]} ", plan)
        assert "Rows Removed" not in plan
        # All of a short stream may be sorted.
        assert name == "account-7" or "Sort" not in plan


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
    "its last global position": lambda store: store.last_global_position("account"),
    "backwards": lambda store: store.read_category("account", no_of_messages=50, backwards=True),
    "as a member": lambda store: store.read_category("account", 40_000, 50, 3, 10),
    "backwards by correlation": lambda store: store.read_category(
        "account", no_of_messages=50, correlation="transfer", backwards=True
    ),
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
                for size in (7, 10):
                    assert joined.read_category("account", 1, 1000, 3, size) == []
                assert joined.read_category("account", correlation="transfer") == []
            connection.execute(text(FILL))
            assert len(joined.read_category("account", 39_900)) == 50
            assert len(joined.read_stream("account-7", 490)) == 10
            assert joined.read_category("account", 39_900, 1000, 3, 7)
            assert joined.read_category("account", 39_900, 1000, 3, 10)
            assert len(joined.read_category("account", 39_900, correlation="transfer")) == 50

    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(CreateIndex(schema.consumer_group_index(10)))
        category, stream, member, member_with_index, correlation = plans(url, read, caplog)[-5:]
    assert "Index Scan using messages_category" in category
    assert "Index Scan using messages_stream" in stream
    assert "Index Scan using messages_category" in member
    assert "Index Scan using messages_consumer_group_of_10" in member_with_index
    assert "Index Scan using messages_category" in correlation
    assert "Rows Removed" not in category + stream + member_with_index + correlation
    assert "Sort" not in category + stream + member + member_with_index + correlation


@pytest.mark.parametrize("messages", [1, 3, 10])
def test_a_plan_that_was_made_for_a_few_messages_serves_many(
    messagedb_server_url: str, messages: int, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL knows that there are so few: the table was analyzed."""

    def read(store: Store) -> None:
        with store.engine.connect() as connection:
            joined = Store(connection)
            for fill in (True, False):
                assert len(joined.read_category("account")) >= messages
                for size in (7, 10):
                    joined.read_category("account", 1, 1000, 3, size)
                joined.read_category("account", correlation="transfer")
                if fill:
                    connection.execute(text(FILL))

    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        for n in range(messages):
            Store(engine).write(f"account-1000{n}", "Opened", {})
        with engine.begin() as connection:
            connection.execute(CreateIndex(schema.consumer_group_index(10)))
            connection.execute(text("ANALYZE message_store.messages"))
        category, member, member_with_index, correlation = plans(url, read, caplog)[-4:]
    for plan in (category, member, correlation):
        assert "Index Scan using messages_category" in plan
    assert "Index Scan using messages_consumer_group_of_10" in member_with_index
    assert "Sort" not in category + member + member_with_index + correlation


def test_a_session_uses_an_index_that_is_made_later_and_does_without_it_once_it_is_dropped(
    messagedb_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    index = schema.consumer_group_index(10)

    def read(store: Store) -> None:
        with store.engine.connect() as connection:
            pages = []
            for change in (None, CreateIndex(index), DropIndex(index)):
                if change is not None:
                    connection.execute(change)
                pages.append(Store(connection).read_category("account", 1, 20, 3, 10))
            assert len(pages[0]) == 20
            assert pages[0] == pages[1] == pages[2]

    for url in filled(messagedb_server_url, text("ANALYZE message_store.messages")):
        before, with_index, after = plans(url, read, caplog)
    assert "Index Scan using messages_consumer_group_of_10" in with_index
    for plan in (before, after):
        assert "Index Scan using messages_category" in plan


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


@pytest.mark.parametrize("position", [None, 39_000, 20_000])
@pytest.mark.parametrize("member", range(10))
def test_with_its_index_a_member_reads_its_own_messages_only_backwards_too(
    grouped: str, member: int, position: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    (plan,) = plans(
        grouped, lambda store: store.read_category("account", position, 20, member, 10, backwards=True), caplog
    )
    assert "Index Scan Backward using messages_consumer_group_of_10" in plan
    assert "Rows Removed" not in plan
    assert "Sort" not in plan


def test_without_its_index_a_member_reads_its_category_backwards(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    (plan,) = plans(plain, lambda store: store.read_category("account", None, 20, 3, 10, backwards=True), caplog)
    assert "Index Scan Backward using messages_category" in plan
    condition = plan.partition("Filter: ")[2]
    assert "md5(" in condition
    assert "message_store." not in condition


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


def test_the_index_is_not_in_the_metadata_of_the_schema() -> None:
    before = {index.name for index in schema.messages.indexes}
    index = schema.consumer_group_index(10, postgresql_concurrently=True)
    assert {index.name for index in schema.messages.indexes} == before
    assert index.name == "messages_consumer_group_of_10"
    assert index.dialect_options["postgresql"]["concurrently"] is True


def test_the_index_can_be_created_concurrently(messagedb_engine: Engine, store: Store) -> None:
    """As the manual shows: concurrently, outside of a transaction."""
    name = "message_store.messages_consumer_group_of_3"
    index = CreateIndex(schema.consumer_group_index(3, postgresql_concurrently=True), if_not_exists=True)
    with messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(index)
        connection.execute(index)
        valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = CAST(:name AS regclass)")
        assert connection.scalar(valid, {"name": name}) is True
        connection.execute(text(f"DROP INDEX {name}"))


# Every message belongs to one of 100 correlations and follows the one before it, up to the tenth; 30,000 more have no
# metadata.
WORK = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT 'work-' || n / 100, n % 100, 'Done', '{}', CASE WHEN n < 10000 THEN
        jsonb_build_object('correlationStreamName', 'job-' || n / 100) || CASE n % 10 WHEN 0 THEN '{}' ELSE
            jsonb_build_object(
                'causationMessageStreamName', 'work-' || n / 100, 'causationMessagePosition', n % 100 - 1
            )
        END
    END FROM generate_series(0, 39999) AS n
"""


@pytest.fixture(scope="module", params=["analyzed", "not analyzed"])
def correlated(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[str]:
    """With the indexes on metadata. Not analyzed: PostgreSQL knows nothing of what they hold."""
    steps: list[Any] = [text("ANALYZE message_store.messages")]
    steps += [CreateIndex(each) for each in (schema.correlation_index(), schema.causation_index())]
    yield from filled(messagedb_server_url, text(WORK), *(reversed(steps) if request.param == "analyzed" else steps))


@pytest.mark.parametrize("position", [0, 40_750])
def test_with_its_index_a_correlation_is_read_alone(
    correlated: str, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    (plan,) = plans(correlated, lambda store: store.read_correlation("job-7", position), caplog)
    assert "messages_correlation" in plan
    assert "Rows Removed" not in plan


def test_with_its_index_effects_are_found_one_by_one(correlated: str, caplog: pytest.LogCaptureFixture) -> None:
    (message,) = Store(create_engine(correlated, poolclass=NullPool)).read_stream("work-7", 40, 1)
    (plan,) = plans(correlated, lambda store: store.read_effects(message), caplog)
    assert "Index Scan using messages_causation" in plan
    assert "Index Scan using messages_stream" in plan
    assert "Seq Scan" not in plan


def test_causes_are_found_by_their_streams_and_positions(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without an index of their own."""
    (message,) = Store(create_engine(plain, poolclass=NullPool)).read_stream("account-7", 40, 1)
    (plan,) = plans(plain, lambda store: store.read_causes(message), caplog)
    assert "Index Scan using messages_stream" in plan
    assert "Seq Scan" not in plan


def test_without_their_indexes_the_table_is_read_as_a_whole(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each step, however many messages that step has."""
    store = Store(create_engine(plain, poolclass=NullPool))
    (message,) = store.read_stream("account-7", 40, 1)
    (plan,) = plans(plain, lambda store: store.read_effects(message), caplog)
    assert re.search(r"Hash Join.*Seq Scan on messages", plan, flags=re.DOTALL)
    (plan,) = plans(plain, lambda store: store.read_correlation("transfer-2"), caplog)
    assert "Seq Scan on messages" in plan


def test_the_indexes_on_metadata_are_not_in_the_metadata_of_the_schema() -> None:
    before = {index.name for index in schema.messages.indexes}
    made = [each(postgresql_concurrently=True) for each in (schema.correlation_index, schema.causation_index)]
    assert {index.name for index in schema.messages.indexes} == before
    assert [index.name for index in made] == ["messages_correlation", "messages_causation"]
    assert all(index.dialect_options["postgresql"]["concurrently"] for index in made)


UNTIL = {None: "messages_category", "account": "messages_category", "account-7": "messages_stream"}


@pytest.mark.parametrize("until", UNTIL)
def test_a_wait_for_a_consumer_looks_up_the_last_message(
    plain: str, until: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def look(store: Store) -> None:
        with pytest.raises(NotCaughtUp):
            store.wait_for_consumer("account", "greeter", until, seconds=0)

    *_, plan = plans(plain, look, caplog)
    assert f"using {UNTIL[until]}" in plan
    assert "Rows Removed" not in plan
    assert "Sort" not in plan


def test_the_last_message_of_all_is_looked_up_from_the_end(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    def look(store: Store) -> None:
        with pytest.raises(NotCaughtUp):
            store.wait_for_consumer("$all", "sums", seconds=0)

    *_, plan = plans(plain, look, caplog)
    assert "Index Scan Backward using messages_pkey" in plan
    assert "Rows Removed" not in plan


def test_a_load_of_an_entity_finds_snapshot_events_and_command_by_their_indexes(
    plain: str, caplog: pytest.LogCaptureFixture
) -> None:
    entity = Entity("account", int, lambda state, message: state, snapshot_every=5)
    found = plans(
        plain, lambda store: store.decide(entity, "7", lambda state: None, command_id=UUID(int=1), retries=0), caplog
    )
    assert len(found) == 2
    together = "\n".join(found)
    for by in ("Index Scan using messages_id", "Index Scan Backward using messages_stream", "using messages_stream"):
        assert by in together
    assert "Seq Scan" not in together


@pytest.mark.parametrize(("category", "index"), [("account", "messages_category"), ("$all", "messages_pkey")])
def test_the_lag_of_a_consumer_is_counted_from_its_position_on(
    messagedb_server_url: str, category: str, index: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Though PostgreSQL does not know the position when it plans this, and expects a third of the table after it."""
    others = text(FILL.replace("account", "invoice").replace("0, 39999", "40000, 40999"))
    for url in filled(messagedb_server_url):
        engine = create_engine(url, poolclass=NullPool)
        store = Store(engine)
        store.set_consumer_position(category, "end", "mailer")
        with engine.begin() as connection:
            connection.execute(others)
            connection.execute(text("ANALYZE message_store.messages"))
        expected = 1_000 if category == "$all" else 0
        assert [each.lag for each in store.consumers(category)] == [expected]
        for limit, call in (
            (expected, lambda store: store.consumers(category)),
            (min(expected, 101), lambda store: store.consumers(category, max_lag=100)),
        ):
            counting = [plan for plan in plans(url, call, caplog) if "positions" in plan and "Aggregate" in plan]
            assert len(counting) == 1
            assert re.search(rf"Index Scan using {index} on messages.* rows={limit}\S* loops=1\)", counting[0])
            assert "Seq Scan" not in counting[0]
            assert "Sort" not in counting[0]
