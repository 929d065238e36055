"""Reading from the newest message to the oldest, the last messages, and the last global position, on each driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import InvalidArgument, MessageNotDecodable, MessageTypes, Store, schema

from ..support import as_role, insert, numbers, statements_of

NAMES = ["account-1", "account", "$all"]


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_message_comes_first(filled: Store, name: str) -> None:
    assert filled.read(name, backwards=True) == filled.read(name)[::-1]
    assert filled.read("nothing", backwards=True) == filled.read("nothing-1", backwards=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_last_ones_are_asked_for_by_their_number(filled: Store, name: str) -> None:
    every = filled.read(name)
    assert filled.read(name, no_of_messages=3, backwards=True) == every[:-4:-1]
    assert filled.read(name, no_of_messages=0, backwards=True) == []
    assert filled.read(name, no_of_messages=-1, backwards=True) == every[::-1]


def test_the_position_is_the_first_to_read_going_down(filled: Store) -> None:
    assert numbers(filled.read("account-1", position=2, backwards=True)) == [6, 3, 0]
    assert numbers(filled.read_stream("account-1", 1, backwards=True)) == [3, 0]
    assert numbers(filled.read_stream("account-1", 0, backwards=True)) == [0]
    assert numbers(filled.read_category("account", 3, 2, backwards=True)) == [2, 1]
    assert numbers(filled.read("$all", position=2, backwards=True)) == [1, 0]
    assert filled.read("$all", position=0, backwards=True) == filled.read("account", position=0, backwards=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_messages_are_read_by_default(each_store: Store, name: str) -> None:
    each_store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(1001)])
    assert numbers(each_store.read(name, backwards=True)) == [*range(1000, 0, -1)]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 1000])
def test_iterating_gives_what_one_read_gives_whatever_the_batch_size(filled: Store, batch_size: int) -> None:
    for iterate, name in ((filled.iter_stream, "account-1"), (filled.iter_category, "account")):
        assert list(iterate(name, batch_size=batch_size, backwards=True)) == filled.read(name)[::-1]
        assert list(iterate(name, 2, batch_size=batch_size, backwards=True)) == filled.read(
            name, position=2, backwards=True
        )
    assert numbers(filled.iter_all(batch_size=batch_size, backwards=True)) == [*range(11, -1, -1)]


def test_iterating_ends_at_the_first_message_of_a_stream_without_another_round_trip(filled: Store) -> None:
    sent = statements_of(filled.engine)
    assert len(list(filled.iter_stream("account-1", batch_size=1, backwards=True))) == 4
    assert len(sent) == 4


def test_what_is_written_while_one_iterates_does_not_come(filled: Store) -> None:
    pages = filled.iter_category("account", batch_size=4, backwards=True)
    assert numbers(next(pages) for _ in range(4)) == [9, 8, 7, 6]
    filled.write("account-1", "Deposited", {"n": 12})
    assert numbers(pages) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("with_index", [False, True])
def test_members_of_a_consumer_group_read_their_own_streams(
    each_store: Store, messagedb_engine: Engine, with_index: bool
) -> None:
    for n in range(60):
        each_store.write(f"account-{n % 20}+{n}", "Deposited", {"n": n})
        each_store.write(f"accounting-{n % 20}+{n}", "Deposited", {"n": n})
    each_store.write("account", "Deposited", {"n": 60})
    index = CreateIndex(schema.consumer_group_index(3))
    with messagedb_engine.begin() as connection:
        if with_index:
            connection.execute(index)
    try:
        for member in range(3):
            share = each_store.read_category("account", None, -1, member, 3)
            assert len(share) > 5
            assert each_store.read("account", None, None, -1, member, 3, backwards=True) == share[::-1]
            assert (
                each_store.read_category("account", 50, 4, member, 3, backwards=True)
                == [message for message in share[::-1] if message.global_position <= 50][:4]
            )
            assert (
                list(each_store.iter_category("account", None, member, 3, batch_size=4, backwards=True)) == share[::-1]
            )
    finally:
        with messagedb_engine.begin() as connection:
            connection.execute(text(f"DROP INDEX IF EXISTS message_store.{index.element.name}"))


def test_whether_a_group_has_its_index_is_looked_up_once(filled: Store) -> None:
    sent = statements_of(filled.engine)
    assert len(list(filled.iter_category("account", None, 0, 1, batch_size=4, backwards=True))) == 10
    assert len(sent) == 1 + 3


def test_an_index_that_is_not_valid_is_not_used(store: Store, messagedb_engine: Engine) -> None:
    """As CREATE INDEX CONCURRENTLY leaves one behind that failed."""
    store.write("account-1", "Deposited", {})
    name = "message_store.messages_consumer_group_of_1"
    with messagedb_engine.connect() as connection:
        connection.execute(CreateIndex(schema.consumer_group_index(1)))
        sql = f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass"
        connection.execute(text(sql))
        assert len(Store(connection).read_category("account", None, 9, 0, 1, backwards=True)) == 1
        connection.rollback()


def test_correlation_works_backwards_too_also_for_a_member(each_store: Store) -> None:
    for n in range(6):
        origin = ("order-1", "orders-1", "order")[n % 3]
        each_store.write(f"account-{n}", "A", {"n": n}, {"correlationStreamName": origin})
    each_store.write("account-7", "A", {"n": 7})
    assert numbers(each_store.read_category("account", correlation="order", backwards=True)) == [5, 3, 2, 0]
    shares = [
        numbers(each_store.read_category("account", None, 9, member, 2, correlation="order", backwards=True))
        for member in range(2)
    ]
    assert sorted(shares[0] + shares[1]) == [0, 2, 3, 5]
    assert all(newer > older for share in shares for newer, older in pairwise(share))


@dataclass(frozen=True)
class Deposited:
    n: int


def test_registered_classes_are_read_as_instances(store: Store) -> None:
    types = MessageTypes()
    types.register(Deposited)
    typed = Store(store.engine, types=types)
    typed.write_batch("account-1", [Deposited(1), Deposited(2)])
    for name in NAMES:
        assert [message.data for message in typed.read(name, backwards=True)] == [Deposited(2), Deposited(1)]


def test_a_message_that_cannot_be_decoded_fails_after_those_that_are_newer(each_store: Store, store: Store) -> None:
    store.write("account-1", "Opened", {"n": 0})
    insert(store, "account-1", 1, "Odd", "{}", "'infinity'")
    store.write("account-1", "Closed", {"n": 2})
    for messages in (
        each_store.iter_stream("account-1", backwards=True),
        each_store.iter_category("account", backwards=True),
        each_store.iter_category("account", None, 0, 1, backwards=True),
        each_store.iter_all(backwards=True),
    ):
        assert next(messages).type == "Closed"
        with pytest.raises(MessageNotDecodable):
            next(messages)


def test_the_whole_store_is_read_backwards_without_waiting_for_writers(store: Store) -> None:
    store.write("account-1", "Opened", {})
    with store.engine.connect() as connection:
        Store(connection).write("other-1", "Opened", {})
        store.write("account-1", "Closed", {})
        found = store.read("$all", backwards=True)
        assert [message.global_position for message in found] == [3, 1]
        connection.commit()
    assert [message.global_position for message in store.iter_all(backwards=True)] == [3, 2, 1]


def test_it_is_read_backwards_in_a_transaction_that_sees_no_new_messages(store: Store) -> None:
    store.write("account-1", "Opened", {})
    with store.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        joined = Store(connection)
        assert joined.last_global_position("$all") == 1
        with store.engine.connect() as other:
            Store(other).write("other-1", "Opened", {})
            other.rollback()
        store.write("account-1", "Closed", {})
        assert [message.global_position for message in joined.read("$all", backwards=True)] == [1]


def test_the_role_message_store_may_read_backwards(messagedb_engine: Engine, store: Store) -> None:
    store.write("account-1", "Opened", {})
    as_message_store = Store(as_role(messagedb_engine, "message_store"))
    for name in NAMES:
        assert len(as_message_store.read(name, backwards=True)) == 1
    assert len(as_message_store.read_category("account", None, 9, 0, 1, backwards=True)) == 1
    assert as_message_store.last_global_position("account") == 1


def test_a_condition_is_not_for_reads_backwards(store: Store) -> None:
    reads: list[tuple[Callable[..., Any], str]] = [
        (store.read_stream, "account-1"),
        (store.iter_stream, "account-1"),
        (store.read_category, "account"),
        (store.iter_category, "account"),
    ]
    for read, name in reads:
        with pytest.raises(InvalidArgument, match=r"^condition='true': is only for reads forwards"):
            read(name, condition="true", backwards=True)


def test_options_about_gaps_are_not_for_reads_backwards(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^allow_holes=True: has no effect with backwards=True"):
        store.read("$all", allow_holes=True, backwards=True)
    with pytest.raises(InvalidArgument, match=r"^settle_seconds=2.0: has no effect with backwards=True"):
        store.iter_all(settle_seconds=2, backwards=True)


def test_own_sql_has_its_own_order(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^backwards=True: is only for a read without sql"):
        store.read("$all", "SELECT * FROM message_store.messages", backwards=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, "yes", 1])
def test_backwards_is_true_or_false(store: Store, name: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^backwards=.*: must be True or False"):
        store.read(name, backwards=value)  # type: ignore[arg-type]


def test_backwards_is_refused_before_a_negative_position_is_sent(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^position=-1: must be between 0 and"):
        store.read("$all", position=-1, backwards=True)


def test_the_last_global_position_is_that_of_the_category_or_of_the_whole_store(filled: Store) -> None:
    assert filled.last_global_position("account") == 10
    assert filled.last_global_position("accounting") == 11
    assert filled.last_global_position("$all") == 12
    assert filled.last_global_position("nothing") == 0


def test_the_last_global_position_of_an_empty_store_is_0(each_store: Store) -> None:
    assert each_store.last_global_position("$all") == each_store.last_global_position("account") == 0


def test_the_last_global_position_is_not_asked_of_a_stream(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^category_name='account-1': must be a category"):
        store.last_global_position("account-1")
