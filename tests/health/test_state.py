"""What a consumer says that it is doing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, event

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, HandlerFailed, Message, Store

from ..consumer.support import running, terminate_all, write
from ..support import consumer_on, exit_code, fork, store_on
from ..waits import wait_until
from .support import Held


def test_it_is_new_then_waits_then_has_stopped(store: Store, each_store: Store) -> None:
    handled: list[Message] = []
    consumer = consumer_on(each_store, "account", handled.append, "mailer", correlation=None)
    assert consumer.state()[:6] == ("account", "mailer", None, None, (), "new")
    assert not consumer.state().is_running
    with running(consumer):
        write(store, 2)
        wait_until(lambda: len(handled) == 2)
        wait_until(lambda: consumer.state().status == "waiting")
        state = consumer.state()
        assert (state.is_running, state.handled, state.message, state.error) == (True, 2, None, None)
    stopped = consumer.state()
    assert (stopped.status, stopped.handled, stopped.error, stopped.is_running) == ("stopped", 2, None, False)


@pytest.mark.parametrize("transactional", [False, True])
def test_it_tells_which_message_its_handler_has_and_for_how_long(store: Store, transactional: bool) -> None:
    write(store, 2)
    held = Held()
    options: dict[str, Any] = {"transactional": True} if transactional else {}
    consumer = Consumer(store, "account", held, "mailer", **options)
    with running(consumer):
        try:
            wait_until(lambda: held.messages)
            state = consumer.state()
            assert (state.status, state.message, state.handled) == ("handling", held.messages[0], 0)
            # It goes on until the handler returns.
            wait_until(lambda: consumer.state().seconds > state.seconds)
            assert consumer.state().message == held.messages[0]
        finally:
            held.release()
        # Between the two messages, it may wait for a connection of the pool.
        wait_until(lambda: consumer.state().handled == 2 and consumer.state().status == "waiting")
        assert consumer.state().message is None


def test_an_asynchronous_one_tells_it_too(store: Store, messagedb_url: str) -> None:
    write(store, 1)

    async def main() -> None:
        may_go = asyncio.Event()

        async def handle(message: Message) -> None:
            await may_go.wait()

        own = AsyncStore.from_url(messagedb_url.replace("psycopg2", "asyncpg"))
        consumer = AsyncConsumer(own, "account", handle, "mailer")
        task = asyncio.create_task(consumer.run())
        while consumer.state().status != "handling":
            await asyncio.sleep(0.01)
        assert consumer.state().message is not None
        may_go.set()
        while consumer.state().status != "waiting":
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert (consumer.state().status, consumer.state().error) == ("stopped", None)
        await own.engine.dispose()

    asyncio.run(main())


def test_it_tells_the_error_that_ended_it_until_it_runs_again(store: Store, each_store: Store) -> None:
    write(store, 1)
    fails = threading.Event()
    fails.set()

    def handle(message: Message) -> None:
        if fails.is_set():
            raise ValueError("no such account")

    consumer = consumer_on(each_store, "account", handle, "mailer")
    with pytest.raises(HandlerFailed):
        consumer.run()
    state = consumer.state()
    assert (state.status, state.is_running) == ("failed", False)
    assert (state.error or "").startswith("HandlerFailed: ")
    fails.clear()
    consumer.run_until_caught_up()
    assert (consumer.state().status, consumer.state().error) == ("stopped", None)


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_it_connects_as_long_as_there_is_no_server(store: Store, messagedb_url: str, driver: str) -> None:
    away = threading.Event()
    handled: list[Message] = []
    with store_on(driver, messagedb_url) as own:

        @event.listens_for(own.engine, "do_connect")
        def refuse(*_: Any) -> None:
            if away.is_set():
                raise OSError("away")

        consumer = consumer_on(own, "account", handled.append, "mailer")
        with running(consumer):
            write(store, 1)
            wait_until(lambda: handled)
            away.set()
            terminate_all(store.engine)
            wait_until(lambda: consumer.state().status == "connecting")
            since = consumer.state().seconds
            # Its pauses between the attempts belong to that.
            wait_until(lambda: consumer.state().seconds > since + 0.3)
            assert consumer.state().status == "connecting"
            away.clear()
            wait_until(lambda: consumer.state().status == "waiting")


def test_it_tells_which_slots_it_has(store: Store) -> None:
    write(store, 3)
    first, second = (Consumer(store, "account", lambda _: None, "shared", slots=2) for _ in range(2))
    assert (first.state().group_size, first.state().members) == (2, ())
    with running(first):
        wait_until(lambda: first.state().members == (0, 1))
        with running(second):
            wait_until(lambda: len(first.state().members) == len(second.state().members) == 1)
        wait_until(lambda: first.state().members == (0, 1))
    assert first.state().members == ()
    member = Consumer(store, "account", lambda _: None, "divided", group_member=1, group_size=3)
    with running(member):
        wait_until(lambda: member.state().members == (1,))


def test_a_forked_child_has_not_run_it(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    held = Held()
    engine = create_engine(messagedb_url)
    consumer = Consumer(Store(engine), "account", held, "mailer")

    def child() -> None:
        assert consumer.state().status == "new"

    with running(consumer):
        try:
            wait_until(lambda: held.messages)
            assert exit_code(fork(child)) == 0
            assert consumer.state().status == "handling"
        finally:
            held.release()
    engine.dispose()
