"""What a subscription does if its connections are lost, do not answer, or lead to another server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from messagedb_sa import CannotSettle, MessageDBError, Store, Subscription, install

from ..consumer.proxy import proxied
from ..consumer.support import terminate_all
from ..standby import Pair, primary_and_standby
from ..support import DRIVERS, as_role, numbers
from ..waits import HANG, awaited, wait_until
from .support import following, listening, write


def terminate(engine: Engine, process: int) -> None:
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:p, :m)"), {"p": process, "m": int(HANG * 1000)})


# ---- lost


def test_if_the_connection_that_listens_is_lost_it_polls_and_listens_again(
    notify: None, store: Store, messagedb_url: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    with following(driver, messagedb_url, "account", poll_seconds=0.01) as followed:
        found: list[int] = []

        def is_found() -> bool:
            found[:] = listening(store.engine)
            return bool(found)

        wait_until(is_found)
        write(store, 0)
        followed.wait_for(0)
        (first,) = found
        terminate(store.engine, first)
        write(store, 1)
        followed.wait_for(0, 1)
        wait_until(lambda: listening(store.engine) not in ([], [first]))
        write(store, 2)
        followed.wait_for(0, 1, 2)
    assert "subscriptions: lost the connection, connecting again" in caplog.text


def test_a_lost_connection_is_the_drivers_error_after_which_one_can_continue(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    messages = Subscription(Store(engine), "account", batch_size=1)
    write(store, 0, 1, 2)
    assert next(messages).data == {"n": 0}
    terminate_all(store.engine)
    with pytest.raises(DBAPIError) as raised:
        next(messages)
    assert raised.value.connection_invalidated
    assert numbers([next(messages), next(messages)]) == [1, 2]
    messages.close()
    engine.dispose()


def test_if_asked_to_it_reads_again_over_lost_connections(
    store: Store, messagedb_url: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    with following(driver, messagedb_url, "account", poll_seconds=0.01, reconnect=True) as followed:
        write(store, 0)
        followed.wait_for(0)
        for n in (1, 2):
            # It is connected.
            followed.wait_for_reads(2)
            terminate_all(store.engine)
            write(store, n)
            followed.wait_for(*range(n + 1))
    assert "subscription of account: cannot read, tries again: " in caplog.text


def test_if_asked_to_it_reads_again_after_it_could_not_connect(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "messagedb_sa.subscription")
    with following(
        "psycopg2", messagedb_url, "account", poll_seconds=0.01, reconnect=True, engine_options={"poolclass": NullPool}
    ) as followed:
        write(store, 0)
        followed.wait_for(0)

        def refuse(*_: object) -> None:
            raise OSError("away")

        event.listen(followed.engine, "do_connect", refuse)
        wait_until(lambda: "subscription of account: cannot read, tries again: OSError: away" in caplog.text)
        event.remove(followed.engine, "do_connect", refuse)
        write(store, 1)
        followed.wait_for(0, 1)
    assert "subscription of account: reads again" in caplog.text


def test_if_the_first_connection_fails_that_is_an_error_in_any_case(tmp_path: Path) -> None:
    nowhere = create_engine(f"postgresql+psycopg2:///nowhere?host={tmp_path}")
    with pytest.raises(OperationalError):
        next(Subscription(Store(nowhere), "account", reconnect=True))


def test_it_can_be_closed_while_it_tries_to_connect(
    store: Store, messagedb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._session._FIRST_PAUSE_SECONDS", 600.0)
    with following(
        "psycopg2", messagedb_url, "account", poll_seconds=0.01, reconnect=True, engine_options={"poolclass": NullPool}
    ) as followed:
        followed.wait_for_reads(2)
        refused: list[str] = []

        @event.listens_for(followed.engine, "do_connect")
        def refuse(*_: object) -> None:
            refused.append("away")
            raise OSError("away")

        wait_until(lambda: refused)
        followed.close()
        assert followed.ended.wait(HANG)


# ---- without an answer


@pytest.mark.parametrize("driver", DRIVERS)
def test_closing_it_ends_a_read_that_the_server_does_not_answer(
    store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("subscription._follower", "consumer._watch", "consumer._host", "consumer._event_loop_host"):
        monkeypatch.setattr(f"messagedb_sa.{module}.STOP_SECONDS", 0.2)
    with proxied(messagedb_url) as proxy, following(driver, proxy.url(driver), "account", poll_seconds=0) as followed:
        # It has asked, on another connection, for notifications, which are off. So it does not connect again.
        wait_until(lambda: proxy.accepted == 2)
        followed.wait_for_reads(2)
        proxy.freeze()
        wait_until(lambda: proxy.held)
        followed.close()
        assert followed.ended.wait(HANG)
        # Only then its engine closes what the pool has, which waits for the server.
        proxy.thaw()


# ---- other servers, poolers and roles


@pytest.fixture
def pair() -> Iterator[Pair]:
    with primary_and_standby() as pair:
        yield pair


def test_on_a_standby_it_polls_a_stream_and_a_category_and_stops_at_a_gap_of_all(pair: Pair) -> None:
    primary, standby = Store(pair.engine(pair.primary)), Store(pair.engine(pair.standby))
    install.upgrade(primary.engine, notify=True)
    with (
        Subscription(standby, "account-1", poll_seconds=0.01) as stream,
        Subscription(standby, "account", poll_seconds=0.01) as category,
        Subscription(standby, "$all", poll_seconds=0.01) as everything,
    ):
        for n in range(3):
            write(primary, n)
            assert [next(each).data["n"] for each in (stream, category, everything)] == [n, n, n]
        with primary.engine.connect() as connection:
            write(Store(connection), 3)
            connection.rollback()
        write(primary, 4)
        assert [next(each).data["n"] for each in (stream, category)] == [4, 4]
        with pytest.raises(CannotSettle):
            next(everything)
        assert listening(standby.engine) == []


def test_after_a_failover_it_continues_unless_the_new_server_lacks_what_was_read(pair: Pair) -> None:
    before, after = Store(pair.engine(pair.primary)), Store(pair.engine(pair.standby))
    engine = create_engine(pair.url, poolclass=NullPool)
    pair.follow(engine)
    behind, ahead = (Subscription(Store(engine), "account", poll_seconds=0.01, reconnect=True) for _ in range(2))
    again = Subscription(Store(engine), "account", poll_seconds=0.01, reconnect=True)
    write(before, 0)
    assert numbers([next(behind), next(ahead), next(again)]) == [0, 0, 0]
    pair.lag()
    write(before, 1)
    assert next(ahead).data == {"n": 1}
    id = str(uuid4())
    before.write("account-2", "Counted", {"n": 2}, id=id)
    assert numbers([next(again), next(again)]) == [1, 2]
    pair.kill_primary()
    pair.promote()
    pair.current = pair.standby
    # Its writer has got no answer, and tries again.
    after.write("account-2", "Counted", {"n": 2}, id=id)
    assert next(behind).data == {"n": 2}
    for each in (ahead, again):
        with pytest.raises(MessageDBError, match="the server does not have the message that was read last"):
            next(each)


@pytest.mark.parametrize("behind", [{"swallows_notifications": True}, {"pooler": True}])
def test_behind_a_pooler_that_swallows_notifications_it_polls(
    notify: None,
    store: Store,
    messagedb_url: str,
    driver: str,
    behind: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("messagedb_sa.subscription._follower.NOTIFIED_POLL_SECONDS", 3600)
    with (
        awaited(store.engine),
        proxied(messagedb_url, **behind) as proxy,
        following(driver, proxy.url(driver), "account", poll_seconds=0.01) as followed,
    ):
        wait_until(lambda: listening(store.engine))
        write(store, 0)
        followed.wait_for(0)
        wait_until(lambda: proxy.swallowed)


def test_a_role_that_may_only_read_can_follow(notify: None, store: Store, login: Callable[[str], str]) -> None:
    role = login("messagedb_reader")
    with store.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {role}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {role}"))
    write(store, 0)
    own = Store(as_role(store.engine, role))
    try:
        for name in ("account", "account-1", "$all"):
            with Subscription(own, name, poll_seconds=0.01) as messages:
                assert next(messages).data == {"n": 0}
        with Subscription(own, "account", "end") as messages:
            write(store, 1)
            assert next(messages).data == {"n": 1}
    finally:
        with store.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
