"""Copies: exact, continued, and refused where the target is not a copy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Consumer, InvalidArgument, MissingPrivilege, Store, StoreNotInstalled, install, transfer
from messagedb_sa.testing import temporary_database
from messagedb_sa.transfer import TransferRefused

from ..support import as_role, store_on
from .support import contents, fill_with_hard_ones, roll_back, wait_until_waiting_for_the_table


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_copy_has_every_value_global_position_and_gap(store: Store, target: Store, driver: str) -> None:
    roll_back(store, 3)
    fill_with_hard_ones(store)
    roll_back(store)
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(2500)])
    with (
        store_on(driver, store.engine.url) as from_here,
        store_on(driver, target.engine.url) as to_there,
    ):
        done = transfer.copy(from_here, to_there)
    assert done == transfer.Transferred(len(contents(store)), store.last_global_position("$all"))
    assert contents(target) == contents(store)


def test_an_empty_store_is_copied(store: Store, target: Store) -> None:
    assert transfer.copy(store, target) == (0, 0, None)


def test_a_copy_is_continued(store: Store, target: Store) -> None:
    copied = []
    for number in (1, 1200, 1, 0):
        store.write_batch("account-1", [("Opened", {})] * number) if number else None
        roll_back(store)
        copied.append(transfer.copy(store, target).messages)
        assert contents(target) == contents(store)
    assert copied == [1, 1200, 1, 0]


def test_writing_to_the_copy_goes_on_after_the_last_global_position(store: Store, target: Store) -> None:
    roll_back(store, 41)
    store.write("account-1", "Opened", {})
    transfer.copy(store, target)
    target.write("account-1", "Closed", {}, expected_version=0)
    assert [message.global_position for message in target.read("$all")] == [42, 43]


def test_it_ends_at_what_was_the_end(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 1500)
    told: list[Any] = []

    def write(*how: object) -> None:
        told.append(how)
        store.write_batch("account-2", [("Opened", {})] * 1000)

    assert transfer.copy(store, target, on_progress=write) == (1500, 1500, None)
    assert told == [(1000, 1500), (1500, 1500)]
    assert transfer.copy(store, target).messages == 2000
    assert contents(target) == contents(store)


def test_it_stops_before_a_message_that_may_still_come(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    with store.engine.connect() as connection:
        Store(connection).write("order-1", "Placed", {})
        store.write("account-1", "Closed", {})
        assert transfer.copy(store, target, settle_seconds=0) == (1, 1, 2)
        assert transfer.copy(store, target, settle_seconds=0) == (0, 1, 2)
        connection.commit()
    assert transfer.copy(store, target, settle_seconds=0) == (2, 3, None)
    assert contents(target) == contents(store)


def test_a_target_with_other_messages_is_refused(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    transfer.copy(store, target)
    target.write("account-1", "Closed", {})
    (last,) = target.read("account-1", position=1)
    with pytest.raises(TransferRefused) as refusal:
        transfer.copy(store, target)
    assert refusal.value.problems == [
        "the target is not a copy of the source: its last message (global position 2, message 1 of stream 'account-1', "
        f"id {last.id}) is not in the source"
    ]
    # One that looks the same, but for its data.
    store.write("account-1", "Closed", {"n": 1}, id=last.id)
    with pytest.raises(TransferRefused, match="is not a copy of the source"):
        transfer.copy(store, target)
    assert len(contents(target)) == 2


def test_another_writer_to_the_target_is_noticed(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 1500)
    with pytest.raises(TransferRefused, match=r"^others write to the target: .* position 1001, not 1000$"):
        transfer.copy(store, target, on_progress=lambda *_: target.write("order-1", "Placed", {}))
    assert len(contents(target)) == 1001


def test_of_two_copies_at_once_one_goes_on(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 3500)
    with pytest.raises(TransferRefused, match=r"^others write to the target"):
        transfer.copy(store, target, on_progress=lambda *_: transfer.copy(store, target))
    assert contents(target) == contents(store)


def test_an_earlier_copy_that_still_commits_is_waited_for(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 10)
    transfer.copy(store, target)
    (last,) = store.read("account-1", position=9)
    with target.engine.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages WHERE global_position = 10"))
    done: list[Any] = []
    with target.engine.begin() as connection:
        # As an earlier copy does it.
        connection.execute(
            text(
                "INSERT INTO message_store.messages (global_position, id, stream_name, position, type, data, time)"
                " VALUES (10, :id, 'account-1', 9, 'Opened', '{}', :time)"
            ),
            {"id": last.id, "time": last.time.replace(tzinfo=None)},
        )
        thread = threading.Thread(target=lambda: done.append(transfer.copy(store, target)))
        thread.start()
        wait_until_waiting_for_the_table(target.engine)
    thread.join()
    assert done == [(0, 10, None)]


def test_positions_of_consumers_are_copied(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 5)
    Consumer(store, "account", lambda message: None, "in_stream").run_until_caught_up()
    for identifier in ("one", "two"):
        Consumer(store, "account", lambda message: None, identifier, positions="table").run_until_caught_up()
    transfer.copy(store, target)
    assert contents(target) == contents(store)
    assert target.consumers("account") == store.consumers("account")
    store.write("account-1", "Closed", {})
    Consumer(store, "account", lambda message: None, "one", positions="table").run_until_caught_up()
    transfer.copy(store, target)
    assert target.consumers("account") == store.consumers("account")
    assert [each.position for each in target.consumers("account")] != [5, 5, 5]
    handled: list[Any] = []
    Consumer(target, "account", handled.append, "one", positions="table").run_until_caught_up()
    assert handled == []
    Consumer(target, "account", handled.append, "two", positions="table").run_until_caught_up()
    assert [message.type for message in handled] == ["Closed"]


def test_no_position_is_beyond_the_end_of_the_copy(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    Consumer(store, "account", lambda message: None, "one", positions="table").run_until_caught_up()
    last = store.last_global_position("$all")

    def go_on(*_: object) -> None:
        store.write_batch("account-1", [("Closed", {})] * 3)
        Consumer(store, "account", lambda message: None, "one", positions="table").run_until_caught_up()

    assert transfer.copy(store, target, on_progress=go_on).last_global_position == last
    (ahead,), (behind,) = store.consumers("account"), target.consumers("account")
    assert ahead.position == last + 3
    assert behind.position == last


def test_positions_that_the_target_cannot_hold_are_named(store: Store, messagedb_server_url: str) -> None:
    store.write("account-1", "Opened", {})
    with temporary_database(messagedb_server_url) as url, store_on("psycopg2", url) as older:
        install.upgrade(older.engine, "messagedb_0003")
        transfer.copy(store, older)
        assert contents(older) == contents(store)
        Consumer(store, "account", lambda message: None, "one", positions="table").run_until_caught_up()
        with pytest.raises(TransferRefused, match="upgrade the target's store to messagedb_0004"):
            transfer.copy(store, older)


def test_a_role_that_may_read_is_enough_for_the_source_and_not_for_the_target(
    store: Store, target: Store, login: Callable[..., str]
) -> None:
    store.write("account-1", "Opened", {})
    Consumer(store, "account", lambda message: None, "one", positions="table").run_until_caught_up()
    reader = login("reader")
    with store.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {reader}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {reader}"))
    as_reader = Store(as_role(store.engine, reader))
    try:
        with pytest.raises(MissingPrivilege, match="consumer_positions"):
            transfer.copy(as_reader, target)
        with store.engine.begin() as connection:
            connection.execute(text(f"GRANT SELECT ON message_store.consumer_positions TO {reader}"))
        transfer.copy(as_reader, target)
        assert transfer.verify(as_reader, target).is_equal
    finally:
        with store.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {reader}"))
    with pytest.raises(TransferRefused, match=r"^permission denied for table messages: .* the owner"):
        transfer.copy(store, Store(as_role(target.engine, "message_store")))


def test_bad_arguments_are_refused(store: Store, target: Store, empty_database: Any) -> None:
    some: Any = store.engine
    with pytest.raises(InvalidArgument, match="source="):
        transfer.copy(some, target)
    with pytest.raises(InvalidArgument, match="target="):
        transfer.copy(store, some)
    some = "soon"
    with pytest.raises(InvalidArgument, match="settle_seconds='soon'"):
        transfer.copy(store, target, settle_seconds=some)
    with pytest.raises(StoreNotInstalled):
        transfer.copy(store, Store(empty_database))
    with pytest.raises(StoreNotInstalled):
        transfer.copy(Store(empty_database), target)


def test_a_copy_whose_connections_are_lost_goes_on_when_it_is_called_again(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 2500)

    def cut_off(database: str | None) -> None:
        sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'copying'"
        with target.engine.connect() as connection:
            connection.execute(text(f"{sessions} AND datname = :database"), {"database": database})

    copied = []
    named: Any = {"connect_args": {"application_name": "copying"}}
    with (
        store_on("psycopg2", store.engine.url, **named) as source,
        store_on("psycopg2", target.engine.url, **named) as there,
    ):
        for each in (there, source):
            with pytest.raises(DBAPIError):
                transfer.copy(source, there, on_progress=lambda *_, each=each: cut_off(each.engine.url.database))
            copied.append(len(contents(target)))
        transfer.copy(source, there)
    assert copied == [1000, 2000]
    assert contents(target) == contents(store)
