"""A message that Python cannot represent, as other clients can write it, fails alone, and by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from messagedb_sa import Message, MessageNotDecodable, Store

from ..support import DRIVERS, NESTED, insert, nested_is_refused, on, store_on

UNDECODABLE = [
    pytest.param(NESTED, "now()", "its data cannot be decoded: RecursionError: ", id="nested", marks=nested_is_refused),
    pytest.param("{}", "'12000-01-01'", "its time must be in the years 1 to 9999, got 12000-01-01 00:00:00", id="late"),
    pytest.param(
        "{}", "'0044-03-15 BC'", "its time must be in the years 1 to 9999, got 0044-03-15 00:00:00 BC", id="BC"
    ),
    pytest.param("{}", "'infinity'", "its time must be in the years 1 to 9999, got infinity", id="infinity"),
    pytest.param("{}", "'-infinity'", "its time must be in the years 1 to 9999, got -infinity", id="-infinity"),
]
OWN_SQL = "SELECT * FROM message_store.messages ORDER BY global_position"


def fill(store: Store, data: str, time: str) -> None:
    """Three messages in account-1, of which the second cannot be decoded."""
    store.write("account-1", "Opened", {"n": 0})
    insert(store, "account-1", 1, "Odd", data, time)
    store.write("account-1", "Closed", {"n": 2})


@pytest.mark.parametrize(("data", "time", "reason"), UNDECODABLE)
def test_a_read_says_which_message_cannot_be_decoded_and_why(
    each_store: Store, store: Store, data: str, time: str, reason: str
) -> None:
    fill(store, data, time)
    for read in (
        lambda: each_store.read("account-1"),
        lambda: each_store.read("account"),
        lambda: each_store.read("$all"),
        lambda: each_store.read("$all", allow_holes=True),
        lambda: each_store.read_last_message("account-1", "Odd"),
        lambda: each_store.read("account-1", OWN_SQL),
    ):
        with pytest.raises(MessageNotDecodable) as caught:
            read()
        error = caught.value
        assert (error.stream_name, error.position, error.global_position, error.type) == ("account-1", 1, 2, "Odd")
        assert error.reason.startswith(reason)
        assert error.__cause__ is not None
    assert [each_store.read_stream("account-1", n, 1)[0].type for n in (0, 2)] == ["Opened", "Closed"]


@pytest.mark.parametrize(("data", "time", "reason"), UNDECODABLE)
def test_an_iterator_yields_the_messages_before_it_first(
    each_store: Store, store: Store, data: str, time: str, reason: str
) -> None:
    fill(store, data, time)
    for messages in (
        each_store.iter_stream("account-1"),
        each_store.iter_category("account"),
        each_store.iter_all(),
        each_store.iter_all(batch_size=1),
    ):
        assert next(messages).type == "Opened"
        with pytest.raises(MessageNotDecodable):
            next(messages)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("data", "time", "reason"), UNDECODABLE)
def test_the_callers_transaction_stays_usable(
    messagedb_url: str, store: Store, driver: str, data: str, time: str, reason: str
) -> None:
    fill(store, data, time)

    def body(connection: Any) -> None:
        joined = Store(connection)
        with pytest.raises(MessageNotDecodable):
            joined.read("account")
        joined.write("account-1", "Noted", {})

    on(driver, messagedb_url, body)
    assert store.stream_version("account-1") == 3


@nested_is_refused
def test_all_that_cannot_be_decoded_in_a_message_is_named(store: Store) -> None:
    insert(store, "account-1", 0, "Odd", NESTED, "'infinity'", metadata=NESTED)
    with pytest.raises(MessageNotDecodable) as caught:
        store.read("account")
    first, second, third = caught.value.reason.split("; ")
    assert first.startswith("its data cannot be decoded")
    assert second.startswith("its metadata cannot be decoded")
    assert third == "its time must be in the years 1 to 9999, got infinity"


def test_a_gap_before_it_in_all_comes_first(store: Store) -> None:
    store.write("account-1", "Opened", {})
    with store.engine.connect() as connection:
        # Takes global position 2, and does not commit.
        transaction = connection.begin()
        Store(connection).write("other-1", "Opened", {})
        insert(store, "account-2", 0, "Odd", "{}", "'infinity'")
        assert [message.global_position for message in store.read("$all", settle_seconds=0)] == [1]
        assert [message.global_position for message in store.iter_all(settle_seconds=0)] == [1]
        transaction.commit()
    seen: list[Message] = []
    with pytest.raises(MessageNotDecodable):
        seen.extend(store.iter_all(settle_seconds=0))
    assert [message.global_position for message in seen] == [1, 2]


def test_the_last_moment_of_python_is_not_infinity(each_store: Store, store: Store) -> None:
    insert(store, "account-1", 0, "Odd", "{}", "'9999-12-31 23:59:59.999999'")
    insert(store, "account-1", 1, "Odd", "{}", "'0001-01-01'")
    last, first = each_store.read("account-1")
    assert last.time == datetime.max.replace(tzinfo=timezone.utc)
    assert first.time == datetime.min.replace(tzinfo=timezone.utc)


def test_integers_of_any_length_are_read_also_beside_a_message_that_cannot_be(each_store: Store, store: Store) -> None:
    insert(store, "account-1", 0, "Odd", f"[{'7' * 5000}]")
    insert(store, "account-1", 1, "Odd", "{}", "'infinity'")
    assert next(each_store.iter_stream("account-1")).data == [(10**5000 - 1) // 9 * 7]


@pytest.fixture(params=DRIVERS)
def picky(request: pytest.FixtureRequest, store: Store, messagedb_url: str) -> Iterator[Store]:
    """A store on an engine whose own json_deserializer raises an error of its own class at "odd"."""

    class TooOddError(Exception):
        pass

    def deserialize(text: str) -> Any:
        if "odd" in text:
            raise TooOddError("that is odd")
        return {"text": text}

    with store_on(request.param, messagedb_url, json_deserializer=deserialize) as on_driver:
        yield on_driver


def test_what_the_engines_own_deserializer_refuses_fails_alone(picky: Store, store: Store) -> None:
    store.write_batch("account-1", [("Opened", 1), ("Odd", "odd"), ("Closed", 2)])
    messages = picky.iter_stream("account-1")
    assert next(messages).data == {"text": "1"}
    with pytest.raises(MessageNotDecodable, match="json_deserializer raised TooOddError: that is odd") as caught:
        next(messages)
    assert type(caught.value.__cause__).__name__ == "TooOddError"
    with pytest.raises(MessageNotDecodable):
        picky.read_last_message("account-1", "Odd")


def test_text_of_own_sql_that_is_not_json_fails_alone(each_store: Store) -> None:
    each_store.write_batch("account-1", [("Opened", {"n": 0}), ("Odd", "1,2")])
    own = "SELECT *, data #>> '{}' AS data FROM message_store.messages ORDER BY position"
    own = own.replace("*,", "id, stream_name, type, position, global_position, metadata, time,")
    with pytest.raises(MessageNotDecodable) as caught:
        each_store.read("account-1", own)
    assert caught.value.position == 1
    assert caught.value._before[0].data == {"n": 0}


def test_times_of_own_sql_may_be_infinite_in_any_time_zone(messagedb_url: str, store: Store) -> None:
    store.write("account-1", "Opened", {})
    own = (
        "SELECT id, stream_name, type, position, global_position, data, metadata, timestamptz 'infinity' AS time"
        " FROM message_store.messages"
    )
    for driver in ("psycopg2", "psycopg"):
        url = make_url(messagedb_url).set(drivername=f"postgresql+{driver}")
        engine = create_engine(url, connect_args={"options": "-c timezone=Asia/Tokyo"})
        with pytest.raises(MessageNotDecodable, match="got infinity"):
            Store(engine).read("account-1", own)
        engine.dispose()
