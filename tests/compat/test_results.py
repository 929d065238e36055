"""What the methods of message-db-py's client return."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from messagedb_sa import Store
from messagedb_sa.compat import MessageDB

from .support import numbers


def test_a_message_is_a_plain_dict_with_a_naive_time_in_utc(old: MessageDB) -> None:
    before = datetime.now(timezone.utc).replace(tzinfo=None)
    assert old.write("account-1", "Opened", {"n": 1}, {"by": "me"}) == 0
    after = datetime.now(timezone.utc).replace(tzinfo=None)
    (message,) = old.read("account-1")
    assert type(message) is dict
    id, time = message.pop("id"), message.pop("time")
    assert str(UUID(id)) == id
    assert time.tzinfo is None
    # The server's clock is ours, to a second.
    second = timedelta(seconds=1)
    assert before - second <= time <= after + second
    assert list(message.items()) == [
        ("stream_name", "account-1"),
        ("type", "Opened"),
        ("position", 0),
        ("global_position", 1),
        ("data", {"n": 1}),
        ("metadata", {"by": "me"}),
    ]


@pytest.mark.parametrize("metadata", [None, {}])
def test_empty_metadata_is_null(old: MessageDB, metadata: Any) -> None:
    old.write("account-1", "Opened", {}, metadata)
    old.write_batch("account-1", [("Opened", {}, metadata)])
    assert [(message["data"], message["metadata"]) for message in old.read("account-1")] == [({}, None)] * 2


def test_keys_that_are_not_text_become_text(old: MessageDB) -> None:
    old.write("account-1", "Opened", {1: "one"})  # type: ignore[dict-item]
    assert old.read("account-1")[0]["data"] == {"1": "one"}


def test_read_takes_a_stream_a_category_or_all(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1")) == numbers(filled.read_stream("account-1")) == [0, 2, 4]
    assert numbers(filled.read("account")) == numbers(filled.read_category("account")) == [0, 1, 2, 3, 4, 5]
    assert numbers(filled.read("$all")) == [0, 1, 2, 3, 4, 5, 6]


def test_a_position_is_included_except_in_all(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", position=1)) == numbers(filled.read_stream("account-1", 1)) == [2, 4]
    assert numbers(filled.read("account", position=5)) == numbers(filled.read_category("account", 5)) == [4, 5]
    assert numbers(filled.read("$all", position=5)) == [5, 6]


def test_all_is_read_without_waiting_for_open_transactions(old: MessageDB) -> None:
    with old.store.engine.connect() as connection:
        Store(connection).write("slow-1", "Opened", {"n": 0})
        old.write("account-1", "Opened", {"n": 1})
        assert numbers(old.read("$all")) == [1]
        assert old.store.read("$all", settle_seconds=0) == []


def test_the_number_of_messages_is_limited(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", no_of_messages=2)) == numbers(filled.read_stream("account-1", 0, 2))
    assert numbers(filled.read_category("account", 0, 2)) == numbers(filled.read("$all", no_of_messages=2)) == [0, 1]
    assert len(filled.read("$all", no_of_messages=-1)) == 7


def test_consumers_of_a_group_share_a_category(old: MessageDB) -> None:
    for n in range(20):
        old.write(f"account-{n}", "Opened", {"n": n})
    shares = [old.read_category("account", 0, 100, member, 2) for member in (0, 1)]
    assert all(shares)
    assert sorted(numbers(shares[0] + shares[1])) == list(range(20))
    assert [old.read("account", None, 0, 100, member, 2) for member in (0, 1)] == shares


def test_a_group_is_ignored_unless_it_is_complete_and_of_a_category(filled: MessageDB) -> None:
    for name in ("account-1", "$all"):
        group = filled.read(name, consumer_group_member=7, consumer_group_size=2)
        assert group == filled.read(name)
    assert filled.read("account", consumer_group_size=2) == filled.read("account")


def test_the_last_message_is_a_plain_dict_or_none(filled: MessageDB) -> None:
    last = filled.read_last_message("account-1")
    assert type(last) is dict
    assert last == filled.read("account-1")[-1]
    assert filled.read_last_message("account-9") is None


def test_the_last_message_of_a_stream_without_a_hyphen_can_be_read(old: MessageDB) -> None:
    old.write("user_stream", "register", {"name": "John Doe"})
    last = old.read_last_message("user_stream")
    assert last is not None
    assert last["data"] == {"name": "John Doe"}


def test_stream_identifiers_are_those_of_exactly_this_category(old: MessageDB) -> None:
    for name in ("a_c-2", "a_c-1", "a_c-1", "a_c", "abc-wrong", "a_c:snapshot-3", "a%-4", "a%b-wrong"):
        old.write(name, "T", {})
    assert old.stream_identifiers("a_c") == ["1", "2"]
    assert old.stream_identifiers("a%") == ["4"]
    assert old.stream_identifiers("none") == []


def test_a_batch_is_written_in_order_from_the_expected_version_on(old: MessageDB) -> None:
    records: list[Any] = [("A", {"n": 0}), ["B", {"n": 1}, {"by": "me"}], ("C", {"n": 2}, None, "ignored")]
    assert old.write_batch("account-1", records, expected_version=-1) == 2
    assert old.write_batch("account-1", iter(records), 2) == 5
    messages = old.read("account-1")
    assert [message["type"] for message in messages] == ["A", "B", "C"] * 2
    assert [message["metadata"] for message in messages] == [None, {"by": "me"}, None] * 2
