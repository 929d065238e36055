"""What a consumer does when a handler fails: it stops, or tries again as its policy says."""

from __future__ import annotations

import asyncio
import logging

import pytest
import tenacity
from sqlalchemy import Connection, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    Consumer,
    HandlerFailed,
    InvalidArgument,
    Message,
    PositionConflict,
    Store,
)

from ..support import consumer_on
from ..waits import wait_in_task_until, wait_until
from .support import Failing, last_position, running, write


def test_an_error_of_a_handler_stops_it_and_no_message_is_skipped(each_store: Store) -> None:
    write(each_store, 6)
    failing = Failing(at=3, times=1)
    consumer = consumer_on(each_store, "account", failing, "mailer")
    with pytest.raises(HandlerFailed) as caught:
        consumer.run_until_caught_up()
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.message == each_store.read("account")[3]
    assert (
        str(caught.value)
        == "the handler of Odd failed at global position 4 (stream 'account-0', position 1): ValueError: no 3"
    )
    assert last_position(each_store, "account:position-mailer") == 3
    consumer.run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 3, 3, 4, 5]


def test_the_error_that_stops_it_is_logged_with_the_facts_of_the_message(
    each_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(each_store, 4)
    with pytest.raises(HandlerFailed):
        consumer_on(each_store, "account", Failing(at=3), "mailer").run_until_caught_up()
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


def test_a_message_is_tried_again_as_often_as_the_policy_says(each_store: Store) -> None:
    write(each_store, 4)
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.01))
    failing = Failing(at=2, times=2)
    consumer_on(each_store, "account", failing, "mailer", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 2, 2, 3]


def test_after_the_last_attempt_of_the_policy_it_stops(each_store: Store) -> None:
    write(each_store, 4)
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    failing = Failing(at=2)
    with pytest.raises(HandlerFailed) as caught:
        consumer_on(each_store, "account", failing, "mailer", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1, 2, 2, 2]
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_the_policy_does_not_retry_stops_it_at_once(store: Store) -> None:
    write(store, 2)
    policy = tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError), stop=tenacity.stop_after_attempt(3))
    failing = Failing(at=1)
    with pytest.raises(HandlerFailed):
        Consumer(store, "account", failing, "mailer", retry=policy).run_until_caught_up()
    assert failing.numbers == [0, 1]


def test_each_failed_attempt_is_logged_with_its_own_error(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    write(store, 1)
    errors = iter("abc")

    def handle(message: Message) -> None:
        raise ValueError(next(errors))

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.01))
    with caplog.at_level("WARNING"), pytest.raises(HandlerFailed, match=r"position 0\): ValueError: c$"):
        Consumer(store, "account", handle, "mailer", retry=policy).run_until_caught_up()
    told = [(record.getMessage().partition(" (")[0], str((record.exc_info or "..")[1])) for record in caplog.records]
    assert told == [
        ("consumer could not handle a message, tries again in 0.0 s", "a"),
        ("consumer could not handle a message 2 times, tries again in 0.0 s", "b"),
        ("consumer could not handle a message, stops", "c"),
    ]


def test_an_asynchronous_policy_is_refused(store: Store) -> None:
    """It would return at once, as if the message was handled."""
    with pytest.raises(InvalidArgument, match="retry="):
        Consumer(store, "account", print, "mailer", retry=tenacity.AsyncRetrying())  # type: ignore[call-overload]


def test_errors_that_are_each_others_cause_fail_as_any_other(store: Store) -> None:
    write(store, 1)

    def handle(message: Message) -> None:
        first, second = ValueError("first"), KeyError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    with pytest.raises(HandlerFailed):
        Consumer(store, "account", handle, "mailer").run_until_caught_up()


# After a first error it is the policy's attempt that runs.
EVERY_ERROR = tenacity.Retrying(retry=tenacity.retry_if_not_exception_type(OSError))


def test_a_policy_for_every_error_does_not_retry_a_position_conflict(store: Store) -> None:
    write(store, 2)
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        attempts.append(message.data["n"])
        if len(attempts) == 1:
            raise ValueError("once")
        if len(attempts) == 2:
            store.write("account:position-mailer", "Recorded", {"position": 1})

    with pytest.raises(PositionConflict):
        Consumer(store, "account", handle, "mailer", transactional=True, retry=EVERY_ERROR).run_until_caught_up()
    assert attempts == [0, 0]


def test_a_policy_for_every_error_does_not_retry_a_cancelled_task(store: Store, messagedb_url: str) -> None:
    write(store, 2)
    begun: list[int] = []

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))

        async def handle(message: Message) -> None:
            begun.append(message.data["n"])
            if len(begun) == 1:
                raise ValueError("once")
            await asyncio.sleep(3600)

        consumer = AsyncConsumer(AsyncStore(engine), "account", handle, "mailer", retry=EVERY_ERROR)
        task = asyncio.create_task(consumer.run())
        await wait_in_task_until(lambda: len(begun) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    asyncio.run(main())
    assert begun == [0, 0]


def test_it_can_be_stopped_while_a_message_waits_to_be_tried_again(
    each_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(each_store, 4)
    failing = Failing(at=2)
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    with running(consumer_on(each_store, "account", failing, "mailer", retry=policy)):
        wait_until(lambda: "tries again in 3600.0 s" in caplog.text)
    assert failing.numbers == [0, 1, 2]
    assert last_position(each_store, "account:position-mailer") == 2
