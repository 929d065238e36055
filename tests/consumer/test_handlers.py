"""What can be a handler, and what counts as handled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from greenlet import GreenletExit  # type: ignore[import-untyped]
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, HandlerFailed, InvalidArgument, Message, Store

from ..waits import wait_in_task_until
from .support import last_position, write


class Plain:
    @staticmethod
    def function(message: Message) -> None: ...

    def __call__(self, message: Message) -> None: ...

    method = __call__


class Coroutine:
    @staticmethod
    async def function(message: Message) -> None: ...

    async def __call__(self, message: Message) -> None: ...

    method = __call__


class Generator:
    @staticmethod
    def function(message: Message) -> Iterator[None]:
        yield

    def __call__(self, message: Message) -> Iterator[None]:
        yield

    method = __call__


class AsyncGenerator:
    @staticmethod
    async def function(message: Message) -> AsyncIterator[None]:
        yield

    async def __call__(self, message: Message) -> AsyncIterator[None]:
        yield

    method = __call__


class ContextManager:
    function = staticmethod(contextmanager(Generator.function))
    __call__ = contextmanager(Generator.__call__)
    method = __call__


class AsyncContextManager:
    function = staticmethod(asynccontextmanager(AsyncGenerator.function))
    __call__ = asynccontextmanager(AsyncGenerator.__call__)
    method = __call__


class InContext:
    """Runs within a context manager, and not as one."""

    function = staticmethod(contextmanager(lambda: iter([None]))()(Plain.function))
    __call__ = contextmanager(lambda: iter([None]))()(Plain.__call__)
    method = __call__


FORMS: dict[str, Callable[[Any], Any]] = {
    "a function": lambda kind: kind.function,
    "a method": lambda kind: kind().method,
    "an object": lambda kind: kind(),
    "a partial": lambda kind: functools.partial(kind.function),
    "a partial of an object": lambda kind: functools.partial(functools.partial(kind())),
    "a static method": lambda kind: vars(kind)["function"],
}


@pytest.fixture
def make(store: Store, messagedb_url: str) -> Callable[..., Any]:
    """Makes a Consumer, or an AsyncConsumer."""
    async_store = AsyncStore(create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg")))

    def consumer(kind: type, handlers: Any, **options: Any) -> Any:
        return kind(store if kind is Consumer else async_store, "account", handlers, "mailer", **options)

    return consumer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "refused_by", "reason"),
    [
        (Plain, [], ""),
        (InContext, [], ""),
        (Coroutine, [Consumer], "must be a plain function: a Consumer does not await handlers"),
        (Generator, [Consumer, AsyncConsumer], "must not be a generator function: its body does not run"),
        (AsyncGenerator, [Consumer, AsyncConsumer], "must not be a generator function: its body does not run"),
        (ContextManager, [Consumer, AsyncConsumer], "must not be a context manager: its body does not run"),
        (AsyncContextManager, [Consumer, AsyncConsumer], "must not be a context manager: its body does not run"),
    ],
)
def test_what_would_not_run_is_refused_in_each_form(
    make: Callable[..., Any], form: str, kind: type, refused_by: list[type], reason: str
) -> None:
    handler = FORMS[form](kind)
    for consumer in (Consumer, AsyncConsumer):
        if consumer not in refused_by:
            make(consumer, {"Opened": handler})
            continue
        with pytest.raises(InvalidArgument, match=rf"handlers=.*: {reason}"):
            make(consumer, handler)
        with pytest.raises(InvalidArgument, match=rf"handlers\['Opened'\]=.*: {reason}"):
            make(consumer, {"Closed": print, "Opened": handler})


def test_a_generator_that_can_be_awaited_is_a_coroutine(make: Callable[..., Any]) -> None:
    @types.coroutine
    def handle(message: Message) -> Iterator[None]:
        yield

    make(AsyncConsumer, handle)
    with pytest.raises(InvalidArgument, match="must be a plain function"):
        make(Consumer, handle)


class OfTwo:
    def __init__(self, message: Message, other: object) -> None: ...


@pytest.mark.parametrize(
    ("handler", "number"),
    [
        (lambda: None, 0),
        (lambda message: None, 1),
        (lambda message, *, clock=None: None, 1),
        (lambda message, connection: None, 2),
        (lambda message, connection=None: None, 12),
        (lambda *arguments: None, 12),
        (lambda message, *, clock: None, 0),
        (functools.partial(lambda mailer, message: None, object()), 1),
        (functools.partial(lambda message, mailer: None, mailer=object()), 1),
        ([].append, 1),
        (print, 12),
        (OfTwo, 2),
        (Mock(), 12),
        # Decorated: what is called takes any arguments, and passes on what it likes.
        (functools.wraps(lambda message, connection, clock: None)(lambda *arguments: None), 12),
        (functools.wraps(lambda message, connection: None)(lambda message: None), 1),
    ],
)
def test_it_must_take_what_it_is_given(make: Callable[..., Any], handler: Any, number: int) -> None:
    for transactional, takes, reason in (
        (False, "1", "must take one argument, the message"),
        (True, "2", "must take two arguments, the message and the connection or session"),
    ):
        if takes in str(number):
            make(Consumer, handler, transactional=transactional)
            continue
        with pytest.raises(InvalidArgument) as caught:
            make(Consumer, handler, transactional=transactional)
        assert str(caught.value).endswith(f": {reason}")


def test_a_signature_that_a_decorator_has_set_proves_nothing(make: Callable[..., Any]) -> None:
    def handle(*arguments: Any) -> None: ...

    handle.__signature__ = 1  # type: ignore[attr-defined]
    make(Consumer, handle)


# ---- found out when it is called


async def returns_coroutine(message: Message) -> Any:
    return Coroutine.function(message)


async def returns_generator(message: Message) -> Any:
    return Generator.function(message)


def future(message: Message) -> Any:
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("consumer", "handler", "returned"),
    [
        (Consumer, lambda message: Coroutine.function(message), "coroutine"),
        (Consumer, lambda message: Coroutine()(message), "coroutine"),
        (Consumer, lambda message: Generator.function(message), "generator"),
        (Consumer, lambda message: (each for each in [1]), "generator"),
        (Consumer, lambda message: AsyncGenerator.function(message), "async_generator"),
        (Consumer, lambda message: ContextManager.function(message), "_GeneratorContextManager"),
        (Consumer, lambda message: AsyncContextManager.function(message), "_AsyncGeneratorContextManager"),
        (Consumer, functools.wraps(print)(lambda message: concurrent_to_await()), "Awaitable"),
        (AsyncConsumer, lambda message: Generator.function(message), "generator"),
        (AsyncConsumer, lambda message: AsyncGenerator.function(message), "async_generator"),
        (AsyncConsumer, lambda message: AsyncContextManager.function(message), "_AsyncGeneratorContextManager"),
        (AsyncConsumer, returns_coroutine, "coroutine"),
        (AsyncConsumer, returns_generator, "generator"),
    ],
)
def test_what_has_not_run_is_the_handlers_failure(
    store: Store, make: Callable[..., Any], consumer: type, handler: Any, returned: str
) -> None:
    """Also no warning, which would fail this test, that a coroutine was never awaited."""
    write(store, 2)

    async def consume(on_failure: str) -> None:
        result = make(consumer, handler, on_failure=on_failure).run_until_caught_up()
        if consumer is AsyncConsumer:
            await result

    with pytest.raises(HandlerFailed) as caught:
        asyncio.run(consume("stop"))
    assert f"the handler returned a {returned}" in str(caught.value.__cause__)
    assert last_position(store, "account:position-mailer") is None
    asyncio.run(consume("park"))
    assert len(store.read("account:dead-mailer")) == 2


class Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


def concurrent_to_await() -> Awaitable:
    return Awaitable()


@pytest.mark.parametrize("result", [None, 0, "text", [1], Mock(), iter([1]), concurrent.futures.Future(), open])
def test_any_other_result_is_ignored(store: Store, result: object) -> None:
    write(store, 1)
    assert Consumer(store, "account", lambda _: result, "mailer").run_until_caught_up() == 1


# ---- exceptions that are not the consumer's end


def raising(error: BaseException) -> Callable[[Message], None]:
    def handle(message: Message) -> None:
        raise error

    return handle


def own_loop(message: Message) -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    asyncio.run(main())


@pytest.mark.parametrize(
    "handler",
    [
        own_loop,
        raising(asyncio.CancelledError()),
        raising(concurrent.futures.CancelledError()),
        raising(StopIteration()),
    ],
)
@pytest.mark.parametrize("transactional", [True, False])
def test_in_a_thread_every_cancelled_error_is_the_handlers(
    store: Store, handler: Callable[..., None], transactional: bool
) -> None:
    write(store, 2)
    handle: Any = (lambda message, _: handler(message)) if transactional else handler
    options: dict[str, Any] = {"on_failure": "park", "transactional": transactional}
    Consumer(store, "account", handle, "mailer", **options).run_until_caught_up()
    assert len(store.read("account:dead-mailer")) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), GreenletExit()])
@pytest.mark.parametrize("kind", [Consumer, AsyncConsumer])
@pytest.mark.parametrize("transactional", [True, False])
def test_what_ends_a_program_ends_the_consumer_and_the_message_is_not_handled(
    store: Store, make: Callable[..., Any], error: BaseException, kind: type, transactional: bool
) -> None:
    write(store, 2)

    def handle(message: Message, *_: Any) -> None:
        if message.data["n"] == 1:
            raise error

    def consume() -> None:
        result = make(kind, handle, on_failure="park", transactional=transactional).run_until_caught_up()
        if kind is AsyncConsumer:
            asyncio.run(awaited(result))

    async def awaited(result: Any) -> None:
        await result

    with pytest.raises(type(error)):
        consume()
    assert last_position(store, "account:position-mailer") == 1
    assert store.read("account:dead-mailer") == []


async def own_task(message: Message) -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    task.cancel()
    await task


async def own_future(message: Message) -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    await cancelled


async def gathered(message: Message) -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.gather(task, asyncio.sleep(0))


def returned_future(message: Message) -> Any:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    return cancelled


async def too_slow(message: Message) -> None:
    await asyncio.wait_for(asyncio.sleep(3600), 0.01)


async def timed_out(message: Message) -> None:
    if hasattr(asyncio, "timeout"):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(3600)
    raise asyncio.TimeoutError


async def after_timeout(message: Message) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await timed_out(message)
    await own_task(message)


@pytest.mark.parametrize(
    "handler",
    [
        own_task,
        own_future,
        gathered,
        returned_future,
        too_slow,
        timed_out,
        after_timeout,
        raising(asyncio.CancelledError()),
    ],
)
@pytest.mark.parametrize("cancelled_before", [True, False])
def test_a_handlers_own_cancelled_task_is_its_failure(
    store: Store, make: Callable[..., Any], handler: Any, cancelled_before: bool
) -> None:
    write(store, 2)

    async def main() -> None:
        if cancelled_before:
            # As code that cleans up after its task was cancelled.
            task: Any = asyncio.current_task()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(0)
        assert await make(AsyncConsumer, handler, on_failure="park").run_until_caught_up() == 2

    asyncio.run(main())
    assert len(store.read("account:dead-mailer")) == 2


class SwallowedError(Exception):
    pass


@pytest.mark.skipif(not hasattr(asyncio.Task, "cancelling"), reason="tasks do not tell that they are cancelled")
@pytest.mark.parametrize("error", [None, SwallowedError()])
@pytest.mark.parametrize("transactional", [True, False])
def test_a_consumer_ends_when_cancelled_even_if_its_handler_swallows_that(
    store: Store, make: Callable[..., Any], error: Exception | None, transactional: bool
) -> None:
    write(store, 3)
    begun: list[int] = []

    async def handle(message: Message, *_: Any) -> None:
        begun.append(message.data["n"])
        if message.data["n"] == 1:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if error is not None:
                    raise error from None
        else:
            await asyncio.sleep(0)

    async def main() -> None:
        task: Any = asyncio.create_task(make(AsyncConsumer, handle, transactional=transactional).run())
        await wait_in_task_until(lambda: len(begun) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    asyncio.run(main())
    # A transaction that was cancelled is rolled back.
    handled = 1 if error is not None or transactional else 2
    assert last_position(store, "account:position-mailer") == handled


def test_a_cancel_scope_in_a_handler_ends_there(store: Store, make: Callable[..., Any]) -> None:
    anyio = pytest.importorskip("anyio")
    write(store, 3)
    handled: list[int] = []

    async def handle(message: Message) -> None:
        with anyio.move_on_after(0.01):
            await anyio.sleep(3600)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 3600)
            tasks.cancel_scope.cancel()
        handled.append(message.data["n"])

    async def main() -> None:
        consumer = make(AsyncConsumer, handle)
        assert await consumer.run_until_caught_up() == 3
        with anyio.move_on_after(3600) as scope:

            async def cancel() -> None:
                scope.cancel()

            await asyncio.gather(consumer.run(), cancel())
        assert scope.cancelled_caught

    asyncio.run(main())
    assert handled == [0, 1, 2]
