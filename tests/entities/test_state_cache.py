"""The cache: the states that were used last, so that a load reads only what is new, and never a wrong state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text

from messagedb_sa import NO_STREAM, Entity, Message, MessageTypes, Store

from ..support import exit_code, fork, statements_of
from .support import Account, account, add, deposit, fill, plus, total, types


@pytest.fixture
def read(engine: Engine) -> list[int]:
    """The numbers of rows that the statements on ``engine`` return."""
    rows: list[int] = []

    def note(conn: Any, cursor: Any, *_: Any) -> None:
        rows.append(cursor.rowcount)

    # An engine asks once what the database can do.
    Store(engine).write_batch("other-1", [("T", {})])
    event.listen(engine, "after_cursor_execute", note)
    return rows


def test_a_load_reads_only_what_is_new(engine: Engine, store: Store, read: list[int]) -> None:
    entity, cached = account(cache=10), Store(engine)
    fill(store, 100)
    assert cached.load(entity, "1").state.balance == 100
    assert cached.load(entity, "1").state.balance == 100
    fill(store, 3)
    assert cached.load(entity, "1").state.balance == 103
    assert cached.load(entity, "1").version == 102
    # The last event that is known shows that the stream is the same one.
    assert read == [100, 1, 4, 1]


def test_a_decision_is_in_the_cache(engine: Engine, read: list[int]) -> None:
    entity, cached = account(cache=10), Store(engine)
    cached.decide(entity, "1", lambda state: [deposit(1)(state)] * 50)
    cached.decide(entity, "1", deposit(1))
    assert cached.load(entity, "1").state.balance == 51
    assert read == [0, 50, 1, 1, 1]


def test_it_works_on_each_driver(each_store: Store) -> None:
    entity = account(cache=10, snapshot_every=3)
    for n in range(1, 8):
        assert each_store.decide(entity, "1", deposit(1)).state.balance == n
        assert each_store.load(entity, "1") == each_store.load(account(), "1")


def test_what_is_handed_out_is_not_what_is_kept(store: Store) -> None:
    entity = account(cache=10)

    def spoil(state: Account) -> None:
        state.balance = -1
        state.seen.clear()

    fill(store, 2)
    for _ in range(2):
        spoil(store.load(entity, "1").state)
        spoil(store.decide(entity, "1", lambda state: spoil(state)).state)
        spoil(store.decide(entity, "1", deposit(1)).state)
    state, _ = store.load(entity, "1")
    assert state == store.load(account(), "1").state
    assert state.balance == 4


def test_it_holds_so_many_states_those_that_were_used_last(engine: Engine, store: Store, read: list[int]) -> None:
    entity, cached = account(cache=2), Store(engine)
    for id in "abc":
        fill(store, 10, id)
    for id in "abacab":
        cached.load(entity, id)
    assert read == [10, 10, 1, 10, 1, 10]


def test_stores_on_one_engine_share_it(engine: Engine, store: Store, read: list[int]) -> None:
    entity = account(cache=10)
    fill(store, 10)
    for each in (engine, engine, engine.execution_options(isolation_level="REPEATABLE READ")):
        Store(each).load(entity, "1")
    assert read == [10, 1, 1]


def test_other_databases_and_other_types_do_not(store: Store, engine: Engine) -> None:
    # Of one database, so that only the engine is another one.
    entity: Entity[list[Any]] = Entity("account", list, lambda state, message: state.append(message.data), cache=10)
    fill(store, 1)
    assert store.load(entity, "1").state == [{"cents": 1}]
    typed = Store(store.engine, types=types)
    assert [type(each).__name__ for each in typed.load(entity, "1").state] == ["Deposited"]
    assert store.load(entity, "1").state == [{"cents": 1}]
    assert Store(engine, types=MessageTypes()).load(entity, "1").state == [{"cents": 1}]
    assert len(entity._cache._of_process.own.by_key) == 3  # type: ignore[union-attr]


def test_a_stream_without_events_takes_no_space(store: Store) -> None:
    entity = total(cache=1)
    store.write("total-1", "Added", {"n": 1})
    store.load(entity, "1")
    store.load(entity, "2")
    store.decide(entity, "3", lambda state: None)
    assert next(iter(entity._cache._of_process.own.by_key))[2] == "total-1"  # type: ignore[union-attr]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_a_stream_that_was_deleted_and_written_anew_is_read_again(store: Store, after: int) -> None:
    entity = total(cache=10)
    for n in (1, 1, 1):
        store.decide(entity, "1", plus(n))
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages"))
    if after:
        store.write_batch("total-1", [("Added", {"n": 10})] * after)
    assert store.load(entity, "1") == (10 * after, after - 1)
    assert store.load(entity, "1") == (10 * after, after - 1)
    assert store.decide(entity, "1", plus(1)) == (10 * after + 1, after)


def test_a_database_that_was_restored_to_an_earlier_state_is_read_again(store: Store) -> None:
    entity = total(cache=10)
    store.write_batch("total-1", [("Added", {"n": 1})] * 5)
    store.load(entity, "1")
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages WHERE position > 2"))
    assert store.load(entity, "1") == (3, 2)


def test_a_restored_database_in_which_the_same_command_did_something_else_is_read_again(
    each_store: Store, store: Store
) -> None:
    entity, command = total(cache=10), uuid4()
    each_store.decide(entity, "1", plus(1), command_id=command)
    with store.engine.begin() as connection:
        connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
    each_store.decide(total(), "1", plus(2), command_id=command)
    assert each_store.load(entity, "1") == (2, 0)


def test_it_takes_nothing_of_a_transaction_that_may_be_rolled_back(engine: Engine, store: Store) -> None:
    entity = total(cache=10)
    store.decide(entity, "1", plus(1))
    with engine.connect() as connection:
        joined = Store(connection)
        assert joined.decide(entity, "1", plus(10)) == (11, 1)
        assert joined.load(entity, "1") == (11, 1)
        connection.rollback()
    assert store.load(entity, "1") == (1, 0)
    assert Store(engine).load(entity, "1") == (1, 0)


def test_the_callers_transaction_may_use_what_is_there(engine: Engine, store: Store, read: list[int]) -> None:
    entity = account(cache=10)
    fill(store, 10)
    Store(engine).load(entity, "1")
    with engine.connect() as connection:
        assert Store(connection).load(entity, "1").state.balance == 10
    assert read == [10, 1]


def test_a_transaction_with_an_older_snapshot_sees_its_own_past(engine: Engine, store: Store) -> None:
    entity = total(cache=10)
    store.decide(entity, "1", plus(1))
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        assert Store(connection).load(total(), "1") == (1, 0)
        Store(store.engine).decide(entity, "1", plus(1))
        assert Store(connection).load(entity, "1") == (1, 0)
    assert store.load(entity, "1") == (2, 1)


def test_a_snapshot_is_read_only_without_a_cached_state(engine: Engine, store: Store) -> None:
    entity = total(cache=10, snapshot_every=2)
    for _ in range(4):
        store.decide(entity, "1", plus(1))
    assert len(store.read("total:snapshot")) == 2
    store.write_batch("total-1", [("Added", {"n": 1})] * 10)
    sent = statements_of(store.engine)
    assert store.load(entity, "1") == (14, 13)
    assert "snapshot" not in sent[0]


def test_threads_share_it(store: Store) -> None:
    entity = account(cache=2)
    for id in "abcd":
        fill(store, 20, id)

    def load(n: int) -> bool:
        state, version = store.load(entity, "abcd"[n % 4])
        state.seen.clear()
        return (state.balance, version) == (20, 19)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(200)))


def test_a_forked_child_begins_with_an_empty_one(store: Store) -> None:
    entity = total(cache=10)
    store.decide(entity, "1", plus(1))
    states = entity._cache._of_process  # type: ignore[union-attr]
    parents = states.own

    def in_child() -> None:
        assert states.own is not parents
        assert not states.own.by_key
        assert states.own.lock.acquire(timeout=10)

    # As if another thread of the parent were in the middle of it.
    with parents.lock:
        child = fork(in_child)
    assert exit_code(child) == 0
    assert states.own is parents


def test_a_state_may_say_how_it_is_copied(store: Store) -> None:
    class Shared:
        n = 0

        def __deepcopy__(self, memo: object) -> Shared:
            return self

    def apply(state: Shared, message: Message) -> Shared:
        new = Shared()
        new.n = state.n + message.data["n"]
        return new

    entity = Entity("total", Shared, apply, cache=1)
    store.decide(entity, "1", plus(3))
    assert store.load(entity, "1").state is store.load(entity, "1").state
    assert store.load(entity, "1").state.n == 3


def test_a_state_that_cannot_be_pickled_is_kept_too(engine: Engine, store: Store, read: list[int]) -> None:
    class Local:
        def __init__(self) -> None:
            self.seen: list[int] = []

    entity = Entity("account", Local, lambda state, message: state.seen.append(message.position), cache=1)
    fill(store, 10)
    for _ in range(2):
        state, _version = Store(engine).load(entity, "1")
        assert state.seen == [*range(10)]
        state.seen.clear()
    assert read == [10, 1]


def test_an_error_of_apply_leaves_it_as_it_was(store: Store) -> None:
    def apply(state: list[int], message: Message) -> None:
        state.append(message.data["n"])
        if message.data["n"] == 13:
            raise ValueError("unlucky")

    entity: Entity[list[int]] = Entity("total", list, apply, cache=1)
    store.decide(entity, "1", plus(1))
    store.write("total-1", "Added", {"n": 13})
    for _ in range(2):
        with pytest.raises(ValueError, match="unlucky"):
            store.load(entity, "1")
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages WHERE position = 1"))
    assert store.load(entity, "1") == ([1], 0)
    assert add(1, store.read("total-1")[0]) == 2
    assert store.load(entity, "2").version == NO_STREAM
