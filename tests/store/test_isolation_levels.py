"""Joined writes under each isolation level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from messagedb_sa import Store, WrongExpectedVersion

from .support import usable

LOST_RACES: list[Callable[[Store], Any]] = [
    lambda store: store.write("order-1", "Paid", {}, expected_version=0),
    lambda store: store.write_batch("order-1", [("Paid", {}), ("Shipped", {})], expected_version=0),
    lambda store: store.write_streams([("order-1", [("Paid", {})], 0), ("bill-1", [("Sent", {})])]),
]


@pytest.mark.parametrize("race", LOST_RACES)
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_lost_race_is_a_wrong_expected_version_under_each_isolation_level(
    engine: Engine, store: Store, level: Any, race: Callable[[Store], Any]
) -> None:
    store.write("order-1", "Placed", {})
    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        assert joined.stream_version("order-1") == 0
        # Read by another transaction too, for SERIALIZABLE sees a conflict only where both read what the other wrote.
        with store.engine.connect().execution_options(isolation_level=level) as other:
            Store(other).write("order-1", "Cancelled", {}, expected_version=0)
            other.commit()
        with pytest.raises(WrongExpectedVersion) as caught:
            race(joined)
        error = caught.value
        assert (error.stream_name, error.expected_version) == ("order-1", 0)
        if level == "READ COMMITTED":
            assert error.actual_version == 1
            assert usable(connection)
        else:
            assert error.actual_version is None
            assert "is at another version, expected 0" in str(error)
            assert isinstance(error.__cause__, DBAPIError)
        connection.rollback()
    assert [message.type for message in store.read("$all")] == ["Placed", "Cancelled"]


@pytest.mark.parametrize(("level", "state"), [("REPEATABLE READ", "23505"), ("SERIALIZABLE", "40001")])
def test_without_an_expected_version_the_driver_asks_to_retry_the_transaction(
    engine: Engine, store: Store, level: Any, state: str
) -> None:
    store.write("order-1", "Placed", {})
    with engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        joined.stream_version("order-1")
        with store.engine.connect().execution_options(isolation_level=level) as other:
            Store(other).write("order-1", "Cancelled", {})
            other.commit()
        with pytest.raises(DBAPIError) as caught:
            joined.write("order-1", "Paid", {})
        assert caught.value.orig.pgcode == state  # type: ignore[union-attr]
        connection.rollback()
        assert joined.write("order-1", "Paid", {}) == 2
        connection.commit()


def test_a_position_taken_under_repeatable_read_names_the_stream(engine: Engine, store: Store) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        joined = Store(connection)
        joined.version()
        store.write("b,c) (x-1", "T", {})
        with pytest.raises(WrongExpectedVersion) as caught:
            joined.write_streams([("a-1", [("T", {})], -1), ("b,c) (x-1", [("T", {})], -1)])
        assert caught.value.stream_name == "b,c) (x-1"
        assert isinstance(caught.value.__cause__, IntegrityError)
