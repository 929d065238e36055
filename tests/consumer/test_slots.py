"""Slots: the parts of a category that processes share among themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import tenacity
from sqlalchemy import NullPool, create_engine, make_url, text

from messagedb_sa import Consumer, GroupChanged, Message, SlotsLost, Store
from messagedb_sa.consumer._slots import Slots
from messagedb_sa.store._execute import run_alone
from messagedb_sa.stream_name import consumer_group_member
from messagedb_sa.testing import temporary_server

from ..support import consumer_on, free_port, numbers, store_on
from ..waits import wait_until
from .support import Failing, running, write


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
        wait_until(lambda: sum(map(len, handled.values())) >= len(streams))
        return sorted(map(len, parts().values())) == [2, 2]

    with running(one):
        write_to_all()
        wait_until(lambda: len(handled["one"]) == len(streams))
        with running(other):
            wait_until(written_and_handled)
            assert not parts()["one"] & parts()["other"]
        handled["one"].clear()
        write_to_all()
        wait_until(lambda: len({message.stream_name for message in handled["one"]}) == len(streams))
    for each in stores.values():
        each.engine.dispose()
    # All of them recorded their positions, so nothing is handled again.
    assert Consumer(store, "account", lambda _: None, "mailer", slots=4).run_until_caught_up() == 0


@pytest.fixture
def two_stores(store: Store, messagedb_url: str) -> Iterator[list[Store]]:
    stores = [Store.from_url(messagedb_url) for _ in range(2)]
    yield stores
    for each in stores:
        each.engine.dispose()


def test_a_slot_is_given_up_while_a_message_of_it_waits_to_be_tried_again(
    store: Store, two_stores: list[Store], caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer that takes the slot handles that message."""
    write(store, 30)
    # Of two consumers the first keeps the slots 0 and 1.
    assert [consumer_group_member(f"account-{n}", 4) for n in range(3)] == [1, 2, 1]
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    first, second = Failing(at=1), Failing(at=1, times=0)
    with running(Consumer(two_stores[0], "account", first, "mailer", slots=4, retry=policy)):
        wait_until(lambda: "tries again in 3600.0 s" in caplog.text)
        with running(Consumer(two_stores[1], "account", second, "mailer", slots=4)):
            wait_until(lambda: len(second.numbers) == 10)
    assert second.numbers == list(range(1, 30, 3))
    assert first.numbers == [*sorted({*range(30)} - {*second.numbers}), 1]


def test_other_slots_are_given_up_while_a_message_waits_to_be_tried_again(
    store: Store, two_stores: list[Store], caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 30)
    assert [consumer_group_member(f"account-{n}", 4) for n in range(3)] == [1, 2, 1]
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    first, second = Failing(at=0), Failing(at=0)
    with running(Consumer(two_stores[0], "account", first, "mailer", slots=4, retry=policy)):
        wait_until(lambda: "tries again in 3600.0 s" in caplog.text)
        with running(Consumer(two_stores[1], "account", second, "mailer", slots=4)):
            wait_until(lambda: len(second.numbers) == 10)
    assert second.numbers == list(range(1, 30, 3))
    assert first.numbers == [0]


def test_two_processes_on_one_session_are_detected(store: Store) -> None:
    """A pooler in transaction mode lends one session to both: each would see only the locks that it took."""
    with store.engine.connect() as connection:
        one, other = (Slots(partial(run_alone, connection), [1, 2, 3, 4], 5) for _ in range(2))
        assert other.share(print) == [0, 1, 2, 3]
        with pytest.raises(SlotsLost):
            one.share(print)
        # The one does not free the slots of the other.
        one.leave()
        assert other.share(print) == []
        other.leave()


def test_the_server_notices_within_half_a_minute_that_a_host_has_vanished() -> None:
    """With and without something on its way that the host does not acknowledge. Afterwards the session is as it was."""
    port = free_port()
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    shown = text(f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}")
    with temporary_server(settings={"listen_addresses": "127.0.0.1", "port": str(port)}) as url:
        engine = create_engine(make_url(url).set(host="127.0.0.1", port=port, query={}), poolclass=NullPool)
        with engine.connect() as connection:
            before = connection.execute(shown).one()
            slots = Slots(partial(run_alone, connection), [1, 2], 3)
            # The server shows what its socket has.
            assert tuple(connection.execute(shown).one()) == ("15", "5", "3", "30000")
            slots.leave()
            assert connection.execute(shown).one() == before


def test_returning_to_a_former_number_of_slots_is_a_change_of_the_group(store: Store) -> None:
    """Its positions are old: from there it would handle again what was handled since."""
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
def test_a_slot_is_free_as_soon_as_its_consumer_has_stopped(store: Store, messagedb_url: str, driver: str) -> None:
    write(store, 6)
    with store_on(driver, messagedb_url) as its_store:
        first: list[Message] = []
        with running(consumer_on(its_store, "account", first.append, "mailer", slots=1)):
            wait_until(lambda: len(first) == 6)
            standing_by = Consumer(store, "account", print, "mailer", slots=1)
            assert standing_by.run_until_caught_up() == 0
        second: list[Message] = []
        write(store, 1, first=6)
        Consumer(store, "account", second.append, "mailer", slots=1).run_until_caught_up()
    assert numbers(second) == [6]
