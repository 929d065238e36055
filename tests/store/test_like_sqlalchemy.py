"""Where a Store executes beside SQLAlchemy, it raises SQLAlchemy's errors, and leaves the pool as SQLAlchemy would."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Engine, Executable, create_engine, event, literal_column, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import is_exit_exception

from messagedb_sa import AsyncStore, MessageDBError, Store
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Operation
from messagedb_sa.store._operations import Operations

from ..support import numbers
from ..waits import HANG, category_locked, wait_until_blocked

SYNCHRONOUS = ["psycopg2", "psycopg"]
ASYNCHRONOUS = ["psycopg_async", "asyncpg"]
ID = "3f1e2c7a-8d9b-4c6e-a5f4-1b2c3d4e5f60"
_PID = text("SELECT pg_backend_pid()")


# For those who need not wait for the test.
RELEASED = threading.Event()
RELEASED.set()


class SoftTimeLimitExceeded(Exception):
    """As a task queue's signal handler raises it."""


class Outcome(NamedTuple):
    error: type[BaseException]
    facts: dict[str, Any]
    checked_out: int
    in_autocommit_mode: bool
    connection_was_kept: bool


def outcome(error: BaseException, engine: Engine, connection: Connection, pid: int) -> Outcome:
    """``connection``: a new one of the same pool."""
    if isinstance(error, MessageDBError):
        assert error.__cause__ is not None
        error = error.__cause__
    facts: dict[str, Any] = {"text": str(error)}
    if isinstance(error, DBAPIError):
        # Both have the parameters in their text.
        facts = {name: getattr(error, name) for name in ("statement", "params", "code", "connection_invalidated")}
        facts |= {"orig": type(error.orig), "text": str(error.orig)}
        facts |= {"hide_parameters": error.hide_parameters, "is_multi": error.ismulti}
    driver: Any = connection.connection.dbapi_connection
    return Outcome(
        type(error),
        facts,
        engine.pool.checkedout() - 1,  # type: ignore[attr-defined]
        bool(driver.autocommit),
        connection.scalar(_PID) == pid,
    )


# ---- what goes wrong


class Kind(NamedTuple):
    """``parameters`` and ``statement`` replace those of a write, which waits for a lock during ``provoke``."""

    parameters: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    provoke: Callable[[Connection, int], None] | None = None
    statement: Executable | None = None


def _end(connection: Connection, pid: int) -> None:
    connection.execute(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})


def _cancel(connection: Connection, pid: int) -> None:
    connection.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})


def _signal(connection: Connection, pid: int) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


SERVER: dict[str, Kind] = {
    "a refusal": Kind({"id": ID}),
    "a refusal whose parameters are hidden": Kind({"id": ID}, {"hide_parameters": True}),
    "what cannot be adapted": Kind({"stream_name": object()}),
    "a NUL character": Kind({"stream_name": "account-\0"}),
    "not the text of a UUID": Kind({"id": "not an id"}),
    "a row that Python cannot hold": Kind(statement=select(literal_column("date '12000-01-01'"))),
    "a statement that is cancelled": Kind(provoke=_cancel),
    "a connection that is lost": Kind(provoke=_end),
}
ENCODING = {
    "a text that the encoding lacks": Kind({"type": "\U0001f600"}, {"connect_args": {"client_encoding": "LATIN1"}})
}
SIGNALS: dict[str, type[BaseException]] = {
    "an exception": SoftTimeLimitExceeded,
    "a value error": ValueError,
    "a timeout": asyncio.TimeoutError,
    "an interrupt": KeyboardInterrupt,
    "an exit": SystemExit,
}


@contextmanager
def provoked(admin: Engine, kind: Kind, pid: int, release: threading.Event) -> Iterator[None]:
    """Within the block, writes to the category wait; then the kind is provoked, and they go on after ``release``."""
    if kind.provoke is None:
        yield
        return
    provoke, locked = kind.provoke, threading.Event()

    def work() -> None:
        with category_locked(admin, "account-1"), admin.connect() as connection:
            locked.set()
            wait_until_blocked(admin)
            provoke(connection, pid)
            assert release.wait(HANG)

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        assert locked.wait(HANG)
        try:
            yield
        finally:
            release.set()
            working.result()


def by_sqlalchemy(connection: Connection, operation: Operation[Any]) -> None:
    connection.execute(operation.statement, operation.parameters).fetchall()


def operation_of(engine: Engine, kind: Kind) -> Operation[int]:
    operation = Operations(engine.dialect, joined=False).write("account-1", "T", {"n": 1}, None, None, None)
    if kind.statement is not None:
        return replace(operation, statement=kind.statement, parameters={})
    return replace(operation, parameters={**operation.parameters, "id": ID.replace("3f", "4f"), **kind.parameters})


def outcome_on(
    url: str, driver: str, kind: Kind, run: Callable[..., object], *, admin: Engine, observed: bool, waits: bool = False
) -> Outcome:
    engine = create_engine(
        make_url(url).set(drivername=f"postgresql+{driver}"),
        pool_size=1,
        max_overflow=0,
        pool_timeout=0,
        **kind.options,
    )
    if observed:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    operation = operation_of(engine, kind)
    with engine.connect() as connection:
        pid = connection.scalar(_PID)
    with (
        provoked(admin, kind, pid, threading.Event() if waits else RELEASED),
        pytest.raises(BaseException) as caught,  # noqa: PT011 - each kind has its own
        engine.connect() as connection,
    ):
        run(connection, operation)
    with engine.connect() as connection:
        found = outcome(caught.value, engine, connection, pid)
    Store(engine).write("account-1", "Next", {})
    engine.dispose()
    return found


# ---- synchronous drivers


@pytest.mark.parametrize("name", [*SERVER, *ENCODING])
@pytest.mark.parametrize("driver", SYNCHRONOUS)
def test_an_error_is_sqlalchemys_on_the_fast_path_too(
    messagedb_url: str, messagedb_engine: Engine, store: Store, driver: str, name: str
) -> None:
    store.write("account-1", "T", {}, id=ID)
    kind = {**SERVER, **ENCODING}[name]

    def found(run: Callable[..., object], *, observed: bool = False) -> Outcome:
        return outcome_on(messagedb_url, driver, kind, run, admin=messagedb_engine, observed=observed)

    expected = found(by_sqlalchemy)
    assert found(run_alone) == expected
    assert found(run_alone, observed=True) == expected
    assert (expected.checked_out, expected.in_autocommit_mode) == (0, False)
    assert expected.connection_was_kept == (name != "a connection that is lost")


@pytest.fixture
def handler() -> Iterator[Callable[[type[BaseException]], None]]:
    def raise_at_signal(error: type[BaseException]) -> None:
        def handle(*_: object) -> None:
            raise error("time is up")

        signal.signal(signal.SIGUSR1, handle)

    before = signal.getsignal(signal.SIGUSR1)
    yield raise_at_signal
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("driver", SYNCHRONOUS)
def test_a_signal_handlers_exception_passes_through_unchanged(
    messagedb_url: str,
    messagedb_engine: Engine,
    store: Store,
    handler: Callable[[type[BaseException]], None],
    driver: str,
    name: str,
) -> None:
    handler(SIGNALS[name])
    # psycopg2 lets a handler run when the statement has ended, psycopg at once.
    outcomes = [
        outcome_on(
            messagedb_url,
            driver,
            Kind(provoke=_signal),
            run_alone,
            admin=messagedb_engine,
            observed=observed,
            waits=driver == "psycopg",
        )
        for observed in (False, True)
    ]
    # What interrupts psycopg, or ends the program, leaves no connection behind that is in the middle of something.
    kept = driver == "psycopg2" and not is_exit_exception(SIGNALS[name]())
    assert outcomes == [Outcome(SIGNALS[name], {"text": "time is up"}, 0, False, kept)] * 2


@pytest.mark.parametrize("driver", SYNCHRONOUS)
def test_a_signal_handlers_exception_passes_through_the_callers_transaction(
    messagedb_url: str,
    messagedb_engine: Engine,
    store: Store,
    handler: Callable[[type[BaseException]], None],
    driver: str,
) -> None:
    handler(SoftTimeLimitExceeded)
    engine = create_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"), pool_size=1, max_overflow=0)
    with (
        provoked(messagedb_engine, Kind(provoke=_signal), 0, threading.Event() if driver == "psycopg" else RELEASED),
        pytest.raises(SoftTimeLimitExceeded),
        engine.begin() as connection,
    ):
        Store(connection).write("account-1", "Late", {})
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.begin() as connection:
        assert Store(connection).write("account-1", "Next", {"n": 2}) == 0
    assert numbers(store.read("account-1")) == [2]
    engine.dispose()


def test_a_combined_write_that_was_interrupted_may_be_written_and_is_not_written_again(
    messagedb_url: str, messagedb_engine: Engine, store: Store, handler: Callable[[type[BaseException]], None]
) -> None:
    handler(SoftTimeLimitExceeded)
    engine = create_engine(messagedb_url)
    combining = Store(engine, combine_writes=True)
    with ThreadPoolExecutor(2) as threads:
        with provoked(messagedb_engine, Kind(provoke=_signal), 0, RELEASED), pytest.raises(SoftTimeLimitExceeded):
            combining.write("account-1", "T", {"n": 1})
        # Others go on.
        later = [threads.submit(combining.write, "account-1", "T", {"n": n}) for n in (2, 3)]
        assert sorted(each.result() for each in later) == [1, 2]
    assert numbers(store.read("account-1"))[0] == 1
    engine.dispose()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("driver", SYNCHRONOUS)
def test_switching_autocommit_back_replaces_neither_a_result_nor_an_error(
    messagedb_url: str, store: Store, driver: str, fails: bool
) -> None:
    engine = create_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"), pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        pid = connection.scalar(_PID)
    with engine.connect() as connection:

        def close(rows: Any) -> Any:
            # No driver switches the mode of a closed connection.
            connection.connection.driver_connection.close()  # type: ignore[union-attr]
            if fails:
                raise SoftTimeLimitExceeded("time is up")
            return rows[0][0]

        operation = replace(operation_of(engine, Kind()), result=close)
        if fails:
            with pytest.raises(SoftTimeLimitExceeded, match="time is up"):
                run_alone(connection, operation)
        else:
            assert run_alone(connection, operation) == 0
        assert connection.invalidated
    with engine.connect() as connection:
        assert connection.scalar(_PID) != pid
        driver_connection: Any = connection.connection.dbapi_connection
        assert not driver_connection.autocommit
    engine.dispose()


# ---- asynchronous drivers


@pytest.mark.parametrize("name", SERVER)
@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_an_error_is_sqlalchemys_on_asynchronous_drivers(
    messagedb_url: str, messagedb_engine: Engine, store: Store, driver: str, name: str
) -> None:
    store.write("account-1", "T", {}, id=ID)
    kind = SERVER[name]

    async def found(run: Callable[..., object]) -> Outcome:
        engine = create_async_engine(
            make_url(messagedb_url).set(drivername=f"postgresql+{driver}"),
            pool_size=1,
            max_overflow=0,
            **kind.options,
        )
        operation = operation_of(engine.sync_engine, kind)
        async with engine.connect() as connection:
            pid = await connection.scalar(_PID)
        with provoked(messagedb_engine, kind, pid, RELEASED), pytest.raises(Exception) as caught:  # noqa: PT011
            async with engine.connect() as connection:
                await connection.run_sync(run, operation)
        async with engine.connect() as connection:
            result = await connection.run_sync(lambda new: outcome(caught.value, engine.sync_engine, new, pid))
        await engine.dispose()
        return result

    expected = asyncio.run(found(by_sqlalchemy))
    assert asyncio.run(found(run_alone)) == expected
    assert (expected.checked_out, expected.in_autocommit_mode) == (0, False)
    assert expected.connection_was_kept == (name != "a connection that is lost")


@pytest.mark.parametrize("by", ["cancelling", "a timeout"])
@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_a_cancelled_call_gives_back_no_connection_in_autocommit_mode(
    messagedb_url: str, messagedb_engine: Engine, store: Store, driver: str, by: str
) -> None:
    async def cancelled() -> None:
        engine = create_async_engine(
            make_url(messagedb_url).set(drivername=f"postgresql+{driver}"), pool_size=1, max_overflow=0
        )
        own = AsyncStore(engine)
        with category_locked(messagedb_engine, "account-1"):
            writing = asyncio.ensure_future(own.write("account-1", "T", {}))
            await asyncio.to_thread(wait_until_blocked, messagedb_engine)
            if by == "cancelling":
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
            else:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(writing, 0)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with engine.connect() as connection:
            driver_connection: Any = (await connection.get_raw_connection()).dbapi_connection
            assert not driver_connection.autocommit
        assert await own.write("account-1", "T", {}) >= 0
        await engine.dispose()

    asyncio.run(cancelled())
