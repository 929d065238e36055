"""The Store: writing and reading."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest
from sqlalchemy import bindparam, create_engine, event, select, text

from messagedb_sa import (
    NO_STREAM,
    DuplicateMessageId,
    Message,
    NewMessage,
    Store,
    WrongExpectedVersion,
    functions,
    schema,
)
from messagedb_sa.stream_name import consumer_group_member

from .conftest import numbers


@pytest.fixture
def store(each_store: Store) -> Store:
    return each_store


@pytest.fixture
def filled(store: Store) -> Store:
    """Messages 0 to 9 in account-1, account-2 and account-3 in turn, and two in other categories."""
    for n in range(10):
        store.write(f"account-{n % 3 + 1}", "Deposited", {"n": n})
    store.write("accounting-1", "Booked", {"n": 10})
    store.write("account:snapshot-1", "Recorded", {"n": 11})
    return store


def statements_of(store: Store) -> list[str]:
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    return sent


# ---- writing


def test_write_gives_the_position_in_the_stream(store: Store) -> None:
    assert [store.write("account-1", "Opened", {"n": n}) for n in range(3)] == [0, 1, 2]
    assert store.write("account-2", "Opened", {}) == 0


def test_what_was_written_is_what_is_read(store: Store) -> None:
    id = uuid4()
    before = datetime.now(timezone.utc) - timedelta(minutes=1)
    store.write("account-1+2", "Opened", {"n": 1}, {"correlationStreamName": "order-1"}, id=id)
    (message,) = store.read_stream("account-1+2")
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
    assert before < message.time < before + timedelta(minutes=2)
    assert message.time.tzinfo is timezone.utc


@pytest.mark.parametrize("form", [UUID, str, str.upper, lambda text: text.replace("-", "")])
def test_an_id_is_a_uuid_or_its_text(store: Store, form: Any) -> None:
    id = "0c6ccd3b-1f2c-4d8e-a8bb-6c1d5a2b7e90"
    store.write("account-1", "Opened", {}, id=form(id))
    assert store.read_stream("account-1")[0].id == id


def test_without_an_id_each_message_gets_a_new_one(store: Store) -> None:
    store.write("account-1", "Opened", {})
    store.write_batch("account-1", [("Deposited", {}), ("Deposited", {})])
    assert len({UUID(message.id) for message in store.read("account")}) == 3


def test_new_ids_tell_the_time_and_are_in_the_order_of_the_messages(store: Store) -> None:
    """Of version 7, so that the index of ids grows at its end."""
    before = time.time()
    store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(5000)])
    ids = [UUID(message.id) for message in store.iter_stream("account-1")]
    assert ids == sorted(ids)
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert before - 0.001 <= (ids[0].int >> 80) / 1000 <= time.time()
    assert len({id.int & (2**62 - 1) for id in ids}) == 5000


def test_a_stream_may_be_named_like_a_category(store: Store) -> None:
    assert store.write("account", "Opened", {"n": 1}) == 0
    assert numbers(store.read_category("account")) == [1]


def test_expected_version_is_the_last_position(store: Store) -> None:
    assert store.write("account-1", "Opened", {}, expected_version=NO_STREAM) == 0
    assert store.write("account-1", "Deposited", {}, expected_version=0) == 1
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write("account-1", "Deposited", {}, expected_version=0)
    error = caught.value
    assert (error.stream_name, error.expected_version, error.actual_version) == ("account-1", 0, 1)
    assert str(error) == "stream 'account-1' is at version 1, expected 0"
    assert error.__cause__ is not None
    assert store.stream_version("account-1") == 1


def test_no_stream_means_that_it_must_not_exist(store: Store) -> None:
    store.write("account-1", "Opened", {})
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write("account-1", "Opened", {}, expected_version=NO_STREAM)
    assert (caught.value.expected_version, caught.value.actual_version) == (-1, 0)


def test_a_version_expected_of_a_stream_that_does_not_exist_is_wrong(store: Store) -> None:
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write("account-1 (Stream Version: 7)", "Opened", {}, expected_version=3)
    assert (caught.value.stream_name, caught.value.actual_version) == ("account-1 (Stream Version: 7)", -1)


def test_a_message_id_that_exists_is_refused(store: Store) -> None:
    id = uuid4()
    store.write("account-1", "Opened", {}, id=id)
    with pytest.raises(DuplicateMessageId) as caught:
        store.write("account-2", "Opened", {}, id=str(id).upper())
    assert caught.value.id == str(id)
    assert store.stream_version("account-2") is None


# ---- batches


def test_a_batch_takes_tuples_and_new_messages(store: Store) -> None:
    id = uuid4()
    last = store.write_batch(
        "account-1",
        [
            ("Opened", {"n": 0}),
            ("Deposited", {"n": 1}, {"by": "me"}),
            NewMessage("Deposited", {"n": 2}, id=id),
            NewMessage("Closed", {"n": 3}, {}),
        ],
    )
    assert last == 3
    messages = store.read_stream("account-1")
    assert numbers(messages) == [0, 1, 2, 3]
    assert [message.metadata for message in messages] == [None, {"by": "me"}, None, {}]
    assert messages[2].id == str(id)


def test_a_batch_is_any_iterable_and_one_round_trip(store: Store) -> None:
    store.write_batch("order-1", [("Placed", {})])  # Whether there is write_messages is then known.
    sent = statements_of(store)
    assert store.write_batch("account-1", (("Deposited", {"n": n}) for n in range(1000))) == 999
    assert len(sent) == 1
    assert numbers(store.read_stream("account-1")) == list(range(1000))
    assert [message.global_position for message in store.read("account")] == list(range(2, 1002))


def test_the_expected_version_of_a_batch_is_that_of_its_first_message(store: Store) -> None:
    two: list[tuple[str, Any]] = [("Deposited", {}), ("Deposited", {})]
    assert store.write_batch("account-1", two, expected_version=NO_STREAM) == 1
    assert store.write_batch("account-1", two, expected_version=1) == 3
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write_batch("account-1", two, expected_version=1)
    assert (caught.value.stream_name, caught.value.expected_version, caught.value.actual_version) == ("account-1", 1, 3)
    assert store.stream_version("account-1") == 3


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    id = uuid4()
    with pytest.raises(DuplicateMessageId) as caught:
        store.write_batch(
            "account-1", [NewMessage("A", {}, id=id), NewMessage("B", {}), NewMessage("C", {}, id=str(id))]
        )
    assert caught.value.id == str(id)
    assert store.read("$all") == []


# ---- reading


def test_read_goes_by_the_kind_of_name(filled: Store) -> None:
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
def test_no_of_messages_is_a_limit_and_minus_one_is_none(filled: Store, name: str) -> None:
    every = filled.read(name, no_of_messages=-1)
    assert len(every) >= 4
    assert filled.read(name, no_of_messages=2) == every[:2]
    assert filled.read(name, no_of_messages=0) == []


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_a_thousand_messages_are_read_unless_told_otherwise(store: Store, name: str) -> None:
    store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(1001)])
    assert len(store.read(name)) == 1000
    assert len(store.read(name, no_of_messages=-1)) == 1001


def test_the_last_message_may_be_asked_for_by_type(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": 0}), ("Deposited", {"n": 1}), ("Deposited", {"n": 2})])
    last = store.read_last_message("account-1")
    assert last is not None
    assert last.data == {"n": 2}
    opened = store.read_last_message("account-1", "Opened")
    assert opened is not None
    assert opened.position == 0
    assert store.read_last_message("account-1", "Closed") is None
    assert store.read_last_message("account-9") is None


def test_stream_version_is_none_for_no_stream(filled: Store) -> None:
    assert filled.stream_version("account-1") == 3
    assert filled.stream_version("account-9") is None


def test_members_of_a_consumer_group_share_a_category_by_stream(store: Store) -> None:
    for n in range(60):
        store.write(f"account-{n % 20}+{n}", "Deposited", {"n": n})
    store.write("account", "Deposited", {"n": 60})
    shares = [
        store.read_category("account", consumer_group_member=member, consumer_group_size=3) for member in range(3)
    ]
    assert all(shares)
    assert sorted(n for share in shares for n in numbers(share)) == list(range(60))
    for member, share in enumerate(shares):
        assert {consumer_group_member(message.stream_name, 3) for message in share} == {member}
        assert numbers(share) == sorted(numbers(share))
        assert store.read("account", consumer_group_member=member, consumer_group_size=3) == share


def test_correlation_keeps_messages_of_that_category_of_origin(store: Store) -> None:
    store.write("account-1", "A", {"n": 0}, {"correlationStreamName": "order-1"})
    store.write("account-2", "A", {"n": 1}, {"correlationStreamName": "orders-1"})
    store.write("account-3", "A", {"n": 2}, {"correlationStreamName": "order"})
    store.write("account-4", "A", {"n": 3})
    assert numbers(store.read_category("account", correlation="order")) == [0, 2]


def test_stream_identifiers_are_sorted_distinct_and_exactly_of_the_category(store: Store) -> None:
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
        store.write(name, "T", {})
    assert store.stream_identifiers("a_c") == ["1", "1+2-3", "2", "Z", "é"]
    assert store.stream_identifiers("a%") == ["wrong"]
    assert store.stream_identifiers("a_c:snapshot") == ["1", "9"]
    assert store.stream_identifiers("none") == []


def test_version_is_that_of_the_interface(store: Store) -> None:
    assert store.version() == "1.3.0"


# ---- SQL of the caller's own


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM message_store.get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);",
        """
        SELECT time, metadata, data, global_position, position, type, stream_name, id, 1 AS more -- a comment: 100 %% 7
        FROM message_store.messages
        WHERE stream_name = %(stream_name)s AND position >= %(position)s AND id::text LIKE '%%-%%' AND 7 % 4 = 3
        ORDER BY position LIMIT %(batch_size)s -- the end""",
        text(
            "SELECT * FROM message_store.messages WHERE stream_name = :stream_name AND position >= :position"
            " ORDER BY position LIMIT :batch_size"
        ),
        select(schema.messages)
        .where(
            schema.messages.c.stream_name == bindparam("stream_name"),
            schema.messages.c.position >= bindparam("position"),
        )
        .order_by(schema.messages.c.position)
        .limit(bindparam("batch_size")),
        select(schema.messages)
        .where(schema.messages.c.stream_name == "account-1", schema.messages.c.position.between(1, 2))
        .order_by(schema.messages.c.position),
        select(functions.get_stream_messages("account-1", 1, 2).messages()),
    ],
    ids=["text", "text with percent signs", "text()", "select with parameters", "select", "select of a function"],
)
def test_read_takes_the_callers_own_query(filled: Store, sql: Any) -> None:
    assert filled.read("account-1", sql, position=1, no_of_messages=2) == filled.read_stream("account-1", 1, 2)


def test_own_sql_is_message_db_pys_form_where_the_search_path_is_message_dbs(messagedb_url: str, filled: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c search_path=message_store"})
    own = "SELECT * FROM get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);"
    assert Store(engine).read("account-1", own) == filled.read_stream("account-1")
    engine.dispose()


def test_own_sql_gets_the_consumer_group_too(filled: Store) -> None:
    own = (
        "SELECT * FROM message_store.get_category_messages(%(stream_name)s, %(position)s, %(batch_size)s, NULL,"
        " %(consumer_group_member)s, %(consumer_group_size)s)"
    )
    shares = [filled.read("account", own, consumer_group_member=m, consumer_group_size=2) for m in (0, 1)]
    assert sorted(n for share in shares for n in numbers(share)) == list(range(10))
    assert numbers(filled.read("account", own)) == list(range(10))


def test_times_of_own_sql_are_utc_whatever_the_sessions_time_zone(filled: Store) -> None:
    (expected,) = filled.read_stream("account-1", 0, 1)
    own = (
        "SELECT id, stream_name, type, position, global_position, data, metadata, time AT TIME ZONE 'utc' AS time"
        " FROM message_store.messages, set_config('timezone', 'Asia/Tokyo', true) ORDER BY global_position LIMIT 1"
    )
    assert filled.read("account-1", own) == [expected]


def test_a_value_bound_in_the_callers_query_is_kept(filled: Store) -> None:
    own = text("SELECT * FROM message_store.get_stream_messages(:stream_name, :position)")
    assert numbers(filled.read("account-1", own.bindparams(position=2))) == [6, 9]
    bound = select(schema.messages).where(schema.messages.c.global_position == bindparam("position", 3))
    assert numbers(filled.read("account-1", bound)) == [2]


# ---- conditions


def test_a_condition_is_sql_about_the_messages(messagedb_url: str, filled: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c message_store.sql_condition=on"})
    allowed = Store(engine)
    odd = "(data->>'n')::int % 2 = 1"
    assert numbers(allowed.read_stream("account-1", condition=odd)) == [3, 9]
    assert numbers(allowed.read_category("account", condition=odd)) == [1, 3, 5, 7, 9]
    assert numbers(allowed.iter_category("account", condition=odd, batch_size=2)) == [1, 3, 5, 7, 9]
    assert numbers(allowed.iter_stream("account-1", condition="messages.position > 0", batch_size=2)) == [3, 6, 9]
    engine.dispose()


# ---- iterating


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 11, 1000])
def test_iterating_gives_what_one_read_gives_whatever_the_page(filled: Store, batch_size: int) -> None:
    assert list(filled.iter_stream("account-1", batch_size=batch_size)) == filled.read_stream("account-1")
    assert list(filled.iter_category("account", batch_size=batch_size)) == filled.read_category("account")
    assert numbers(filled.iter_stream("account-1", 2, batch_size=batch_size)) == [6, 9]
    assert numbers(filled.iter_category("account", 5, batch_size=batch_size)) == list(range(4, 10))
    for member in (0, 1):
        assert list(filled.iter_category("account", 0, member, 2, batch_size=batch_size)) == filled.read_category(
            "account", consumer_group_member=member, consumer_group_size=2
        )


def test_iterating_asks_for_a_page_at_a_time_and_only_when_it_is_needed(filled: Store) -> None:
    sent = statements_of(filled)
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
