"""Writing messages and batches of them to one stream, on each driver."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest

from messagedb_sa import NO_STREAM, DuplicateMessageId, Message, NewMessage, Store, WrongExpectedVersion

from ..support import clocks_stopped, numbers, statements_of


def test_write_returns_the_position_in_the_stream(each_store: Store) -> None:
    assert [each_store.write("account-1", "Opened", {"n": n}) for n in range(3)] == [0, 1, 2]
    assert each_store.write("account-2", "Opened", {}) == 0


def test_what_was_written_is_what_is_read(each_store: Store) -> None:
    id = uuid4()
    # The server's clock is ours, to a second.
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    each_store.write("account-1+2", "Opened", {"n": 1}, {"correlationStreamName": "order-1"}, id=id)
    after = datetime.now(timezone.utc) + timedelta(seconds=1)
    (message,) = each_store.read_stream("account-1+2")
    assert isinstance(message, Message)
    assert message[:7] == (
        str(id),
        "account-1+2",
        "Opened",
        0,
        1,
        {"n": 1},
        {"correlationStreamName": "order-1"},
    )
    assert before < message.time < after
    assert message.time.tzinfo is timezone.utc


@pytest.mark.parametrize("form", [UUID, str, str.upper, lambda text: text.replace("-", "")])
def test_an_id_is_a_uuid_or_its_text(each_store: Store, form: Any) -> None:
    id = "0c6ccd3b-1f2c-4d8e-a8bb-6c1d5a2b7e90"
    each_store.write("account-1", "Opened", {}, id=form(id))
    assert each_store.read_stream("account-1")[0].id == id


def test_without_an_id_each_message_gets_a_new_one(each_store: Store) -> None:
    each_store.write("account-1", "Opened", {})
    each_store.write_batch("account-1", [("Deposited", {}), ("Deposited", {})])
    assert len({UUID(message.id) for message in each_store.read("account")}) == 3


def test_new_ids_hold_the_time_and_are_in_the_order_of_the_messages(each_store: Store) -> None:
    """Of version 7, so that the index of ids grows at its end."""
    before = time.time()
    each_store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(5000)])
    ids = [UUID(message.id) for message in each_store.iter_stream("account-1")]
    assert ids == sorted(ids)
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert before - 0.001 <= (ids[0].int >> 80) / 1000 <= time.time()
    assert len({id.int & (2**62 - 1) for id in ids}) == 5000


@pytest.mark.parametrize("at", [-86400.0, 0.0, 1e9, 1e12])
def test_new_ids_are_valid_and_distinct_whatever_a_clock_shows_that_stands_still(each_store: Store, at: float) -> None:
    """Before 1970, and after the last time that an id can hold, too."""
    with clocks_stopped(at):
        each_store.write("account-1", "Opened", {})
        each_store.write_batch("account-1", [("Deposited", {}) for _ in range(100)])
    ids = [UUID(message.id) for message in each_store.read("account")]
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert len(set(ids)) == 101
    assert ids[1:] == sorted(ids[1:])


def test_a_stream_may_be_named_like_a_category(each_store: Store) -> None:
    assert each_store.write("account", "Opened", {"n": 1}) == 0
    assert numbers(each_store.read_category("account")) == [1]


def test_expected_version_is_the_last_position(each_store: Store) -> None:
    assert each_store.write("account-1", "Opened", {}, expected_version=NO_STREAM) == 0
    assert each_store.write("account-1", "Deposited", {}, expected_version=0) == 1
    with pytest.raises(WrongExpectedVersion) as caught:
        each_store.write("account-1", "Deposited", {}, expected_version=0)
    error = caught.value
    assert (error.stream_name, error.expected_version, error.actual_version) == ("account-1", 0, 1)
    assert str(error) == "stream 'account-1' is at version 1, expected 0"
    assert error.__cause__ is not None
    assert each_store.stream_version("account-1") == 1


def test_no_stream_means_that_it_must_not_exist(each_store: Store) -> None:
    each_store.write("account-1", "Opened", {})
    with pytest.raises(WrongExpectedVersion) as caught:
        each_store.write("account-1", "Opened", {}, expected_version=NO_STREAM)
    assert (caught.value.expected_version, caught.value.actual_version) == (-1, 0)


def test_a_version_expected_of_a_stream_that_does_not_exist_is_wrong(each_store: Store) -> None:
    with pytest.raises(WrongExpectedVersion) as caught:
        each_store.write("account-1 (Stream Version: 7)", "Opened", {}, expected_version=3)
    assert (caught.value.stream_name, caught.value.actual_version) == ("account-1 (Stream Version: 7)", -1)


def test_a_message_id_that_exists_is_refused(each_store: Store) -> None:
    id = uuid4()
    each_store.write("account-1", "Opened", {}, id=id)
    with pytest.raises(DuplicateMessageId) as caught:
        each_store.write("account-2", "Opened", {}, id=str(id).upper())
    assert caught.value.id == str(id)
    assert each_store.stream_version("account-2") == NO_STREAM


def test_a_batch_takes_tuples_and_new_messages(each_store: Store) -> None:
    id = uuid4()
    last = each_store.write_batch(
        "account-1",
        [
            ("Opened", {"n": 0}),
            ("Deposited", {"n": 1}, {"by": "me"}),
            NewMessage("Deposited", {"n": 2}, id=id),
            NewMessage("Closed", {"n": 3}, {}),
        ],
    )
    assert last == 3
    messages = each_store.read_stream("account-1")
    assert numbers(messages) == [0, 1, 2, 3]
    assert [message.metadata for message in messages] == [None, {"by": "me"}, None, {}]
    assert messages[2].id == str(id)


def test_a_batch_is_any_iterable_and_one_round_trip(each_store: Store) -> None:
    each_store.write_batch("order-1", [("Placed", {})])  # Whether there is write_messages is then known.
    sent = statements_of(each_store.engine)
    assert each_store.write_batch("account-1", (("Deposited", {"n": n}) for n in range(1000))) == 999
    assert len(sent) == 1
    assert numbers(each_store.read_stream("account-1")) == list(range(1000))
    assert [message.global_position for message in each_store.read("account")] == list(range(2, 1002))


def test_the_expected_version_of_a_batch_is_that_of_its_first_message(each_store: Store) -> None:
    two: list[tuple[str, Any]] = [("Deposited", {}), ("Deposited", {})]
    assert each_store.write_batch("account-1", two, expected_version=NO_STREAM) == 1
    assert each_store.write_batch("account-1", two, expected_version=1) == 3
    with pytest.raises(WrongExpectedVersion) as caught:
        each_store.write_batch("account-1", two, expected_version=1)
    assert (caught.value.stream_name, caught.value.expected_version, caught.value.actual_version) == ("account-1", 1, 3)
    assert each_store.stream_version("account-1") == 3


def test_a_batch_is_written_whole_or_not_at_all(each_store: Store) -> None:
    id = uuid4()
    with pytest.raises(DuplicateMessageId) as caught:
        each_store.write_batch(
            "account-1", [NewMessage("A", {}, id=id), NewMessage("B", {}), NewMessage("C", {}, id=str(id))]
        )
    assert caught.value.id == str(id)
    assert each_store.read("$all") == []
