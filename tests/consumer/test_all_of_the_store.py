"""Consumers of $all."""

from __future__ import annotations

from messagedb_sa import Consumer, Message, Store

from ..support import consumer_on, numbers
from .support import Failing, last_position, positions, write


def test_a_consumer_of_all_gets_everything_but_positions(each_store: Store) -> None:
    write(each_store, 3)
    write(each_store, 3, "order", first=3)
    consumer_on(each_store, "order", lambda _: None, "mailer").run_until_caught_up()
    handled: list[Message] = []
    assert consumer_on(each_store, "$all", handled.append, "mirror").run_until_caught_up() == 6
    assert numbers(handled) == list(range(6))
    assert last_position(each_store, "$all:position-mirror") == 7


def test_a_consumer_of_all_does_not_record_because_of_its_own_positions(store: Store) -> None:
    write(store, 2)
    for _ in range(3):
        Consumer(store, "$all", lambda _: None, "mirror", record_seconds=0).run_until_caught_up()
    assert positions(store, "$all:position-mirror") == [1, 2]


def test_a_consumer_of_all_skips_parked_messages(store: Store) -> None:
    write(store, 3)
    failing = Failing(at=1)
    for category in ("account", "$all"):
        Consumer(store, category, failing, "mailer", on_failure="park").run_until_caught_up()
        assert numbers(store.read(f"{category}:dead-mailer")) == [1]
    assert failing.numbers == [0, 1, 2] * 2
    (status,) = store.consumers("$all")
    assert status.lag == 0
