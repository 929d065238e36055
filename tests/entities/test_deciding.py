"""Deciding: what a function returns is written if nobody wrote since the state was loaded, and is in the new state."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import (
    NO_STREAM,
    AsyncStore,
    DuplicateMessageId,
    InvalidArgument,
    Loaded,
    NewMessage,
    Store,
    WrongExpectedVersion,
)

from ..store.support import usable
from ..support import orders, statements_of
from .support import (
    Account,
    Deposited,
    Opened,
    Refused,
    Withdrawn,
    account,
    deposit,
    fill,
    plus,
    total,
    types,
    withdraw,
)


@contextmanager
def somebody_first(store: Store, *amounts: int) -> Iterator[Any]:
    """A function that deposits 1 cent, while somebody else deposits these amounts, one at each call."""
    others = iter(amounts)
    balances: list[int] = []

    def decide(state: Account) -> Deposited:
        balances.append(state.balance)
        if (other := next(others, None)) is not None:
            Store(store.engine).write("account-1", "Deposited", {"cents": other})
        return Deposited(1)

    decide.balances = balances  # type: ignore[attr-defined]
    yield decide


def test_what_the_function_returns_is_written_and_folded_in(each_store: Store) -> None:
    state, version = each_store.decide(account(), "1", lambda state: [Opened("Ada"), Deposited(5)])
    assert (state.owner, state.balance, version) == ("Ada", 5, 1)
    state, version = each_store.decide(account(), "1", withdraw(2))
    assert (state.owner, state.balance, version) == ("Ada", 3, 2)
    messages = each_store.read("account-1")
    assert [each.type for each in messages] == ["Opened", "Deposited", "TakenOut"]
    assert state.seen == [f"{each.position}@{each.global_position}" for each in messages]
    assert each_store.load(account(), "1") == (state, version)


def test_it_is_two_round_trips(store: Store) -> None:
    fill(store, 10)
    store.decide(account(), "1", deposit(1))
    sent = statements_of(store.engine)
    store.decide(account(), "1", lambda state: [Deposited(1), Deposited(2)])
    assert len(sent) == 2


@pytest.mark.parametrize(
    "decided",
    [
        Deposited(5),
        [Deposited(5)],
        (Deposited(5),),
        {Deposited(5)},
        deque([Deposited(5)]),
        {"first": Deposited(5)}.values(),
        ("Deposited", {"cents": 5}),
        [("Deposited", {"cents": 5}, {"by": "Ada"})],
        NewMessage("Deposited", {"cents": 5}, id=UUID(int=1)),
    ],
    ids=repr,
)
def test_a_function_returns_one_message_or_several(store: Store, decided: Any) -> None:
    assert store.decide(account(), "1", lambda state: decided).state.balance == 5


def test_a_list_is_several_messages(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^function\(state\)\[0\]='Deposited': must be a NewMessage"):
        store.decide(account(), "1", lambda state: ["Deposited", {"cents": 5}])  # type: ignore[list-item]


def test_a_function_may_yield_messages(store: Store) -> None:
    def decide(state: Account) -> Iterator[Deposited]:
        yield Deposited(1)
        yield Deposited(state.balance + 2)

    assert store.decide(account(), "1", decide) == (Account(None, 3, ["0@1", "1@2"]), 1)


@pytest.mark.parametrize("nothing", [None, [], ()], ids=repr)
def test_nothing_is_written_for_nothing(store: Store, nothing: Any) -> None:
    fill(store, 1)
    sent = statements_of(store.engine)
    assert store.decide(account(), "1", lambda state: nothing).version == 0
    assert len(sent) == 1
    assert len(store.read("$all")) == 1


@pytest.mark.parametrize(
    ("decided", "text"),
    [
        ("Deposited", r"^function\(state\)\[0\]='Deposited': must be a NewMessage"),
        (b"Deposited", r"^function\(state\)\[0\]=b'Deposited': a bytes is not a registered"),
        ({"cents": 5}, r"^function\(state\)\[0\]={'cents': 5}: must be a NewMessage"),
        ([Deposited(1), 7], r"^function\(state\)\[1\]=7: a int is not a registered"),
        ([("Deposited", {"cents": "5"})], r"^function\(state\)\[0\].data="),
        ([("T", {}, 7)], r"^function\(state\)\[0\].metadata=7: must be a dict"),
        ([("T", float("nan"))], r"^function\(state\)\[0\].data=nan"),
        (Deposited, r"must be an instance of Deposited, not the class"),
    ],
    ids=repr,
)
def test_what_cannot_be_written_is_refused(store: Store, decided: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        store.decide(account(), "1", lambda state: decided)
    assert store.read("$all") == []


def test_an_error_of_the_function_is_raised_as_it_is_and_nothing_is_written(each_store: Store) -> None:
    fill(each_store, 3)
    with pytest.raises(Refused, match=r"^the balance is 3$") as error:
        each_store.decide(account(), "1", withdraw(4))
    assert error.value.__cause__ is None
    assert each_store.stream_version("account-1") == 2


def test_the_function_may_change_the_state_that_it_gets(each_store: Store) -> None:
    def decide(state: Account) -> list[Deposited]:
        state.balance = 1_000_000
        state.seen.clear()
        return [Deposited(1)]

    fill(each_store, 2)
    for entity in (account(), account(cache=5), account(snapshot_every=1)):
        before = each_store.load(entity, "1").state.balance
        state = each_store.decide(entity, "1", decide).state
        assert state.balance == before + 1
        assert len(state.seen) == state.balance
        state.seen.clear()
        assert len(each_store.load(entity, "1").state.seen) == state.balance


def test_a_decision_may_be_longer_than_a_page(store: Store) -> None:
    state, version = store.decide(account(), "1", lambda state: (Deposited(1) for _ in range(2_500)))
    assert (state.balance, version) == (2_500, 2_499)
    assert store.load(account(), "1") == (state, version)


def test_no_connection_is_held_while_the_function_runs(store: Store) -> None:
    used: list[int] = []

    def decide(state: int) -> None:
        used.append(store.engine.pool.checkedout())  # type: ignore[attr-defined]

    store.decide(total(), "1", decide)
    assert used == [0]


def test_a_lost_race_is_an_error_that_tells_both_versions(each_store: Store, store: Store) -> None:
    fill(each_store, 2)
    with somebody_first(store, 5) as decide, pytest.raises(WrongExpectedVersion) as error:
        each_store.decide(account(), "1", decide)
    assert (error.value.stream_name, error.value.expected_version, error.value.actual_version) == ("account-1", 1, 2)
    assert decide.balances == [2]
    assert each_store.stream_version("account-1") == 2


def test_a_lost_race_is_tried_again_as_often_as_the_caller_says(each_store: Store, store: Store) -> None:
    with somebody_first(store, 10, 20) as decide:
        state, version = each_store.decide(account(), "1", decide, retries=2)
    assert decide.balances == [0, 10, 30]
    assert (state.balance, version) == (31, 2)
    with somebody_first(store, 10, 20, 30) as decide, pytest.raises(WrongExpectedVersion):
        each_store.decide(account(), "1", decide, retries=2)
    assert each_store.load(account(), "1").state.balance == 91


def test_another_attempt_reads_only_what_is_new(store: Store, engine: Engine) -> None:
    fill(store, 500)
    rows: list[int] = []

    def note(conn: Any, cursor: Any, *_: Any) -> None:
        rows.append(cursor.rowcount)

    # An engine asks once what the database can do.
    Store(engine).write_batch("account-2", [("Deposited", {"cents": 1})])
    event.listen(engine, "after_cursor_execute", note)
    with somebody_first(store, 10) as decide:
        assert Store(engine).decide(account(), "1", decide, retries=1).state.balance == 511
    # The load, the last event that is known and what came after it, the write that won. The one that lost is an error.
    assert rows == [500, 2, 1]


def test_two_streams_do_not_disturb_each_other(store: Store) -> None:
    def decide(state: int) -> tuple[str, dict[str, int]]:
        store.decide(total(), "2", plus(2))
        return "Added", {"n": 1}

    assert store.decide(total(), "1", decide) == (1, 0)
    assert store.load(total(), "2") == (2, 0)


def test_a_stream_that_is_gone_when_it_is_tried_again_begins_anew(store: Store) -> None:
    states: list[int] = []

    def decide(state: int) -> tuple[str, dict[str, int]]:
        states.append(state)
        if len(states) == 1:
            with store.engine.begin() as connection:
                connection.execute(text("TRUNCATE message_store.messages"))
        return "Added", {"n": 1}

    store.write_batch("total-1", [("Added", {"n": 5})] * 2)
    assert store.decide(total(), "1", decide, retries=1) == (1, 0)
    assert states == [10, 0]


@pytest.mark.parametrize("cached", [False, True])
def test_sixteen_threads_lose_no_update_and_leave_no_gap(store: Store, cached: bool) -> None:
    entity = account(cache=3 if cached else None, snapshot_every=7)
    together = Barrier(16)
    attempts: list[int] = []

    def decide(state: Account) -> Deposited:
        attempts.append(state.balance)
        # The first of each thread, on the same version.
        if len(attempts) <= 16:
            together.wait()
        return Deposited(1)

    def work(_: int) -> list[int]:
        return [store.decide(entity, "1", decide, retries=1_000).version for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        versions = [version for done in pool.map(work, range(16)) for version in done]
    assert sorted(versions) == list(range(80))
    assert len(attempts) > 80
    for each in (entity, account()):
        assert store.load(each, "1").state.balance == 80
    assert [each.position for each in store.read("account-1")] == list(range(80))


def test_metadata_is_for_all_messages_and_their_own_takes_precedence(store: Store) -> None:
    store.decide(
        account(),
        "1",
        lambda state: [Deposited(1), Withdrawn(1), ("T", {}, {"by": "Bob", "own": 1})],
        metadata={"by": "Ada", "correlationStreamName": "order-1"},
    )
    correlated = {"by": "Ada", "correlationStreamName": "order-1"}
    assert [each.metadata for each in store.read("account-1")] == [
        correlated,
        {**correlated, "schemaVersion": "2"},
        {**correlated, "by": "Bob", "own": 1},
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metadata": 7}, "^metadata=7: must be a dict"),
        ({"metadata": {"schemaVersion": "2"}}, "^metadata=.*must not have a schemaVersion"),
        ({"metadata": {"correlationStreamName": 7}}, "^metadata=.*must have a string"),
        ({"retries": -1}, "^retries=-1: must be between 0"),
        ({"retries": True}, "^retries=True: must be an integer"),
        ({"retries": "3"}, "^retries='3': must be an integer"),
        ({"command_id": "7"}, "^command_id='7': must be a UUID"),
        ({"function": [Deposited(1)]}, r"^function=.*must be a function of the state; pass it without calling it"),
        ({"entity": "account"}, "^entity='account': must be an Entity"),
    ],
    ids=repr,
)
def test_bad_arguments_are_refused_before_anything_is_sent(store: Store, options: Any, text: str) -> None:
    arguments = {"entity": account(), "id": "1", "function": deposit(1), **options}
    sent = statements_of(store.engine)
    with pytest.raises(InvalidArgument, match=text):
        store.decide(**arguments)
    assert sent == []


def test_a_store_refuses_a_coroutine_function(store: Store) -> None:
    async def decide(state: Account) -> Deposited:
        return Deposited(1)

    with pytest.raises(InvalidArgument, match=r"function=.*only an AsyncStore awaits it"):
        store.decide(account(), "1", decide)  # type: ignore[arg-type]
    assert store.read("$all") == []


def test_an_async_store_takes_both_and_runs_several_at_once(messagedb_url: str, store: Store) -> None:
    url = store.engine.url.set(drivername="postgresql+asyncpg")

    async def decide(state: Account) -> list[Deposited]:
        await asyncio.sleep(0)
        return [Deposited(1)]

    async def main() -> list[Loaded[Account]]:
        engine = create_async_engine(url)
        try:
            async_store = AsyncStore(engine, types=types)
            return await asyncio.gather(
                *(async_store.decide(account(cache=2), "1", decide, retries=100) for _ in range(5)),
                async_store.decide(account(), "1", deposit(10), retries=100),
            )
        finally:
            await engine.dispose()

    done = asyncio.run(main())
    assert sorted(each.version for each in done) == list(range(6))
    assert store.load(account(), "1").state.balance == 15


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_race_that_is_lost_to_an_error_of_the_server_is_tried_again(store: Store, level: str) -> None:
    strict = Store(store.engine.execution_options(isolation_level=level))
    with somebody_first(store, 10) as decide:
        assert strict.decide(account(), "1", decide, retries=1).state.balance == 11


# In the caller's transaction


def test_it_joins_the_callers_transaction(engine: Engine, store: Store) -> None:
    with engine.connect() as connection:
        joined = Store(connection)
        connection.execute(insert(orders).values(number=1))
        assert joined.decide(total(), "1", plus(1)) == (1, 0)
        assert joined.decide(total(), "1", plus(2)) == (3, 1)
        assert joined.load(total(), "1") == (3, 1)
        assert store.load(total(), "1") == (0, NO_STREAM)
        connection.rollback()
    assert store.load(total(), "1") == (0, NO_STREAM)
    with Session(engine) as session:
        Store(session).decide(total(), "1", plus(1))
        session.commit()
    assert store.load(total(), "1") == (1, 0)


def test_a_lost_race_leaves_the_callers_transaction_usable(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        connection.execute(insert(orders).values(number=1))
        with somebody_first(store, 10) as decide, pytest.raises(WrongExpectedVersion) as error:
            Store(connection).decide(account(), "1", decide)
        assert (error.value.expected_version, error.value.actual_version) == (-1, 0)
        assert usable(connection)
        assert Store(connection).decide(account(), "1", deposit(1)).state.balance == 11
    assert store.load(account(), "1").version == 1


def test_nothing_is_tried_again_in_the_callers_transaction(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(InvalidArgument, match="retries=1: must be 0 in the caller's"):
        Store(connection).decide(total(), "1", plus(1), retries=1)


def test_an_async_store_joins_too(messagedb_url: str, store: Store) -> None:
    async def main() -> None:
        engine = create_async_engine(store.engine.url.set(drivername="postgresql+asyncpg"))
        try:
            async with engine.connect() as connection:
                joined = AsyncStore(connection)
                assert await joined.decide(total(), "1", plus(1)) == (1, 0)
                with pytest.raises(InvalidArgument, match="retries=2"):
                    await joined.decide(total(), "1", plus(1), retries=2)
                await connection.commit()
        finally:
            await engine.dispose()

    asyncio.run(main())
    assert store.load(total(), "1") == (1, 0)


# Commands that come twice


def test_a_repeated_command_has_its_effect_once(each_store: Store) -> None:
    command = uuid4()
    calls: list[int] = []

    def decide(state: Account) -> list[Deposited]:
        calls.append(state.balance)
        return [Deposited(5), Deposited(6)]

    for entity in (account(), account(snapshot_every=1), account(cache=1)):
        assert each_store.decide(entity, "1", decide, command_id=command).state.balance == 11
    assert each_store.decide(account(), "1", decide, command_id=str(command)).version == 1
    assert calls == [0]


def test_it_is_found_in_the_round_trip_of_the_load_however_old_it_is(store: Store) -> None:
    command = uuid4()
    store.decide(account(), "1", deposit(1), command_id=command)
    fill(store, 50)
    entity = account(cache=1)
    store.load(entity, "1")
    for each in (account(), entity):
        sent = statements_of(store.engine)
        assert store.decide(each, "1", deposit(1), command_id=command).state.balance == 51
        assert len(sent) == 1


def test_a_command_may_decide_on_several_entities(store: Store) -> None:
    command = uuid4()
    for _ in range(2):
        assert store.decide(total(), "1", plus(1), command_id=command) == (1, 0)
        assert store.decide(total(), "2", plus(1), command_id=command) == (1, 0)


def test_the_same_command_twice_at_once_has_its_effect_once(each_store: Store, store: Store) -> None:
    command = uuid4()

    def decide(state: Account) -> Deposited:
        store.decide(account(), "1", deposit(5), command_id=command)
        return Deposited(5)

    assert each_store.decide(account(), "1", decide, command_id=command).state.balance == 5
    assert each_store.stream_version("account-1") == 0


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "READ COMMITTED"])
def test_the_loser_returns_as_if_it_came_later(store: Store, level: str) -> None:
    strict = Store(store.engine.execution_options(isolation_level=level))
    command = uuid4()
    together = Barrier(8)
    calls: list[int] = []

    def decide(state: Account) -> Deposited:
        calls.append(1)
        together.wait()
        return Deposited(5)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: strict.decide(account(), "1", decide, command_id=command), range(8)))
    assert len(calls) == 8
    assert [(each.state.balance, each.version) for each in done] == [(5, 0)] * 8
    assert store.stream_version("account-1") == 0


def test_the_loser_in_the_callers_transaction_does_so_too(engine: Engine, store: Store) -> None:
    command = uuid4()

    def decide(state: int) -> tuple[str, dict[str, int]]:
        store.decide(total(), "1", plus(1), command_id=command)
        return "Added", {"n": 1}

    with engine.begin() as connection:
        assert Store(connection).decide(total(), "1", decide, command_id=command) == (1, 0)
        assert usable(connection)
    assert store.stream_version("total-1") == 0


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_with_an_older_snapshot_the_loser_finds_it_in_its_next_transaction(
    engine: Engine, store: Store, level: str
) -> None:
    command = uuid4()

    def decide(state: int) -> tuple[str, dict[str, int]]:
        store.decide(total(), "1", plus(1), command_id=command)
        return "Added", {"n": 1}

    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        with pytest.raises(DuplicateMessageId):
            joined.decide(total(), "1", decide, command_id=command)
        connection.rollback()
        assert joined.decide(total(), "1", decide, command_id=command) == (1, 0)


def test_a_race_that_is_lost_to_another_command_is_an_error(store: Store) -> None:
    with somebody_first(store, 10) as decide, pytest.raises(WrongExpectedVersion):
        store.decide(account(), "1", decide, command_id=uuid4())
    with somebody_first(store, 10) as decide:
        assert store.decide(account(), "1", decide, command_id=uuid4(), retries=1).state.balance == 21


def test_a_command_that_wrote_nothing_is_not_remembered(store: Store) -> None:
    command = uuid4()
    store.decide(total(), "1", lambda state: None, command_id=command)
    assert store.decide(total(), "1", plus(1), command_id=command) == (1, 0)


def test_messages_of_a_command_have_no_ids_of_their_own(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^function\(state\)\[1\].id=.*must not be given with command_id"):
        store.decide(total(), "1", lambda state: [("T", {}), NewMessage("T", {}, id=uuid4())], command_id=uuid4())


def test_an_id_that_another_stream_has_is_a_duplicate(store: Store) -> None:
    command = uuid4()
    store.decide(total(), "1", plus(1), command_id=command)
    id = store.read("total-1")[0].id
    with pytest.raises(DuplicateMessageId):
        store.decide(total(), "2", lambda state: NewMessage("Added", {"n": 1}, id=id), retries=3)
    assert store.stream_version("total-2") == NO_STREAM
