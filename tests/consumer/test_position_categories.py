"""Categories with the type ``position`` or ``dead`` may be somebody's own: streams and messages together tell."""

from __future__ import annotations

from typing import Any

import pytest

from messagedb_sa import Consumer, ConsumerError, Message, Store
from messagedb_sa.stream_name import consumer_group_member

from ..support import consumer_on, insert
from .support import Failing, last_position, positions, write

OWN = "portfolio:position"


def fill(store: Store) -> None:
    """Two of somebody's own messages, and between them the positions of a consumer of ``portfolio``."""
    store.write(f"{OWN}-1", "Opened", {"n": 0})
    write(store, 1, "portfolio")
    for identifier in (None, "mailer"):
        Consumer(store, "portfolio", lambda _: None, identifier).run_until_caught_up()
    store.write(f"{OWN}-2", "Closed", {"n": 1})


def test_somebodys_own_messages_are_handled_and_positions_are_not(each_store: Store, store: Store) -> None:
    fill(store)
    handled: list[Message] = []
    assert consumer_on(each_store, OWN, handled.append, "mirror").run_until_caught_up() == 2
    assert [message.type for message in handled] == ["Opened", "Closed"]
    assert last_position(store, f"{OWN}+position-mirror") == handled[-1].global_position


def test_its_own_positions_and_those_of_others_do_not_make_it_record(store: Store) -> None:
    fill(store)
    for _ in range(3):
        Consumer(store, OWN, lambda _: None, "mirror", record_seconds=0).run_until_caught_up()
        Consumer(store, "portfolio", lambda _: None, "other", record_seconds=0).run_until_caught_up()
    assert len(positions(store, f"{OWN}+position-mirror")) == 2


@pytest.mark.parametrize("options", [{"slots": 2}, {"group_member": 1, "group_size": 2}])
def test_in_a_group_the_position_of_a_consumer_without_identifier_is_not_refused(
    store: Store, options: dict[str, Any]
) -> None:
    fill(store)
    assert store.read("portfolio:position", no_of_messages=-1)[1].stream_name == "portfolio:position"
    handled: list[Message] = []
    Consumer(store, OWN, handled.append, "mirror", **options).run_until_caught_up()
    mine = [consumer_group_member(f"{OWN}-{n}", 2) for n in (1, 2)]
    assert len(handled) == (2 if "slots" in options else mine.count(1))


def test_a_consumer_of_all_gets_somebodys_own_messages_in_such_categories(store: Store) -> None:
    fill(store)
    store.write("star:dead-1", "Collapsed", {"n": 2})
    store.write("star:dead-1", "Seen", {"n": 3}, {"dead": "long ago"})
    write(store, 1)
    Consumer(store, "account", Failing(at=0), "mailer", on_failure="park").run_until_caught_up()
    handled: list[Message] = []
    Consumer(store, "$all", handled.append, "mirror").run_until_caught_up()
    assert [message.type for message in handled] == ["Opened", "Even", "Closed", "Collapsed", "Seen", "Even"]
    (mirror,) = store.consumers("$all")
    assert mirror.lag == 0
    store.write("star:dead-1", "Seen", {})
    (mirror,) = store.consumers("$all")
    assert mirror.lag == 1


def test_what_only_looks_like_a_type_is_not_one(store: Store) -> None:
    for stream in ("a:positions-1", "a:position+command-1", "a+position-1", "a-x:position", "a-x:dead"):
        store.write(stream, "Recorded", {"position": 1}, {"dead": {}})
    handled: list[Message] = []
    assert Consumer(store, "$all", handled.append, "mirror").run_until_caught_up() == 5
    (mirror,) = store.consumers("$all")
    assert mirror.lag == 0


def test_the_lag_of_its_consumers_does_not_count_positions(store: Store) -> None:
    fill(store)
    Consumer(store, OWN, lambda _: None, "mirror").run_until_caught_up()
    write(store, 1, "portfolio")
    Consumer(store, "portfolio", lambda _: None, "mailer").run_until_caught_up()
    (mirror,) = store.consumers(OWN)
    assert (mirror.lag, mirror.waiting_since) == (0, None)
    store.write(f"{OWN}-1", "Closed", {})
    (mirror,) = store.consumers(OWN)
    assert mirror.lag == 1


def test_somebodys_own_messages_are_not_consumers(store: Store) -> None:
    fill(store)
    store.write(f"{OWN}-3", "Moved", {"position": 3})
    assert [status.identifier for status in store.consumers("portfolio")] == [None, "mailer"]


@pytest.mark.parametrize("position", ["1e300", "1.5", "-1", '"1"', "null", "true", "[]", "9223372036854775808"])
def test_a_position_that_is_not_one_is_not_a_consumer(each_store: Store, store: Store, position: str) -> None:
    write(store, 2)
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    insert(store, "account:position-other", 0, "Recorded", f'{{"position": {position}}}')
    assert [(status.identifier, status.lag) for status in each_store.consumers("account")] == [("mailer", 0)]
    with pytest.raises(ConsumerError, match="choose another identifier"):
        Consumer(store, "account", lambda _: None, "other").run_until_caught_up()


@pytest.mark.parametrize(
    ("type_", "data", "found"),
    [
        ("PositionAdvanced", {"streamPosition": 5}, r"PositionAdvanced with \{'streamPosition': 5\}"),
        ("Moved", {"position": 3}, r"Moved with \{'position': 3\}"),
        ("Recorded", {"entityData": {}}, r"Recorded with \{'entityData': \{\}\}"),
        ("Recorded", None, "Recorded with None"),
        ("Recorded", [3], r"Recorded with \[3\]"),
    ],
)
@pytest.mark.parametrize("slots", [None, 2])
def test_a_stream_with_something_else_makes_the_consumer_ask_for_another_identifier(
    each_store: Store, type_: str, data: Any, found: str, slots: int | None
) -> None:
    write(each_store, 1)
    stream = "account:position-mailer" if slots is None else "account:position-mailer-1-of-2"
    each_store.write(stream, type_, data)
    expected = (
        rf"stream '{stream}' must hold this consumer's positions, as Recorded with \{{'position': 1\}}; its last "
        rf"message is {found}\. If another client writes to that stream, choose another identifier for this consumer"
    )
    with pytest.raises(ConsumerError, match=expected):
        consumer_on(each_store, "account", print, "mailer", slots=slots).run_until_caught_up()
    assert len(each_store.read("account:position", no_of_messages=-1)) == 1


@pytest.mark.parametrize("time", ["'12000-01-01'", "'0044-03-15 BC'", "'infinity'", "'-infinity'"])
def test_the_status_of_consumers_does_not_depend_on_times_of_other_clients(
    each_store: Store, store: Store, time: str
) -> None:
    write(store, 1)
    insert(store, "account:position-mailer", 0, "Recorded", '{"position": 1}', time)
    insert(store, "account-7", 0, "Odd", "{}", time)
    insert(store, "account-7", 1, "Odd", "{}")
    (status,) = each_store.consumers("account")
    assert (status.position, status.lag) == (1, 2)
    assert status.recorded_at is not None
    assert status.recorded_at.year in (1, 9999)
    assert status.waiting_since is not None
    assert each_store.consumers("account") == store.consumers("account")
