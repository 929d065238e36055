"""Reading streams, categories and $all, page by page too, on each driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from messagedb_sa import NO_STREAM, Store, WrongExpectedVersion
from messagedb_sa.stream_name import consumer_group_member

from ..support import numbers, statements_of


def test_read_takes_a_stream_a_category_or_all(filled: Store) -> None:
    assert numbers(filled.read("account-1")) == [0, 3, 6, 9]
    assert numbers(filled.read("account")) == list(range(10))
    assert numbers(filled.read("$all")) == list(range(12))
    assert filled.read("nothing") == filled.read("nothing-1") == []


def test_positions_are_inclusive(filled: Store) -> None:
    assert numbers(filled.read("account-1", position=2)) == [6, 9]
    assert numbers(filled.read("account", position=9)) == [8, 9]
    assert numbers(filled.read("$all", position=9)) == [8, 9, 10, 11]
    assert numbers(filled.read_stream("account-1", 3)) == [9]
    assert numbers(filled.read_category("account", 10)) == [9]


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_no_of_messages_is_a_limit_and_minus_one_means_no_limit(filled: Store, name: str) -> None:
    every = filled.read(name, no_of_messages=-1)
    assert len(every) >= 4
    assert filled.read(name, no_of_messages=2) == every[:2]
    assert filled.read(name, no_of_messages=0) == []


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_a_thousand_messages_are_read_by_default(each_store: Store, name: str) -> None:
    each_store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(1001)])
    assert len(each_store.read(name)) == 1000
    assert len(each_store.read(name, no_of_messages=-1)) == 1001


def test_the_last_message_may_be_asked_for_by_type(each_store: Store) -> None:
    each_store.write_batch("account-1", [("Opened", {"n": 0}), ("Deposited", {"n": 1}), ("Deposited", {"n": 2})])
    last = each_store.read_last_message("account-1")
    assert last is not None
    assert last.data == {"n": 2}
    opened = each_store.read_last_message("account-1", "Opened")
    assert opened is not None
    assert opened.position == 0
    assert each_store.read_last_message("account-1", "Closed") is None
    assert each_store.read_last_message("account-9") is None


def test_stream_version_is_no_stream_if_the_stream_does_not_exist(filled: Store) -> None:
    assert filled.stream_version("account-1") == 3
    assert filled.stream_version("account-9") == NO_STREAM


def test_only_one_of_two_that_found_no_stream_writes_its_first_message(each_store: Store) -> None:
    found = [each_store.stream_version("account-1") for _ in range(2)]
    assert each_store.write("account-1", "Opened", {}, expected_version=found[0]) == 0
    with pytest.raises(WrongExpectedVersion):
        each_store.write("account-1", "Opened", {}, expected_version=found[1])


def test_members_of_a_consumer_group_share_a_category_by_stream(each_store: Store) -> None:
    for n in range(60):
        each_store.write(f"account-{n % 20}+{n}", "Deposited", {"n": n})
    each_store.write("account", "Deposited", {"n": 60})
    shares = [
        each_store.read_category("account", consumer_group_member=member, consumer_group_size=3) for member in range(3)
    ]
    assert all(shares)
    assert sorted(n for share in shares for n in numbers(share)) == list(range(60))
    for member, share in enumerate(shares):
        assert {consumer_group_member(message.stream_name, 3) for message in share} == {member}
        assert numbers(share) == sorted(numbers(share))
        assert each_store.read("account", consumer_group_member=member, consumer_group_size=3) == share


def test_correlation_keeps_messages_of_that_category_of_origin(each_store: Store) -> None:
    each_store.write("account-1", "A", {"n": 0}, {"correlationStreamName": "order-1"})
    each_store.write("account-2", "A", {"n": 1}, {"correlationStreamName": "orders-1"})
    each_store.write("account-3", "A", {"n": 2}, {"correlationStreamName": "order"})
    each_store.write("account-4", "A", {"n": 3})
    assert numbers(each_store.read_category("account", correlation="order")) == [0, 2]


def test_stream_identifiers_are_sorted_distinct_and_exactly_of_the_category(each_store: Store) -> None:
    for name in [
        "a_c-2",
        "a_c-1",
        "a_c-2",
        "a_c-Z",
        "a_c-é",
        "a_c-1+2-3",
        "a_c-",
        "a_c",
        "abc-wrong",
        "a_c:snapshot-1",
        "a_c:snapshot-9",
        "a%-wrong",
    ]:
        each_store.write(name, "T", {})
    assert each_store.stream_identifiers("a_c") == ["1", "1+2-3", "2", "Z", "é"]
    assert each_store.stream_identifiers("a%") == ["wrong"]
    assert each_store.stream_identifiers("a_c:snapshot") == ["1", "9"]
    assert each_store.stream_identifiers("none") == []


def test_version_is_that_of_the_interface(each_store: Store) -> None:
    assert each_store.version() == "1.3.0"


def test_a_condition_is_sql_about_the_messages(messagedb_url: str, filled: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c message_store.sql_condition=on"})
    allowed = Store(engine)
    odd = "(data->>'n')::int % 2 = 1"
    assert numbers(allowed.read_stream("account-1", condition=odd)) == [3, 9]
    assert numbers(allowed.read_category("account", condition=odd)) == [1, 3, 5, 7, 9]
    assert numbers(allowed.iter_category("account", condition=odd, batch_size=2)) == [1, 3, 5, 7, 9]
    assert numbers(allowed.iter_stream("account-1", condition="messages.position > 0", batch_size=2)) == [3, 6, 9]
    engine.dispose()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 11, 1000])
def test_iterating_gives_what_one_read_gives_whatever_the_batch_size(filled: Store, batch_size: int) -> None:
    assert list(filled.iter_stream("account-1", batch_size=batch_size)) == filled.read_stream("account-1")
    assert list(filled.iter_category("account", batch_size=batch_size)) == filled.read_category("account")
    assert numbers(filled.iter_stream("account-1", 2, batch_size=batch_size)) == [6, 9]
    assert numbers(filled.iter_category("account", 5, batch_size=batch_size)) == list(range(4, 10))
    for member in (0, 1):
        assert list(filled.iter_category("account", 0, member, 2, batch_size=batch_size)) == filled.read_category(
            "account", consumer_group_member=member, consumer_group_size=2
        )


def test_iterating_asks_for_a_page_at_a_time_and_only_when_it_is_needed(filled: Store) -> None:
    sent = statements_of(filled.engine)
    pages = filled.iter_category("account", batch_size=4)
    assert isinstance(pages, Iterator)
    assert len(sent) == 0
    assert numbers(next(pages) for _ in range(4)) == [0, 1, 2, 3]
    assert len(sent) == 1
    filled.write("account-1", "Deposited", {"n": 12})
    assert numbers(pages) == [4, 5, 6, 7, 8, 9, 12]
    assert len(sent) == 1 + 1 + 2


def test_iterating_holds_no_connection_between_pages(filled: Store) -> None:
    pages = filled.iter_stream("account-1", batch_size=1)
    next(pages)
    assert filled.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
