"""Handlers that an AsyncConsumer awaits: they run in its task, as if the caller had awaited each of them."""

from __future__ import annotations

import asyncio
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import event, func, make_url, select
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from messagedb_sa import AsyncConsumer, AsyncStore, HandlerFailed, Message, Store

from ..waits import wait_in_task_until
from .support import positions, write

Main = Callable[[AsyncEngine], Any]
variable: ContextVar[Any] = ContextVar("variable", default=None)


@pytest.fixture(params=["asyncpg", "psycopg"])
def run(messagedb_url: str, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a coroutine function in asyncio, with an engine."""

    def with_engine(main: Main, **options: Any) -> Any:
        async def opened() -> Any:
            engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{request.param}"))
            try:
                return await main(engine)
            finally:
                await engine.dispose()

        return asyncio.run(opened(), **options)

    return with_engine


def mailer(engine: AsyncEngine, handlers: Any, **options: Any) -> AsyncConsumer:
    # However long the messages take, they alone decide when a position is recorded.
    options = {"record_seconds": 3600, **options}
    return AsyncConsumer(AsyncStore(engine), "account", handlers, "mailer", **options)


# ---- in the caller's task


def test_a_handler_shares_the_context_of_the_consumers_task(store: Store, run: Callable[..., Any]) -> None:
    """Variables that the caller, a handler, or a handler after a wait has set are seen by all who follow."""
    write(store, 4)
    seen: list[Any] = []

    async def handle(message: Message) -> None:
        seen.append(variable.get())
        variable.set(message.data["n"])
        if message.data["n"] % 2:
            await asyncio.sleep(0)
            variable.set(f"after {message.data['n']}")

    async def main(engine: AsyncEngine) -> None:
        variable.set("the caller's")
        await mailer(engine, handle).run_until_caught_up()
        seen.append(variable.get())

    run(main)
    assert seen == ["the caller's", 0, "after 1", 2, "after 3"]


def test_a_handler_runs_in_the_consumers_task_before_and_after_a_wait(store: Store, run: Callable[..., Any]) -> None:
    write(store, 2)
    tasks: list[Any] = []

    async def handle(message: Message) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    async def main(engine: AsyncEngine) -> None:
        await mailer(engine, handle).run_until_caught_up()
        assert tasks == [asyncio.current_task()] * 4

    run(main)


def test_what_needs_a_greenlet_is_refused_in_a_coroutine_as_everywhere_else(
    store: Store, run: Callable[..., Any]
) -> None:
    """Such as a lazy load of the ORM: otherwise it would work here, and nowhere else."""
    write(store, 1)

    async def handle(message: Message) -> None:
        await_only(asyncio.sleep(0))

    async def main(engine: AsyncEngine) -> None:
        with pytest.raises(HandlerFailed) as caught:
            await mailer(engine, handle).run_until_caught_up()
        assert isinstance(caught.value.__cause__, MissingGreenlet)

    run(main)


def test_a_plain_function_may_use_the_synchronous_engine(store: Store, run: Callable[..., Any]) -> None:
    write(store, 2)
    answers: list[Any] = []

    async def main(engine: AsyncEngine) -> None:
        def handle(message: Message) -> None:
            with engine.sync_engine.connect() as connection:
                answers.append(connection.execute(select(func.pg_backend_pid())).scalar())

        await mailer(engine, {"Even": handle, "Odd": handle}).run_until_caught_up()

    run(main)
    assert len(answers) == 2


# ---- what they wait for


async def sleep(engine: AsyncEngine) -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)


async def a_future(engine: AsyncEngine) -> None:
    awaited = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(awaited.set_result, "it")
    assert await awaited == "it"


async def a_thread(engine: AsyncEngine) -> None:
    variable.set("copied")
    assert await asyncio.to_thread(variable.get) == "copied"


async def a_time_limit(engine: AsyncEngine) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.sleep(3600), 0.001)
    if sys.version_info >= (3, 11):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(3600)
        task: Any = asyncio.current_task()
        assert task.cancelling() == 0


async def the_store(engine: AsyncEngine) -> None:
    await AsyncStore(engine).write("other-1", "Written", {})
    async with engine.begin() as connection:
        await AsyncStore(connection).write("other-1", "Written", {})
        await AsyncStore(connection).read_last_message("other-1")


async def tasks(engine: AsyncEngine) -> None:
    await asyncio.gather(*(asyncio.create_task(the_store(engine)) for _ in range(3)))


async def eager_tasks(engine: AsyncEngine) -> None:
    """They begin at once, where the handler runs, and go on after it has returned."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - not in each version of Python
    try:
        going_on.extend(asyncio.create_task(the_store(engine)) for _ in range(2))
        await going_on[-1]
    finally:
        loop.set_task_factory(None)


async def anyio_and_sniffio(engine: AsyncEngine) -> None:
    anyio = pytest.importorskip("anyio")
    if (sniffio := sys.modules.get("sniffio")) is not None:
        assert sniffio.current_async_library() == "asyncio"
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(3600)
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
    assert await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 0)) is None


going_on: list[asyncio.Task[None]] = []


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "waits",
    [
        sleep,
        a_future,
        a_thread,
        a_time_limit,
        the_store,
        tasks,
        pytest.param(eager_tasks, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="not in this Python")),
        anyio_and_sniffio,
    ],
)
def test_a_handler_may_wait_for_anything(store: Store, run: Callable[..., Any], waits: Main, debug: bool) -> None:
    write(store, 3)
    handled: list[int] = []

    async def handle(message: Message) -> None:
        # Also one after a handler that has not waited, and before one.
        if message.data["n"] == 1:
            await waits(given[0])
        handled.append(message.data["n"])

    given: list[AsyncEngine] = []

    async def main(engine: AsyncEngine) -> int:
        given.append(engine)
        going_on.clear()
        number = await mailer(engine, handle).run_until_caught_up()
        await asyncio.gather(*going_on)
        return number

    assert run(main, debug=debug) == 3
    assert handled == [0, 1, 2]


def test_other_tasks_run_while_a_handler_waits(store: Store, run: Callable[..., Any]) -> None:
    write(store, 2)
    order: list[Any] = []

    async def main(engine: AsyncEngine) -> None:
        continues = asyncio.Event()

        async def handle(message: Message) -> None:
            order.append(message.data["n"])
            await continues.wait()
            order.append(message.data["n"])

        consumer = mailer(engine, handle)
        task = asyncio.create_task(consumer.run_until_caught_up())
        await wait_in_task_until(lambda: order)
        state = consumer.state()
        assert (state.status, state.message and state.message.data) == ("handling", {"n": 0})
        order.append("meanwhile")
        continues.set()
        await task

    run(main)
    assert order == [0, "meanwhile", 0, 1, 1]


# ---- what can be awaited


class Awaitable:
    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done

    def __await__(self) -> Iterator[None]:
        yield
        self.done()


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("form", ["coroutine", "object", "partial", "awaitable", "task", "plain"])
def test_each_kind_of_handler_is_done_before_the_next_message(
    store: Store, run: Callable[..., Any], form: str, mixed: bool
) -> None:
    """Also if handlers of several kinds take turns."""
    write(store, 6)
    done: list[int] = []

    async def coroutine(message: Message) -> None:
        await asyncio.sleep(0)
        done.append(message.data["n"])

    class Object:
        async def __call__(self, message: Message) -> None:
            await coroutine(message)

    def plain(message: Message) -> None:
        done.append(message.data["n"])

    handler: Any = {
        "coroutine": coroutine,
        "object": Object(),
        "partial": functools.partial(coroutine),
        "awaitable": lambda message: Awaitable(lambda: plain(message)),
        "task": lambda message: asyncio.ensure_future(coroutine(message)),
        "plain": plain,
    }[form]

    async def main(engine: AsyncEngine) -> int:
        return await mailer(engine, {"Even": handler, "Odd": coroutine if mixed else handler}).run_until_caught_up()

    assert run(main) == 6
    assert done == [0, 1, 2, 3, 4, 5]


# ---- how they end


@pytest.mark.parametrize("waits", [True, False])
def test_the_traceback_of_an_error_leads_into_the_handler(store: Store, run: Callable[..., Any], waits: bool) -> None:
    write(store, 3)

    async def fails(n: int) -> None:
        if waits:
            await asyncio.sleep(0)
        if n == 1:
            raise ValueError(f"no {n}")

    async def handle(message: Message) -> None:
        await fails(message.data["n"])

    async def main(engine: AsyncEngine) -> None:
        with pytest.raises(HandlerFailed) as caught:
            await mailer(engine, handle).run_until_caught_up()
        error: Any = caught.value.__cause__
        assert str(error) == "no 1"
        assert [each.name for each in traceback.extract_tb(error.__traceback__)][-2:] == ["handle", "fails"]

    run(main)
    assert positions(store, "account:position-mailer") == [1]


@pytest.mark.parametrize("waits", [True, False])
def test_what_ends_a_program_leaves_the_handled_messages_recorded(
    store: Store, run: Callable[..., Any], waits: bool
) -> None:
    write(store, 3)

    async def handle(message: Message) -> None:
        if waits:
            await asyncio.sleep(0)
        if message.data["n"] == 2:
            raise SystemExit(3)

    async def main(engine: AsyncEngine) -> None:
        await mailer(engine, handle, on_failure="park").run_until_caught_up()

    with pytest.raises(SystemExit):
        run(main)
    assert positions(store, "account:position-mailer") == [2]
    assert store.read("account:dead-mailer") == []


def test_a_handler_that_cancels_its_own_task_is_interrupted_where_it_waits(
    store: Store, run: Callable[..., Any]
) -> None:
    write(store, 3)
    begun: list[int] = []

    async def handle(message: Message) -> None:
        begun.append(message.data["n"])
        if message.data["n"] == 1:
            task: Any = asyncio.current_task()
            task.cancel()
            await asyncio.sleep(0)
            begun.append(-1)

    async def main(engine: AsyncEngine) -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(mailer(engine, handle).run())

    run(main)
    assert begun == [0, 1]
    assert positions(store, "account:position-mailer") == [1]


# ---- between two of them


def test_the_position_is_recorded_after_as_many_messages_as_asked_for(store: Store, run: Callable[..., Any]) -> None:
    """Within a page, between two messages."""
    write(store, 7)

    async def handle(message: Message) -> None:
        recorded.append(positions(store, "account:position-mailer"))

    recorded: list[list[int]] = []

    async def main(engine: AsyncEngine) -> None:
        await mailer(engine, handle, record_every=3).run_until_caught_up()

    run(main)
    assert recorded == [[], [], [], [3], [3], [3], [3, 6]]
    assert positions(store, "account:position-mailer") == [3, 6, 7]


def test_a_position_that_is_due_is_recorded_before_the_next_message(store: Store, run: Callable[..., Any]) -> None:
    write(store, 3)
    recorded: list[list[int]] = []

    async def handle(message: Message) -> None:
        recorded.append(positions(store, "account:position-mailer"))

    async def main(engine: AsyncEngine) -> None:
        await mailer(engine, handle, record_seconds=0).run_until_caught_up()

    run(main)
    assert recorded == [[], [1], [1, 2]]


def test_a_consumer_that_a_handler_stops_handles_no_other_message(store: Store, run: Callable[..., Any]) -> None:
    write(store, 3)
    handled: list[int] = []

    async def main(engine: AsyncEngine) -> None:
        async def handle(message: Message) -> None:
            handled.append(message.data["n"])
            if message.data["n"] == 1:
                consumer.stop()

        consumer = mailer(engine, handle)
        await consumer.run()

    run(main)
    assert handled == [0, 1]
    assert positions(store, "account:position-mailer") == [2]


def test_the_statements_of_a_consumer_are_seen_by_the_engines_listeners(store: Store, run: Callable[..., Any]) -> None:
    """If there are any, they see each page and each record."""
    write(store, 2)
    statements: list[str] = []

    async def handle(message: Message) -> None:
        pass

    async def main(engine: AsyncEngine) -> None:
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        await mailer(engine, handle).run_until_caught_up()

    run(main)
    assert any("get_category_messages" in each for each in statements)
    assert any("write_message" in each for each in statements)
