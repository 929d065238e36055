"""Which messages a consumer hands to which handler, and in which order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from messagedb_sa import Consumer, InvalidArgument, Message, MessageTypes, Store

from ..support import consumer_on, numbers
from .support import last_position, write


def test_one_handler_gets_every_message_in_the_order_of_the_log(each_store: Store) -> None:
    write(each_store, 10)
    each_store.write("other-1", "Even", {"n": 99})
    handled: list[Message] = []
    assert consumer_on(each_store, "account", handled.append, "mailer").run_until_caught_up() == 10
    assert handled == each_store.read("account")


def test_handlers_by_type_get_their_messages_and_other_types_are_skipped(each_store: Store) -> None:
    write(each_store, 6)
    odd: list[Message] = []
    assert consumer_on(each_store, "account", {"Odd": odd.append}, "mailer").run_until_caught_up() == 3
    assert numbers(odd) == [1, 3, 5]
    assert last_position(each_store, "account:position-mailer") == 6


def test_every_page_is_handled(each_store: Store) -> None:
    write(each_store, 10)
    handled: list[Message] = []
    consumer_on(each_store, "account", handled.append, "mailer", batch_size=3).run_until_caught_up()
    assert numbers(handled) == list(range(10))


@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"slots": 1, "streams_without_id": "skip"}])
def test_with_a_correlation_only_its_messages_are_handled(each_store: Store, options: dict[str, Any]) -> None:
    for n, stream in enumerate(["transfer-1", "other-1", "transfer-2"]):
        each_store.write("account-1", "Opened", {"n": n}, {"correlationStreamName": stream})
        # Not for a group, but not of the correlation either.
        each_store.write("account", "Opened", {"n": n}, {"correlationStreamName": "other-1"})
    seen: list[Message] = []
    consumer_on(each_store, "account", seen.append, "mailer", correlation="transfer", **options).run_until_caught_up()
    assert numbers(seen) == [0, 2]


@dataclasses.dataclass
class Even:
    n: int


def test_a_handler_can_be_named_by_the_class_of_its_messages(store: Store) -> None:
    write(store, 3)
    types = MessageTypes()
    types.register(Even)
    handled: list[Message] = []
    typed = Store(store.engine, types=types)
    Consumer(typed, "account", {Even: handled.append}, "mailer").run_until_caught_up()
    assert [message.data for message in handled] == [Even(0), Even(2)]


def test_a_handler_cannot_be_named_by_a_class_that_is_not_registered(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="must be registered"):
        Consumer(store, "account", {Message: print})


def test_a_type_and_its_class_cannot_both_have_a_handler(store: Store) -> None:
    types = MessageTypes()
    types.register(Even)
    with pytest.raises(InvalidArgument, match="'Even' has a handler already"):
        Consumer(Store(store.engine, types=types), "account", {"Even": print, Even: print})


def test_a_message_that_does_not_fit_its_class_fails_alone(store: Store) -> None:
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


def test_a_consumer_cannot_run_twice_at_the_same_time(store: Store) -> None:
    write(store, 1)
    refused: list[str] = []

    def handle(_: Message) -> None:
        with pytest.raises(RuntimeError) as caught:
            consumer.run()
        refused.append(str(caught.value))

    consumer = Consumer(store, "account", handle, "mailer")
    consumer.run_until_caught_up()
    assert refused == ["this consumer is running already"]
