"""Parking: a message that cannot be handled is written to a dead letter stream, and the consumer continues."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import Consumer, Message, Store

from ..support import consumer_on, numbers
from .support import Failing, last_position, write


def test_a_parked_message_is_kept_with_its_error_and_the_others_are_handled(each_store: Store) -> None:
    each_store.write("account-1", "Opened", {"n": 0}, {"trace": "t-1"})
    write(each_store, 2, first=1)
    failing = Failing(at=0)
    consumer = consumer_on(each_store, "account", failing, "mailer", on_failure="park")
    assert consumer.run_until_caught_up() == 3
    assert failing.numbers == [0, 1, 2]
    (dead,) = each_store.read("account:dead-mailer")
    assert (dead.type, dead.data) == ("Opened", {"n": 0})
    assert dead.metadata.pop("dead").keys() == {"error", "traceback", "metadata", "id", "time"}
    assert dead.metadata == {
        "trace": "t-1",
        "causationMessageStreamName": "account-1",
        "causationMessagePosition": 0,
        "causationMessageGlobalPosition": 1,
    }
    assert last_position(each_store, "account:position-mailer") == 3


def test_a_parked_message_holds_its_error_and_traceback(store: Store) -> None:
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
def test_a_message_is_parked_whatever_characters_its_error_has(
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
    # And once, also if its position is set back.
    store.write("account:position-mailer", "Recorded", {"position": 0})
    consume()
    assert len(store.read("account:dead-mailer")) == 2
    assert last_position(store, "account:position-mailer") == 2


def test_parked_messages_can_be_consumed(store: Store) -> None:
    write(store, 2)
    Consumer(store, "account", Failing(at=1), "mailer", on_failure="park").run_until_caught_up()
    handled: list[Message] = []
    Consumer(store, "account:dead", {"Odd": handled.append}).run_until_caught_up()
    assert numbers(handled) == [1]
