"""A Store on a Connection or a Session: one transaction with the application's own rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, insert
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from messagedb_sa import NO_STREAM, DuplicateMessageId, InvalidArgument, Store, WrongExpectedVersion

from ..support import Order, orders
from ..waits import released_together, wait_until_blocked
from .support import order_count, usable


def test_rows_and_messages_commit_together(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        connection.execute(insert(orders).values(number=1))
        assert Store(connection).write("order-1", "Placed", {"number": 1}, expected_version=NO_STREAM) == 0
        assert store.read("order") == []
    assert order_count(store) == len(store.read("order")) == 1


def test_a_rollback_of_the_application_takes_the_messages_back(engine: Engine, store: Store) -> None:
    with engine.connect() as connection:
        joined = Store(connection)
        connection.execute(insert(orders).values(number=1))
        joined.write("order-1", "Placed", {})
        joined.write_batch("order-1", [("Paid", {}), ("Shipped", {})], expected_version=0)
        joined.write_streams([("order-2", [("Placed", {})]), ("bill-2", [("Sent", {})], NO_STREAM)])
        assert [message.type for message in joined.read("order")] == ["Placed", "Paid", "Shipped", "Placed"]
        connection.rollback()
    assert order_count(store) == len(store.read("$all")) == 0


@pytest.mark.parametrize("kind", ["session", "scoped_session"])
def test_a_session_and_its_objects_are_one_transaction_with_the_messages(
    engine: Engine, store: Store, kind: str
) -> None:
    session: Any = Session(engine) if kind == "session" else scoped_session(sessionmaker(engine))
    joined = Store(session)
    session.add(Order(number=1))
    assert joined.write("order-1", "Placed", {}, expected_version=NO_STREAM) == 0
    session.rollback()
    assert order_count(store) == len(store.read("order")) == 0

    session.add(Order(number=2))
    assert joined.write("order-2", "Placed", {}, expected_version=NO_STREAM) == 0
    session.commit()
    assert order_count(store) == len(store.read("order")) == 1
    assert joined.read_last_message("order-2") is not None
    session.close()


def test_every_read_works_in_it_and_sees_what_it_wrote(engine: Engine) -> None:
    with engine.connect() as connection:
        joined = Store(connection)
        joined.write_batch("order-1", [("Placed", {"n": n}) for n in range(5)])
        assert len(joined.read_stream("order-1")) == len(joined.read_category("order")) == len(joined.read("$all")) == 5
        assert joined.stream_version("order-1") == 4
        assert joined.stream_identifiers("order") == ["1"]
        assert len(list(joined.iter_stream("order-1", batch_size=2))) == 5
        assert len(list(joined.iter_category("order", batch_size=2))) == 5
        assert joined.version() == "1.3.0"
        assert joined.engine is engine


def test_it_opens_no_connection_of_its_own(engine: Engine) -> None:
    with engine.connect() as connection:
        Store(connection).write("order-1", "Placed", {})
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    with Session(engine) as session:
        joined = Store(session)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        joined.write("order-1", "Placed", {})
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]


def test_a_savepoint_of_the_application_is_respected(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        joined = Store(connection)
        joined.write("order-1", "Placed", {})
        savepoint = connection.begin_nested()
        joined.write("order-1", "Cancelled", {})
        savepoint.rollback()
        joined.write("order-1", "Paid", {})
    assert [message.type for message in store.read("order-1")] == ["Placed", "Paid"]


@pytest.mark.parametrize("bad", [None, "postgresql://", Session])
def test_anything_else_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="bind"):
        Store(bad)


def test_a_session_without_an_engine_is_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"must be bound to one engine for all its classes, such as Session\(engine"
    ):
        Store(Session())


CONFLICTS: list[Callable[[Store], Any]] = [
    lambda store: store.write("order-1", "Paid", {}, expected_version=7),
    lambda store: store.write_batch("order-1", [("Paid", {}), ("Shipped", {})], expected_version=7),
    lambda store: store.write_streams([("bill-1", [("Sent", {})]), ("order-1", [("Paid", {})], 7)]),
]


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_a_wrong_expected_version_leaves_the_transaction_usable(
    engine: Engine, store: Store, conflict: Callable[[Store], Any]
) -> None:
    store.write("order-1", "Placed", {})
    with engine.begin() as connection:
        joined = Store(connection)
        connection.execute(insert(orders).values(number=1))
        with pytest.raises(WrongExpectedVersion) as caught:
            conflict(joined)
        error = caught.value
        assert (error.stream_name, error.expected_version, error.actual_version) == ("order-1", 7, 0)
        joined.write("order-1", "Paid", {}, expected_version=error.actual_version)
    assert order_count(store) == 1
    assert [message.type for message in store.read("$all")] == ["Placed", "Paid"]


def test_after_another_error_the_transaction_goes_back_to_a_savepoint(engine: Engine, store: Store) -> None:
    id = uuid4()
    store.write("order-1", "Placed", {}, id=id)
    with engine.connect() as connection:
        joined = Store(connection)
        with pytest.raises(DuplicateMessageId), connection.begin_nested():
            joined.write("order-2", "Placed", {}, id=id)
        assert usable(connection)
        with pytest.raises(DuplicateMessageId):
            joined.write("order-2", "Placed", {}, id=id)
        with pytest.raises(InternalError, match="current transaction is aborted"):
            usable(connection)
        connection.rollback()
        assert usable(connection)


def test_bad_input_leaves_the_transaction_as_it_was(engine: Engine) -> None:
    with engine.connect() as connection:
        with pytest.raises(InvalidArgument):
            Store(connection).write("order-1", "Placed", {"n": float("nan")})
        assert not connection.in_transaction()


@pytest.mark.parametrize("batch", [1, 3])
def test_exactly_one_of_the_joined_writers_wins_each_round(messagedb_url: str, store: Store, batch: int) -> None:
    writers, rounds = 6, 15
    engine = create_engine(messagedb_url, pool_size=writers)

    def write(round_: int) -> int | None:
        with engine.begin() as connection:
            joined, expected = Store(connection), round_ * batch - 1
            try:
                if batch == 1:
                    joined.write("race-1", "Won", {"round": round_}, expected_version=expected)
                else:
                    joined.write_batch("race-1", [("Won", {"round": round_})] * batch, expected)
                return None
            except WrongExpectedVersion as error:
                return error.actual_version

    with ThreadPoolExecutor(writers) as threads:
        for round_ in range(rounds):
            with released_together(store.engine, "race-1", writers):
                racing = [threads.submit(write, round_) for _ in range(writers)]
            outcomes = [each.result() for each in racing]
            assert outcomes.count(None) == 1
            assert set(outcomes) == {None, (round_ + 1) * batch - 1}
    engine.dispose()
    assert [message.data["round"] for message in store.read("race-1")] == [n // batch for n in range(rounds * batch)]


def test_the_version_is_compared_behind_the_lock(engine: Engine, store: Store) -> None:
    with store.engine.connect() as other, engine.connect() as connection:
        Store(other).write("order-1", "Placed", {})
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(Store(connection).write, "order-1", "Placed", {}, None, NO_STREAM)
            wait_until_blocked(store.engine)
            other.commit()
            with pytest.raises(WrongExpectedVersion) as caught:
                waiting.result()
        assert caught.value.actual_version == 0
