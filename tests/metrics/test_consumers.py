"""The metrics of consumers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from tenacity import Retrying, stop_after_attempt

from messagedb_sa import Consumer, HandlerFailed, Message, Store
from messagedb_sa.testing import backdated

from ..consumer.support import Failing, running, terminate_all, write
from ..support import DRIVERS, consumer_on, store_on
from ..waits import wait_until
from .support import (
    CONNECTIONS,
    CONSUMED,
    LAG,
    PARKED,
    PROCESSED,
    RECONNECTS,
    RETRIES,
    Measured,
    by,
)

MAILER = {"category": "account", "consumer": "mailer"}


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"transactional": True, "record_every": 3}])
@pytest.mark.parametrize("driver", DRIVERS)
def test_handled_and_failed_messages_are_counted(
    store: Store, messagedb_url: str, driver: str, options: dict[str, Any]
) -> None:
    write(store, 5)
    measured = Measured()
    with store_on(driver, messagedb_url, metrics=measured.metrics) as own:
        # What was rolled back with the message that failed is handled again, and counts once.
        with pytest.raises(HandlerFailed):
            consumer_on(own, "account", Failing(4, times=2), "mailer", **options).run()
        assert (
            measured.points(CONSUMED)
            == measured.points(PROCESSED)
            == {
                by(**MAILER): 4,
                by(**MAILER, error="ValueError"): 1,
            }
        )


def test_they_are_told_apart_by_type_if_asked(engine: Engine, store: Store) -> None:
    write(store, 5)
    measured = Measured(by_type=True)
    own = Store(engine, metrics=measured.metrics)
    Consumer(own, "account", lambda _: None, "mailer").run_until_caught_up()
    Consumer(own, "account", {"Odd": lambda _: None}).run_until_caught_up()
    assert measured.points(CONSUMED) == {
        by(**MAILER, type="Even"): 3,
        by(**MAILER, type="Odd"): 2,
        by(category="account", type="Odd"): 2,
    }


@pytest.mark.parametrize("transactional", [False, True])
def test_retries_and_parked_messages_are_counted_and_replays_park_nothing(
    engine: Engine, store: Store, transactional: bool
) -> None:
    write(store, 3)
    measured = Measured()
    own = Store(engine, metrics=measured.metrics)
    options: dict[str, Any] = {"transactional": True} if transactional else {}
    retry = Retrying(stop=stop_after_attempt(3))
    consumer = Consumer(own, "account", Failing(1, times=7), "mailer", on_failure="park", retry=retry, **options)
    consumer.run_until_caught_up()
    assert measured.points(CONSUMED) == {by(**MAILER): 2, by(**MAILER, error="ValueError"): 3}
    assert measured.points(RETRIES) == {by(**MAILER): 2}
    assert measured.points(PARKED) == {by(**MAILER): 1}
    assert consumer.replay() == 0
    assert measured.points(PARKED) == {by(**MAILER): 1}
    assert consumer.replay() == 1
    assert measured.points(CONSUMED) == {by(**MAILER): 3, by(**MAILER, error="ValueError"): 7}
    assert measured.points(RETRIES) == {by(**MAILER): 5}


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_its_connection_is_counted_while_it_has_one(store: Store, messagedb_url: str, driver: str) -> None:
    measured = Measured()
    away = threading.Event()
    handled: list[Message] = []
    with store_on(driver, messagedb_url, metrics=measured.metrics) as own:

        @event.listens_for(own.engine, "do_connect")
        def refuse(*_: Any) -> None:
            if away.is_set():
                raise OSError("away")

        with running(consumer_on(own, "account", handled.append, "mailer")):
            write(store, 1)
            wait_until(lambda: handled)
            assert measured.points(CONNECTIONS) == {by(**MAILER): 1}
            away.set()
            terminate_all(store.engine)
            wait_until(lambda: measured.points(CONNECTIONS) == {by(**MAILER): 0})
            assert measured.points(RECONNECTS) == {}
            away.clear()
            wait_until(lambda: measured.points(CONNECTIONS) == {by(**MAILER): 1})
            # It is counted after that.
            wait_until(lambda: measured.points(RECONNECTS) == {by(**MAILER): 1})
    assert measured.points(CONNECTIONS) == {by(**MAILER): 0}


def test_the_age_of_what_waits_is_observed_for_all_consumers(engine: Engine, store: Store) -> None:
    write(store, 3)
    measured = Measured()
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    Consumer(store, "account", lambda _: None, "shared", slots=1).run_until_caught_up()
    assert measured.points(LAG) == {}
    measured.metrics.observe_consumers(Store(engine))
    mailer, shared = by(**MAILER), by(category="account", consumer="shared", member=0, size=1)
    assert measured.points(LAG) == {mailer: 0, shared: 0}
    with backdated(store, datetime.now(timezone.utc) - timedelta(hours=1)) as then:
        write(then, 1)
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    wait_until(lambda: measured.points(LAG)[shared] >= 3600)
    assert measured.points(LAG)[mailer] == 0


def test_a_database_that_is_away_costs_the_other_metrics_nothing(
    engine: Engine, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.metrics._ANSWER_SECONDS", 0.1)
    measured = Measured()
    own = Store(engine, metrics=measured.metrics)
    own.write("account-1", "Opened", {})
    nowhere = Store.from_url("postgresql+psycopg2://127.0.0.1:1/nowhere")
    measured.metrics.observe_consumers(nowhere)
    assert LAG not in measured.raw()
    assert "messaging.client.sent.messages" in measured.raw()
    assert "Callback failed" in caplog.text


def test_a_database_that_is_away_costs_the_ages_of_another_one_nothing(
    engine: Engine, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    Consumer(store, "account", lambda _: None, "mailer", position=1).run_until_caught_up()
    measured = Measured()
    measured.metrics.observe_consumers(Store.from_url("postgresql+psycopg2://127.0.0.1:1/nowhere"))
    measured.metrics.observe_consumers(Store(engine))
    assert measured.points(LAG) == {by(**MAILER): 0}
    assert "Callback failed" in caplog.text


def test_a_frozen_database_is_asked_once_and_holds_nobody_up(
    messagedb_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.metrics._ANSWER_SECONDS", 0.1)
    measured = Measured()
    own = create_engine(messagedb_url, poolclass=NullPool)
    asked: list[str] = []
    event.listen(own, "checkout", lambda *_: asked.append("asked"))
    measured.metrics.observe_consumers(Store(own))
    Consumer(store, "account", lambda _: None, "mailer", position=1).run_until_caught_up()
    with store.engine.begin() as connection:
        connection.execute(text("LOCK TABLE message_store.messages"))
        for _ in range(5):
            assert measured.points(LAG) == {}
            # In another thread.
            wait_until(lambda: asked)
        assert asked == ["asked"]
    wait_until(lambda: measured.points(LAG) == {by(**MAILER): 0})
