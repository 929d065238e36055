"""Writing to several streams, if others that are not written to are at the versions that the writer knows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from messagedb_sa import NO_STREAM, InvalidArgument, Store, StreamWrite, WrongExpectedVersion

from ..support import on
from ..waits import category_locked, wait_until_blocked
from .support import usable


def test_a_stream_that_is_only_checked_is_not_written_to(each_kind: Store) -> None:
    each_kind.write_batch("limit-1", [("Set", {"n": 0}), ("Set", {"n": 1})])
    written = each_kind.write_streams([("limit-1", [], 1), StreamWrite("limit-2", iter([]), NO_STREAM), PAID])
    assert written == {"account-1": 0}
    assert each_kind.stream_version("limit-1") == 1
    assert each_kind.stream_version("limit-2") == NO_STREAM


PAID: Any = ("account-1", [("Paid", {})])


@pytest.mark.parametrize(("expected", "actual"), [(NO_STREAM, 0), (1, 0)])
def test_at_another_version_nothing_is_written(each_kind: Store, expected: int, actual: int) -> None:
    each_kind.write("limit-1", "Set", {})
    for writes in ([PAID, ("limit-1", [], expected)], [("limit-1", [], expected), PAID]):
        with pytest.raises(WrongExpectedVersion) as caught:
            each_kind.write_streams(writes)
        error = caught.value
        assert (error.stream_name, error.expected_version, error.actual_version) == ("limit-1", expected, actual)
    assert each_kind.stream_version("account-1") == NO_STREAM


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_lost_race_leaves_the_callers_transaction_usable(store: Store, driver: str) -> None:
    store.write("limit-1", "Set", {})

    def body(connection: Any) -> None:
        joined = Store(connection)
        with pytest.raises(WrongExpectedVersion):
            joined.write_streams([PAID, ("limit-1", [], 1)])
        assert usable(connection)
        assert joined.write_streams([PAID, ("limit-1", [], 0)]) == {"account-1": 0}

    on(driver, str(store.engine.url), body)
    assert store.stream_version("account-1") == 0


def test_what_was_checked_holds_until_the_commit(store: Store) -> None:
    other = create_engine(store.engine.url)
    with ThreadPoolExecutor(1) as threads:
        with store.engine.begin() as connection:
            Store(connection).write_streams([PAID, ("limit-1", [], NO_STREAM)])
            writing = threads.submit(Store(other).write, "limit-1", "Set", {})
            wait_until_blocked(store.engine)
        writing.result()
    other.dispose()
    assert [message.type for message in store.read("$all")] == ["Paid", "Set"]


def test_the_version_is_that_of_the_moment_at_which_the_lock_was_got(store: Store) -> None:
    other = create_engine(store.engine.url)
    with ThreadPoolExecutor(1) as threads:
        with store.engine.begin() as connection:
            Store(connection).write("limit-1", "Set", {})
            writing = threads.submit(Store(other).write_streams, [PAID, ("limit-1", [], NO_STREAM)])
            wait_until_blocked(store.engine)
        with pytest.raises(WrongExpectedVersion) as caught:
            writing.result()
    other.dispose()
    assert caught.value.actual_version == 0


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_cannot_check_what_is_not_written(engine: Engine, store: Store, level: Any) -> None:
    """PostgreSQL would let this pass, although the other transaction's message has the lower global position."""
    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        assert joined.stream_version("limit-1") == NO_STREAM
        store.write("limit-1", "Set", {})
        with pytest.raises(InvalidArgument, match=f"READ COMMITTED transaction, not in a {level} one") as caught:
            joined.write_streams([PAID, ("limit-1", [], NO_STREAM)])
        assert caught.value.argument == "writes"
        assert usable(connection)
        # A stream that is written to is checked by PostgreSQL itself.
        assert joined.write_streams([PAID]) == {"account-1": 0}
        connection.commit()


@pytest.mark.parametrize(
    ("writes", "argument", "reason"),
    [
        ([PAID, ("limit-1", [])], "writes[1].messages", "must not be empty"),
        ([PAID, ("limit-1", [], None)], "writes[1].messages", "must not be empty"),
        ([("limit-1", [], 0)], "writes", "must have a message to write"),
        ([("limit-1", [], 0), ("limit-2", (), 0)], "writes", "must have a message to write"),
        ([PAID, ("limit-1", [], -2)], "writes[1].expected_version", "must be between"),
        ([PAID, ("account-1", [], 0)], "writes[1].stream_name", "twice"),
        ([PAID, ("limit-1", None, 0)], "writes[1].messages", "must be a list"),
    ],
)
def test_a_check_that_makes_no_sense_is_refused(store: Store, writes: Any, argument: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as caught:
        store.write_streams(writes)
    assert caught.value.argument == argument
    assert store.read("$all") == []


def test_calls_that_check_what_the_other_writes_do_not_deadlock(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=4)
    names = ["a-1", "b-1"]

    def write(n: int) -> int:
        written, checked = names if n % 2 else reversed(names)
        lost = 0
        for _ in range(25):
            version = Store(engine).stream_version(checked)
            try:
                Store(engine).write_streams([(written, [("T", {})]), (checked, [], version)])
            except WrongExpectedVersion:
                lost += 1
        return lost

    with ThreadPoolExecutor(4) as threads:
        with category_locked(store.engine, "a-1"):
            writing = [threads.submit(write, n) for n in range(4)]
            wait_until_blocked(store.engine, 4)
        lost = sum(each.result() for each in writing)
    engine.dispose()
    assert len(store.read("$all")) == 100 - lost
    assert lost >= 1
