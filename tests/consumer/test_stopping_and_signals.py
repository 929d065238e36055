"""How a consumer stops: when asked to, and on signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import NO_STREAM, AsyncConsumer, AsyncStore, Consumer, Message, Store

from ..support import consumer_on, numbers
from ..waits import HANG, wait_in_task_until, wait_until
from .support import database_time, is_waiting, last_position, positions, write


def test_a_handler_can_stop_it_after_the_current_message(each_store: Store) -> None:
    write(each_store, 10)
    handled: list[Message] = []

    def handle(message: Message) -> None:
        handled.append(message)
        if message.data["n"] == 3:
            consumer.stop()

    consumer = consumer_on(each_store, "account", handle, "mailer")
    consumer.run()
    assert numbers(handled) == [0, 1, 2, 3]
    assert last_position(each_store, "account:position-mailer") == 4
    consumer.run_until_caught_up()
    assert numbers(handled) == list(range(10))


def test_a_consumer_that_was_stopped_before_it_runs_returns_at_once(store: Store) -> None:
    write(store, 1)
    consumer = Consumer(store, "account", lambda _: None, "mailer")
    consumer.stop()
    consumer.run()
    assert store.stream_version("account:position-mailer") == NO_STREAM


# Its handlers end when they read a byte: the test says when. Two of them may read at the same time, which the buffer of
# sys.stdin does not survive.
PROGRAM = """
import asyncio, os, sys
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Store
url, how = sys.argv[1:]
options = {"poll_seconds": 3600, "record_seconds": 3600}

def handle(message):
    print("begun", flush=True)
    os.read(0, 1)
    print("ended", flush=True)

async def handle_async(message):
    print("begun", flush=True)
    await asyncio.to_thread(os.read, 0, 1)
    print("ended", flush=True)

if how == "sync":
    Consumer(Store(create_engine(url)), "account", handle, "mailer", **options).run()
else:
    async def main():
        engine = create_async_engine(url.replace("psycopg2", how))
        await AsyncConsumer(AsyncStore(engine), "account", handle_async, "mailer", **options).run()
        await engine.dispose()
    asyncio.run(main())
print("returned", flush=True)
"""

SERVER = """
import asyncio, os, signal, sys
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncConsumer, AsyncStore

async def handle(message):
    print("begun", flush=True)
    await asyncio.to_thread(os.read, 0, 1)
    print("ended", flush=True)

async def main():
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(closing.set))
    engine = create_async_engine(sys.argv[1].replace("psycopg2", "asyncpg"))
    store = AsyncStore(engine)
    consumers = [AsyncConsumer(store, "account", handle, identifier) for identifier in ("one", "other")]
    await asyncio.gather(*(consumer.run() for consumer in consumers))
    print("returned", flush=True)
    await closing.wait()
    await engine.dispose()

asyncio.run(main())
"""


class Program:
    """A program in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.send_signal = process.send_signal

    def end_handler(self) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write("\n")
        pipe.flush()

    def line(self) -> str:
        return _pipe(self._process.stdout).readline()

    def rest(self) -> str:
        """What it prints until it ends."""
        return _pipe(self._process.stdout).read()

    def errors(self) -> str:
        return _pipe(self._process.stderr).read()

    def exit_code(self) -> int:
        return self._process.wait(HANG)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def started(program: str, *arguments: str) -> Iterator[Program]:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["sync", "psycopg", "asyncpg"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_on_a_signal_it_finishes_the_current_message_and_returns(
    store: Store, messagedb_url: str, how: str, number: int
) -> None:
    write(store, 3)
    with started(PROGRAM, messagedb_url, how) as program:
        assert program.line() == "begun\n"
        program.send_signal(number)
        program.end_handler()
        assert program.rest() == "ended\nreturned\n"
        assert program.exit_code() == 0
    assert positions(store, "account:position-mailer") == [1]


def test_a_signal_stops_a_waiting_consumer(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    with started(PROGRAM, messagedb_url, "sync") as program:
        assert program.line() == "begun\n"
        handled_at = database_time(store.engine)
        program.end_handler()
        assert program.line() == "ended\n"
        wait_until(lambda: is_waiting(store.engine, handled_at))
        program.send_signal(signal.SIGTERM)
        assert program.rest() == "returned\n"
    assert positions(store, "account:position-mailer") == [1]


def test_a_signal_stops_all_consumers_and_then_reaches_the_previous_handler(store: Store, messagedb_url: str) -> None:
    write(store, 3)
    with started(SERVER, messagedb_url) as program:
        assert program.line() + program.line() == "begun\nbegun\n"
        program.send_signal(signal.SIGTERM)
        program.end_handler()
        program.end_handler()
        assert program.rest() == "ended\nended\nreturned\n"
        assert program.exit_code() == 0
    assert positions(store, "account:position-one") == positions(store, "account:position-other") == [1]


@pytest.mark.parametrize("how", ["sync", "asyncpg"])
@pytest.mark.parametrize(("number", "ended_by"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "")])
def test_a_signal_ends_a_program_that_runs_until_caught_up(
    store: Store, messagedb_url: str, how: str, number: signal.Signals, ended_by: str
) -> None:
    """The lines after run_until_caught_up must not run, for they expect that everything is handled."""
    write(store, 3)
    with started(PROGRAM.replace(".run()", ".run_until_caught_up()"), messagedb_url, how) as program:
        assert program.line() == "begun\n"
        program.send_signal(number)
        program.end_handler()
        assert program.rest() == "ended\n"
        assert program.errors().strip().rpartition("\n")[2] == ended_by
        assert program.exit_code() == -number
    assert positions(store, "account:position-mailer") == [1]


OWN_HANDLER = """
import os, select, signal, sys, threading, time
from messagedb_sa import Consumer, Store

def handle(message, connection):
    print("begun", flush=True)
    threading.Thread(target=say).start()
    # A signal that comes just before a system call does not end it.
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        pass

def say():
    while signal.getsignal(signal.SIGTERM) is not stop:
        time.sleep(0.01)
    print("to the application", flush=True)

def stop(number, frame):
    # Not print(), which must not be called while a first signal's print() is under way.
    os.write(1, b"asked\\n")
    consumer.stop()

consumer = Consumer(Store.from_url(sys.argv[1]), "account", handle, "mailer", transactional=True)
signal.signal(signal.SIGTERM, stop)
consumer.run(handle_signals=sys.argv[2] == "ours")
print("returned", flush=True)
"""


@pytest.mark.parametrize("how", ["ours", "theirs"])
def test_a_second_signal_for_an_applications_own_handler_ends_no_connection(
    store: Store, messagedb_url: str, how: str
) -> None:
    write(store, 1)
    with started(OWN_HANDLER, messagedb_url, how) as program:
        assert program.line() == "begun\n"
        if how == "ours":
            program.send_signal(signal.SIGTERM)
        assert program.line() == "to the application\n"
        if how == "theirs":
            program.send_signal(signal.SIGTERM)
            assert program.line() == "asked\n"
        program.send_signal(signal.SIGTERM)
        assert program.line() == "asked\n"
        # The thread that watches looks often.
        time.sleep(0.5)
        program.end_handler()
        # The first signal that the consumer has handled reaches the handler too.
        assert program.rest() == ("asked\n" if how == "ours" else "") + "returned\n"
        assert program.exit_code() == 0
    assert positions(store, "account:position-mailer") == [1]


def test_signal_handlers_are_restored_in_whatever_order_consumers_end(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        handled: list[Message] = []

        async def handle(message: Message) -> None:
            handled.append(message)

        consumers = [AsyncConsumer(AsyncStore(engine), "account", handle, name) for name in ("one", "other")]
        tasks = [asyncio.create_task(consumer.run()) for consumer in consumers]
        await wait_in_task_until(lambda: len(handled) == 2)
        assert signal.getsignal(signal.SIGTERM) is not before
        for consumer, task in zip(consumers, tasks, strict=True):
            consumer.stop()
            await task
        await engine.dispose()

    asyncio.run(main())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("handle_signals", [True, False])
def test_signals_are_handled_only_while_it_runs_and_only_if_it_may(store: Store, handle_signals: bool) -> None:
    write(store, 1)
    before = signal.getsignal(signal.SIGTERM)
    during: list[Any] = []

    def handle(message: Message) -> None:
        during.append(signal.getsignal(signal.SIGTERM))

    Consumer(store, "account", handle, "mailer").run_until_caught_up(handle_signals=handle_signals)
    assert [handler is not before for handler in during] == [handle_signals]
    assert signal.getsignal(signal.SIGTERM) is before
