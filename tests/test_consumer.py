"""Consumers: what they hand over, where they go on, what they do about errors; on each driver where that can matter."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import tenacity
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, func, insert, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    Consumer,
    GroupChanged,
    HandlerFailed,
    InvalidArgument,
    Message,
    MessageDBError,
    MessageTypes,
    PositionConflict,
    SlotsLost,
    Store,
    StreamWithoutId,
    Tracing,
    install,
)
from messagedb_sa.execution import run_alone
from messagedb_sa.postgres import temporary_server
from messagedb_sa.slots import Slots
from messagedb_sa.stream_name import consumer_group_member

from .conftest import DRIVERS, consumer_on, numbers, store_on
from .test_joined import Order, host, orders

SOON = 30.0


def write(store: Store, count: int, category: str = "account", first: int = 0) -> None:
    for n in range(first, first + count):
        store.write(f"{category}-{n % 3}", "Odd" if n % 2 else "Even", {"n": n})


def positions(store: Store, stream: str) -> list[int]:
    return [message.data["position"] for message in store.read(stream, no_of_messages=-1)]


class Failing:
    """A handler that keeps the numbers that it is given, and raises at some, so many times."""

    def __init__(self, at: int, times: int = 10**9) -> None:
        self.numbers: list[int] = []
        self.left = {at: times}

    def __call__(self, message: Message, *_: Any) -> None:
        n = message.data["n"]
        self.numbers.append(n)
        if self.left.get(n, 0) > 0:
            self.left[n] -= 1
            raise ValueError(f"no {n}")


@contextmanager
def running(consumer: Consumer) -> Iterator[None]:
    """The consumer in a thread, until the end of the block."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            consumer.run()
        except BaseException as error:  # noqa: BLE001 - for the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(SOON)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.005)


# What is handed over, and from where


def test_one_handler_gets_every_message_in_the_order_of_the_log(each_store: Store) -> None:
    write(each_store, 10)
    each_store.write("other-1", "Even", {"n": 99})
    handled: list[Message] = []
    assert consumer_on(each_store, "account", handled.append, "mailer").run_until_caught_up() == 10
    assert handled == each_store.read("account")


def test_handlers_by_type_get_theirs_and_other_types_are_passed_over(each_store: Store) -> None:
    write(each_store, 6)
    odd: list[Message] = []
    assert consumer_on(each_store, "account", {"Odd": odd.append}, "mailer").run_until_caught_up() == 3
    assert numbers(odd) == [1, 3, 5]
    assert positions(each_store, "account:position-mailer") == [6]


def test_pages_follow_each_other(each_store: Store) -> None:
    write(each_store, 10)
    handled: list[Message] = []
    consumer_on(each_store, "account", handled.append, "mailer", batch_size=3).run_until_caught_up()
    assert numbers(handled) == list(range(10))


def test_it_goes_on_after_the_last_message_that_was_handled(each_store: Store) -> None:
    handled: list[Message] = []
    write(each_store, 4)
    consumer = consumer_on(each_store, "account", handled.append, "mailer")
    consumer.run_until_caught_up()
    write(each_store, 3, first=4)
    assert consumer.run_until_caught_up() == 3
    write(each_store, 3, first=7)
    assert consumer_on(each_store, "account", handled.append, "mailer").run_until_caught_up() == 3
    assert numbers(handled) == list(range(10))


def test_identifiers_tell_consumers_apart(store: Store) -> None:
    write(store, 2)
    for identifier in ("one", "other", None):
        assert Consumer(store, "account", print, identifier).run_until_caught_up() == 2


@pytest.mark.parametrize(
    ("category", "identifier", "stream"),
    [
        ("account", "mailer", "account:position-mailer"),
        ("account", None, "account:position"),
        ("account:command", "mailer", "account:command+position-mailer"),
        ("account:command+v2", "a-b", "account:command+v2+position-a-b"),
    ],
)
def test_its_position_is_where_eventides_consumers_keep_it(
    store: Store, category: str, identifier: str | None, stream: str
) -> None:
    store.write(f"{category}-1", "Opened", {})
    Consumer(store, category, print, identifier).run_until_caught_up()
    with store.engine.connect() as connection:
        query = text("SELECT type, data FROM message_store.messages WHERE stream_name = :stream")
        rows = [tuple(row) for row in connection.execute(query, {"stream": stream})]
    assert rows == [("Recorded", {"position": 1})]


def test_it_goes_on_where_a_consumer_in_another_language_stopped(store: Store) -> None:
    write(store, 5)
    with store.engine.begin() as connection:
        wrote = (
            "SELECT message_store.write_message(gen_random_uuid()::varchar, :stream, 'Recorded', '{\"position\": 3}')"
        )
        connection.execute(text(wrote), {"stream": "account:position-mailer"})
    handled: list[Message] = []
    Consumer(store, "account", handled.append, "mailer").run_until_caught_up()
    assert numbers(handled) == [3, 4]


def test_what_holds_no_position_is_not_taken_for_one(store: Store) -> None:
    store.write("account:position-mailer", "Recorded", {"place": 3})
    with pytest.raises(MessageDBError, match=r"holds no position of a consumer: \{'place': 3\}"):
        Consumer(store, "account", print, "mailer").run_until_caught_up()


def test_position_says_where_to_begin_where_none_is_recorded(store: Store) -> None:
    write(store, 5)
    handled: list[Message] = []
    Consumer(store, "account", handled.append, "mailer", position=4).run_until_caught_up()
    assert numbers(handled) == [3, 4]
    Consumer(store, "account", handled.append, "mailer", position=1).run_until_caught_up()
    assert numbers(handled) == [3, 4]


def test_a_beginning_that_is_given_is_recorded_at_once(store: Store) -> None:
    write(store, 3)
    for _ in range(2):
        Consumer(store, "account", print, "mailer", position=4).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [3]
    write(store, 2)
    seen: list[Message] = []
    Consumer(store, "account", seen.append, "mailer").run_until_caught_up()
    assert numbers(seen) == [0, 1]


@pytest.mark.parametrize("category", ["account", "$all"])
def test_it_can_begin_at_the_end(store: Store, category: str) -> None:
    write(store, 3)
    store.write("invoice-1", "Issued", {})
    seen: list[Message] = []
    consumer = Consumer(store, category, seen.append, "mailer", position="end")
    consumer.run_until_caught_up()
    write(store, 2, first=3)
    consumer.run_until_caught_up()
    assert numbers(seen) == [3, 4]
    assert positions(store, f"{category}:position-mailer")[0] == (3 if category == "account" else 4)


def test_it_can_begin_at_the_end_of_nothing(store: Store) -> None:
    seen: list[Message] = []
    consumer = Consumer(store, "account", seen.append, "mailer", position="end")
    consumer.run_until_caught_up()
    write(store, 1)
    consumer.run_until_caught_up()
    assert numbers(seen) == [0]


@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"slots": 1, "streams_without_id": "skip"}])
def test_it_can_be_for_messages_of_a_correlation(each_store: Store, options: dict[str, Any]) -> None:
    for n, stream in enumerate(["transfer-1", "other-1", "transfer-2"]):
        each_store.write("account-1", "Opened", {"n": n}, {"correlationStreamName": stream})
        # Not for a group, but not of the correlation either.
        each_store.write("account", "Opened", {"n": n}, {"correlationStreamName": "other-1"})
    seen: list[Message] = []
    consumer_on(each_store, "account", seen.append, "mailer", correlation="transfer", **options).run_until_caught_up()
    assert numbers(seen) == [0, 2]


def test_the_position_is_recorded_every_so_many_messages_and_at_the_end(each_store: Store) -> None:
    write(each_store, 10)
    consumer_on(each_store, "account", lambda _: None, "mailer", record_every=4).run_until_caught_up()
    assert positions(each_store, "account:position-mailer") == [4, 8, 10]


def test_the_position_is_recorded_every_so_many_seconds(store: Store) -> None:
    write(store, 5)
    Consumer(store, "account", lambda _: None, "mailer", record_seconds=0).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2, 3, 4, 5]


def test_the_position_is_recorded_while_it_waits(store: Store) -> None:
    write(store, 5)
    with running(Consumer(store, "account", lambda _: None, "mailer", record_seconds=0.2)):
        wait_for(lambda: store.stream_version("account:position-mailer") is not None)
    assert positions(store, "account:position-mailer")[-1] == 5


def test_without_anything_new_no_position_is_recorded(store: Store) -> None:
    write(store, 2)
    consumer = Consumer(store, "account", lambda _: None, "mailer", record_seconds=0)
    for _ in range(3):
        consumer.run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2]


def test_it_waits_for_what_is_written_later(each_store: Store, messagedb_url: str) -> None:
    handled: list[Message] = []
    consumer = consumer_on(each_store, "account", handled.append, "mailer", poll_seconds=0.01)
    # Not the store that the consumer is on, whose event loop it occupies.
    writer = Store.from_url(messagedb_url)
    with running(consumer):
        writer.write("account-1", "Opened", {"n": 0})
        wait_for(lambda: len(handled) == 1)
        writer.write_batch("account-1", [("Opened", {"n": 1}), ("Opened", {"n": 2})])
        wait_for(lambda: len(handled) == 3)
    writer.engine.dispose()
    assert numbers(handled) == [0, 1, 2]


def test_it_has_one_connection_outside_of_the_pool_and_leaves_none(messagedb_url: str, store: Store) -> None:
    write(store, 3)
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=1)
    seen: list[int] = []
    asked = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def handle(message: Message, connection: Connection) -> None:
        seen.append(connection.scalars(asked).one())

    with store.engine.connect() as connection:
        before = connection.scalars(asked).one()
        Consumer(Store(engine), "account", handle, "mailer", transactional=True).run_until_caught_up()
        assert max(seen) == before + 2
        engine.dispose()
        wait_for(lambda: connection.scalars(asked).one() == before)


# Stopping


def test_a_handler_can_stop_it_after_the_message_in_hand(each_store: Store) -> None:
    write(each_store, 10)
    handled: list[Message] = []

    def handle(message: Message) -> None:
        handled.append(message)
        if message.data["n"] == 3:
            consumer.stop()

    consumer = consumer_on(each_store, "account", handle, "mailer")
    consumer.run()
    assert numbers(handled) == [0, 1, 2, 3]
    assert positions(each_store, "account:position-mailer") == [4]
    consumer.run_until_caught_up()
    assert numbers(handled) == list(range(10))


def test_a_stop_before_it_runs_has_it_return_at_once(store: Store) -> None:
    write(store, 1)
    consumer = Consumer(store, "account", lambda _: None, "mailer")
    consumer.stop()
    consumer.run()
    assert store.stream_version("account:position-mailer") is None


def test_it_runs_once_at_a_time(store: Store) -> None:
    write(store, 1)
    refused: list[str] = []

    def handle(_: Message) -> None:
        with pytest.raises(RuntimeError) as caught:
            consumer.run()
        refused.append(str(caught.value))

    consumer = Consumer(store, "account", handle, "mailer")
    consumer.run_until_caught_up()
    assert refused == ["this consumer is running already"]


PROGRAM = """
import asyncio, sys, time
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Store
url, how = sys.argv[1:]

def handle(message):
    print("begun", flush=True)
    time.sleep(0.3)
    print("ended", flush=True)

async def handle_async(message):
    print("begun", flush=True)
    await asyncio.sleep(0.3)
    print("ended", flush=True)

if how == "sync":
    Consumer(Store(create_engine(url)), "account", handle, "mailer").run()
else:
    async def main():
        engine = create_async_engine(url.replace("psycopg2", how))
        await AsyncConsumer(AsyncStore(engine), "account", handle_async, "mailer").run()
        await engine.dispose()
    asyncio.run(main())
print("returned", flush=True)
"""


@pytest.mark.parametrize("how", ["sync", "psycopg", "asyncpg"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_the_message_in_hand_and_return(
    store: Store, messagedb_url: str, how: str, number: int
) -> None:
    write(store, 3)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, messagedb_url, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.read() == "ended\nreturned\n"
    assert process.returncode == 0
    assert positions(store, "account:position-mailer") == [1]


def test_a_signal_wakes_one_that_waits(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    program = PROGRAM.replace('"mailer")', '"mailer", poll_seconds=3600)')
    command = [sys.executable, "-c", program, messagedb_url, "sync"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "ended\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "returned\n"
    assert positions(store, "account:position-mailer") == [1]


SERVER = """
import asyncio, signal, sys, time
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncConsumer, AsyncStore

async def handle(message):
    print("begun", flush=True)
    await asyncio.sleep(0.3)
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


def test_a_signal_stops_all_consumers_and_then_reaches_a_handler_that_was_there(
    store: Store, messagedb_url: str
) -> None:
    write(store, 3)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVER, messagedb_url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() + process.stdout.readline() == "begun\nbegun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ended\nended\nreturned\n"
    assert process.returncode == 0
    assert positions(store, "account:position-one") == positions(store, "account:position-other") == [1]


@pytest.mark.parametrize("how", ["sync", "asyncpg"])
@pytest.mark.parametrize(("number", "ended_by"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "")])
def test_a_signal_ends_the_program_of_one_that_should_have_caught_up(
    store: Store, messagedb_url: str, how: str, number: signal.Signals, ended_by: str
) -> None:
    """Whatever comes after it counts on all being handled. The message in hand is finished, the position recorded."""
    write(store, 3)
    program = PROGRAM.replace(".run()", ".run_until_caught_up()")
    command = [sys.executable, "-W", "error", "-c", program, messagedb_url, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.read() == "ended\n"
        assert process.stderr.read().strip().rpartition("\n")[2] == ended_by
    assert process.returncode == -number
    assert positions(store, "account:position-mailer") == [1]


def test_signal_handlers_are_put_back_in_whatever_order_consumers_end(store: Store, messagedb_url: str) -> None:
    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        consumers = [AsyncConsumer(AsyncStore(engine), "account", print, name) for name in ("one", "other")]
        tasks = [asyncio.create_task(consumer.run()) for consumer in consumers]
        await asyncio.sleep(0.1)
        assert signal.getsignal(signal.SIGTERM) is not before
        for consumer, task in zip(consumers, tasks, strict=True):
            consumer.stop()
            await task
        await engine.dispose()

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(main())
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_handled_only_while_it_runs_and_only_if_it_may(store: Store) -> None:
    write(store, 1)
    during: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)
    consumer = Consumer(store, "account", lambda _: during.append(signal.getsignal(signal.SIGTERM)), "one")
    consumer.run_until_caught_up()
    Consumer(store, "account", consumer._consuming._find("Even"), "other").run_until_caught_up(handle_signals=False)  # type: ignore[arg-type]
    assert during[0] != before
    assert during[1] == before == signal.getsignal(signal.SIGTERM)


# Failures


def test_a_handlers_error_stops_it_there_and_nothing_is_skipped(
    each_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(each_store, 6)
    failing = Failing(at=3, times=1)
    consumer = consumer_on(each_store, "account", failing, "mailer")
    with pytest.raises(HandlerFailed) as caught:
        consumer.run_until_caught_up()
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.message == each_store.read("account")[3]
    assert (
        str(caught.value)
        == "the handler of Odd failed at global position 4: stream 'account-0', position 1: ValueError: no 3"
    )
    assert positions(each_store, "account:position-mailer") == [3]

    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.name == "messagedb_sa.consumer"
    fields = vars(record)
    assert {name: fields[name] for name in ("category", "identifier", "stream_name", "position", "message_type")} == {
        "category": "account",
        "identifier": "mailer",
        "stream_name": "account-0",
        "position": 1,
        "message_type": "Odd",
    }
    assert fields["global_position"] == 4
    assert "no 3" in caplog.text

    consumer.run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 3, 3, 4, 5]


def test_a_message_is_tried_again_as_often_as_the_policy_says(each_store: Store) -> None:
    write(each_store, 4)
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.01))
    failing = Failing(at=2, times=2)
    consumer_on(each_store, "account", failing, "mailer", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 2, 2, 3]

    failing = Failing(at=2)
    with pytest.raises(HandlerFailed) as caught:
        consumer_on(each_store, "account", failing, "other", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 2, 2]
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_the_policy_does_not_retry_stops_it_at_once(store: Store) -> None:
    write(store, 2)
    policy = tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError), stop=tenacity.stop_after_attempt(3))
    failing = Failing(at=1)
    with pytest.raises(HandlerFailed):
        Consumer(store, "account", failing, "mailer", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1]


def test_each_attempt_that_failed_is_told_with_its_own_error(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    write(store, 1)
    errors = iter("abc")

    def handle(message: Message) -> None:
        raise ValueError(next(errors))

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.01))
    with caplog.at_level("WARNING"), pytest.raises(HandlerFailed, match=r"position 0: ValueError: c$"):
        Consumer(store, "account", handle, "mailer", retry=policy).run_until_caught_up()
    told = [(record.getMessage().partition(" (")[0], str((record.exc_info or "..")[1])) for record in caplog.records]
    assert told == [
        ("consumer failed, tries again in 0.0 s", "a"),
        ("consumer failed 2 times, tries again in 0.0 s", "b"),
        ("consumer could not handle a message, stops", "c"),
    ]


def test_an_asynchronous_policy_is_refused(store: Store) -> None:
    """It would return at once, as if the message was handled."""
    with pytest.raises(InvalidArgument, match="retry="):
        Consumer(store, "account", print, "mailer", retry=tenacity.AsyncRetrying())  # type: ignore[call-overload]


def test_a_coroutine_function_is_no_handler_of_a_synchronous_consumer(store: Store) -> None:
    write(store, 1)

    async def handle(message: Message) -> None:
        raise AssertionError("is not called")

    with pytest.raises(HandlerFailed, match="only AsyncConsumer awaits"):
        Consumer(store, "account", handle, "mailer").run_until_caught_up()
    assert positions(store, "account:position-mailer") == []


def test_errors_that_are_each_others_cause_are_a_failure_as_any_other(store: Store) -> None:
    write(store, 1)

    def handle(message: Message) -> None:
        first, second = ValueError("first"), KeyError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    with pytest.raises(HandlerFailed):
        Consumer(store, "account", handle, "mailer").run_until_caught_up()


def test_a_policy_for_every_error_is_not_asked_about_what_is_no_failure(store: Store, messagedb_url: str) -> None:
    """Another consumer's position, and a task that is cancelled."""
    write(store, 2)
    policy = tenacity.Retrying(retry=tenacity.retry_if_not_exception_type(OSError))
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        attempts.append(message.data["n"])
        if len(attempts) == 1:
            raise ValueError("once")
        if len(attempts) == 2:
            store.write("account:position-mailer", "Recorded", {"position": 1})

    with pytest.raises(PositionConflict):
        Consumer(store, "account", handle, "mailer", transactional=True, retry=policy).run_until_caught_up()
    assert attempts == [0, 0]

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        begun: list[int] = []

        async def handle(message: Message) -> None:
            begun.append(message.data["n"])
            if len(begun) == 1:
                raise ValueError("once")
            await asyncio.sleep(3600)

        task = asyncio.create_task(AsyncConsumer(AsyncStore(engine), "account", handle, "other", retry=policy).run())
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    asyncio.run(main())


def test_it_can_be_stopped_while_a_message_waits_to_be_tried_again(each_store: Store) -> None:
    write(each_store, 4)
    failing = Failing(at=2)
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    with running(consumer_on(each_store, "account", failing, "mailer", retry=policy)):
        wait_for(lambda: failing.numbers == [0, 1, 2])
    assert positions(each_store, "account:position-mailer") == [2]


def test_a_parked_message_is_kept_with_its_error_and_the_others_are_handled(each_store: Store) -> None:
    each_store.write("account-1", "Opened", {"n": 0}, {"trace": "t-1"})
    write(each_store, 2, first=1)
    failing = Failing(at=0)
    consumer = consumer_on(each_store, "account", failing, "mailer", on_failure="park")
    assert consumer.run_until_caught_up() == 3
    assert failing.numbers == [0, 1, 2]
    (dead,) = each_store.read("account:dead-mailer")
    assert (dead.type, dead.data) == ("Opened", {"n": 0})
    assert dead.metadata.pop("dead").keys() == {"error", "traceback", "metadata"}
    assert dead.metadata == {
        "trace": "t-1",
        "causationMessageStreamName": "account-1",
        "causationMessagePosition": 0,
        "causationMessageGlobalPosition": 1,
    }
    assert positions(each_store, "account:position-mailer") == [3]


def test_a_parked_message_tells_its_error(store: Store) -> None:
    write(store, 1)
    Consumer(store, "account", Failing(at=0), "mailer", on_failure="park").run_until_caught_up()
    (dead,) = store.read("account:dead-mailer")
    assert dead.metadata["dead"]["error"] == "ValueError: no 0"
    assert "in __call__" in dead.metadata["dead"]["traceback"]


def test_a_message_that_is_handled_again_is_parked_once(store: Store) -> None:
    write(store, 1)
    for _ in range(2):
        Consumer(store, "account", Failing(at=0), "mailer", on_failure="park").run_until_caught_up()
        # As if the position had been lost.
        with store.engine.begin() as connection:
            connection.execute(text("DELETE FROM message_store.messages WHERE stream_name = 'account:position-mailer'"))
    assert len(store.read("account:dead-mailer")) == 1


@pytest.mark.parametrize("transactional", [False, True])
def test_a_message_is_parked_whatever_its_error_says(
    store: Store, transactional: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest-xdist could not report what is logged.
    caplog.set_level(logging.CRITICAL, "messagedb_sa.consumer")
    write(store, 2)

    def handle(message: Message, *_: Any) -> None:
        raise ValueError("\0 and \ud800")

    def consume() -> None:
        Consumer(
            store, "account", handle, "mailer", transactional=transactional, on_failure="park"
        ).run_until_caught_up()

    consume()
    first, _ = store.read("account:dead-mailer")
    assert first.metadata["dead"]["error"] == "ValueError: \\x00 and \\ud800"
    # And once, also where its position is set back.
    store.write("account:position-mailer", "Recorded", {"position": 0})
    consume()
    assert len(store.read("account:dead-mailer")) == 2
    assert positions(store, "account:position-mailer")[-1] == 2


def test_parked_messages_can_be_consumed_as_any_others(store: Store) -> None:
    write(store, 2)
    Consumer(store, "account", Failing(at=1), "mailer", on_failure="park").run_until_caught_up()
    handled: list[Message] = []
    Consumer(store, "account:dead", {"Odd": handled.append}).run_until_caught_up()
    assert numbers(handled) == [1]


def test_parked_messages_are_no_news_to_a_consumer_of_all(store: Store) -> None:
    write(store, 3)
    failing = Failing(at=1)
    for category in ("account", "$all"):
        Consumer(store, category, failing, "mailer", on_failure="park").run_until_caught_up()
        assert numbers(store.read(f"{category}:dead-mailer")) == [1]
    assert failing.numbers == [0, 1, 2] * 2
    (status,) = store.consumers("$all")
    assert status.lag == 0


def test_another_consumer_with_its_identifier_is_found_out(each_store: Store, messagedb_url: str) -> None:
    write(each_store, 4)
    other = Store.from_url(messagedb_url)

    def handle(message: Message) -> None:
        if message.data["n"] == 1:
            Consumer(other, "account", lambda _: None, "mailer").run_until_caught_up(handle_signals=False)

    with pytest.raises(PositionConflict) as caught:
        consumer_on(each_store, "account", handle, "mailer").run_until_caught_up()
    other.engine.dispose()
    assert vars(caught.value) | {"stream_name": "account:position-mailer"} == vars(caught.value)
    assert (caught.value.expected_version, caught.value.actual_version) == (-1, 0)


# In transactions


@pytest.fixture
def tables(store: Store) -> Iterator[None]:
    host.create_all(store.engine)
    yield
    host.drop_all(store.engine)


def order_numbers(store: Store) -> list[int]:
    with store.engine.connect() as connection:
        return list(connection.scalars(select(orders.c.number).order_by(orders.c.number)))


def test_rows_messages_and_position_commit_together(store: Store, tables: None) -> None:
    write(store, 3)
    seen: list[tuple[int | None, int | None]] = []

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        Store(connection).write("order-1", "Placed", {"n": message.data["n"]})
        seen.append((store.stream_version("order-1"), store.stream_version("account:position-mailer")))

    Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]
    assert positions(store, "account:position-mailer") == [1, 2, 3]
    assert seen == [(None, None), (0, 0), (1, 1)]


@pytest.mark.parametrize("transactional", [True, Session, sessionmaker()])
def test_what_a_failed_handler_wrote_is_taken_back(store: Store, tables: None, transactional: Any) -> None:
    write(store, 3)
    failing = Failing(at=1, times=1)

    def handle(message: Message, bind: Any) -> None:
        bind.execute(insert(orders).values(number=message.data["n"]))
        Store(bind).write("order-1", "Placed", {"n": message.data["n"]})
        failing(message)

    consumer = Consumer(store, "account", handle, "mailer", transactional=transactional)
    with pytest.raises(HandlerFailed):
        consumer.run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0]
    assert positions(store, "account:position-mailer") == [1]
    consumer.run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]


def test_a_session_is_flushed_and_committed_with_the_position(store: Store, tables: None) -> None:
    write(store, 2)

    def handle(message: Message, session: Session) -> None:
        session.add(Order(number=message.data["n"]))

    Consumer(store, "account", handle, "mailer", transactional=sessionmaker()).run_until_caught_up()
    assert order_numbers(store) == [0, 1]
    assert positions(store, "account:position-mailer") == [1, 2]


def test_a_handler_that_commits_fails(store: Store, tables: None) -> None:
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.commit()

    with pytest.raises(HandlerFailed, match="global position 1") as caught:
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert "closed transaction" in str(caught.value.__cause__)


def test_retries_and_parking_are_in_transactions_too(store: Store, tables: None) -> None:
    write(store, 4)
    failing = Failing(at=1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        failing(message)

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    Consumer(
        store, "account", handle, "mailer", transactional=True, retry=policy, on_failure="park"
    ).run_until_caught_up()
    assert failing.numbers == [0, 1, 1, 2, 3]
    assert order_numbers(store) == [0, 2, 3]
    assert numbers(store.read("account:dead-mailer")) == [1]
    assert positions(store, "account:position-mailer") == [1, 2, 3, 4]


@pytest.mark.parametrize("transactional", [True, Session])
def test_an_engine_without_transactions_is_refused(store: Store, messagedb_url: str, transactional: Any) -> None:
    engine = create_engine(messagedb_url, isolation_level="AUTOCOMMIT")
    with pytest.raises(InvalidArgument, match="transactional=True: the engine"):
        Consumer(Store(engine), "account", print, "mailer", transactional=transactional).run()
    engine.dispose()


def test_a_session_that_goes_elsewhere_is_refused(store: Store) -> None:
    elsewhere = sessionmaker(binds={Order: store.engine})
    with pytest.raises(InvalidArgument, match="has binds"):
        Consumer(store, "account", print, "mailer", transactional=elsewhere)


def test_a_serialization_failure_is_no_conflict_of_positions(store: Store, messagedb_url: str, tables: None) -> None:
    engine = create_engine(messagedb_url, isolation_level="SERIALIZABLE")
    write(store, 1)
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        attempts.append(message.data["n"])
        count = connection.scalar(select(func.count()).select_from(orders))
        connection.execute(insert(orders).values(number=100))
        if len(attempts) == 1:
            # Another transaction that did not see it, and that this one does not see.
            with engine.begin() as other:
                assert other.scalar(select(func.count()).select_from(orders)) == count
                other.execute(insert(orders).values(number=200))

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    Consumer(Store(engine), "account", handle, "mailer", transactional=True, retry=policy).run_until_caught_up()
    assert len(attempts) == 2
    assert order_numbers(store) == [100, 200]
    engine.dispose()


@pytest.mark.parametrize("transactional", [True, Session, sessionmaker()])
def test_several_messages_can_share_a_transaction(store: Store, tables: None, transactional: Any) -> None:
    write(store, 10)
    seen: list[int | None] = []

    def handle(message: Message, bind: Any) -> None:
        bind.execute(insert(orders).values(number=message.data["n"]))
        Store(bind).write("order-1", "Placed", {"n": message.data["n"]})
        seen.append(store.stream_version("order-1"))

    consumer = Consumer(store, "account", handle, "mailer", transactional=transactional, record_every=4)
    assert consumer.run_until_caught_up() == 10
    assert order_numbers(store) == numbers(store.read("order-1")) == list(range(10))
    assert positions(store, "account:position-mailer") == [4, 8, 10]
    assert seen == [None] * 4 + [3] * 4 + [7] * 2


def test_of_several_in_a_transaction_the_one_that_fails_is_found_and_the_others_are_handled_once(
    store: Store, tables: None, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 12)
    failing = Failing(at=5)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        failing(message)

    def consume(**options: Any) -> None:
        Consumer(
            store, "account", handle, "mailer", transactional=True, record_every=4, **options
        ).run_until_caught_up()

    with pytest.raises(HandlerFailed, match="global position 6"):
        consume()
    assert "takes back a transaction, and gives each message its own: ValueError('no 5')" in caplog.text
    assert order_numbers(store) == [0, 1, 2, 3, 4]
    assert positions(store, "account:position-mailer") == [4, 5]
    consume(on_failure="park")
    assert order_numbers(store) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert numbers(store.read("account:dead-mailer")) == [5]
    assert positions(store, "account:position-mailer") == [4, 5, 6, 7, 8, 9, 12]
    assert failing.numbers == [0, 1, 2, 3, 4, 5, 4, 5, 5, 5, *range(6, 12)]


def test_a_stop_commits_what_was_handled_of_a_transaction(store: Store, tables: None) -> None:
    write(store, 10)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        if message.data["n"] == 2:
            consumer.stop()

    consumer = Consumer(store, "account", handle, "mailer", transactional=True, record_every=100)
    consumer.run()
    assert order_numbers(store) == [0, 1, 2]
    assert positions(store, "account:position-mailer") == [3]


def test_a_transaction_ends_after_so_many_seconds(store: Store, tables: None) -> None:
    write(store, 3)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))

    options: dict[str, Any] = {"record_every": 100, "record_seconds": 0}
    Consumer(store, "account", handle, "mailer", transactional=True, **options).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2, 3]


def test_messages_without_a_handler_make_no_transaction(store: Store, tables: None) -> None:
    write(store, 10)
    store.write("account-1", "Even", {"n": 10})
    store.write("account-1", "Unknown", {"n": 11})

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))

    for category in ("account", "$all"):
        consumer = Consumer(store, category, {"Even": handle}, "mailer", transactional=True, record_every=5)
        assert consumer.run_until_caught_up() == 6
        assert order_numbers(store) == [0, 2, 4, 6, 8, 10]
        # From 1 to 5, past 6, from 7 to 11, and past 12.
        assert positions(store, f"{category}:position-mailer")[:2] == [5, 11]
        # Its own positions are no news to a consumer of $all.
        before = len(store.read(f"{category}:position-mailer"))
        assert consumer.run_until_caught_up() == 0
        assert len(store.read(f"{category}:position-mailer")) == before
        with store.engine.begin() as connection:
            connection.execute(orders.delete())


@pytest.mark.parametrize("record_every", [None, 7])
def test_of_two_transactional_consumers_with_one_identifier_each_message_is_handled_by_one(
    store: Store, tables: None, record_every: int | None
) -> None:
    write(store, 200)
    conflicts: list[PositionConflict] = []

    def handle(message: Message, connection: Connection) -> None:
        Store(connection).write("order-1", "Placed", {"n": message.data["n"]})

    def run() -> None:
        while True:
            try:
                Consumer(
                    store, "account", handle, "mailer", transactional=True, record_every=record_every
                ).run_until_caught_up()
            except PositionConflict as conflict:
                conflicts.append(conflict)
            else:
                return

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(store.read("order-1")) == list(range(200))


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("transactional", [True, AsyncSession, async_sessionmaker()])
def test_asynchronous_handlers_write_in_the_transaction(
    store: Store, tables: None, messagedb_url: str, driver: str, transactional: Any
) -> None:
    write(store, 3)
    left = [ValueError("once")]

    async def handle(message: Message, bind: Any) -> None:
        assert isinstance(bind, AsyncConnection if transactional is True else AsyncSession)
        await bind.execute(insert(orders).values(number=message.data["n"]))
        await AsyncStore(bind).write("order-1", "Placed", {"n": message.data["n"]})
        if message.data["n"] == 1 and left:
            raise left.pop()

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        consumer = AsyncConsumer(AsyncStore(engine), "account", handle, "mailer", transactional=transactional)
        with pytest.raises(HandlerFailed):
            await consumer.run_until_caught_up()
        assert await consumer.run_until_caught_up() == 2
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()

    asyncio.run(main())
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]
    assert positions(store, "account:position-mailer") == [1, 2, 3]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_consumer_records_what_it_handled_wherever_it_was(
    store: Store, messagedb_url: str, driver: str
) -> None:
    """In the middle of a statement of its own as well, which costs the connection."""
    handled: list[int] = []

    async def handle(message: Message) -> None:
        handled.append(message.data["n"])

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        writer = AsyncStore(engine)
        for n in range(30):
            await writer.write("account-1", "Opened", {"n": n})
            consumer = AsyncConsumer(writer, "account", handle, "mailer", poll_seconds=0)
            task = asyncio.create_task(consumer.run())
            while len(handled) <= n:
                await asyncio.sleep(0)
            for _ in range(n):
                await asyncio.sleep(0)
            # Once more while it shuts down.
            for _ in range(1 + n % 2):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            if n % 2 == 0:
                assert positions(store, "account:position-mailer")[-1] == handled[-1] * 2 + 1
            else:
                await AsyncConsumer(writer, "account", handle, "mailer").run_until_caught_up()
                del handled[n + 1 :]
        await engine.dispose()

    def sessions() -> int:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        with store.engine.connect() as connection:
            return int(connection.scalars(text(count)).one())

    before = sessions()
    asyncio.run(main())
    wait_for(lambda: sessions() <= before)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_consumer_goes_on_with_the_message_that_it_had(
    store: Store, messagedb_url: str, driver: str
) -> None:
    write(store, 3)
    begun: list[int] = []

    async def handle(message: Message) -> None:
        begun.append(message.data["n"])
        if len(begun) == 2:
            await asyncio.sleep(3600)

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        consumer = AsyncConsumer(AsyncStore(engine), "account", handle, "mailer")
        task = asyncio.create_task(consumer.run())
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await consumer.run_until_caught_up()
        await engine.dispose()

    asyncio.run(main())
    assert begun == [0, 1, 1, 2]


# Lost connections


def terminate_all(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    # The other connections of its pool are among them.
    engine.dispose()


@pytest.mark.parametrize("handles", ["idly", "by the store", "in a transaction"])
def test_a_lost_connection_is_waited_out(store: Store, messagedb_url: str, tables: None, handles: str) -> None:
    own = Store.from_url(messagedb_url)
    handled: list[int] = []
    lost = threading.Event()

    def lose(message: Message) -> None:
        if message.data["n"] == 2 and not lost.is_set():
            lost.set()
            terminate_all(store.engine)

    def handle(message: Message) -> None:
        lose(message)
        if handles == "by the store":
            own.write("order-1", "Placed", message.data)
        handled.append(message.data["n"])

    def handle_in(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        lose(message)
        handled.append(message.data["n"])

    if handles == "in a transaction":
        consumer = Consumer(own, "account", handle_in, "mailer", transactional=True)
    else:
        consumer = Consumer(own, "account", handle, "mailer", record_seconds=0)
    # Connected before the loss: the first connection is not waited for.
    write(store, 5)
    with running(consumer):
        wait_for(lambda: len(set(handled)) == 5)
    own.engine.dispose()
    assert sorted(set(handled)) == [0, 1, 2, 3, 4]
    if handles == "in a transaction":
        assert order_numbers(store) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async", "asyncpg"])
def test_a_server_that_crashes_and_starts_again_is_waited_for(driver: str, transactional: bool) -> None:
    """In transactions the handler's connection is made anew each time: it may be the first that the server refuses."""
    handled: list[int] = []
    options: dict[str, Any] = {"transactional": True} if transactional else {"record_every": 1}
    pool: dict[str, Any] = {"poolclass": NullPool} if transactional else {}
    with temporary_server(settings={"synchronous_commit": "on", "restart_after_crash": "on"}) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        writer = Store(engine)
        write(writer, 3)

        def handle(message: Message, *_: Any) -> None:
            handled.append(message.data["n"])

        with (
            store_on(driver, url, **pool) as store,
            running(consumer_on(store, "account", handle, "mailer", **options)),
        ):
            wait_for(lambda: handled == [0, 1, 2])
            # A backend that is killed takes the whole server down, which recovers as after a power cut.
            with engine.connect() as connection:
                pid = connection.scalars(select(func.pg_backend_pid())).one()
                os.kill(pid, signal.SIGKILL)
                connection.invalidate()

            def written() -> bool:
                try:
                    writer.write("account-9", "Opened", {"n": 9})
                except Exception:  # noqa: BLE001 - until it is there again
                    engine.dispose()
                    return False
                return True

            wait_for(written)
            wait_for(lambda: handled[-1] == 9)
        engine.dispose()
    assert sorted(set(handled)) == [0, 1, 2, 9]


def test_a_connection_of_the_handlers_that_a_restart_left_dead_is_no_failure(store: Store, messagedb_url: str) -> None:
    """The consumer has connected again long before; the handler's pool finds out with the next message."""
    own, consumers = Store.from_url(messagedb_url), Store.from_url(messagedb_url)
    handled: list[int] = []

    def handle(message: Message) -> None:
        own.stream_version("account-1")
        handled.append(message.data["n"])

    with running(Consumer(consumers, "account", handle, "mailer")):
        write(store, 1)
        wait_for(lambda: handled == [0])
        terminate_all(store.engine)
        time.sleep(0.5)
        write(store, 1, first=1)
        wait_for(lambda: handled == [0, 1])
    own.engine.dispose()
    consumers.engine.dispose()


@pytest.mark.parametrize("record_every", [None, 10])
def test_a_handler_that_costs_its_connection_each_time_is_one_that_fails(
    store: Store, tables: None, messagedb_url: str, record_every: int | None
) -> None:
    write(store, 3)
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        attempts.append(message.data["n"])
        if message.data["n"] == 1:
            pid = connection.scalars(select(func.pg_backend_pid())).one()
            with store.engine.connect() as other:
                other.execute(select(func.pg_terminate_backend(pid)))
            connection.execute(select(1))

    own = Store.from_url(messagedb_url)
    consumer = Consumer(
        own,
        "account",
        handle,
        "mailer",
        transactional=True,
        on_failure="park",
        record_every=record_every,
    )
    consumer.run_until_caught_up()
    assert order_numbers(store) == [0, 2]
    assert numbers(store.read("account:dead-mailer")) == [1]
    assert 2 <= attempts.count(1) <= 6
    own.engine.dispose()


def test_a_lost_connection_is_waited_out_on_an_engine_that_installed_the_store(
    store: Store, messagedb_url: str
) -> None:
    """An isolation level that was set on psycopg2's connection is set again at a round trip."""
    own = Store.from_url(messagedb_url)
    install.upgrade(own.engine)
    handled: list[Message] = []
    with running(Consumer(own, "account", handled.append, "mailer")):
        write(store, 1)
        wait_for(lambda: len(handled) == 1)
        terminate_all(store.engine)
        write(store, 1)
        wait_for(lambda: len(handled) == 2)
    own.engine.dispose()


def test_a_server_that_is_not_there_at_first_is_an_error() -> None:
    nowhere = create_engine("postgresql+psycopg2://localhost:1/nowhere")
    with pytest.raises(OperationalError):
        Consumer(Store(nowhere), "account", print, "mailer").run()


def test_it_can_be_stopped_while_the_server_is_away(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    away = threading.Event()

    @event.listens_for(engine, "do_connect")
    def refuse(*_: Any) -> None:
        if away.is_set():
            raise OSError("away")

    write(store, 1)
    handled: list[Message] = []
    with running(Consumer(Store(engine), "account", handled.append, "mailer")):
        wait_for(lambda: handled)
        away.set()
        terminate_all(store.engine)
        time.sleep(0.3)
    engine.dispose()


# Groups


def test_the_members_of_a_group_have_positions_of_their_own(each_store: Store) -> None:
    write(each_store, 30)
    handled: list[Message] = []
    for member in range(2):
        mine: list[Message] = []
        consumer = consumer_on(each_store, "account", mine.append, "mailer", group_member=member, group_size=2)
        assert consumer.run_until_caught_up() == len(mine)
        assert consumer.run_until_caught_up() == 0
        assert {consumer_group_member(message.stream_name, 2) for message in mine} <= {member}
        handled += mine
    assert sorted(numbers(handled)) == list(range(30))
    streams = {message.stream_name for message in each_store.read("account:position")}
    assert streams <= {"account:position-mailer-0-of-2", "account:position-mailer-1-of-2"}


def test_a_stream_without_an_id_stops_a_group_before_it_is_passed_over(each_store: Store) -> None:
    write(each_store, 3)
    each_store.write("account", "Even", {"n": 3})
    write(each_store, 3, first=4)
    handled: list[Message] = []
    for member in range(2):
        with pytest.raises(StreamWithoutId, match=r"stream 'account' has no id.* position 4\)") as caught:
            consumer_on(
                each_store, "account", handled.append, "mailer", group_member=member, group_size=2
            ).run_until_caught_up()
        assert caught.value.message.data == {"n": 3}
    assert sorted(numbers(handled)) == [0, 1, 2]


@pytest.mark.parametrize("by", [0, 1, "skip"])
def test_a_group_can_be_told_where_streams_without_an_id_go(each_store: Store, by: Any) -> None:
    write(each_store, 3)
    each_store.write("account", "Even", {"n": 3})
    write(each_store, 3, first=4)
    handled: dict[int, list[Message]] = {0: [], 1: []}
    for member, mine in handled.items():
        consumer_on(
            each_store,
            "account",
            mine.append,
            "m",
            group_member=member,
            group_size=2,
            streams_without_id=by,
            batch_size=2,
        ).run_until_caught_up()
        assert numbers(mine) == sorted(numbers(mine))
        assert (3 in numbers(mine)) is (by == member)
    everything = {n for mine in handled.values() for n in numbers(mine)}
    assert everything == ({0, 1, 2, 4, 5, 6} if by == "skip" else {0, 1, 2, 3, 4, 5, 6})


@pytest.mark.parametrize(
    ("before", "position"),
    [({}, 31), ({"slots": 2}, 31), ({"group_member": 1, "group_size": 2}, 11)],
    ids=["alone", "slots", "one member"],
)
def test_another_number_of_members_does_not_begin_anew_by_itself(
    store: Store, before: dict[str, Any], position: int
) -> None:
    streams = [f"account-{n}" for n in (0, 1, 2)]
    assert [consumer_group_member(stream, 2) for stream in streams] == [1, 0, 1]
    for n in range(30):
        store.write(streams[n // 10 if n < 27 else 1], "Opened", {"n": n})
    Consumer(store, "account", lambda _: None, "mailer", **before).run_until_caught_up()
    with pytest.raises(GroupChanged) as caught:
        Consumer(store, "account", print, "mailer", slots=3).run_until_caught_up()
    assert caught.value.position == position
    assert f"Pass position={position} to go on" in str(caught.value)
    again: list[Message] = []
    Consumer(store, "account", again.append, "mailer", slots=3, position=position).run_until_caught_up()
    assert sorted(numbers(again)) == list(range(position - 1, 30))
    # Those that had nothing to handle know where they begin too.
    assert Consumer(store, "account", print, "mailer", slots=3).run_until_caught_up() == 0
    assert [status.lag for status in store.consumers("account") if status.group_size == 3] == [0, 0, 0]


def test_slots_are_shared_and_move_when_consumers_come_and_go(store: Store, messagedb_url: str) -> None:
    handled: dict[str, list[Message]] = {"one": [], "other": []}
    stores = {name: Store.from_url(messagedb_url) for name in handled}
    one, other = (
        Consumer(stores[name], "account", mine.append, "mailer", slots=4, poll_seconds=0.01)
        for name, mine in handled.items()
    )
    streams = [f"account-{n}" for n in range(40)]

    def write_to_all() -> None:
        for stream in streams:
            store.write(stream, "Opened", {"n": 0})

    def parts() -> dict[str, set[int | None]]:
        return {name: {consumer_group_member(each.stream_name, 4) for each in mine} for name, mine in handled.items()}

    def written_and_handled() -> bool:
        for mine in handled.values():
            mine.clear()
        write_to_all()
        wait_for(lambda: sum(map(len, handled.values())) >= len(streams))
        return sorted(map(len, parts().values())) == [2, 2]

    with running(one):
        write_to_all()
        wait_for(lambda: len(handled["one"]) == len(streams))
        with running(other):
            wait_for(written_and_handled)
            assert not parts()["one"] & parts()["other"]
        handled["one"].clear()
        write_to_all()
        wait_for(lambda: len({message.stream_name for message in handled["one"]}) == len(streams))
    for each in stores.values():
        each.engine.dispose()
    # Nothing was handled again, since all of them said how far they came.
    assert Consumer(store, "account", lambda _: None, "mailer", slots=4).run_until_caught_up() == 0


def test_a_slot_can_be_given_up_while_a_message_of_it_waits_to_be_tried_again(store: Store, messagedb_url: str) -> None:
    """And the other slots of the process, too; whoever takes it handles that message."""
    write(store, 30)
    failing = Failing(at=0)
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    stores = [Store.from_url(messagedb_url) for _ in range(2)]
    with running(Consumer(stores[0], "account", failing, "mailer", slots=4, retry=policy)):
        wait_for(lambda: 0 in failing.numbers)
        taken: list[Message] = []
        with running(Consumer(stores[1], "account", taken.append, "mailer", slots=4)):
            wait_for(lambda: taken)
        left = set(range(30)) - set(failing.numbers) - set(numbers(taken))
    for each in stores:
        each.engine.dispose()
    # What the one that waits holds is what is left.
    assert {consumer_group_member(f"account-{n % 3}", 4) for n in left} <= {consumer_group_member("account-0", 4)}


def test_one_session_for_two_processes_is_found_out(store: Store) -> None:
    """As a pooler in transaction mode lends it: each would see just the locks that it took."""
    with store.engine.connect() as connection:
        one, other = (Slots(partial(run_alone, connection), [1, 2, 3, 4], 5) for _ in range(2))
        assert other.share(print) == [0, 1, 2, 3]
        with pytest.raises(SlotsLost):
            one.share(print)
        # It is not for the one to free them.
        one.leave()
        assert other.share(print) == []
        other.leave()


def test_a_former_number_of_slots_is_another_one(store: Store) -> None:
    """Its positions are from before: to go on from them would handle again what was handled since."""
    write(store, 6)
    Consumer(store, "account", print, "mailer", slots=2).run_until_caught_up()
    Consumer(store, "account", print, "mailer", slots=3, position=7).run_until_caught_up()
    write(store, 6)
    Consumer(store, "account", print, "mailer", slots=3).run_until_caught_up()
    with pytest.raises(GroupChanged) as caught:
        Consumer(store, "account", print, "mailer", slots=2).run_until_caught_up()
    again: list[Message] = []
    for _ in range(2):
        Consumer(
            store, "account", again.append, "mailer", slots=2, position=caught.value.position
        ).run_until_caught_up()
        Consumer(store, "account", again.append, "mailer", slots=2).run_until_caught_up()
    assert again == []


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async", "asyncpg"])
def test_a_slot_is_free_as_soon_as_its_process_has_no_connection(store: Store, messagedb_url: str, driver: str) -> None:
    write(store, 6)
    with store_on(driver, messagedb_url) as its_store:
        first: list[Message] = []
        with running(consumer_on(its_store, "account", first.append, "mailer", slots=1)):
            wait_for(lambda: len(first) == 6)
            standing_by = Consumer(store, "account", print, "mailer", slots=1)
            assert standing_by.run_until_caught_up() == 0
        second: list[Message] = []
        write(store, 1, first=6)
        Consumer(store, "account", second.append, "mailer", slots=1).run_until_caught_up()
    assert numbers(second) == [6]


# $all


def test_a_consumer_of_all_gets_everything_but_positions(each_store: Store) -> None:
    write(each_store, 3)
    write(each_store, 3, "order", first=3)
    consumer_on(each_store, "order", lambda _: None, "mailer").run_until_caught_up()
    handled: list[Message] = []
    assert consumer_on(each_store, "$all", handled.append, "mirror").run_until_caught_up() == 6
    assert numbers(handled) == list(range(6))
    assert positions(each_store, "$all:position-mirror") == [7]


def test_its_own_positions_are_no_news_to_a_consumer_of_all(store: Store) -> None:
    write(store, 2)
    for _ in range(3):
        Consumer(store, "$all", lambda _: None, "mirror", record_seconds=0).run_until_caught_up()
    assert positions(store, "$all:position-mirror") == [1, 2]


# Waking up


def test_it_is_woken_by_a_notification(each_store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    install.upgrade(engine, notify=True)
    handled: list[Message] = []
    # Polling would take longer than the test may.
    consumer = consumer_on(each_store, "account", handled.append, "mailer", poll_seconds=3600)
    with running(consumer):
        wait_for(lambda: consumer_is_waiting(engine))
        for n in range(3):
            Store(engine).write_streams([("other-1", [("Even", {})]), ("account-1", [("Even", {"n": n})])])
            wait_for(partial(handled_all, handled, n + 1))
    install.upgrade(engine, notify=False)
    engine.dispose()
    assert numbers(handled) == [0, 1, 2]


def handled_all(handled: list[Message], count: int) -> bool:
    return len(handled) == count


def consumer_is_waiting(engine: Engine) -> bool:
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
        " AND query LIKE '%get_category_messages%'"
    )
    with engine.connect() as connection:
        return bool(connection.scalars(query).one())


def test_where_notifications_do_not_come_it_polls(store: Store, messagedb_url: str, monkeypatch: Any) -> None:
    install.upgrade(store.engine, notify=True)
    own = Store.from_url(messagedb_url)
    # As behind a pooler that takes LISTEN and delivers nothing.
    monkeypatch.setattr("messagedb_sa.consuming.listen", lambda connection: None)
    handled: list[Message] = []
    with running(Consumer(own, "account", handled.append, "mailer")):
        write(store, 3)
        wait_for(lambda: len(handled) == 3)
    own.engine.dispose()
    install.upgrade(store.engine, notify=False)


# Seeing it


def test_the_consumers_of_a_category_and_how_far_they_are(each_store: Store) -> None:
    write(each_store, 6)
    consumer_on(each_store, "account", lambda _: None).run_until_caught_up()
    consumer_on(each_store, "account", lambda _: None, "mailer").run_until_caught_up()
    consumer_on(each_store, "account", lambda _: None, "shared", slots=3).run_until_caught_up()
    after = {number: each_store.write(f"account-{number}", "Even", {}) for number in range(3)}
    assert len(after) == 3
    first = each_store.read("account", position=7)[0]
    alone, mailer, *shared = each_store.consumers("account")
    assert alone[:5] == ("account", None, None, None, 6)
    assert mailer[:5] == ("account", "mailer", None, None, 6)
    assert (alone.lag, alone.waiting_since) == (mailer.lag, mailer.waiting_since) == (3, first.time)
    assert [each[:4] for each in shared] == [("account", "shared", member, 3) for member in range(3)]
    assert sum(each.lag for each in shared) == 3
    by_member = [consumer_group_member(f"account-{number}", 3) for number in range(3)]
    assert [each.lag for each in shared] == [by_member.count(member) for member in range(3)]
    # Nothing has been recorded by a member without messages.
    assert [each.position is None for each in shared] == [member not in by_member for member in range(3)]
    assert [each.waiting_since is None for each in shared] == [each.lag == 0 for each in shared]
    recorded = each_store.read_last_message("account:position-mailer")
    assert recorded is not None
    assert mailer.recorded_at == recorded.time
    assert each_store.consumers("other") == []


def test_the_consumers_of_all(store: Store) -> None:
    write(store, 2)
    Consumer(store, "$all", lambda _: None, "mirror").run_until_caught_up()
    write(store, 2, "order")
    (mirror,) = store.consumers("$all")
    assert (mirror.category, mirror.identifier, mirror.position, mirror.lag) == ("$all", "mirror", 2, 2)


def test_progress_is_shown_where_it_is_asked_for(each_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    write(each_store, 5)
    for progress in (False, None):
        consumer_on(each_store, "account", lambda _: None, "x").run_until_caught_up(progress=progress)
        assert capsys.readouterr().err == ""
    consumer_on(each_store, "account", lambda _: None, "mailer").run_until_caught_up(progress=True)
    assert "account mailer: 100%" in (shown := capsys.readouterr().err)
    assert "5/5" in shown


def test_progress_goes_on_with_each_message(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, 3)
    shown: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: shown.append(n))
    Consumer(store, "account", lambda _: shown.append(0), "mailer").run_until_caught_up(progress=True)
    assert shown == [0, 1, 0, 1, 0, 1]


# Typed and traced messages


@dataclasses.dataclass
class Even:
    n: int


def test_a_handler_gets_an_instance_and_can_be_named_by_its_class(store: Store) -> None:
    write(store, 3)
    types = MessageTypes()
    types.register(Even)
    handled: list[Message] = []
    typed = Store(store.engine, types=types)
    Consumer(typed, "account", {Even: handled.append}, "mailer").run_until_caught_up()
    assert [message.data for message in handled] == [Even(0), Even(2)]
    with pytest.raises(InvalidArgument, match="is no registered class"):
        Consumer(typed, "account", {Message: handled.append})
    with pytest.raises(InvalidArgument, match="has a handler already, by the name 'Even'"):
        Consumer(typed, "account", {"Even": handled.append, Even: handled.append})


def test_a_message_that_is_no_instance_of_its_class_is_a_failure_of_its_own(store: Store) -> None:
    types = MessageTypes()
    types.register(Even)
    for data in ({"n": 0}, {"m": 1}, {"n": 2}):
        store.write("account-1", "Even", data)
    handled: list[Message] = []
    typed = Store(store.engine, types=types)
    Consumer(typed, "account", handled.append, "mailer", on_failure="park").run_until_caught_up()
    assert [message.data for message in handled] == [Even(0), Even(2)]
    (dead,) = store.read("account:dead-mailer")
    assert dead.data == {"m": 1}
    assert "MessageNotDecodable" in dead.metadata["dead"]["error"]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("transactional", [False, True])
def test_a_handler_belongs_to_the_trace_of_the_writer(
    store: Store, messagedb_url: str, driver: str, transactional: bool
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    with store_on(driver, messagedb_url, tracing=tracing) as traced:
        traced.write("account-1", "Even", {"n": 0})

        def handle(message: Message, *_: Any) -> None:
            with provider.get_tracer("test").start_as_current_span("handler"):
                pass

        consumer_on(traced, "account", handle, "mailer", transactional=transactional).run_until_caught_up()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"write account", "handler", "process account"}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["handler"].parent == spans["process account"].context


def test_a_transaction_that_could_not_commit_is_an_error_of_the_span(store: Store) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("INSERT INTO once VALUES (1), (1)"))

    traced = Store(store.engine, tracing=Tracing(provider))
    with pytest.raises(HandlerFailed):
        Consumer(traced, "account", handle, "mailer", transactional=True).run_until_caught_up()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("process account", StatusCode.ERROR)


# Bad input


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"category": "account-1"}, "category='account-1': is a stream name; a category has no -"),
        ({"category": ""}, "category='': is empty"),
        (
            {"category": "account:position"},
            "category='account:position': holds positions of consumers, and would hold those of this one",
        ),
        ({"category": "$all", "slots": 2}, "category='$all': has no consumer groups"),
        ({"handlers": None}, "handlers=None: is no function, and no mapping of message types to functions"),
        ({"handlers": {}}, "handlers={}: is no function, and no mapping of message types to functions"),
        ({"handlers": {"Opened": 1}}, "handlers['Opened']=1: can't be called"),
        ({"handlers": {1: print}}, "handlers=1: is no text"),
        ({"identifier": ""}, "identifier='': is empty"),
        ({"identifier": "a-0-of-2"}, "identifier='a-0-of-2': is what the member of a group is called"),
        ({"group_member": 1}, "group_size=None: is needed with group_member=1"),
        ({"group_member": 2, "group_size": 2}, "group_member=2: is not between 0 and 1"),
        ({"slots": 0}, "slots=0: is not between 1 and 32767"),
        ({"slots": 2, "group_size": 2}, "group_size=2: names members, where slots are shared without"),
        ({"streams_without_id": "skip"}, "streams_without_id='skip': is for consumer groups"),
        ({"slots": 2, "streams_without_id": 2}, "streams_without_id=2: is not between 0 and 1"),
        ({"retry": 3}, "retry=3: is no tenacity.Retrying, which is for asynchronous consumers too"),
        ({"correlation": "a-1"}, "correlation='a-1': is a stream name; a category has no -"),
        ({"category": "$all", "correlation": "a"}, "correlation='a': is for a category, not for $all"),
        ({"position": -1}, "position=-1: is not between 0 and 9223372036854775807"),
        ({"on_failure": "skip"}, 'on_failure=\'skip\': is not "stop" or "park"'),
        ({"position": "1"}, "position='1': is no integer"),
        ({"record_every": 0}, "record_every=0: is not between 1 and 9223372036854775807"),
        ({"record_seconds": -1}, "record_seconds=-1: is no finite number of seconds from 0 on"),
        ({"batch_size": 0}, "batch_size=0: is not between 1 and 9223372036854775807"),
        ({"poll_seconds": float("inf")}, "poll_seconds=inf: is no finite number of seconds from 0 on"),
        ({"transactional": 1}, "transactional=1: is no bool, sessionmaker or Session class"),
    ],
)
def test_bad_arguments_are_refused_by_name(store: Store, options: dict[str, Any], error: str) -> None:
    arguments: dict[str, Any] = {"category": "account", "handlers": print, "identifier": "mailer", **options}
    with pytest.raises(InvalidArgument) as caught:
        Consumer(store, **arguments)
    assert str(caught.value) == error


def test_a_store_in_a_transaction_of_the_callers_has_no_consumers(store: Store) -> None:
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="is no Store on an Engine"):
        Consumer(Store(connection), "account", print)
    with pytest.raises(InvalidArgument, match="is no AsyncStore on an AsyncEngine"):
        AsyncConsumer(store, "account", print)  # type: ignore[call-overload]
