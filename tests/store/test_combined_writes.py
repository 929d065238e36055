"""Writes of several threads, or tasks, to one category: combined, each still has its own outcome."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError, TimeoutError
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

from ..support import exit_code, fork, numbers, statements_of
from ..waits import HANG, category_locked, wait_in_task_until, wait_until, wait_until_blocked

Write = Callable[[Store], int]


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def combining(engine: Engine) -> Store:
    return Store(engine, combine_writes=True)


def waiting(combiner: Any, category: str = "account") -> int:
    """How many writes wait to be combined."""
    turn = combiner._turns.get(category)
    return 0 if turn is None else len(turn.waiting)


def arrived(store: Store, category: str, number: int) -> None:
    """Return when so many writes wait to be combined."""
    wait_until(lambda: waiting(store._combiner, category) >= number, f"{number} writes wait")


def together(store: Store, engine: Engine, writes: list[Write]) -> list[Any]:
    """What comes of writes that arrive, in this order, while one to account-0 is under way."""
    with ThreadPoolExecutor(len(writes) + 1) as threads:
        futures: list[Future[int]] = []
        with category_locked(engine, "account-0"):
            first = threads.submit(store.write, "account-0", "Opened", {})
            wait_until_blocked(engine)
            for number, write in enumerate(writes):
                futures.append(threads.submit(write, store))
                arrived(store, "account", number + 1)
        assert first.result() == 0
        return [future.exception() or future.result() for future in futures]


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
    with category_locked(engine, "account-0"), pytest.raises(InvalidArgument):
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
        with category_locked(engine, "account-0"):
            stuck = threads.submit(combining.write, "account-0", "Opened", {})
            wait_until_blocked(engine)
            also_stuck = threads.submit(combining.write, "account-1", "Opened", {})
            arrived(combining, "account", 1)
            assert combining.write("order-1", "Placed", {}) == 0
            assert combining.write_batch("order-1", [("Paid", {})]) == 1
            assert not stuck.done()
            assert not also_stuck.done()
        assert (stuck.result(), also_stuck.result()) == (0, 0)


def test_a_lost_connection_is_everybodys_error_and_the_next_write_succeeds(engine: Engine, combining: Store) -> None:
    with ThreadPoolExecutor(5) as threads:
        with category_locked(engine, "account-0"):
            first = threads.submit(combining.write, "account-0", "Opened", {})
            wait_until_blocked(engine)
            others = [threads.submit(combining.write, f"account-{n}", "Opened", {}) for n in range(1, 4)]
            arrived(combining, "account", 3)
            cut(engine)
            with pytest.raises(DBAPIError):
                first.result()
            # The others' turn has come: together.
            wait_until_blocked(engine)
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

    # Not an Event: its lock would be held for ever if the next signal came while the handler sets it.
    handled: list[bool] = []

    def interrupt() -> None:
        arrived(combining, "account", 1)
        # Again and again: Python calls the handler of a signal that comes just before a system call after that call.
        while not handled:
            time.sleep(0.01)
            signal.pthread_kill(here, signal.SIGINT)

    def handle(*_: Any) -> None:
        if not handled:
            handled.append(True)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(4) as threads:
        with category_locked(engine, "account-0"):
            first = threads.submit(combining.write, "account-0", "Opened", {"n": 0})
            wait_until_blocked(engine)
            before = signal.signal(signal.SIGINT, handle)
            try:
                interrupting = threads.submit(interrupt)
                with pytest.raises(KeyboardInterrupt):
                    combining.write("account-1", "Opened", {"n": 1})
                interrupting.result()
            finally:
                signal.signal(signal.SIGINT, before)
            last = threads.submit(combining.write, "account-2", "Opened", {"n": 2})
            arrived(combining, "account", 1)
        assert (first.result(), last.result()) == (0, 0)
    assert numbers(combining.read("account")) == [0, 2]


@pytest.mark.parametrize("followers", [0, 2])
def test_one_that_is_interrupted_when_its_turn_has_come_hands_it_on(combining: Store, followers: int) -> None:
    """Before it has sent anything: while it waits for a connection."""
    combiner: Any = combining._combiner
    operations: Any = combining._operations
    others: list[Future[int]] = []

    def interrupted(threads: ThreadPoolExecutor) -> None:
        with combiner.waiting(operations.write("account-0", "T", {}, None, None, None)) as write:
            others.extend(threads.submit(combining.write, f"account-{n}", "T", {"n": n}) for n in range(followers))
            arrived(combining, "account", followers)
            with combiner.executing(write.answer.result()):
                raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as threads:
        with pytest.raises(KeyboardInterrupt):
            interrupted(threads)
        assert [other.result() for other in others] == [0] * followers
        assert combining.write("account-9", "T", {"n": 9}) == 0
    assert sorted(numbers(combining.read("account"))) == [*range(followers), 9]


def test_under_load_every_caller_is_told_what_happened(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=16)
    combining = Store(engine, combine_writes=True)
    combiner: Any = combining._combiner
    seen = statements_of(engine)
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

    def all_have_begun() -> bool:
        # Two at most write, one of each category.
        return waiting(combiner, "account") + waiting(combiner, "order") >= 14

    with ThreadPoolExecutor(16) as threads:
        with category_locked(store.engine, "account-0"), category_locked(store.engine, "order-0"):
            writing = [threads.submit(write, seed) for seed in range(16)]
            wait_until(all_have_begun, "all threads have begun")
        for each in writing:
            each.result()
    engine.dispose()
    assert len([statement for statement in seen if "write_message" in statement]) < 16 * 40
    stored = [(message.stream_name, message.position, message.data["marker"]) for message in store.read("$all")]
    assert sorted(stored) == sorted(written)
    assert len(written) + len(refused) == 16 * 40
    assert set(refused) == {WrongExpectedVersion, DuplicateMessageId}


def test_it_is_for_a_store_on_an_engine(engine: Engine) -> None:
    with (
        engine.connect() as connection,
        pytest.raises(InvalidArgument, match="is only for a Store on an"),
    ):
        Store(connection, combine_writes=True)


class TimeIsUpError(Exception):
    """What an application's signal handler raises, as Celery's does."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeIsUpError])
def test_if_the_one_that_executes_is_interrupted_the_others_are_told_that_they_may_be_written(
    engine: Engine, combining: Store, error: type[BaseException]
) -> None:
    executed: list[str] = []

    def interrupt(*arguments: Any) -> None:
        executed.append(arguments[2])
        if len([each for each in executed if "write_message" in each]) == 2:
            executed.clear()
            raise error

    event.listen(engine, "after_cursor_execute", interrupt)
    writes: list[Write] = [lambda store, n=n: store.write(f"account-{n}", "T", {"n": n}) for n in range(1, 4)]  # type: ignore[misc]
    outcomes = together(combining, engine, writes)
    assert [type(each) for each in outcomes] == [error, MessageDBError, MessageDBError]
    assert f"interrupted by {error.__name__}; read the stream" in str(outcomes[1])
    assert outcomes[1].__cause__ is outcomes[0]
    assert combining.write("account-9", "T", {"n": 9}) == 0
    assert numbers(combining.read("account")[1:]) == [1, 2, 3, 9]


def test_without_a_connection_nobody_waits_longer_than_alone(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    combining = Store(engine, combine_writes=True)
    with ThreadPoolExecutor(4) as threads, engine.connect():
        combiner: Any = combining._combiner
        # Until all have come.
        with combiner._lock:
            writing = [threads.submit(combining.write, "account-1", "T", {}) for _ in range(4)]
        assert {type(each.exception()) for each in writing} == {TimeoutError}
    assert combining.write("account-1", "T", {}) == 0
    engine.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_child_waits_for_no_thread_that_it_does_not_have(engine: Engine, combining: Store) -> None:
    combiner: Any = combining._combiner

    def write_in_child() -> None:
        engine.dispose(close=False)
        assert combining.write("account-2", "Opened", {"n": 2}) == 0

    with ThreadPoolExecutor(2) as threads:
        with category_locked(engine, "account-0"):
            writing = [threads.submit(combining.write, "account-1", "Opened", {"n": 0})]
            wait_until_blocked(engine)
            writing.append(threads.submit(combining.write, "account-1", "Opened", {"n": 1}))
            arrived(combining, "account", 1)
            # As if another thread were adding a write at this very moment.
            with combiner._lock:
                child = fork(write_in_child)
            wait_until_blocked(engine, 2)
        assert exit_code(child) == 0
        assert [each.result() for each in writing] == [0, 1]
    assert sorted(numbers(combining.read("account"))) == [0, 1, 2]


# ---- awaited


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_tasks_are_combined_and_a_cancelled_one_holds_up_nobody(
    messagedb_url: str, store: Store, engine: Engine, driver: str
) -> None:
    async def main() -> None:
        async_engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        seen = statements_of(async_engine.sync_engine)
        combining = AsyncStore(async_engine, combine_writes=True)
        combiner = combining._combiner()
        with engine.begin() as connection:
            connection.execute(select(functions.acquire_lock("account-0")))
            tasks = [asyncio.create_task(combining.write(f"account-{n}", "Opened", {"n": n})) for n in range(6)]
            tasks.append(asyncio.create_task(combining.write("account-1", "Opened", {"n": 6}, expected_version=-1)))
            await wait_in_task_until(lambda: waiting(combiner) == 6)
            # The one that is writing, the one that leads next, and one that follows.
            for cancelled in (0, 1, 3):
                tasks[cancelled].cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        while combining._writing:
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
            with pytest.raises(InvalidArgument, match="combine_writes=True: is only for an AsyncStore"):
                AsyncStore(connection, combine_writes=True)
        await async_engine.dispose()

    asyncio.run(main())


# ---- event loops that end


def combining_on(driver: str, url: str) -> AsyncStore:
    """Each call has a connection of its own, as a store that serves several event loops needs it."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"), poolclass=NullPool)
    return AsyncStore(engine, combine_writes=True)


async def three_that_wait(combining: AsyncStore, engine: Engine) -> list[asyncio.Task[int]]:
    """One executes and waits for the category's lock, two wait to be combined."""
    tasks = [asyncio.create_task(combining.write("account-1", "Opened", {"n": n})) for n in range(3)]
    await wait_in_task_until(lambda: waiting(combining._combiner()) == 2)
    await asyncio.to_thread(wait_until_blocked, engine)
    return tasks


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("end", ["cancelled", "closed", "stopped"])
def test_writes_whose_event_loop_has_ended_hold_up_no_other_loop(
    messagedb_url: str, store: Store, engine: Engine, driver: str, end: str
) -> None:
    combining = combining_on(driver, messagedb_url)
    loop = asyncio.new_event_loop()
    with category_locked(engine, "account-0"):
        tasks = loop.run_until_complete(three_that_wait(combining, engine))
        if end == "cancelled":
            # As asyncio.run does with the tasks that are left.
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            assert all(task.cancelled() for task in tasks)
    if end == "closed":
        loop.close()
    for n in (3, 4):
        assert asyncio.run(asyncio.wait_for(combining.write("account-2", "Opened", {"n": n}), HANG)) == n - 3
    if end == "stopped":
        # It goes on as if nothing had happened.
        assert sorted(loop.run_until_complete(asyncio.gather(*tasks))) == [0, 1, 2]
        assert sorted(numbers(store.read("account-1"))) == [0, 1, 2]
    loop.close()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("executes", [True, False])
def test_a_task_that_is_cancelled_behind_our_back_holds_up_nobody_in_its_loop(
    messagedb_url: str, store: Store, engine: Engine, driver: str, executes: bool
) -> None:
    combining = combining_on(driver, messagedb_url)

    async def main() -> list[Any]:
        with category_locked(engine, "account-0"):
            tasks = await three_that_wait(combining, engine)
            (turn,) = combining._combiner()._turns.values()
            write = turn.leader if executes else turn.waiting[0]
            for each in combining._writing:
                frame: Any = each.get_coro()
                if frame.cr_frame.f_locals["write"] is write:
                    each.cancel()
            await wait_in_task_until(lambda: any(task.done() for task in tasks))
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert sorted(type(each).__name__ for each in outcomes) == ["CancelledError", "int", "int"]
    assert asyncio.run(combining.write("account-1", "Opened", {})) >= 2


def test_if_the_task_that_executes_is_cancelled_the_others_are_not(
    messagedb_url: str, store: Store, engine: Engine
) -> None:
    combining = combining_on("asyncpg", messagedb_url)
    executed: list[str] = []

    def cancel(*arguments: Any) -> None:
        executed.append(arguments[2])
        if len([each for each in executed if "write_message" in each]) == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def main() -> list[Any]:
        event.listen(combining.engine.sync_engine, "before_cursor_execute", cancel)
        with category_locked(engine, "account-0"):
            tasks = await three_that_wait(combining, engine)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in asyncio.run(main())] == [int, asyncio.CancelledError, MessageDBError]


def test_event_loops_in_several_threads_share_a_store(messagedb_url: str, store: Store) -> None:
    combining = combining_on("asyncpg", messagedb_url)

    async def write() -> list[int]:
        return list(await asyncio.gather(*(combining.write("account-1", "T", {}) for _ in range(10))))

    # SQLAlchemy's engine makes its first connection on one event loop.
    assert asyncio.run(combining.write("account-1", "T", {})) == 0
    with ThreadPoolExecutor(4) as threads:
        written = [threads.submit(asyncio.run, write()) for _ in range(4)]
        found = [position for each in written for position in each.result()]
    assert sorted(found) == list(range(1, 41))
