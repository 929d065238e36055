"""A message that Python cannot represent is a failure of its own, as if its handler had raised."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity
from sqlalchemy import text

from messagedb_sa import Consumer, HandlerFailed, Message, MessageNotDecodable, Store

from ..support import NESTED, consumer_on, insert, nested_is_refused
from .support import last_position

UNDECODABLE = [
    pytest.param(NESTED, "now()", id="nested", marks=nested_is_refused),
    pytest.param("{}", "'12000-01-01'", id="late"),
    pytest.param("{}", "'0044-03-15 BC'", id="BC"),
    pytest.param("{}", "'infinity'", id="infinity"),
]
TRANSACTIONAL: list[dict[str, Any]] = [{}, {"transactional": True}, {"transactional": True, "record_every": 10}]


def fill(store: Store, data: str, time: str) -> None:
    store.write("account-1", "Opened", {})
    insert(store, "account-1", 1, "Odd", data, time, metadata='{"trace": "t-1"}')
    store.write("account-1", "Closed", {})


@pytest.mark.parametrize("category", ["account", "$all"])
@pytest.mark.parametrize("options", TRANSACTIONAL)
@pytest.mark.parametrize(("data", "time"), UNDECODABLE)
def test_it_is_parked_as_it_is_stored_and_the_others_are_handled(
    each_store: Store, store: Store, data: str, time: str, options: dict[str, Any], category: str
) -> None:
    fill(store, data, time)
    handled: list[Message] = []
    consumer = consumer_on(
        each_store, category, lambda message, *_: handled.append(message), "mailer", on_failure="park", **options
    )
    assert consumer.run_until_caught_up() == 3
    assert {message.type for message in handled} == {"Opened", "Closed"}
    assert handled[-1].type == "Closed"
    assert (last_position(store, f"{category}:position-mailer") or 0) >= 3
    query = text(
        "SELECT dead.data = odd.data AND dead.type = odd.type, dead.metadata->>'trace', dead.metadata->'dead'->>'error'"
        " FROM message_store.messages AS dead, message_store.messages AS odd"
        " WHERE dead.stream_name = :stream AND odd.global_position = 2"
    )
    with store.engine.connect() as connection:
        is_same, trace, error = connection.execute(query, {"stream": f"{category}:dead-mailer"}).one()
    assert (is_same, trace) == (True, "t-1")
    assert "cannot decode message 1 of stream 'account-1' (global position 2) as 'Odd': its " in error
    # And the dead letter is not handled again.
    assert consumer.run_until_caught_up() == 0


@pytest.mark.parametrize("options", TRANSACTIONAL)
@pytest.mark.parametrize(("data", "time"), UNDECODABLE)
def test_the_consumer_stops_at_it_if_it_does_not_park(
    each_store: Store, store: Store, data: str, time: str, options: dict[str, Any]
) -> None:
    fill(store, data, time)
    handled: list[str] = []
    consumer = consumer_on(each_store, "account", lambda message, *_: handled.append(message.type), "mailer", **options)
    with pytest.raises(HandlerFailed) as caught:
        consumer.run_until_caught_up()
    assert isinstance(caught.value.__cause__, MessageNotDecodable)
    assert (caught.value.message.type, caught.value.message.global_position) == ("Odd", 2)
    assert set(handled) == {"Opened"}
    assert last_position(store, "account:position-mailer") == 1


@pytest.mark.parametrize(("data", "time"), UNDECODABLE)
def test_the_retry_policy_decides_about_it(store: Store, data: str, time: str) -> None:
    fill(store, data, time)
    failed: list[Any] = []
    retry = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        after=lambda state: failed.append(state.outcome and type(state.outcome.exception())),
    )
    with pytest.raises(HandlerFailed):
        Consumer(store, "account", lambda _: None, "mailer", retry=retry).run_until_caught_up()
    assert failed == [MessageNotDecodable] * 3


@pytest.mark.parametrize("options", TRANSACTIONAL)
def test_it_is_skipped_if_its_type_has_no_handler(each_store: Store, store: Store, options: dict[str, Any]) -> None:
    fill(store, NESTED, "'infinity'")
    handled: list[str] = []
    handlers = dict.fromkeys(["Opened", "Closed"], lambda message, *_: handled.append(message.type))
    assert consumer_on(each_store, "account", handlers, "mailer", **options).run_until_caught_up() == 2
    assert handled == ["Opened", "Closed"]


def test_many_of_them_are_parked(store: Store) -> None:
    query = text(
        "INSERT INTO message_store.messages (stream_name, position, type, data, time)"
        " SELECT 'account-1', n, 'Odd', '{}', 'infinity' FROM generate_series(0, 99) AS n"
    )
    with store.engine.begin() as connection:
        connection.execute(query)
    assert Consumer(store, "account", print, "mailer", on_failure="park").run_until_caught_up() == 100
    assert len(store.read("account:dead-mailer")) == 100


@nested_is_refused
def test_one_with_such_metadata_is_parked_once_by_a_consumer_of_all(store: Store) -> None:
    insert(store, "account-1", 0, "Odd", "{}", metadata=NESTED)
    consumer = Consumer(store, "$all", print, "mailer", on_failure="park")
    assert consumer.run_until_caught_up() == 1
    assert consumer.run_until_caught_up() == 0
    assert store.stream_version("$all:dead-mailer") == 0


@nested_is_refused
def test_somebodys_own_in_a_category_like_that_of_dead_letters_is_parked_by_a_consumer_of_all(store: Store) -> None:
    insert(store, "star:dead-1", 0, "Odd", "{}", metadata=NESTED)
    assert Consumer(store, "$all", print, "mailer", on_failure="park").run_until_caught_up() == 1
    assert store.stream_version("$all:dead-mailer") == 0


def test_the_position_of_a_consumer_is_read_whatever_its_time(store: Store) -> None:
    fill(store, "{}", "now()")
    insert(store, "account:position-mailer", 0, "Recorded", '{"position": 1}', "'12000-01-01'")
    handled: list[str] = []
    Consumer(store, "account", lambda message: handled.append(message.type), "mailer").run_until_caught_up()
    assert handled == ["Odd", "Closed"]
