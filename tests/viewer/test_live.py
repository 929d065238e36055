"""Live tail: what is written arrives, once and in order; and whatever ends it, nothing is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, Store, install
from messagedb_sa.viewer import _live, viewer

from ..support import NESTED, insert, nested_is_refused
from ..waits import wait_until
from .serving import Events, Served, served

NAME = "viewer live"
_CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")


@pytest.fixture(params=["Store", "AsyncStore"])
def own_store(request: pytest.FixtureRequest, messagedb_url: str, store: Store) -> Iterator[Store | AsyncStore]:
    """On an engine of its own, whose connections the server knows by their name."""
    if request.param == "Store":
        engine = create_engine(messagedb_url, connect_args={"application_name": NAME}, poolclass=NullPool)
        yield Store(engine)
        engine.dispose()
    else:
        url = f"postgresql+psycopg{messagedb_url[messagedb_url.index('://') :]}"
        yield AsyncStore(create_async_engine(url, connect_args={"application_name": NAME}, poolclass=NullPool))


@pytest.fixture
def live(own_store: Store | AsyncStore) -> Iterator[Served]:
    with served(viewer(own_store), timeout_graceful_shutdown=20) as one:
        yield one


def write(store: Store, *numbers: int, stream: str = "account-1") -> None:
    for n in numbers:
        store.write(stream, "Opened", {"n": n})


def begun(events: Events) -> Iterator[tuple[str, str, Any]]:
    """What comes after the subscription has begun."""
    read = iter(events)
    assert next(read)[0] == "begin"
    return read


def shown(read: Iterator[tuple[str, str, Any]], number: int) -> list[str]:
    return [event[2]["data"] for event in islice((each for each in read if each[0] == "message"), number)]


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_what_is_written_from_now_on_arrives(live: Served, store: Store, name: str) -> None:
    write(store, 1, 2)
    with Events(live, f"/events?name={name.replace('$', '%24')}") as events:
        assert events.answer.status == 200
        assert events.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert events.answer.headers["x-accel-buffering"] == "no"
        read = begun(events)
        write(store, 3, 4)
        assert shown(read, 2) == ['{"n": 3}', '{"n": 4}']


@pytest.mark.parametrize("name", ["account-1", "account", "%24all", "account-7"])
def test_after_a_lost_connection_it_continues_without_loss_even_before_the_first_message(
    live: Served, store: Store, name: str
) -> None:
    write(store, 1)
    stream = "account-7" if name == "account-7" else "account-1"
    with Events(live, f"/events?name={name}") as events:
        _, last, _ = next(iter(events))
    write(store, 2, 3, stream=stream)
    with Events(live, f"/events?name={name}", **{"Last-Event-ID": last}) as events:
        read = begun(events)
        assert shown(read, 1) == ['{"n": 2}']
    with Events(live, f"/events?name={name}", **{"Last-Event-ID": str(int(last) + 1)}) as events:
        assert shown(begun(events), 1) == ['{"n": 3}']


def test_each_event_has_the_position_to_continue_at(live: Served, store: Store) -> None:
    write(store, 1, 2, 3)
    with Events(live, "/events?name=account-1&from=1") as events:
        read = begun(events)
        ids = [id for _, id, _ in islice(read, 2)]
    assert ids == ["2", "3"]


def test_all_of_the_store_has_no_holes(live: Served, store: Store) -> None:
    with Events(live, "/events") as events:
        read = begun(events)
        with store.engine.begin() as open_transaction:
            Store(open_transaction).write("early-1", "Opened", {"n": 1})
            write(store, 2)
        assert shown(read, 2) == ['{"n": 1}', '{"n": 2}']


def test_a_comment_comes_while_nothing_is_written(live: Served, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "HEARTBEAT_SECONDS", 0.05)
    with Events(live, "/events?name=account") as events:
        read = begun(events)
        assert [kind for kind, _, _ in islice(events_with_comments(events), 2)] == ["comment", "comment"]
        write(store, 1)
        assert shown(read, 1) == ['{"n": 1}']


def events_with_comments(events: Events) -> Iterator[tuple[str, str, Any]]:
    while line := events.answer.readline().decode():
        if line.startswith(":"):
            yield "comment", "", line


def connections(store: Store) -> int:
    with store.engine.connect() as connection:
        return int(connection.scalar(_CONNECTIONS, {"name": NAME}) or 0)


def follower_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("messagedb_sa.subscription")]


@pytest.mark.parametrize("notify", [True, False])
def test_a_browser_that_leaves_leaves_nothing_behind(live: Served, store: Store, notify: bool) -> None:
    install.upgrade(store.engine, notify=notify)
    try:
        several = [Events(live, f"/events?name={name}") for name in ("account", "%24all", "account-1")]
        readers = [begun(each) for each in several]
        # All of them wait now, and hear of it.
        write(store, 1)
        for read in readers:
            assert shown(read, 1) == ['{"n": 1}']
        (tails,) = [each for each in _live._all if each.open]
        assert len(tails.open) == 3
        for each in several:
            each.close()
        wait_until(lambda: not tails.open, "the server has ended what they followed")
        wait_until(lambda: not follower_threads(), "nobody listens")
        wait_until(lambda: connections(store) == 0, "the server has no connection of theirs")
    finally:
        install.upgrade(store.engine, notify=False)


def test_only_so_many_may_follow_at_the_same_time(live: Served, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "VIEWERS", 2)
    first, second = Events(live, "/events?name=account"), Events(live, "/events?name=account")
    assert (next(iter(first))[0], next(iter(second))[0]) == ("begin", "begin")
    with Events(live, "/events?name=account") as third:
        assert (third.answer.status, third.answer.headers["retry-after"]) == (503, "30")
    first.close()

    def is_answered() -> bool:
        with Events(live, "/events?name=account") as again:
            return again.answer.status == 200

    wait_until(is_answered, "there is room for another")
    # Pages do not wait for those that follow.
    with Events(live, "/live?name=account") as page:
        assert page.answer.status == 200
    second.close()


def test_a_server_that_stops_can_end_them_at_once(own_store: Store | AsyncStore, store: Store) -> None:
    with served(viewer(own_store)) as one, Events(one, "/events?name=account") as events:
        read = begun(events)
        (tails,) = [each for each in _live._all if each.open]
        # Without this, the server would wait for ever.
        loop = next(iter(one.server.servers)).get_loop()
        asyncio.run_coroutine_threadsafe(_live.close_all(), loop).result()
        assert [*read] == []
        wait_until(lambda: not tails.open)
        with Events(one, "/events?name=account") as late:
            assert late.answer.status == 503
    # A subscription of an earlier test, which was only let go, may still be ending.
    wait_until(lambda: not follower_threads(), "nobody listens")


@nested_is_refused
def test_a_message_that_cannot_be_decoded_is_named_and_the_next_one_comes(live: Served, store: Store) -> None:
    with Events(live, "/events?name=account") as events:
        read = begun(events)
        insert(store, "account-1", 0, "Deep", f'{{"a": {NESTED}}}')
        store.write("account-1", "Opened", {"n": 1})
        (_, _, deep), (_, _, opened) = islice(read, 2)
        assert (deep["type"], deep["position"]) == ("Deep", 0)
        assert opened["data"] == '{"n": 1}'


def test_only_the_beginning_of_large_data_is_sent(live: Served, store: Store) -> None:
    with Events(live, "/events?name=account") as events:
        read = begun(events)
        store.write("account-1", "Opened", {"text": ["x" * 100_000] * 30})
        (data,) = shown(read, 1)
        assert len(data) == 240
        assert data.startswith('{"text": ["xxx')


@pytest.mark.parametrize("name", ["%00", "a%00b"])
def test_a_name_that_no_stream_can_have_is_refused(live: Served, name: str) -> None:
    with Events(live, f"/events?name={name}") as events:
        assert events.answer.status == 400


@pytest.mark.parametrize("last", ["", "-1", "x", "9" * 30, "1e3", "²"])
def test_a_last_id_that_is_not_a_number_is_ignored(live: Served, store: Store, last: str) -> None:
    write(store, 1)
    with Events(live, "/events?name=account", **{"Last-Event-ID": last.encode().decode("latin-1")}) as events:
        assert next(iter(events)) == ("begin", "2", {"position": 2})
