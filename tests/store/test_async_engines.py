"""AsyncStore on engines as applications set them up: observed, with other pools, with timeouts, with own codecs."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from messagedb_sa import AsyncStore, DuplicateMessageId, Store, WrongExpectedVersion, install
from messagedb_sa.testing import temporary_database

from ..support import numbers
from ..waits import category_locked, wait_in_task_until, wait_until_blocked

Run = Callable[..., Any]
ID = "3f1e2c7a-8d9b-4c6e-a5f4-1b2c3d4e5f60"
_PID = text("SELECT pg_backend_pid()")


@pytest.fixture(params=["psycopg_async", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(driver: str, messagedb_url: str, store: Store) -> Run:
    """Runs a coroutine function with an engine of the driver, made with the options, from an empty store."""

    def run(body: Callable[[AsyncEngine], Awaitable[Any]], **options: Any) -> Any:
        async def awaited() -> Any:
            engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"), **options)
            try:
                return await body(engine)
            finally:
                await engine.dispose()

        return asyncio.run(awaited())

    return run


def checked_out(engine: AsyncEngine) -> int:
    number: int = engine.pool.checkedout()  # type: ignore[attr-defined]
    return number


async def pid_of(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        pid: int = (await connection.execute(_PID)).scalar_one()
    return pid


def end(engine: Engine, pid: int) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})


# ---- what observes an engine sees all that is done


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute", "do_execute", "before_execute"])
def test_a_listener_sees_every_statement(run: Run, name: str) -> None:
    async def body(engine: AsyncEngine) -> None:
        seen: list[str] = []
        own = AsyncStore(engine)
        await own.write("account-1", "Opened", {"n": 0})
        event.listen(engine.sync_engine, name, lambda *of: seen.append(" ".join(map(str, of))))
        await own.write("account-1", "Opened", {"n": 1})
        await own.read_last_message("account-1")
        (written, read) = seen
        assert "write_message(" in written
        assert "get_last_stream_message(" in read
        # An engine with options of its own has the listeners of the one that it was made of.
        await AsyncStore(engine.execution_options(isolation_level="SERIALIZABLE")).stream_version("account-1")
        assert len(seen) == 3

    run(body)


def test_a_listener_may_change_a_statement_and_is_told_of_an_error(run: Run) -> None:
    async def body(engine: AsyncEngine) -> None:
        sent: list[str] = []
        told: list[Any] = []

        @event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
        def comment(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
            return f"{statement} -- of ours", parameters

        event.listen(engine.sync_engine, "after_cursor_execute", lambda _, __, statement, *___: sent.append(statement))
        event.listen(engine.sync_engine, "handle_error", lambda context: told.append(context))
        own = AsyncStore(engine)
        await own.write("account-1", "Opened", {})
        with pytest.raises(WrongExpectedVersion):
            await own.write("account-1", "Opened", {}, expected_version=7)
        assert sent[0].endswith("-- of ours")
        assert told[0].statement.endswith("-- of ours")
        assert "Wrong expected version" in str(told[0].original_exception)

    run(body)


def test_a_listener_of_errors_may_raise_another(run: Run) -> None:
    class Ours(Exception):
        pass

    async def body(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "handle_error")
        def replace(context: Any) -> None:
            raise Ours from context.original_exception

        with pytest.raises(Ours):
            await AsyncStore(engine).write("account-1", "Opened", {}, expected_version=7)
        assert checked_out(engine) == 0

    run(body)


def test_an_engine_with_echo_logs_every_statement(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        await own.write("account-1", "Opened", {})
        await own.read_last_message("account-1")

    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        run(body, echo=True)
    assert "write_message(" in caplog.text
    assert "get_last_stream_message(" in caplog.text


def test_listeners_of_the_pool_are_called_and_may_use_the_connection(run: Run) -> None:
    async def body(engine: AsyncEngine) -> None:
        called: list[str] = []

        def note(name: str) -> Callable[..., None]:
            def listener(connection: Any, *_: Any) -> None:
                called.append(name)
                if name in ("connect", "checkout"):
                    cursor = connection.cursor()
                    cursor.execute("SELECT set_config('app.tenant', 'seven', false)")
                    cursor.close()
                    connection.rollback()

            return listener

        for name in ("connect", "checkout", "checkin", "reset"):
            event.listen(engine.sync_engine, name, note(name))
        own = AsyncStore(engine)
        for _ in range(2):
            await own.write("account-1", "Opened", {})
        assert called == ["connect", "checkout", "reset", "checkin", "checkout", "reset", "checkin"]

    run(body)


# ---- pools


@pytest.mark.parametrize(
    "options",
    [
        {"poolclass": NullPool},
        {"poolclass": StaticPool},
        {"pool_size": 1, "max_overflow": 0},
        {"pool_size": 0},
        {"pool_use_lifo": True, "pool_recycle": 0},
        {"pool_pre_ping": True},
        {"pool_reset_on_return": None},
        {"skip_autocommit_rollback": True},
    ],
    ids=str,
)
def test_each_pool_serves_calls_that_follow_each_other(run: Run, options: dict[str, Any]) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        assert [await own.write("account-1", "Opened", {"n": n}) for n in range(4)] == [0, 1, 2, 3]
        assert numbers(await own.read_stream("account-1")) == [0, 1, 2, 3]
        async with engine.connect() as connection:
            # The caller's transactions are transactions.
            await AsyncStore(connection).write("account-1", "Opened", {"n": 4})
            await connection.rollback()
        assert await own.stream_version("account-1") == 3

    run(body, **options)


def test_calls_at_the_same_time_use_the_pool_and_its_overflow_and_no_more(run: Run, messagedb_engine: Engine) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        with category_locked(messagedb_engine, "account-1"):
            writing = [asyncio.ensure_future(own.write(f"account-{n}", "Opened", {})) for n in range(10)]
            await asyncio.to_thread(wait_until_blocked, messagedb_engine, 3)
            assert checked_out(engine) == 3
            # Three have a connection. If these were given back now, others that have not given up yet would get them.
            await wait_in_task_until(lambda: sum(each.done() for each in writing) == 7, "seven had none in time")
            with pytest.raises(TimeoutError, match="QueuePool limit of size 1 overflow 2 reached"):
                await asyncio.gather(*writing)
        done = await asyncio.gather(*writing, return_exceptions=True)
        assert sum(isinstance(each, TimeoutError) for each in done) == 7
        assert done.count(0) == 3
        assert checked_out(engine) == 0
        assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]

    run(body, pool_size=1, max_overflow=2, pool_timeout=0.01)


# ---- cancelling


def test_a_call_is_cancelled_while_it_waits_for_the_pool(run: Run) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        async with engine.connect():
            waiting = asyncio.ensure_future(own.write("account-1", "Opened", {"n": 1}))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert checked_out(engine) == 0
        assert await own.write("account-1", "Opened", {"n": 2}) == 0

    run(body, pool_size=1, max_overflow=0)


def test_a_call_is_cancelled_while_it_connects(driver: str) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            port = listening.getsockname()[1]
            engine = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:{port}/none")
            call = asyncio.ensure_future(AsyncStore(engine).read_stream("account-1"))
            # It says nothing.
            accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
            with accepted:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert checked_out(engine) == 0
            await engine.dispose()

    asyncio.run(body())


def test_many_calls_are_cancelled_while_their_statements_wait_and_the_pool_is_whole(
    run: Run, messagedb_engine: Engine
) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        with category_locked(messagedb_engine, "account-1"):
            writing = [asyncio.ensure_future(own.write("account-1", "Opened", {"n": n})) for n in range(8)]
            await asyncio.to_thread(wait_until_blocked, messagedb_engine, 4)
            for each in writing:
                each.cancel()
            done = await asyncio.gather(*writing, return_exceptions=True)
        assert [type(each) for each in done] == [asyncio.CancelledError] * 8
        assert checked_out(engine) == 0
        await asyncio.gather(*(own.write(f"order-{n}", "Placed", {"n": n}) for n in range(8)))
        assert sorted(numbers(await own.read_category("order"))) == list(range(8))

    run(body, pool_size=4, max_overflow=0)


# ---- timeouts and lost connections


def test_the_servers_timeout_is_an_error_that_leaves_the_connection_usable(run: Run, messagedb_engine: Engine) -> None:
    async def body(engine: AsyncEngine) -> None:
        async def set_timeout(milliseconds: int) -> int:
            async with engine.begin() as connection:
                await connection.execute(text(f"SET statement_timeout = {milliseconds}"))
                pid: int = (await connection.execute(_PID)).scalar_one()
            return pid

        own, pid = AsyncStore(engine), await set_timeout(2_000)
        with category_locked(messagedb_engine, "account-1"), pytest.raises(DBAPIError) as caught:
            await own.write("account-1", "Opened", {})
        assert caught.value.orig.sqlstate == "57014"  # type: ignore[union-attr]
        assert not caught.value.connection_invalidated
        assert await set_timeout(0) == pid
        assert await own.write("account-1", "Opened", {}) == 0

    run(body, pool_size=1, max_overflow=0)


@pytest.mark.parametrize("pre_ping", [False, True])
def test_a_lost_connection_is_found_and_the_whole_pool_is_made_anew(
    run: Run, messagedb_engine: Engine, pre_ping: bool
) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        async with engine.connect() as one, engine.connect() as two:
            pids = [(await each.execute(_PID)).scalar_one() for each in (one, two)]
        for pid in pids:
            await asyncio.to_thread(end, messagedb_engine, pid)
        if not pre_ping:
            with pytest.raises(DBAPIError) as caught:
                await own.write("account-1", "Opened", {"n": 0})
            assert caught.value.connection_invalidated
        assert [await own.write("account-1", "Opened", {"n": n}) for n in (1, 2, 3)] == [0, 1, 2]
        assert await pid_of(engine) not in pids
        assert checked_out(engine) == 0

    run(body, pool_pre_ping=pre_ping)


# ---- isolation levels and options


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("given", ["to the engine", "as an option"])
def test_a_write_is_committed_whatever_the_isolation_level_and_the_level_stays(
    run: Run, store: Store, level: Any, given: str
) -> None:
    async def body(engine: AsyncEngine) -> None:
        of = engine if given == "to the engine" else engine.execution_options(isolation_level=level)
        own = AsyncStore(of)
        assert [await own.write("account-1", "Opened", {}) for _ in range(2)] == [0, 1]
        assert store.stream_version("account-1") == 1
        async with of.connect() as connection:
            found = await connection.get_isolation_level()
            assert found == ("READ COMMITTED" if level == "AUTOCOMMIT" else level)

    run(body, **({"isolation_level": level} if given == "to the engine" else {}))


# ---- what connections know of the database


def test_a_function_whose_result_changes_between_two_calls_is_prepared_again(messagedb_server_url: str) -> None:
    """On asyncpg, which keeps prepared statements: the server refuses the one that it knows."""

    async def body(url: str) -> None:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0)
        own = AsyncStore(engine)
        await own.write("account-1", "Opened", {"n": 1})
        assert await own.stream_version("account-1") == 0
        pid = await pid_of(engine)
        await asyncio.to_thread(change, url)
        assert await own.stream_version("account-1") == 42
        assert await pid_of(engine) == pid
        await engine.dispose()

    def change(url: str) -> None:
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.execute(text("DROP FUNCTION message_store.stream_version CASCADE"))
            connection.execute(
                text(
                    "CREATE FUNCTION message_store.stream_version(stream_name varchar) RETURNS integer"
                    " LANGUAGE sql AS 'SELECT 42'"
                )
            )

    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        asyncio.run(body(url))


def test_codecs_of_the_application_for_json_do_not_change_messages(run: Run, driver: str, store: Store) -> None:
    if driver != "asyncpg":
        pytest.skip("psycopg's are in test_typecasters")
    value = {"text": 'a " quote, \u00e9', "list": [1, 2.5, None, True], "empty": {}}

    async def body(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "connect")
        def use_python(connection: Any, _: Any) -> None:
            for name in ("json", "jsonb"):
                codec = {"schema": "pg_catalog", "encoder": json.dumps, "decoder": json.loads}
                connection.run_async(lambda own, name=name, codec=codec: own.set_type_codec(name, **codec))

        own = AsyncStore(engine)
        await own.write("account-1", "Opened", value, value)
        await own.write_batch("account-1", [("Opened", value, value), ("Opened", None)])
        await own.write_streams([("account-1", [("Opened", value, value)])])
        async with engine.begin() as connection:
            await AsyncStore(connection).write("account-1", "Opened", value, value)
        assert await own.read_stream("account-1") == store.read_stream("account-1")

    run(body)
    messages = store.read_stream("account-1")
    assert [message.data for message in messages] == [value, value, None, value, value]
    assert [message.metadata for message in messages] == [value, value, None, value, value]


def test_the_engines_own_json_functions_are_used(run: Run, store: Store) -> None:
    async def body(engine: AsyncEngine) -> None:
        own = AsyncStore(engine)
        await own.write("account-1", "Opened", {"n": 1}, id=ID)
        with pytest.raises(DuplicateMessageId):
            await own.write("account-1", "Opened", {"n": 1}, id=ID)
        assert (await own.read_stream("account-1"))[0].data == {"n": 1, "read": True}

    run(
        body,
        json_serializer=lambda value: json.dumps({**value, "written": True}),
        json_deserializer=lambda value: {"n": json.loads(value)["n"], "read": True},
    )
    assert store.read_stream("account-1")[0].data == {"n": 1, "written": True}
