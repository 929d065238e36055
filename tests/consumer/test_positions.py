"""Where a consumer starts and continues, and when it records its position."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import Consumer, ConsumerError, Message, PositionConflict, Store

from ..support import consumer_on, numbers
from ..waits import wait_until
from .support import last_position, positions, running, write


def test_it_continues_after_the_last_handled_message(each_store: Store) -> None:
    handled: list[Message] = []
    write(each_store, 4)
    consumer = consumer_on(each_store, "account", handled.append, "mailer")
    consumer.run_until_caught_up()
    write(each_store, 3, first=4)
    assert consumer.run_until_caught_up() == 3
    write(each_store, 3, first=7)
    assert consumer_on(each_store, "account", handled.append, "mailer").run_until_caught_up() == 3
    assert numbers(handled) == list(range(10))


def test_consumers_with_different_identifiers_have_their_own_positions(store: Store) -> None:
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
def test_positions_are_in_the_same_streams_as_those_of_eventide(
    store: Store, category: str, identifier: str | None, stream: str
) -> None:
    store.write(f"{category}-1", "Opened", {})
    Consumer(store, category, print, identifier).run_until_caught_up()
    with store.engine.connect() as connection:
        query = text("SELECT type, data FROM message_store.messages WHERE stream_name = :stream")
        rows = [tuple(row) for row in connection.execute(query, {"stream": stream})]
    assert rows == [("Recorded", {"position": 1})]


def test_it_continues_where_a_consumer_in_another_language_stopped(store: Store) -> None:
    write(store, 5)
    with store.engine.begin() as connection:
        wrote = (
            "SELECT message_store.write_message(gen_random_uuid()::varchar, :stream, 'Recorded', '{\"position\": 3}')"
        )
        connection.execute(text(wrote), {"stream": "account:position-mailer"})
    handled: list[Message] = []
    Consumer(store, "account", handled.append, "mailer").run_until_caught_up()
    assert numbers(handled) == [3, 4]


@pytest.mark.parametrize("data", [{"place": 3}, {"position": 2**63 - 1}])
def test_a_position_stream_with_other_data_is_an_error(store: Store, data: dict[str, Any]) -> None:
    store.write("account:position-mailer", "Recorded", data)
    with pytest.raises(ConsumerError, match=rf"its last message is Recorded with {re.escape(repr(data))}"):
        Consumer(store, "account", print, "mailer").run_until_caught_up()


def test_without_a_recorded_position_it_starts_at_the_given_one(store: Store) -> None:
    write(store, 5)
    handled: list[Message] = []
    Consumer(store, "account", handled.append, "mailer", position=4).run_until_caught_up()
    assert numbers(handled) == [3, 4]
    Consumer(store, "account", handled.append, "mailer", position=1).run_until_caught_up()
    assert numbers(handled) == [3, 4]


def test_a_given_start_is_recorded_at_once(store: Store) -> None:
    write(store, 3)
    for _ in range(2):
        Consumer(store, "account", print, "mailer", position=4).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [3]
    write(store, 2)
    seen: list[Message] = []
    Consumer(store, "account", seen.append, "mailer").run_until_caught_up()
    assert numbers(seen) == [0, 1]


@pytest.mark.parametrize("category", ["account", "$all"])
def test_it_can_start_at_the_end(store: Store, category: str) -> None:
    write(store, 3)
    store.write("invoice-1", "Issued", {})
    seen: list[Message] = []
    consumer = Consumer(store, category, seen.append, "mailer", position="end")
    consumer.run_until_caught_up()
    write(store, 2, first=3)
    consumer.run_until_caught_up()
    assert numbers(seen) == [3, 4]
    assert positions(store, f"{category}:position-mailer")[0] == (3 if category == "account" else 4)


def test_it_can_start_at_the_end_of_an_empty_store(store: Store) -> None:
    seen: list[Message] = []
    consumer = Consumer(store, "account", seen.append, "mailer", position="end")
    consumer.run_until_caught_up()
    write(store, 1)
    consumer.run_until_caught_up()
    assert numbers(seen) == [0]


def test_the_position_is_recorded_every_so_many_messages_and_at_the_end(each_store: Store) -> None:
    write(each_store, 10)
    consumer_on(
        each_store, "account", lambda _: None, "mailer", record_every=4, record_seconds=3600
    ).run_until_caught_up()
    assert positions(each_store, "account:position-mailer") == [4, 8, 10]


def test_the_position_is_recorded_every_so_many_seconds(store: Store) -> None:
    write(store, 5)
    Consumer(store, "account", lambda _: None, "mailer", record_seconds=0).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2, 3, 4, 5]


def test_the_position_is_recorded_while_it_waits(store: Store) -> None:
    write(store, 5)
    # It does not ask for messages again, so only the wait can end in recording.
    with running(Consumer(store, "account", lambda _: None, "mailer", record_seconds=1, poll_seconds=3600)):
        wait_until(lambda: last_position(store, "account:position-mailer") == 5)


def test_without_new_messages_no_position_is_recorded(store: Store) -> None:
    write(store, 2)
    consumer = Consumer(store, "account", lambda _: None, "mailer", record_seconds=0)
    for _ in range(3):
        consumer.run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2]


def test_a_second_consumer_with_the_same_identifier_is_a_position_conflict(
    each_store: Store, messagedb_url: str
) -> None:
    write(each_store, 4)
    other = Store.from_url(messagedb_url)

    def handle(message: Message) -> None:
        if message.data["n"] == 1:
            Consumer(other, "account", lambda _: None, "mailer").run_until_caught_up(handle_signals=False)

    with pytest.raises(PositionConflict) as caught:
        consumer_on(each_store, "account", handle, "mailer", record_seconds=3600).run_until_caught_up()
    other.engine.dispose()
    assert caught.value.stream_name == "account:position-mailer"
    assert (caught.value.expected_version, caught.value.actual_version) == (-1, 0)
