"""The metrics of writes, and of reads that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider, get_meter
from sqlalchemy import Engine, create_engine, text

from messagedb_sa import (
    AsyncStore,
    Entity,
    InvalidArgument,
    Message,
    MessageTypes,
    Metrics,
    Store,
    Tracing,
    WrongExpectedVersion,
    applies,
)

from ..support import DRIVERS, store_on
from ..waits import wait_until
from .support import SENT, SETTLED, WRITES, Measured, by

WRONG_VERSION = "messagedb_sa.errors.WrongExpectedVersion"


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_written_messages_are_counted_by_category_and_errors_by_kind(
    store: Store, messagedb_url: str, driver: str
) -> None:
    measured = Measured()
    with store_on(driver, messagedb_url, metrics=measured.metrics) as own:
        own.write("account-1", "Opened", {})
        own.write_batch("account-2", [("Opened", {}), ("Closed", {})])
        own.write_streams([("account-3", [("Opened", {})]), ("order-1", [("Placed", {})] * 2), ("order-2", [], -1)])
        with pytest.raises(WrongExpectedVersion):
            own.write("account-1", "Opened", {}, expected_version=7)
        with pytest.raises(WrongExpectedVersion):
            own.write_streams([("account-1", [("Opened", {})], 7), ("order-1", [("Placed", {})])])
        own.read("account")
    assert measured.points(SENT) == {
        by(category="account"): 4,
        by(category="order"): 2,
        by(category="account", error=WRONG_VERSION): 2,
        by(category="order", error=WRONG_VERSION): 1,
    }
    assert measured.points(WRITES) == {
        by(category="account"): 2,
        by(): 1,
        by(category="account", error=WRONG_VERSION): 1,
        by(error=WRONG_VERSION): 1,
    }


def test_they_are_told_apart_by_type_if_asked(engine: Engine) -> None:
    measured = Measured(by_type=True)
    own = Store(engine, metrics=measured.metrics)
    own.write("account-1", "Opened", {})
    own.write_batch("account-2", [("Opened", {}), ("Closed", {})])
    assert measured.points(SENT) == {by(category="account", type="Opened"): 2, by(category="account", type="Closed"): 1}
    # Of a batch with several types, it would have no meaning.
    assert measured.points(WRITES) == {by(category="account"): 2}


def test_arguments_that_are_refused_send_nothing(engine: Engine) -> None:
    measured = Measured()
    own = Store(engine, metrics=measured.metrics)
    with pytest.raises(InvalidArgument):
        own.write("account-1", "Opened", object())
    with pytest.raises(InvalidArgument):
        own.write_batch("account-1", [])
    with pytest.raises(InvalidArgument):
        own.write(7, "Opened", {})  # type: ignore[call-overload]
    assert measured.points(SENT) == measured.points(WRITES) == {}


def test_combined_writes_are_counted_one_by_one(engine: Engine) -> None:
    measured = Measured()
    combining = Store(engine, combine_writes=True, metrics=measured.metrics)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: combining.write(f"account-{number}", "Opened", {}), range(40)))
    assert measured.points(SENT) == {by(category="account"): 40}


def test_writes_of_tasks_at_the_same_time_are_not_mixed_up(store: Store, messagedb_url: str) -> None:
    measured = Measured()

    async def main() -> None:
        own = AsyncStore.from_url(messagedb_url.replace("psycopg2", "asyncpg"), metrics=measured.metrics)
        await asyncio.gather(
            *(own.write_batch(f"c{number % 3}-{number}", [("T", {})] * (number % 3 + 1)) for number in range(30))
        )
        await own.engine.dispose()

    asyncio.run(main())
    assert measured.points(SENT) == {by(category=f"c{each}"): 10 * (each + 1) for each in range(3)}


def test_decisions_and_their_snapshots_are_counted(engine: Engine) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Deposited:
        amount: int

    @dataclass
    class Account:
        balance: int = 0

        @applies(Deposited)
        def deposit(self, event: Message[Deposited]) -> None:
            self.balance += event.data.amount

    measured = Measured()
    own = Store(engine, types=types, metrics=measured.metrics)
    account = Entity("account", Account, snapshot_every=2)
    for _ in range(2):
        own.decide(account, "1", lambda _: Deposited(1))
    assert measured.points(SENT) == {by(category="account"): 2, by(category="account:snapshot"): 1}


def test_it_measures_around_the_spans(engine: Engine) -> None:
    measured = Measured()
    own = Store(engine, metrics=measured.metrics, tracing=Tracing())
    own.write("account-1", "Opened", {})
    assert measured.points(SENT) == {by(category="account"): 1}


def test_names_units_and_boundaries_are_those_of_the_conventions(engine: Engine) -> None:
    measured = Measured()
    Store(engine, metrics=measured.metrics).write("account-1", "Opened", {})
    found = measured.raw()
    assert {name: metric.unit for name, metric in found.items()} == {SENT: "{message}", WRITES: "s"}
    (point,) = found[WRITES].data.data_points
    assert point.explicit_bounds[:3] == (0.005, 0.01, 0.025)
    assert 0 < point.sum < 240
    assert dict(point.attributes) == {
        "messaging.system": "message_db",
        "messaging.operation.name": "write",
        "messaging.operation.type": "send",
        "messaging.destination.name": "account",
    }


def test_reads_of_all_that_find_a_gap_measure_how_long_they_waited(engine: Engine) -> None:
    measured = Measured()
    own = Store(engine, metrics=measured.metrics)
    own.write("account-1", "Opened", {})
    assert len(own.read("$all")) == 1
    assert measured.points(SETTLED) == {}
    with engine.begin() as connection:
        Store(connection).write("account-2", "Opened", {})
        own.write("order-1", "Placed", {})
        # It cannot wait until the transaction ends.
        assert len(own.read("$all", settle_seconds=0.01)) == 1
        assert measured.points(SETTLED) == {by(settled=False): 1}
        reading = threading.Thread(target=own.read, args=("$all",), kwargs={"settle_seconds": 240.0})
        reading.start()
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'Pg' || 'Sleep'"
        # In a transaction, PostgreSQL would list the same sessions each time.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            wait_until(lambda: other.scalar(text(query)), "the read waits")
    reading.join(240)
    assert measured.points(SETTLED) == {by(settled=False): 1, by(settled=True): 1}


@pytest.mark.parametrize("no_metrics", [True, "on", NoOpMeterProvider(), Metrics])
def test_metrics_must_be_a_metrics(engine: Engine, no_metrics: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be a Metrics"):
        Store(engine, metrics=no_metrics)
    with pytest.raises(InvalidArgument, match="must be a Metrics"):
        AsyncStore.from_url("postgresql://", metrics=no_metrics)


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    for wrong in (get_meter("x"), NoOpMeterProvider, "global"):
        with pytest.raises(InvalidArgument, match="must be a MeterProvider"):
            Metrics(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"^by_type='yes'"):
        Metrics(by_type="yes")  # type: ignore[arg-type]
    with engine.connect() as connection:
        for store in (engine, Store(connection), AsyncStore.from_url("postgresql://")):
            with pytest.raises(InvalidArgument, match="must be a Store on an Engine"):
                Metrics().observe_consumers(store)  # type: ignore[arg-type]
