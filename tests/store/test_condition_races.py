"""Conditional appends of several writers at once, and in transactions with older snapshots."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from messagedb_sa import AppendCondition, AppendConditionFailed, InvalidArgument, NewMessage, Query, Store

from ..support import store_on
from ..waits import category_locked, released_together, wait_until_blocked
from .support import usable


def message(*tags: str) -> NewMessage:
    return NewMessage("T", {}, {"tags": list(tags)})


@pytest.fixture(params=["with our functions", "without our functions"])
def url(request: pytest.FixtureRequest, messagedb_url: str, store: Store, url_without_our_functions: str) -> Any:
    return messagedb_url if request.param == "with our functions" else url_without_our_functions


@pytest.fixture
def racing(url: str) -> Any:
    """An engine with a connection for each of several threads."""
    engine = create_engine(url, pool_size=9)
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE message_store.messages RESTART IDENTITY")
    yield engine
    engine.dispose()


def test_a_condition_sees_what_was_committed_while_it_waited_for_the_lock(racing: Engine) -> None:
    condition = AppendCondition(Query("course", tags=["a"]))
    with ThreadPoolExecutor(1) as threads:
        with racing.begin() as connection:
            Store(connection).write_batch("course-1", [message("a")])
            waiting = threads.submit(Store(racing).write_batch, "course-2", [message("a")], condition=condition)
            wait_until_blocked(racing)
        with pytest.raises(AppendConditionFailed) as caught:
            waiting.result()
    assert caught.value.stream_name == "course-1"
    assert len(Store(racing).read_category("course")) == 1


def test_a_condition_on_another_category_holds_until_the_commit(racing: Engine) -> None:
    condition = AppendCondition(Query("limit"))
    with ThreadPoolExecutor(1) as threads:
        with racing.begin() as connection:
            Store(connection).write_batch("account-1", [message()], condition=condition)
            waiting = threads.submit(Store(racing).write, "limit-1", "Set", {})
            wait_until_blocked(racing)
        waiting.result()
    assert [message.type for message in Store(racing).read("$all")] == ["T", "Set"]


def test_one_of_the_writers_on_the_same_tag_wins_each_round(racing: Engine) -> None:
    store = Store(racing)
    query = Query("race", tags=["a"])

    def write(writer: int, condition: AppendCondition) -> int:
        try:
            store.write_batch(f"race-{writer}", [message("a")], condition=condition)
        except AppendConditionFailed:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        for round_ in range(10):
            known = store.read_query(query)
            assert len(known) == round_
            with released_together(racing, "race-1", 8):
                writing = [threads.submit(write, writer, known.condition) for writer in range(8)]
            assert sum(each.result() for each in writing) == 1


def test_calls_with_categories_in_opposite_orders_do_not_deadlock(racing: Engine) -> None:
    store = Store(racing)
    names = [f"{category}-1" for category in "abcd"]

    def write(n: int) -> int:
        lost = 0
        for _ in range(10):
            written, asked = (names[:2], "cd") if n % 2 else (names[:1:-1], "ba")
            condition = store.read_query([Query(category) for category in asked]).condition
            try:
                store.write_streams([(name, [message()]) for name in written], condition=condition)
            except AppendConditionFailed:
                lost += 1
        return lost

    with ThreadPoolExecutor(8) as threads:
        # Each waits for this lock, or for one of those that wait for it.
        with category_locked(racing, "a-1"):
            writing = [threads.submit(write, n) for n in range(8)]
            wait_until_blocked(racing, 8)
        lost = sum(each.result() for each in writing)
    assert len(store.read("$all")) == 2 * (80 - lost)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("written", [[("course-1", [message("a")])], [("note-1", [message()])]])
def test_an_older_snapshot_cannot_check_a_condition(racing: Engine, level: Any, written: Any) -> None:
    """PostgreSQL would let this pass: the transactions have no conflict, if both write to streams of their own."""
    with racing.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        condition = joined.read_query(Query("course")).condition
        Store(racing).write("course-2", "T", {})
        with pytest.raises(InvalidArgument, match=f"READ COMMITTED transaction, not in a {level} one") as caught:
            joined.write_streams(written, condition=condition)
        assert caught.value.argument == "condition"
        assert usable(connection)
        connection.commit()
    assert len(Store(racing).read("$all")) == 1


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_call_on_an_engine_checks_conditions_whatever_the_level_of_the_engine(store: Store, driver: str) -> None:
    condition = AppendCondition(Query("course"))
    with store_on(driver, store.engine.url, isolation_level="SERIALIZABLE") as each:
        assert each.write_batch("course-1", [message()], condition=condition) == 0
    with pytest.raises(AppendConditionFailed):
        store.write_batch("course-1", [message()], condition=condition)


def test_but_not_if_the_session_begins_all_transactions_with_such_a_level(store: Store) -> None:
    session = {"options": "-c default_transaction_isolation=serializable"}
    engine = create_engine(store.engine.url, connect_args=session)
    with pytest.raises(InvalidArgument, match="not in a SERIALIZABLE one"):
        Store(engine).write_batch("course-1", [message()], condition=AppendCondition(Query("course")))
    engine.dispose()
    assert store.read("$all") == []
