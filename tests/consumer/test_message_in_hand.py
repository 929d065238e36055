"""A handler may do with its message what it likes: the next attempt, and a dead letter, have it as the store does."""

from __future__ import annotations

import copy
import logging
from datetime import datetime, timezone
from typing import Any

import pytest
import tenacity
from sqlalchemy import text

from messagedb_sa import Consumer, HandlerFailed, Message, MessageTypes, Store

from ..support import consumer_on, insert

OPENED = {"owner": "Ada", "tags": ["new"]}
METADATA = {"trace": "t-1"}


class Spoiling:
    """A handler that keeps what it is given, spoils it, and fails a limited number of times."""

    def __init__(self, times: int = 10**9) -> None:
        self.given: list[Message] = []
        self.left = times

    def __call__(self, message: Message, *_: Any) -> None:
        self.given.append(copy.deepcopy(message))
        message.data.pop("owner")
        message.data["tags"].append(datetime.now(timezone.utc))
        message.metadata.clear()
        if self.left:
            self.left -= 1
            raise ValueError("no")


def retrying(attempts: int) -> Any:
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_none())


@pytest.mark.parametrize("transactional", [False, True])
def test_each_attempt_gets_the_message_as_it_is_stored(each_store: Store, transactional: bool) -> None:
    each_store.write("account-1", "Opened", OPENED, METADATA)
    spoiling = Spoiling(times=2)
    options = {"retry": retrying(3), "transactional": transactional}
    assert consumer_on(each_store, "account", spoiling, "mailer", **options).run_until_caught_up() == 1
    assert spoiling.given == each_store.read("account") * 3


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("retry", [None, retrying(2)])
def test_a_dead_letter_has_the_message_as_it_is_stored(each_store: Store, transactional: bool, retry: Any) -> None:
    each_store.write("account-1", "Opened", OPENED, METADATA)
    options = {"retry": retry, "transactional": transactional, "on_failure": "park"}
    assert consumer_on(each_store, "account", Spoiling(), "mailer", **options).run_until_caught_up() == 1
    (dead,) = each_store.read("account:dead-mailer")
    assert dead.data == OPENED
    assert dead.metadata["trace"] == "t-1"
    assert dead.metadata["dead"]["metadata"] == METADATA


@pytest.mark.parametrize("retry", [None, retrying(2)])
def test_a_consumer_that_stops_names_the_message_as_it_is_stored(each_store: Store, retry: Any) -> None:
    each_store.write("account-1", "Opened", OPENED, METADATA)
    with pytest.raises(HandlerFailed) as caught:
        consumer_on(each_store, "account", Spoiling(), "mailer", retry=retry).run_until_caught_up()
    assert [caught.value.message] == each_store.read("account")


def test_messages_whose_transaction_is_rolled_back_are_handled_one_by_one_as_they_are_stored(each_store: Store) -> None:
    each_store.write_batch("account-1", [("Opened", OPENED, METADATA)] * 3)
    given: list[Message] = []

    def handle(message: Message, *_: Any) -> None:
        given.append(copy.deepcopy(message))
        message.data.clear()
        message.metadata.clear()
        if len(given) == 3:
            raise ValueError("no")

    options: dict[str, Any] = {"transactional": True, "record_every": 3, "record_seconds": 3600}
    assert consumer_on(each_store, "account", handle, "mailer", **options).run_until_caught_up() == 3
    assert given == each_store.read("account") * 2


def test_an_upcaster_that_changes_what_it_is_given_gets_it_as_it_is_stored(store: Store) -> None:
    types = MessageTypes()
    given: list[dict[str, Any]] = []

    @types.upcast("Opened", from_version=1)
    def in_two(data: dict[str, Any]) -> dict[str, Any]:
        given.append(copy.deepcopy(data))
        data["tags"].clear()
        del data["owner"]
        raise ValueError("no")

    types.register(type("Opened", (), {}), version=2, encode=vars, decode=lambda data: data)
    store.write("account-1", "Opened", OPENED, METADATA)
    typed = Store(store.engine, types=types)
    Consumer(typed, "account", print, "mailer", retry=retrying(3), on_failure="park").run_until_caught_up()
    assert given == [OPENED] * 3
    (dead,) = store.read("account:dead-mailer")
    assert dead.data == OPENED


def test_a_dead_letter_of_a_registered_type_has_the_data_and_schema_version_that_are_stored(store: Store) -> None:
    types = MessageTypes()
    types.upcast("Opened", from_version=2)(lambda data: {**data, "country": "GB"})
    types.register(type("Opened", (), {}), version=3, encode=vars, decode=lambda data: data)
    store.write("account-1", "Opened", OPENED, {"schemaVersion": "2"})

    def handle(message: Message) -> None:
        assert message.data == {**OPENED, "country": "GB"}
        raise ValueError("no")

    Consumer(Store(store.engine, types=types), "account", handle, "mailer", on_failure="park").run_until_caught_up()
    (dead,) = store.read("account:dead-mailer")
    assert (dead.data, dead.metadata["schemaVersion"]) == (OPENED, "2")


def test_a_dead_letter_has_each_value_as_it_is_stored(store: Store) -> None:
    # Python makes other values of these numbers.
    data = '{"a": 1.00, "b": 0.1000000000000000000000000001, "c": 1' + "0" * 400 + ".5}"
    insert(store, "account-1", 0, "Opened", data, metadata=data)

    def handle(message: Message) -> None:
        raise ValueError("no")

    Consumer(store, "account", handle, "mailer", on_failure="park").run_until_caught_up()
    query = text(
        "SELECT dead.data = original.data AND dead.data::text = original.data::text"
        " AND dead.metadata->'dead'->'metadata' = original.metadata AND dead.metadata @> original.metadata"
        " FROM message_store.messages AS dead, message_store.messages AS original"
        " WHERE dead.stream_name = 'account:dead-mailer' AND original.stream_name = 'account-1'"
    )
    with store.engine.connect() as connection:
        assert connection.scalars(query).one() is True


@pytest.mark.parametrize("metadata", [None, "null", "[1]", '"text"', "3"])
def test_a_message_without_an_object_as_metadata_is_parked(store: Store, metadata: str | None) -> None:
    insert(store, "account-1", 0, "Opened", None, metadata=metadata)

    def handle(message: Message) -> None:
        raise ValueError("no")

    Consumer(store, "account", handle, "mailer", on_failure="park").run_until_caught_up()
    (original,) = store.read("account")
    (dead,) = store.read("account:dead-mailer")
    assert dead.data is None
    assert dead.metadata["dead"]["metadata"] == original.metadata
    assert dead.metadata["causationMessageStreamName"] == "account-1"


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("on_failure", ["stop", "park"])
def test_a_message_that_was_deleted_while_it_failed_is_skipped(
    store: Store, caplog: pytest.LogCaptureFixture, transactional: Any, on_failure: Any
) -> None:
    store.write_batch("account-1", [("Opened", {"n": 0}), ("Closed", {"n": 1})])
    handled: list[str] = []

    def handle(message: Message, *_: Any) -> None:
        if message.type == "Opened":
            with store.engine.begin() as connection:
                connection.execute(text("DELETE FROM message_store.messages WHERE type = 'Opened'"))
            raise ValueError("no")
        handled.append(message.type)

    consumer = Consumer(store, "account", handle, "mailer", transactional=transactional, on_failure=on_failure)
    consumer.run_until_caught_up()
    assert handled == ["Closed"]
    assert store.read("account:dead-mailer") == []
    assert "could not handle a message, which was deleted meanwhile, and skips it" in caplog.text
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [logging.ERROR]
