"""Errors that the database raises, and what becomes of the others."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, NullPool, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from messagedb_sa import (
    CannotSettle,
    ConditionNotActivated,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    Store,
    StoreNotInstalled,
    WrongExpectedVersion,
    errors,
    install,
)
from messagedb_sa.install import MigrationRefused

from .conftest import DRIVERS, as_role, store_on


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.write("account-1", "T", {}),
        lambda store: store.write_batch("account-1", [("T", {})]),
        lambda store: store.read("$all"),
        lambda store: store.read("account-1"),
        lambda store: store.read("account"),
        lambda store: store.read("account", "SELECT * FROM message_store.messages"),
        lambda store: store.read_last_message("account-1"),
        lambda store: store.stream_version("account-1"),
        lambda store: store.stream_identifiers("account"),
        lambda store: list(store.iter_stream("account-1")),
        lambda store: list(store.iter_all()),
        lambda store: store.version(),
    ],
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_database_without_a_store_says_so_and_how_to_install_one(
    empty_database: Engine, driver: str, call: Callable[[Store], object]
) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    with (
        store_on(driver, url, poolclass=NullPool) as store,
        pytest.raises(StoreNotInstalled, match=r"messagedb_sa\.install\.upgrade") as caught,
    ):
        call(store)
    assert "alembic -n messagedb upgrade head" in str(caught.value)
    assert "message_store" in caught.value.reason
    assert isinstance(caught.value.__cause__, DBAPIError)


def test_a_store_older_than_1_3_says_that_it_is_to_be_updated(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("DROP FUNCTION message_store.get_last_stream_message(varchar, varchar)"))
    with pytest.raises(StoreNotInstalled, match="Install or update"):
        Store(empty_database).read_last_message("account-1")


def test_a_condition_needs_the_sessions_consent(each_store: Store) -> None:
    with pytest.raises(ConditionNotActivated, match=r"message_store\.sql_condition=on"):
        each_store.read_stream("account-1", condition="true")
    with pytest.raises(ConditionNotActivated):
        each_store.read_category("account", condition="true")


def test_a_mistake_in_the_callers_own_sql_stays_the_drivers_error(each_store: Store) -> None:
    with pytest.raises(ProgrammingError, match="no_such_table"):
        each_store.read("account", "SELECT * FROM no_such_table")
    with pytest.raises(ProgrammingError, match="syntax error"):
        each_store.read("account", "SELEKT")
    with pytest.raises(ProgrammingError, match="metadata"):
        each_store.read("account", "SELECT 1 AS id")


@pytest.mark.parametrize("condition", ["data->>'n' > 5", "no_such_function(type)", "type IN (SELECT x FROM nowhere)"])
def test_a_mistake_in_a_condition_stays_the_drivers_error(messagedb_url: str, store: Store, condition: str) -> None:
    allowed = Store.from_url(messagedb_url, connect_args={"options": "-c message_store.sql_condition=on"})
    with pytest.raises(ProgrammingError, match="does not exist"):
        allowed.read_stream("account-1", condition=condition)
    allowed.engine.dispose()


def test_the_password_of_a_url_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Store("postgresql://joe:s3cret@localhost/app")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert "joe" in str(caught.value)


def test_a_missing_privilege_stays_the_drivers_error(
    messagedb_engine: Engine, store: Store, login: Callable[..., str]
) -> None:
    stranger = Store(as_role(messagedb_engine, login("messagedb_stranger")))
    with pytest.raises(ProgrammingError, match="permission denied for schema message_store"):
        stranger.read("account")


def test_a_lost_connection_stays_the_drivers_error_and_the_next_call_works(messagedb_url: str, store: Store) -> None:
    cut_off = Store.from_url(messagedb_url, pool_size=1, connect_args={"application_name": "cut off"})
    assert cut_off.version() == "1.3.0"
    with store.engine.connect() as connection:
        ended = text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'cut off'")
        assert connection.scalars(ended).all() == [True]
    with pytest.raises(OperationalError):
        cut_off.version()
    assert cut_off.version() == "1.3.0"
    cut_off.engine.dispose()


def test_errors_leave_the_pool_and_the_store_as_they_were(each_store: Store) -> None:
    each_store.write("account-1", "T", {})
    for _ in range(20):
        with pytest.raises(WrongExpectedVersion):
            each_store.write("account-1", "T", {}, expected_version=7)
    assert each_store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert each_store.write("account-1", "T", {}, expected_version=0) == 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("position", 1.5, "is no integer"),
        WrongExpectedVersion("account-1", 1, 2),
        DuplicateMessageId("3f1e2c7a-8d9b-4c6e-a5f4-1b2c3d4e5f60"),
        DuplicateMessageId(None),
        StoreNotInstalled("no schema"),
        ConditionNotActivated(),
        CannotSettle(7, "a standby server does not know"),
        errors.PostgresNotFound("nowhere"),
        errors.PostgresNotStarted("bad setting"),
        MigrationRefused("messages"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_is_a_message_db_error_and_pickles(error: MessageDBError) -> None:
    assert isinstance(error, MessageDBError)
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error) != ""
    assert vars(twin) == vars(error)
