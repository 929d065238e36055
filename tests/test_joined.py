"""A Store on a Connection or a Session: one transaction with the application's own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from messagedb_sa import (
    NO_STREAM,
    DuplicateMessageId,
    InvalidArgument,
    Store,
    StreamWrite,
    WrongExpectedVersion,
)

host = MetaData()
orders = Table("orders", host, Column("number", Integer, primary_key=True))


class Base(DeclarativeBase):
    metadata = host


class Order(Base):
    __table__ = orders


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    """An application's engine, with its table orders, and with one connection only."""
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=1)
    host.create_all(engine)
    yield engine
    host.drop_all(engine)
    engine.dispose()


def order_count(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(orders)).scalar_one()


def usable(connection: Connection) -> bool:
    return bool(connection.scalar(select(1)) == 1)


# ---- whose transaction it is


def test_rows_and_messages_commit_together(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        connection.execute(insert(orders).values(number=1))
        assert Store(connection).write("order-1", "Placed", {"number": 1}, expected_version=NO_STREAM) == 0
        assert store.read("order") == []
    assert order_count(store) == len(store.read("order")) == 1


def test_rolled_back_by_the_host_means_not_written(engine: Engine, store: Store) -> None:
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


def test_a_savepoint_of_the_hosts_is_respected(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        joined = Store(connection)
        joined.write("order-1", "Placed", {})
        savepoint = connection.begin_nested()
        joined.write("order-1", "Cancelled", {})
        savepoint.rollback()
        joined.write("order-1", "Paid", {})
    assert [message.type for message in store.read("order-1")] == ["Placed", "Paid"]


@pytest.mark.parametrize("bad", [None, "postgresql://", Session, Session()])
def test_anything_else_is_refused(bad: Any) -> None:
    with pytest.raises((InvalidArgument, DBAPIError, Exception), match="bind"):
        Store(bad)


# ---- a conflict


CONFLICTS: list[Callable[[Store], Any]] = [
    lambda store: store.write("order-1", "Paid", {}, expected_version=7),
    lambda store: store.write_batch("order-1", [("Paid", {}), ("Shipped", {})], expected_version=7),
    lambda store: store.write_streams([("bill-1", [("Sent", {})]), ("order-1", [("Paid", {})], 7)]),
]


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_a_wrong_expected_version_leaves_the_hosts_transaction_usable(
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


def test_after_another_refusal_the_host_goes_back_to_its_savepoint(engine: Engine, store: Store) -> None:
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
    barrier = Barrier(writers)

    def race(writer: int) -> list[int | None]:
        seen: list[int | None] = []
        for round_ in range(rounds):
            barrier.wait()
            with engine.begin() as connection:
                joined, expected = Store(connection), round_ * batch - 1
                try:
                    if batch == 1:
                        joined.write("race-1", "Won", {"round": round_}, expected_version=expected)
                    else:
                        joined.write_batch("race-1", [("Won", {"round": round_})] * batch, expected)
                    seen.append(None)
                except WrongExpectedVersion as error:
                    seen.append(error.actual_version)
        return seen

    with ThreadPoolExecutor(writers) as threads:
        results = list(threads.map(race, range(writers)))
    engine.dispose()
    for round_, outcomes in enumerate(zip(*results, strict=True)):
        assert outcomes.count(None) == 1
        assert set(outcomes) == {None, (round_ + 1) * batch - 1}
    assert [message.data["round"] for message in store.read("race-1")] == [n // batch for n in range(rounds * batch)]


# ---- isolation levels


LOST_RACES: list[Callable[[Store], Any]] = [
    lambda store: store.write("order-1", "Paid", {}, expected_version=0),
    lambda store: store.write_batch("order-1", [("Paid", {}), ("Shipped", {})], expected_version=0),
    lambda store: store.write_streams([("order-1", [("Paid", {})], 0), ("bill-1", [("Sent", {})])]),
]


@pytest.mark.parametrize("race", LOST_RACES)
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_lost_race_is_a_wrong_expected_version_under_each_isolation_level(
    engine: Engine, store: Store, level: Any, race: Callable[[Store], Any]
) -> None:
    store.write("order-1", "Placed", {})
    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        assert joined.stream_version("order-1") == 0
        # Read by another transaction too, for SERIALIZABLE sees a conflict only where both read what the other wrote.
        with store.engine.connect().execution_options(isolation_level=level) as other:
            Store(other).write("order-1", "Cancelled", {}, expected_version=0)
            other.commit()
        with pytest.raises(WrongExpectedVersion) as caught:
            race(joined)
        error = caught.value
        assert (error.stream_name, error.expected_version) == ("order-1", 0)
        if level == "READ COMMITTED":
            assert error.actual_version == 1
            assert usable(connection)
        else:
            assert error.actual_version is None
            assert "is at another version, expected 0" in str(error)
            assert isinstance(error.__cause__, DBAPIError)
        connection.rollback()
    assert [message.type for message in store.read("$all")] == ["Placed", "Cancelled"]


@pytest.mark.parametrize(("level", "state"), [("REPEATABLE READ", "23505"), ("SERIALIZABLE", "40001")])
def test_without_an_expected_version_the_driver_says_that_the_transaction_is_to_be_tried_again(
    engine: Engine, store: Store, level: Any, state: str
) -> None:
    store.write("order-1", "Placed", {})
    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        joined.stream_version("order-1")
        with store.engine.connect().execution_options(isolation_level=level) as other:
            Store(other).write("order-1", "Cancelled", {})
            other.commit()
        with pytest.raises(DBAPIError) as caught:
            joined.write("order-1", "Paid", {})
        assert caught.value.orig.pgcode == state  # type: ignore[union-attr]
        connection.rollback()
        assert joined.write("order-1", "Paid", {}) == 2
        connection.commit()


# ---- several streams


def test_several_streams_are_written_each_with_its_own_expected_version(store: Store) -> None:
    store.write("order-1", "Placed", {})
    written = store.write_streams(
        [
            StreamWrite("order-1", [("Paid", {}), ("Shipped", {}, {"by": "me"})], expected_version=0),
            ("bill-1", [("Sent", {})], NO_STREAM),
            ("note-1", iter([("Taken", {})])),
        ]
    )
    assert written == {"order-1": 2, "bill-1": 0, "note-1": 0}
    assert [message.type for message in store.read("order-1")] == ["Placed", "Paid", "Shipped"]
    assert len(store.read("$all")) == 5


@pytest.mark.parametrize("wrong", ["order-1", "bill-1"])
def test_one_wrong_version_writes_to_none_of_them(store: Store, wrong: str) -> None:
    with pytest.raises(WrongExpectedVersion) as caught:
        store.write_streams(
            [(name, [("A", {}), ("B", {})], 5 if name == wrong else NO_STREAM) for name in ("order-1", "bill-1")]
        )
    assert (caught.value.stream_name, caught.value.expected_version, caught.value.actual_version) == (wrong, 5, -1)
    assert store.read("$all") == []


def test_a_duplicate_id_writes_to_none_of_them(store: Store) -> None:
    from messagedb_sa import NewMessage

    id = uuid4()
    with pytest.raises(DuplicateMessageId) as caught:
        store.write_streams([("order-1", [NewMessage("A", {}, id=id)]), ("bill-1", [NewMessage("B", {}, id=id)])])
    assert caught.value.id == str(id)
    assert store.read("$all") == []


@pytest.mark.parametrize(
    ("writes", "argument"),
    [
        ([], "writes"),
        (None, "writes"),
        ([("order-1", [])], "writes[0].messages"),
        ([("order-1", [("A", {})]), ("order-1", [("A", {})])], "writes[1].stream_name"),
        ([("order-1", [("A", {})], -2)], "writes[0].expected_version"),
        ([("order-1", [("A", {}), ("B",)])], "writes[0].messages[1]"),
        ([("order-1", [("A", {"n": float("nan")})])], "writes[0].messages[0].data"),
        (["order-1"], "writes[0]"),
        ([("", [("A", {})])], "writes[0].stream_name"),
    ],
)
def test_bad_writes_are_refused_by_name(store: Store, writes: Any, argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        store.write_streams(writes)
    assert caught.value.argument == argument
    assert store.read("$all") == []


def test_calls_with_the_streams_in_opposite_orders_do_not_deadlock(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=4)
    names = [f"{category}-1" for category in "abcdefgh"]

    def write(n: int) -> None:
        for _ in range(25):
            Store(engine).write_streams([(name, [("T", {})]) for name in (names if n % 2 else reversed(names))])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    engine.dispose()
    assert [store.stream_version(name) for name in names] == [99] * 8


def test_single_writes_in_opposite_orders_can_deadlock(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c deadlock_timeout=50"})
    barrier = Barrier(2)

    def write(first: str, second: str) -> str:
        try:
            with engine.begin() as connection:
                Store(connection).write(first, "T", {})
                barrier.wait()
                Store(connection).write(second, "T", {})
            return "written"
        except DBAPIError as error:
            return str(error.orig.pgcode)  # type: ignore[union-attr]

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(write, ("a-1", "b-1"), ("b-1", "a-1")))
    engine.dispose()
    assert sorted(outcomes) == ["40P01", "written"]


def test_a_position_taken_under_repeatable_read_names_the_stream(engine: Engine, store: Store) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        joined = Store(connection)
        joined.version()
        store.write("b,c) (x-1", "T", {})
        with pytest.raises(WrongExpectedVersion) as caught:
            joined.write_streams([("a-1", [("T", {})], -1), ("b,c) (x-1", [("T", {})], -1)])
        assert caught.value.stream_name == "b,c) (x-1"
        assert isinstance(caught.value.__cause__, IntegrityError)


def test_the_version_is_compared_behind_the_lock(engine: Engine, store: Store) -> None:
    with store.engine.connect() as other, engine.connect() as connection:
        Store(other).write("order-1", "Placed", {})
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(Store(connection).write, "order-1", "Placed", {}, None, NO_STREAM)
            blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while other.scalar(blocked) == 0:
                assert not waiting.done()
            other.commit()
            with pytest.raises(WrongExpectedVersion) as caught:
                waiting.result(timeout=30)
        assert caught.value.actual_version == 0
