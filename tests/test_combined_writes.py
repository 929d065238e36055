"""Writes of several threads, or tasks, to one category: combined, each still has its own outcome."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import (
    AsyncStore,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    Store,
    WrongExpectedVersion,
    functions,
)

from .conftest import numbers

Write = Callable[[Store], int]


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def combining(engine: Engine) -> Store:
    return Store(engine, combine_writes=True)


@contextmanager
def held_up(engine: Engine, stream_name: str) -> Iterator[None]:
    """The lock of the stream's category is taken for the block."""
    with engine.begin() as connection:
        connection.execute(select(functions.acquire_lock(stream_name)))
        yield


def waiting(engine: Engine, number: int = 1) -> None:
    """Returns when so many sessions wait for a category's lock."""
    blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(blocked) < number:
            pass


def arrived(store: Store, category: str, number: int) -> None:
    """Returns when so many writes wait for their turn."""
    combiner: Any = store._combiner
    while len(combiner._waiting.get(category, [])) < number:
        pass


def together(store: Store, engine: Engine, writes: list[Write]) -> list[Any]:
    """What comes of writes that arrive, in this order, while one to account-0 is under way."""
    with ThreadPoolExecutor(len(writes) + 1) as threads:
        futures: list[Future[int]] = []
        with held_up(engine, "account-0"):
            first = threads.submit(store.write, "account-0", "Opened", {})
            waiting(engine)
            for number, write in enumerate(writes):
                futures.append(threads.submit(write, store))
                arrived(store, "account", number + 1)
        assert first.result() == 0
        return [future.exception() or future.result() for future in futures]


def statements_of(engine: Engine) -> list[str]:
    seen: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    return seen


def test_writes_that_wait_are_one_statement_in_the_order_of_their_arrival(engine: Engine, combining: Store) -> None:
    writes: list[Write] = [
        lambda store, n=n: store.write(f"account-{n % 3 + 1}", f"T{n}", {"n": n}, {"m": n})  # type: ignore[misc]
        for n in range(10)
    ]
    seen = statements_of(engine)
    assert together(combining, engine, writes) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert len([statement for statement in seen if "write_message" in statement]) == 2
    messages = combining.read("account")[1:]
    assert numbers(messages) == [message.metadata["m"] for message in messages] == list(range(10))
    assert [message.type for message in messages] == [f"T{n}" for n in range(10)]
    assert len({message.time for message in messages}) == 1


def test_each_has_its_own_expected_version_compared_after_those_before_it(engine: Engine, combining: Store) -> None:
    writes: list[Write] = [
        lambda store: store.write("account-1", "Opened", {"n": 1}, expected_version=-1),
        lambda store: store.write("account-1", "Opened", {"n": 2}, expected_version=-1),
        lambda store: store.write("account-1", "Deposited", {"n": 3}, expected_version=0),
        lambda store: store.write("account-2", "Opened", {"n": 4}, expected_version=7),
        lambda store: store.write("account-1", "Deposited", {"n": 5}),
        lambda store: store.write("account-1", "Deposited", {"n": 6}, expected_version=1),
    ]
    outcomes = together(combining, engine, writes)
    assert [outcomes[n] for n in (0, 2, 4)] == [0, 1, 2]
    lost = [outcomes[n] for n in (1, 3, 5)]
    assert {type(error) for error in lost} == {WrongExpectedVersion}
    assert [(error.stream_name, error.expected_version, error.actual_version) for error in lost] == [
        ("account-1", -1, 0),
        ("account-2", 7, -1),
        ("account-1", 1, 2),
    ]
    assert numbers(combining.read("account-1")) == [1, 3, 5]


def test_one_that_the_server_refuses_has_its_error_and_the_others_are_written(engine: Engine, combining: Store) -> None:
    id = uuid4()
    writes: list[Write] = [
        lambda store: store.write("account-1", "Opened", {"n": 1}, id=id),
        lambda store: store.write("account-2", "Opened", {"n": 2}, id=id),
        lambda store: store.write("account-3", "Opened", {"n": 3}),
    ]
    outcomes = together(combining, engine, writes)
    assert sorted(str(type(outcome)) for outcome in outcomes[:2]) == sorted([str(int), str(DuplicateMessageId)])
    assert outcomes[2] == 0
    assert len(combining.read("account")) == 3


def test_bad_input_is_refused_before_it_waits(combining: Store, engine: Engine) -> None:
    with held_up(engine, "account-0"), pytest.raises(InvalidArgument):
        combining.write("account-1", "Opened", {"n": float("nan")})


def test_what_the_engines_serializer_makes_spoils_no_other(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, json_serializer=lambda value: "no, json" if value == 13 else str(value))
    combining = Store(engine, combine_writes=True)
    writes: list[Write] = [lambda store, n=n: store.write("account-1", "T", n) for n in (12, 13, 14)]  # type: ignore[misc]
    outcomes = together(combining, engine, writes)
    assert type(outcomes[1]) is InvalidArgument
    assert sorted(outcomes[::2]) == [0, 1]
    engine.dispose()


def test_one_category_is_not_held_up_by_another(combining: Store, engine: Engine) -> None:
    with ThreadPoolExecutor(2) as threads:
        with held_up(engine, "account-0"):
            stuck = threads.submit(combining.write, "account-0", "Opened", {})
            waiting(engine)
            also_stuck = threads.submit(combining.write, "account-1", "Opened", {})
            arrived(combining, "account", 1)
            assert combining.write("order-1", "Placed", {}) == 0
            assert combining.write_batch("order-1", [("Paid", {})]) == 1
            assert not stuck.done()
            assert not also_stuck.done()
        assert (stuck.result(), also_stuck.result()) == (0, 0)


def test_a_lost_connection_is_everybodys_error_and_the_next_write_succeeds(engine: Engine, combining: Store) -> None:
    with ThreadPoolExecutor(5) as threads:
        with held_up(engine, "account-0"):
            first = threads.submit(combining.write, "account-0", "Opened", {})
            waiting(engine)
            others = [threads.submit(combining.write, f"account-{n}", "Opened", {}) for n in range(1, 4)]
            arrived(combining, "account", 3)
            cut(engine)
            with pytest.raises(DBAPIError):
                first.result()
            # The others' turn has come: together.
            waiting(engine)
            cut(engine)
            for other in others:
                with pytest.raises(DBAPIError) as caught:
                    other.result()
                assert caught.value.connection_invalidated
        assert combining.write("account-0", "Opened", {}) == 0
        assert len(combining.read("account")) == 1


def cut(engine: Engine) -> None:
    """The session that waits for a lock is ended by the administrator."""
    ended = text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalars(ended).all() == [True]


def test_an_interrupt_while_it_waits_takes_one_out_and_holds_up_nobody(engine: Engine, combining: Store) -> None:
    # To this very thread: another one's signal would not wake it.
    here = threading.get_ident()

    def interrupt() -> None:
        arrived(combining, "account", 1)
        signal.pthread_kill(here, signal.SIGINT)

    with ThreadPoolExecutor(4) as threads:
        with held_up(engine, "account-0"):
            first = threads.submit(combining.write, "account-0", "Opened", {"n": 0})
            waiting(engine)
            threads.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                combining.write("account-1", "Opened", {"n": 1})
            last = threads.submit(combining.write, "account-2", "Opened", {"n": 2})
            arrived(combining, "account", 1)
        assert (first.result(), last.result()) == (0, 0)
    assert numbers(combining.read("account")) == [0, 2]


@pytest.mark.parametrize("followers", [0, 2])
def test_one_that_is_interrupted_when_its_turn_has_come_hands_it_on(combining: Store, followers: int) -> None:
    combiner: Any = combining._combiner
    operations: Any = combining._operations
    turns = [
        combiner.arrive(operations.write(f"account-{n}", "Opened", {"n": n}, None, None, None))
        for n in range(1 + followers)
    ]
    combiner.abandon(turns[0])
    if followers:
        with combiner.written(turns[1].answer.result(0)) as batch:
            batch.outcomes = combining._run(batch.operation)
        # The one that waits meanwhile has the next turn.
        assert batch.outcomes == [0, 0]
        assert turns[2].answer.result(0) == 0
    assert combining.write("account-9", "Opened", {"n": 9}) == 0


def test_under_load_every_caller_is_told_what_happened(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=16)
    combining = Store(engine, combine_writes=True)
    used = [uuid4() for _ in range(20)]
    written: list[tuple[str, int, str]] = []
    refused: list[type] = []
    lock = threading.Lock()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        for n in range(40):
            name = f"{chance.choice(['account', 'order'])}-{chance.randrange(3)}"
            expected = chance.choice([None, None, -1, chance.randrange(20)])
            id = chance.choice([None, None, None, chance.choice(used)])
            marker = f"{seed}.{n}"
            try:
                position = combining.write(name, "T", {"marker": marker}, expected_version=expected, id=id)
            except MessageDBError as error:
                with lock:
                    refused.append(type(error))
            else:
                assert expected is None or position == expected + 1
                with lock:
                    written.append((name, position, marker))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(write, range(16)))
    engine.dispose()
    stored = [(message.stream_name, message.position, message.data["marker"]) for message in store.read("$all")]
    assert sorted(stored) == sorted(written)
    assert len(written) + len(refused) == 16 * 40
    assert set(refused) == {WrongExpectedVersion, DuplicateMessageId}


def test_it_is_for_a_store_on_an_engine(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(InvalidArgument, match="combine_writes=True: is for a Store"):
        Store(connection, combine_writes=True)


# ---- awaited


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_tasks_are_combined_and_a_cancelled_one_holds_up_nobody(
    messagedb_url: str, store: Store, engine: Engine, driver: str
) -> None:
    async def main() -> None:
        async_engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        seen = statements_of(async_engine.sync_engine)
        combining = AsyncStore(async_engine, combine_writes=True)
        combiner: Any = combining._combiner
        with engine.begin() as connection:
            connection.execute(select(functions.acquire_lock("account-0")))
            tasks = [asyncio.create_task(combining.write(f"account-{n}", "Opened", {"n": n})) for n in range(6)]
            tasks.append(asyncio.create_task(combining.write("account-1", "Opened", {"n": 6}, expected_version=-1)))
            while len(combiner._waiting.get("account", [])) < 6:
                await asyncio.sleep(0)
            # The one that is writing, the one that leads next, and one that follows.
            for cancelled in (0, 1, 3):
                tasks[cancelled].cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        while combining._turns:
            await asyncio.sleep(0)
        assert [type(outcomes[n]) for n in (0, 1, 3)] == [asyncio.CancelledError] * 3
        assert [outcomes[n] for n in (2, 4, 5)] == [0, 0, 0]
        assert isinstance(outcomes[6], WrongExpectedVersion)
        assert len([statement for statement in seen if "write_message" in statement]) == 2
        await async_engine.dispose()

    asyncio.run(main())
    assert numbers(store.read("account")) == list(range(6))


def test_an_async_store_combines_on_an_async_engine_only(messagedb_url: str, store: Store) -> None:
    async def main() -> None:
        async_engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        async with async_engine.connect() as connection:
            with pytest.raises(InvalidArgument, match="combine_writes=True: is for an AsyncStore"):
                AsyncStore(connection, combine_writes=True)
        await async_engine.dispose()

    asyncio.run(main())
