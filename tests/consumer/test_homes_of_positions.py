"""The two homes of positions, the table and the stream: which is used, and how a consumer takes its position along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, text

from messagedb_sa import (
    Consumer,
    ConsumerError,
    GroupChanged,
    InvalidArgument,
    Message,
    MissingPrivilege,
    PositionConflict,
    Store,
    install,
    schema,
)
from messagedb_sa.stream_name import consumer_group_member

from ..support import as_role, consumer_on, numbers, orders
from ..waits import wait_until
from .support import last_position, order_numbers, positions, running, write

STREAM = "account:position-mailer"
TABLE: dict[str, Any] = {"transactional": True}
IN_STREAM: dict[str, Any] = {"transactional": True, "positions": "stream"}
PLAIN_IN_TABLE: dict[str, Any] = {"positions": "table"}


def consume(store: Store, category: str = "account", identifier: str | None = "mailer", **options: Any) -> list[int]:
    """Handle all there is; the numbers that were handled."""
    handled: list[Message] = []
    consumer_on(
        store, category, lambda message, *_: handled.append(message), identifier, **options
    ).run_until_caught_up()
    return numbers(handled)


def rows(store: Store, stream: str = STREAM) -> list[tuple[int, int]]:
    """The position and the version of the stream's row."""
    with store.engine.connect() as connection:
        query = text("SELECT position, version FROM message_store.consumer_positions WHERE stream_name = :stream")
        return [tuple(row) for row in connection.execute(query, {"stream": stream})]


def execute(store: Store, sql: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(text(sql))


@pytest.fixture(autouse=True)
def no_rows(store: Store) -> None:
    execute(store, "TRUNCATE message_store.consumer_positions")


# ---- which home


@pytest.mark.parametrize(
    ("options", "in_table"),
    [
        ({}, False),
        ({"positions": "table"}, True),
        ({"transactional": True}, True),
        ({"transactional": True, "record_every": 3}, True),
        ({"transactional": True, "positions": "stream"}, False),
    ],
    ids=str,
)
def test_transactional_consumers_record_in_the_table_and_others_in_the_stream(
    each_store: Store, store: Store, options: dict[str, Any], in_table: bool
) -> None:
    write(store, 5)
    assert consume(each_store, **options) == [0, 1, 2, 3, 4]
    assert consume(each_store, **options) == []
    assert [position for position, _ in rows(store)] == [5] * in_table
    # One message says that the position is in the table.
    marked = [message.metadata == {"recordedIn": "message_store.consumer_positions"} for message in store.read(STREAM)]
    assert marked == [True] if in_table else not any(marked)
    (status,) = each_store.consumers("account")
    assert (status.position, status.lag) == (5, 0)
    assert status.recorded_at is not None


def test_a_home_that_is_neither_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument, match='positions=\'tables\': must be "table", "stream" or None'):
        Consumer(store, "account", print, positions="tables")  # type: ignore[call-overload]


@pytest.fixture
def old_store(empty_database: Engine) -> Store:
    install.upgrade(empty_database, "messagedb_0003")
    return Store(empty_database)


def test_a_store_without_the_table_uses_the_stream(old_store: Store) -> None:
    write(old_store, 3)
    assert consume(old_store, **TABLE) == [0, 1, 2]
    assert positions(old_store, STREAM) == [1, 2, 3]
    (status,) = old_store.consumers("account")
    assert status.position == 3
    with pytest.raises(InvalidArgument, match=r"positions='table': needs the table .* revision messagedb_0004"):
        consume(old_store, **PLAIN_IN_TABLE)


def test_an_upgrade_and_a_downgrade_take_positions_along(old_store: Store) -> None:
    write(old_store, 3)
    assert consume(old_store, **TABLE) == [0, 1, 2]
    assert consume(old_store, identifier="in stream") == [0, 1, 2]
    for n in (3, 5):
        install.upgrade(old_store.engine)
        write(old_store, 1, first=n)
        assert consume(old_store, **TABLE) == [n]
        assert consume(old_store, identifier="in stream") == [n]
        install.downgrade(old_store.engine, "messagedb_0003")
        write(old_store, 1, first=n + 1)
        assert consume(old_store, **TABLE) == [n + 1]
        assert consume(old_store, identifier="in stream") == [n + 1]
    # Only the positions that were in the table.
    assert len(positions(old_store, "account:position-in stream")) == 5


@pytest.fixture
def as_app(store: Store, login: Callable[..., str]) -> Iterator[Store]:
    """A role that may do what the revisions before messagedb_0004 asked for."""
    role = login("messagedb_positions_app")
    granted = (
        "USAGE ON SCHEMA message_store",
        "SELECT, INSERT ON message_store.messages",
        "USAGE, SELECT ON SEQUENCE message_store.messages_global_position_seq",
    )
    for each in granted:
        execute(store, f"GRANT {each} TO {role}")
    engine = as_role(store.engine, role)
    yield Store(engine)
    engine.dispose()
    execute(store, f"DROP OWNED BY {role}")


def test_a_role_without_the_privileges_uses_the_stream(store: Store, as_app: Store) -> None:
    write(store, 3)
    assert consume(as_app, **TABLE) == [0, 1, 2]
    assert positions(store, STREAM) == [1, 2, 3]
    assert as_app.consumers("account")[0].position == 3
    with pytest.raises(
        MissingPrivilege, match=r"UPDATE ON message_store\.consumer_positions TO messagedb_positions_app"
    ):
        consume(as_app, **PLAIN_IN_TABLE)


def test_a_role_that_may_not_read_the_table_does_not_begin_again(store: Store, as_app: Store) -> None:
    write(store, 3)
    grant = "SELECT, INSERT, UPDATE ON message_store.consumer_positions"
    execute(store, f"GRANT {grant} TO messagedb_positions_app")
    assert consume(as_app, **TABLE) == [0, 1, 2]
    assert [position for position, _ in rows(store)] == [3]
    execute(store, f"REVOKE {grant} FROM messagedb_positions_app")
    for call in (lambda: consume(as_app, **TABLE), lambda: as_app.consumers("account")):
        with pytest.raises(MissingPrivilege, match="permission denied for table consumer_positions"):
            call()
    # It cannot take the position to the stream either, and says so before it handles anything.
    execute(store, "GRANT SELECT ON message_store.consumer_positions TO messagedb_positions_app")
    write(store, 1, first=3)
    with pytest.raises(MissingPrivilege, match="position, which is in a table, needs SELECT, INSERT and UPDATE"):
        consume(as_app, **IN_STREAM)


def test_the_role_message_store_may_record_in_the_table_and_not_delete(store: Store) -> None:
    engine = as_role(store.engine, "message_store")
    write(store, 1)
    assert consume(Store(engine), **TABLE) == [0]
    assert len(rows(store)) == 1
    with pytest.raises(Exception, match="permission denied"):
        execute(Store(engine), "DELETE FROM message_store.consumer_positions")
    engine.dispose()


# ---- moving


@pytest.mark.parametrize("slots", [None, 2])
def test_a_consumer_takes_its_position_along_any_number_of_times(each_store: Store, slots: int | None) -> None:
    homes: list[dict[str, Any]] = [TABLE, {}, TABLE, IN_STREAM, PLAIN_IN_TABLE, TABLE, IN_STREAM, {}, PLAIN_IN_TABLE]
    for n, options in enumerate(homes):
        write(each_store, 3, first=3 * n)
        assert sorted(consume(each_store, slots=slots, **options)) == [3 * n, 3 * n + 1, 3 * n + 2]
        # A start without anything to handle changes nothing.
        assert consume(each_store, slots=slots, **homes[n - 1]) == []


@pytest.mark.parametrize("options", [TABLE, PLAIN_IN_TABLE, {}], ids=str)
def test_a_position_that_was_set_back_in_the_stream_counts(store: Store, options: dict[str, Any]) -> None:
    write(store, 6)
    assert consume(store, **options) == [0, 1, 2, 3, 4, 5]
    store.write(STREAM, "Recorded", {"position": 4})
    assert store.consumers("account")[0].position == 4
    assert consume(store, **options) == [4, 5]
    assert consume(store, **options) == []


@pytest.mark.parametrize(("first", "second"), [(TABLE, {}), ({}, TABLE), (PLAIN_IN_TABLE, {}), (TABLE, IN_STREAM)])
@pytest.mark.parametrize("recorded_before", [False, True])
def test_a_second_consumer_with_the_other_home_is_a_position_conflict(
    store: Store, first: dict[str, Any], second: dict[str, Any], recorded_before: bool
) -> None:
    if recorded_before:
        write(store, 1)
        consume(store, **first)
    begun = len(store.read("account"))
    write(store, 4, first=begun)

    def handle(message: Message, *_: Any) -> None:
        if message.data["n"] == begun + 1:
            Consumer(store, "account", lambda *_: None, "mailer", **second).run_until_caught_up(handle_signals=False)

    with pytest.raises(PositionConflict, match="another consumer with this identifier is running"):
        Consumer(store, "account", handle, "mailer", record_seconds=3600, **first).run_until_caught_up()
    # The other's position is the later one.
    assert last_position(store, STREAM) == store.read("account")[-1].global_position


@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("begins", [False, True])
def test_a_second_consumer_is_noticed_under_each_isolation_level(
    store: Store, messagedb_url: str, tables: None, isolation_level: Any, begins: bool
) -> None:
    """Also if it commits while the handler of the first one is in a transaction with a snapshot."""
    write(store, 3)
    if not begins:
        consume(store, **TABLE)
        write(store, 3, first=3)
    engine = create_engine(messagedb_url, isolation_level=isolation_level)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        if message.data["n"] in (1, 4):
            Consumer(store, "account", lambda *_: None, "mailer", **TABLE).run_until_caught_up(handle_signals=False)

    with pytest.raises(PositionConflict):
        Consumer(Store(engine), "account", handle, "mailer", transactional=True).run_until_caught_up()
    engine.dispose()
    assert order_numbers(store) == ([0] if begins else [3])
    assert consume(store, **TABLE) == []


def test_another_clients_position_in_the_stream_is_noticed_while_it_runs(store: Store) -> None:
    write(store, 3)

    def handle(message: Message, _: Connection) -> None:
        if message.data["n"] == 1:
            store.write(STREAM, "Recorded", {"position": 1})

    with pytest.raises(PositionConflict):
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert consume(store, **TABLE) == [1, 2]


def test_slots_continue_from_what_a_process_with_the_other_home_recorded(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 3)
    handled: list[int] = []

    def handle(message: Message, _: Connection) -> None:
        handled.append(message.data["n"])
        if message.data["n"] == 1 and not caplog.records:
            position = message.global_position + 1
            store.write("account:position-mailer-0-of-1", "Recorded", {"position": position})
            caplog.set_level("WARNING")

    caplog.clear()
    Consumer(store, "account", handle, "mailer", transactional=True, slots=1).run_until_caught_up()
    assert "continues from what another consumer recorded" in caplog.text
    assert handled == [0, 1]
    assert last_position(store, "account:position-mailer-0-of-1") == 3


# ---- both homes count


@pytest.mark.parametrize(("before", "after"), [(TABLE, TABLE), (TABLE, {}), ({}, TABLE), (IN_STREAM, PLAIN_IN_TABLE)])
def test_another_number_of_slots_is_noticed_in_either_home(
    store: Store, before: dict[str, Any], after: dict[str, Any]
) -> None:
    write(store, 6)
    consume(store, slots=2, **before)
    with pytest.raises(GroupChanged) as caught:
        consume(store, slots=3, **after)
    assert caught.value.position == 7
    assert consume(store, slots=3, position=7, **after) == []
    write(store, 3, first=6)
    assert sorted(consume(store, slots=3, **after)) == [6, 7, 8]
    # The positions for the former number are old.
    with pytest.raises(GroupChanged) as caught:
        consume(store, slots=2, **before)
    for _ in range(2):
        assert consume(store, slots=2, position=caught.value.position, **before) == []


@pytest.mark.parametrize("category", ["account", "$all"])
def test_a_start_at_the_end_is_recorded_in_the_table_at_once(store: Store, category: str) -> None:
    write(store, 3)
    assert consume(store, category, position="end", **TABLE) == []
    assert last_position(store, f"{category}:position-mailer") == 3
    write(store, 2, first=3)
    assert consume(store, category, **TABLE) == [3, 4]


def test_names_may_be_as_long_as_those_of_streams(store: Store) -> None:
    category = "ü" * 1240
    store.write(f"{category}-1", "Even", {"n": 0})
    stream = f"{category}:position-{'m' * 110}"
    assert len(stream.encode()) == 2600
    for options in (TABLE, {}, TABLE):
        consume(store, category, "m" * 110, **options)
    assert last_position(store, stream) == 1


def test_in_a_store_that_was_emptied_old_rows_do_not_count(store: Store) -> None:
    for options in (TABLE, {}, TABLE):
        write(store, 3)
        assert consume(store, **options) == [0, 1, 2]
        execute(store, "TRUNCATE message_store.messages RESTART IDENTITY")
        assert store.consumers("account") == []


def test_a_row_that_is_gone_is_an_error_and_not_the_beginning(store: Store) -> None:
    write(store, 3)
    consume(store, **TABLE)
    execute(store, "DELETE FROM message_store.consumer_positions")
    for options in (TABLE, {}):
        with pytest.raises(ConsumerError, match="its row is gone"):
            consume(store, **options)
    assert [status.position for status in store.consumers("account")] == [None]
    store.set_consumer_position("account", 3, "mailer")
    assert consume(store, **TABLE) == [2]


def test_a_row_that_goes_while_it_runs_is_noticed(store: Store) -> None:
    write(store, 3)

    def handle(message: Message, _: Connection) -> None:
        if message.data["n"] == 1:
            execute(store, "DELETE FROM message_store.consumer_positions")

    with pytest.raises(PositionConflict):
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()


# ---- cost


def test_consumers_that_record_in_the_table_do_not_wait_for_each_other(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    consume(store, **TABLE)
    impatient = Store(create_engine(messagedb_url, connect_args={"options": "-c lock_timeout=50ms"}))
    with store.engine.begin() as connection:
        # As long as another consumer's transaction has its position in a stream of the category.
        connection.execute(text("SELECT message_store.acquire_lock('account:position-other')"))
        write(impatient, 1, first=1)
        assert consume(impatient, **TABLE) == [1]
    impatient.engine.dispose()


def test_a_record_in_the_table_writes_to_no_index(store: Store) -> None:
    write(store, 200)
    consume(store, **TABLE)
    (version,) = (version for _, version in rows(store))
    assert version == 199
    with store.engine.connect() as connection:
        size = connection.scalar(text("SELECT pg_relation_size('message_store.consumer_positions_pkey')"))
    assert size == 2 * 8192
    assert len(store.read(STREAM)) == 1


# ---- recording at once


@pytest.mark.parametrize("options", [{}, TABLE, {"transactional": True, "record_every": 100}, {"slots": 2}], ids=str)
def test_what_there_is_is_recorded_as_soon_as_it_is_handled(store: Store, options: dict[str, Any]) -> None:
    """Also the messages at the end that have no handler. It does not wait for more messages."""
    write(store, 6)
    asked: dict[str, Any] = {"record_seconds": 3600, "poll_seconds": 3600}
    handlers: Any = {"Even": lambda *_: None}

    def lags() -> list[int | None]:
        return [status.lag for status in store.consumers("account")]

    with running(Consumer(store, "account", handlers, "mailer", **asked, **options)):
        wait_until(lambda: bool(lags()) and not any(lags()))


def test_a_slot_that_has_caught_up_is_recorded_while_another_one_of_its_process_has_work(store: Store) -> None:
    idle, busy = (next(n for n in range(99) if consumer_group_member(f"account-{n}", 2) == slot) for slot in (0, 1))
    store.write(f"account-{idle}", "Odd", {})
    store.write_batch(f"account-{busy}", [("Odd", {})] * 3)
    recorded: list[tuple[int, int | None]] = []

    def look(message: Message) -> None:
        if message.stream_id == str(busy):
            recorded.append((message.position, last_position(store, f"{STREAM}-0-of-2")))

    Consumer(store, "account", look, "mailer", slots=2, record_seconds=3600).run_until_caught_up()
    # It is recorded between two messages.
    assert recorded == [(0, None), (1, 1), (2, 1)]


def test_two_consumers_of_all_do_not_wake_each_other_for_ever(store: Store) -> None:
    install.upgrade(store.engine, notify=True)
    write(store, 2)
    counts: list[int] = []

    def settled() -> bool:
        counts.append(store.read("$all")[-1].global_position)
        return len(counts) > 20 and len(set(counts[-20:])) == 1

    try:
        with running(Consumer(store, "$all", print, "one")), running(Consumer(store, "$all", print, "other")):
            wait_until(lambda: len(store.consumers("$all")) == 2)
            write(store, 1)
            wait_until(lambda: all(status.lag == 0 for status in store.consumers("$all")))
            wait_until(settled)
        # Each recorded the first two messages, together or one by one, and the third.
        assert 4 <= len(store.read_category("$all:position")) <= 6
    finally:
        install.upgrade(store.engine, notify=False)


def test_the_metadata_describes_the_table(store: Store) -> None:
    write(store, 1)
    consume(store, **TABLE)
    with store.engine.connect() as connection:
        row = connection.execute(schema.consumer_positions.select()).one()
    assert (row.stream_name, row.position, row.version) == (STREAM, 1, 0)
    assert str(row.marker) == store.read(STREAM)[0].id
    assert row.time.tzinfo is not None
