"""Messages with a time that the test gives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from messagedb_sa import AsyncStore, InvalidArgument, MessageDBError, MessageTypes, Store, WrongExpectedVersion
from messagedb_sa.testing import backdated

LAST_YEAR = datetime(2025, 1, 31, 12, 30, 0, 7, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Opened:
    owner: str


def test_all_messages_of_the_block_get_the_time_and_no_others(store: Store) -> None:
    store.write("account-1", "Opened", {})
    with backdated(store, LAST_YEAR) as dated:
        assert dated.write("account-1", "Deposited", {"n": 1}, expected_version=0) == 1
        dated.write_batch("account-1", [("Deposited", {"n": 2}), ("Deposited", {"n": 3})])
        dated.write_streams([("order-1", [("Placed", {})]), ("mail-1", [("Sent", {})])])
    store.write("account-1", "Closed", {})
    times = [message.time for message in store.read("$all")]
    assert times[1:-1] == [LAST_YEAR] * 5
    assert min(times[0], times[-1]) > LAST_YEAR + timedelta(days=300)


@pytest.mark.parametrize("time", [datetime(1, 1, 1, tzinfo=timezone.utc), datetime(9999, 12, 31, tzinfo=timezone.utc)])
def test_any_time_will_do(store: Store, time: datetime) -> None:
    with backdated(store, time) as dated:
        dated.write("account-1", "Opened", {})
    assert store.read("account")[0].time == time


def test_a_time_of_another_zone_is_the_same_moment(store: Store) -> None:
    with backdated(store, LAST_YEAR.astimezone(timezone(timedelta(hours=5)))) as dated:
        dated.write("account-1", "Opened", {})
    assert store.read("account")[0].time == LAST_YEAR


def test_the_types_of_the_store_are_kept(store: Store) -> None:
    types = MessageTypes()
    types.register(Opened)
    typed = Store(store.engine, types=types)
    with backdated(typed, LAST_YEAR) as dated:
        dated.write("account-1", Opened("Ada"))
    (message,) = typed.read("account")
    assert (message.data, message.time) == (Opened("Ada"), LAST_YEAR)


def test_an_error_in_the_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(WrongExpectedVersion), backdated(store, LAST_YEAR) as dated:
        dated.write_batch("account-1", [("Opened", {})], dated.write("account-1", "Opened", {}) + 7)
    assert store.read("$all", allow_holes=True) == []


@pytest.mark.parametrize("joined", [lambda connection: connection, Session])
def test_on_a_connection_or_session_it_is_a_part_of_the_callers_transaction(
    messagedb_engine: Engine, store: Store, joined: Any
) -> None:
    with messagedb_engine.connect() as connection:
        own = Store(joined(connection))
        own.write("account-1", "Opened", {})
        for days in range(2):
            with backdated(own, LAST_YEAR + timedelta(days=days)) as dated:
                dated.write("account-1", "Deposited", {})
        own.write("account-1", "Closed", {})
        assert store.read("$all", allow_holes=True) == []
        own.bind.commit()  # type: ignore[union-attr]
        connection.commit()
    first, *backdates, last = (message.time for message in store.read("account"))
    assert backdates == [LAST_YEAR, LAST_YEAR + timedelta(days=1)]
    assert first == last > LAST_YEAR


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_the_engine_may_have_another_isolation_level(messagedb_url: str, store: Store, level: Any) -> None:
    engine = create_engine(messagedb_url, isolation_level=level)
    with backdated(Store(engine), LAST_YEAR) as dated:
        dated.write("account-1", "Opened", {})
    engine.dispose()
    assert store.read("account")[0].time == LAST_YEAR


def test_a_block_that_commits_is_an_error(messagedb_engine: Engine, store: Store) -> None:
    with (
        messagedb_engine.connect() as connection,
        pytest.raises(MessageDBError, match="must be one transaction: do not commit in it"),
        backdated(Store(connection), LAST_YEAR),
    ):
        connection.commit()


def test_so_is_one_on_a_connection_in_autocommit_mode(messagedb_engine: Engine, store: Store) -> None:
    with (
        messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(MessageDBError, match=r"must be one transaction: .* nor use autocommit"),
        backdated(Store(connection), LAST_YEAR) as dated,
    ):
        dated.write("account-1", "Opened", {})


@pytest.mark.parametrize("time", [datetime(2025, 1, 31), "2025-01-31", None, 5])
def test_a_time_that_is_no_moment_is_refused(store: Store, time: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^time=.*: must be an aware datetime"), backdated(store, time):
        pass


def test_a_time_outside_of_pythons_years_in_utc_is_refused_before_the_block(store: Store) -> None:
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(InvalidArgument, match=r"^time=.*: must be in the years 1 to 9999 in UTC$"):
        backdated(store, first).__enter__()
    assert store.read("$all") == []


def test_an_asynchronous_store_is_refused(messagedb_async_store: AsyncStore) -> None:
    with (
        pytest.raises(InvalidArgument, match=r"^store=<AsyncStore .*: must be a Store"),
        backdated(messagedb_async_store, LAST_YEAR),  # type: ignore[arg-type]
    ):
        pass
