"""Comparisons: each kind of difference is found and named."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import InvalidArgument, Store, transfer

from .support import contents, fill_with_hard_ones, roll_back


def change(store: Store, sql: str) -> None:
    with store.engine.begin() as connection:
        assert connection.execute(text(sql)).rowcount > 0


def test_equal_stores_have_no_differences(store: Store, target: Store) -> None:
    assert transfer.verify(store, target) == transfer.Verified(0, 0, [])
    fill_with_hard_ones(store)
    roll_back(store)
    store.write_batch("account-1", [("Opened", {})] * 1200)
    transfer.copy(store, target)
    told: list[Any] = []
    done = transfer.verify(store, target, on_progress=lambda *how: told.append(how))
    last = store.last_global_position("$all")
    assert done == transfer.Verified(len(contents(store)), last, [])
    assert done.is_equal
    assert told == [(last, last)]


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("id", "gen_random_uuid()"),
        ("stream_name", "'account-2'"),
        ("type", "'closed'"),
        ("position", "77"),
        ("data", "'[1]'"),
        ("data", "'[1.00]'"),
        ("data", "NULL"),
        ("data", "'null'"),
        ("metadata", "'null'"),
        ("time", "time + interval '1 microsecond'"),
        ("time", "'infinity'"),
    ],
)
def test_a_field_that_differs_is_named(store: Store, target: Store, field: str, changed: str) -> None:
    for n in range(3):
        store.write("account-1", "Closed", [n, 1.0] if n != 1 else [1.0])
    transfer.copy(store, target)
    (before,) = store.read_stream("account-1", 1, 1)
    change(target, f"UPDATE message_store.messages SET {field} = {changed} WHERE global_position = 2")
    done = transfer.verify(store, target)
    assert not done.is_equal
    assert done == (3, 3, [transfer.Difference(2, "account-1", 1, before.id, field)])
    assert str(done.differences[0]) == (f"global position 2, message 1 of stream 'account-1' (id {before.id}): {field}")


def test_missing_and_additional_messages_are_named(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(5)])
    transfer.copy(store, target)
    for each, positions in ((target, "1, 5"), (store, "3")):
        change(each, f"DELETE FROM message_store.messages WHERE global_position IN ({positions})")
    found = [(each.global_position, each.what) for each in transfer.verify(store, target).differences]
    assert found == [(1, "missing in the target"), (3, "only in the target"), (5, "missing in the target")]


def test_another_order_is_a_difference(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    store.write("order-1", "Placed", {})
    transfer.copy(store, target)
    change(target, "UPDATE message_store.messages SET global_position = global_position + 10")
    change(target, "UPDATE message_store.messages SET global_position = 13 - global_position")
    assert [each.what for each in transfer.verify(store, target).differences] == [
        "id, stream_name, type, time",
        "id, stream_name, type, time",
    ]


def test_several_pages_are_compared(store: Store, target: Store) -> None:
    query = """
        INSERT INTO message_store.messages (global_position, stream_name, position, type, data)
        SELECT n * 2 + 2, 'account-1', n, 'Opened', '{}' FROM generate_series(0, 25000) AS n
    """
    change(store, query)
    transfer.copy(store, target)
    told: list[Any] = []
    done = transfer.verify(store, target, on_progress=lambda *how: told.append(how[0]))
    assert done.is_equal
    assert len(told) == 3
    change(target, "DELETE FROM message_store.messages WHERE global_position IN (4, 30000)")
    change(target, "UPDATE message_store.messages SET data = '7' WHERE global_position IN (20002, 50000)")
    done = transfer.verify(store, target)
    assert [each.global_position for each in done.differences] == [4, 20002, 30000, 50000]
    assert done.messages == 25001


def test_it_stops_after_ten_differences(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 50)
    done = transfer.verify(store, target)
    assert [each.global_position for each in done.differences] == list(range(1, 11))
    assert done[:2] == (10, 10)
    assert transfer.verify(target, store).differences[9].what == "only in the target"


def test_only_what_is_copied_is_compared(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 5)
    copied = transfer.copy(store, target)
    store.write("account-1", "Closed", {})
    assert transfer.verify(store, target, up_to=copied.last_global_position) == (5, 5, [])
    assert [each.global_position for each in transfer.verify(store, target).differences] == [6]


def test_bad_arguments_are_refused(store: Store, target: Store) -> None:
    some: Any = store.engine
    with pytest.raises(InvalidArgument, match="source="):
        transfer.verify(some, target)
    with pytest.raises(InvalidArgument, match="target="):
        transfer.verify(store, some)
    some = "7"
    with pytest.raises(InvalidArgument, match="up_to='7'"):
        transfer.verify(store, target, up_to=some)
