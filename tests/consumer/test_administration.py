"""Consumers administered from outside: their positions are set, and they are forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, text

from messagedb_sa import Consumer, GroupChanged, InvalidArgument, Message, PositionConflict, Store, install

from ..support import as_role, consumer_on, numbers
from ..waits import wait_until
from .support import running, write

ROWS = "SELECT count(*) FROM message_store.consumer_positions WHERE stream_name = 'account:position-mailer'"
HOMES: list[Literal["stream", "table"]] = ["stream", "table"]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(100, "messagedb_sa.consumer")


def consumed(store: Store, identifier: str | None = "mailer", **options: Any) -> list[int]:
    """The numbers that a consumer handles before it has caught up."""
    handled: list[Message] = []
    consumer_on(
        store, "account", lambda message, *_: handled.append(message), identifier, **options
    ).run_until_caught_up()
    return sorted(numbers(handled))


def known(store: Store, category: str | None = "account") -> list[tuple[str | None, int | None, int | None]]:
    return [(each.identifier, each.group_member, each.position) for each in store.consumers(category)]


# Setting a position


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("home", HOMES)
def test_a_consumer_begins_at_the_position_that_was_set(each_store: Store, home: str, transactional: bool) -> None:
    write(each_store, 5)
    options: dict[str, Any] = {"positions": home, "transactional": transactional}
    assert consumed(each_store, **options) == [0, 1, 2, 3, 4]
    each_store.set_consumer_position("account", 4, "mailer")
    assert known(each_store) == [("mailer", None, 3)]
    assert consumed(each_store, **options) == [3, 4]
    assert each_store.consumers("account")[0].recorded_in == home
    for first in (0, 1):
        each_store.set_consumer_position("account", first, "mailer")
        assert consumed(each_store, **options) == [0, 1, 2, 3, 4]
    each_store.set_consumer_position("account", 6, "mailer")
    assert consumed(each_store, **options) == []


def test_the_end_is_after_the_last_message_of_the_category(each_store: Store) -> None:
    write(each_store, 2)
    write(each_store, 1, "order")
    each_store.set_consumer_position("account", "end")
    assert known(each_store) == [(None, None, 2)]
    write(each_store, 1, first=7)
    assert consumed(each_store, None) == [7]
    each_store.set_consumer_position("empty", "end", "mailer")
    assert known(each_store, "empty") == [("mailer", None, 0)]


@pytest.mark.parametrize("home", HOMES)
def test_all_members_or_one_can_be_set(store: Store, home: str) -> None:
    write(store, 6)
    assert consumed(store, slots=3, positions=home) == [0, 1, 2, 3, 4, 5]
    store.set_consumer_position("account", 4, "mailer", group_size=3)
    assert known(store) == [("mailer", member, 3) for member in range(3)]
    assert consumed(store, slots=3, positions=home) == [3, 4, 5]
    before = known(store)
    store.set_consumer_position("account", 1, "mailer", group_member=1, group_size=3)
    assert known(store) == [before[0], ("mailer", 1, 0), before[2]]


def test_after_a_change_of_the_number_of_slots_the_new_ones_can_be_set(store: Store) -> None:
    write(store, 6)
    consumed(store, slots=2)
    with pytest.raises(GroupChanged) as changed:
        consumed(store, slots=4)
    store.set_consumer_position("account", changed.value.position, "mailer", group_size=4)
    write(store, 2, first=6)
    assert consumed(store, slots=4) == [6, 7]
    assert store.forget_consumer("account", "mailer", group_size=2) == 2
    assert {each.group_size for each in store.consumers("account")} == {4}
    assert consumed(store, slots=4) == []


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("administer", ["set_consumer_position", "forget_consumer"])
def test_a_running_consumer_notices_and_does_not_overwrite_it(
    store: Store, home: Any, transactional: Any, administer: str
) -> None:
    write(store, 2)
    handled: list[Message] = []
    consumer: Any = Consumer(
        store,
        "account",
        lambda message, *_: handled.append(message),
        "mailer",
        transactional=transactional,
        positions=home,
        record_every=1,
        poll_seconds=0.01,
    )
    administered: list[Any] = []

    def administer_and_write() -> None:
        with running(consumer):
            wait_until(lambda: known(store) == [("mailer", None, 2)])
            if administer == "forget_consumer":
                store.forget_consumer("account", "mailer")
            else:
                store.set_consumer_position("account", 2, "mailer")
            administered.append(known(store))
            write(store, 1, first=9)
            wait_until(lambda: not consumer._loop.own._running.locked())

    with pytest.raises(PositionConflict, match="was set or forgotten"):
        administer_and_write()
    (after,) = administered
    assert known(store) == after
    assert after == ([] if administer == "forget_consumer" else [("mailer", None, 1)])


@pytest.mark.parametrize("home", HOMES)
def test_a_running_slot_continues_from_the_position_that_was_set(store: Store, home: Any) -> None:
    write(store, 3)
    handled: list[Message] = []
    consumer = Consumer(
        store, "account", handled.append, "mailer", slots=1, positions=home, record_every=1, poll_seconds=0.01
    )
    with running(consumer):
        wait_until(lambda: known(store) == [("mailer", 0, 3)])
        store.set_consumer_position("account", 2, "mailer", group_size=1)
        write(store, 1, first=3)
        wait_until(lambda: len(handled) == 7)
    assert numbers(handled) == [0, 1, 2, 3, 1, 2, 3]


def test_it_is_set_in_the_callers_transaction(store: Store) -> None:
    write(store, 2)
    consumed(store)
    with store.engine.connect() as connection:
        Store(connection).set_consumer_position("account", 1, "mailer")
        assert known(Store(connection)) == [("mailer", None, 0)]
        connection.rollback()
    assert known(store) == [("mailer", None, 2)]


def test_a_consumer_of_the_whole_store_can_be_set_and_forgotten(store: Store) -> None:
    write(store, 2)
    store.set_consumer_position("$all", 2, "mirror")
    handled: list[Message] = []
    Consumer(store, "$all", handled.append, "mirror").run_until_caught_up()
    assert numbers(handled) == [1]
    assert store.forget_consumer("$all", "mirror") == 1
    Consumer(store, "$all", handled.append, "mirror").run_until_caught_up()
    assert numbers(handled) == [1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "named", "wrong"),
    [
        (("account-1", 1), {}, "category_name"),
        (("account", -1), {}, "position"),
        (("account", 2**63), {}, "position"),
        (("account", True), {}, "position"),
        (("account", "start"), {}, "position"),
        (("account", None), {}, "position"),
        (("account", 1, ""), {}, "identifier"),
        (("account", 1, "mailer-0-of-3"), {}, "identifier"),
        (("account", 1, "x" * 3000), {}, "identifier"),
        (("account", 1), {"group_member": 0}, "group_size"),
        (("account", 1), {"group_member": 3, "group_size": 3}, "group_member"),
        (("account", 1), {"group_size": 0}, "group_size"),
        (("$all", 1), {"group_size": 2}, "group_size"),
    ],
)
def test_what_cannot_be_set_is_refused(
    store: Store, arguments: tuple[Any, ...], named: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        store.set_consumer_position(*arguments, **named)
    assert refused.value.argument == wrong
    assert store.consumers() == []


# Forgetting


@pytest.mark.parametrize("home", HOMES)
def test_a_forgotten_consumer_is_not_listed_and_begins_anew(each_store: Store, home: str) -> None:
    write(each_store, 3)
    for identifier in (None, "mailer", "other"):
        consumed(each_store, identifier, positions=home)
    assert each_store.forget_consumer("account", "mailer") == 1
    assert [identifier for identifier, *_ in known(each_store)] == [None, "other"]
    assert each_store.forget_consumer("account", "mailer") == 0
    assert each_store.forget_consumer("account") == 1
    assert [identifier for identifier, *_ in known(each_store, None)] == ["other"]
    assert consumed(each_store, positions=home) == [0, 1, 2]
    assert consumed(each_store, "other", positions=home) == []
    # Its option position counts again.
    assert consumed(each_store, None, positions=home, position="end") == []


@pytest.mark.parametrize("home", HOMES)
def test_all_divisions_are_forgotten_or_one(store: Store, home: str) -> None:
    write(store, 6)
    consumed(store, positions=home)
    for slots in (2, 3):
        consumed(store, slots=slots, position=1, positions=home)
    assert store.forget_consumer("account", "mailer", group_size=3) == 3
    assert {each.group_size for each in store.consumers("account")} == {None, 2}
    assert store.forget_consumer("account", "mailer") == 3
    assert store.consumers() == []
    assert consumed(store, slots=3, positions=home) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("home", HOMES)
def test_a_division_that_was_used_last_and_forgotten_does_not_count_as_a_change(store: Store, home: str) -> None:
    write(store, 6)
    consumed(store, positions=home)
    consumed(store, slots=2, position=1, positions=home)
    store.forget_consumer("account", "mailer", group_size=2)
    # With another number of slots used last, it would begin at the end.
    write(store, 1, first=6)
    assert consumed(store, position="end", positions=home) == [6]


def test_the_privileges_of_a_consumer_are_enough(store: Store, login: Callable[..., str]) -> None:
    write(store, 3)
    consumed(store, transactional=True)
    own = Store(as_role(store.engine, login("operator", "IN ROLE message_store")))
    own.set_consumer_position("account", 2, "mailer")
    assert known(own) == [("mailer", None, 1)]
    assert own.forget_consumer("account", "mailer") == 1
    assert own.consumers(lag=False) == []


def test_a_store_without_the_table_can_be_administered(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0001")
    store = Store(empty_database)
    write(store, 3)
    assert consumed(store) == [0, 1, 2]
    consumed(store, "other")
    store.set_consumer_position("account", 3, "mailer")
    assert consumed(store) == [2]
    assert store.forget_consumer("account", "other") == 1
    assert known(store, None) == [("mailer", None, 3)]
    assert [each.lag for each in store.consumers(lag=False)] == [None]


def test_eventide_finds_no_position_of_a_forgotten_consumer(store: Store) -> None:
    write(store, 1)
    consumed(store)
    store.forget_consumer("account", "mailer")
    last = store.read_last_message("account:position-mailer")
    assert last is not None
    assert (last.type, last.data) == ("Recorded", {"position": None})


def test_the_row_in_the_table_counts_again_when_the_consumer_has_begun_anew(store: Store) -> None:
    write(store, 3)
    for _ in range(2):
        assert consumed(store, transactional=True) == [0, 1, 2]
        assert known(store) == [("mailer", None, 3)]
        store.forget_consumer("account", "mailer")
        assert known(store) == []
    with store.engine.connect() as connection:
        assert connection.scalar(text(ROWS)) == 1
