"""Errors that the database raises, and what becomes of the others."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, NullPool, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from messagedb_sa import (
    CannotSettle,
    ConditionNotActivated,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    MissingPrivilege,
    Store,
    StoreNotInstalled,
    WrongExpectedVersion,
    errors,
    install,
)
from messagedb_sa._drivers.errors import server_error
from messagedb_sa.install import MigrationRefused

from ..support import DRIVERS, as_role, on, store_on

EVERYTHING: list[Callable[[Store], object]] = [
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
]


@pytest.mark.parametrize("call", EVERYTHING)
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
    with pytest.raises(ConditionNotActivated, match=r"SET LOCAL message_store\.sql_condition = on"):
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


@pytest.mark.parametrize(
    "condition",
    [
        "data->>'n' > 5",
        "no_such_function(type)",
        "type IN (SELECT x FROM nowhere)",
        "message_store.no_such_function(data)",
        "EXISTS (SELECT 1 FROM message_store.nowhere)",
    ],
)
def test_a_mistake_in_a_condition_stays_the_drivers_error(messagedb_url: str, store: Store, condition: str) -> None:
    allowed = Store.from_url(messagedb_url, connect_args={"options": "-c message_store.sql_condition=on"})
    with pytest.raises(ProgrammingError, match="does not exist"):
        allowed.read_stream("account-1", condition=condition)
    allowed.engine.dispose()


WRITE_TO_ANOTHER_STREAM = "message_store.write_message(gen_random_uuid()::varchar, 'other-1', 'T', '{}', NULL, 5)"


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.write("account-1", "T", {}),
        lambda store: store.write("account-1", "T", {}, expected_version=-1),
        lambda store: store.write_batch("account-1", [("T", {})], -1),
        lambda store: store.write_streams([("account-1", [("T", {})], -1), ("account-2", [("T", {})])]),
    ],
)
def test_a_wrong_version_of_a_triggers_own_write_stays_the_drivers_error(
    store: Store, messagedb_engine: Engine, write: Callable[[Store], object]
) -> None:
    with messagedb_engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION public.also() RETURNS trigger LANGUAGE plpgsql AS $$"
                f" BEGIN PERFORM {WRITE_TO_ANOTHER_STREAM}; RETURN NULL; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER also AFTER INSERT ON message_store.messages FOR EACH ROW EXECUTE FUNCTION also()")
        )
    try:
        with pytest.raises(DBAPIError, match=r"Wrong expected version: 5 \(Stream: other-1"):
            write(store)
    finally:
        with messagedb_engine.begin() as connection:
            connection.execute(text("DROP TRIGGER also ON message_store.messages"))
            connection.execute(text("DROP FUNCTION public.also()"))


def test_a_wrong_version_in_the_callers_own_sql_stays_the_drivers_error(store: Store) -> None:
    store.write("account-1", "T", {})
    with pytest.raises(DBAPIError, match="Wrong expected version: 5"):
        store.read("account-1", f"SELECT * FROM message_store.messages WHERE {WRITE_TO_ANOTHER_STREAM} = 0")


def test_the_password_of_a_url_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Store("postgresql://joe:s3cret@localhost/app")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert "joe" in str(caught.value)


LONG, NO_JSON = {"is": "long"}, {"is": "no json"}
# What the server refuses, by SQLSTATE, and what becomes of it: our error by argument, or SQLAlchemy's own.
SQLSTATES: list[tuple[str, Callable[[Store], object], type[Exception], str]] = [
    (
        "22003",
        lambda s: s.write("a-1", "T", LONG),
        InvalidArgument,
        r"data=Decimal\('1E\+140000'\): must not contain a number of more",
    ),
    (
        "22003",
        lambda s: s.write_batch("a-1", [("T", 1, LONG)]),
        InvalidArgument,
        r"messages\[0\].metadata=Decimal\('1E\+140000'\): must",
    ),
    (
        "22P02",
        lambda s: s.write("a-1", "T", NO_JSON),
        InvalidArgument,
        r"data='no json': .* the engine's json_serializer",
    ),
    ("22P02", lambda s: s.write("a-1", "T", 1, NO_JSON), InvalidArgument, r"metadata='no json': .* json_serializer"),
    ("22P02", lambda s: s.read_stream("a-1", condition="'x'::uuid = id"), DBAPIError, "type uuid"),
    ("22008", lambda s: s.read_stream("a-1", condition="time > '2026-13-45'::date"), DBAPIError, "out of range"),
    (
        "22012",
        lambda s: s.read_stream("a-1", condition="1 / (position - position) = 0"),
        DBAPIError,
        "division by zero",
    ),
    ("42601", lambda s: s.read_stream("a-1", condition="position >"), DBAPIError, "syntax error"),
    ("42703", lambda s: s.read_category("a", condition="no_such_column = 1"), DBAPIError, "no_such_column"),
    ("42883", lambda s: s.read_stream("a-1", condition="no_such_function(type)"), DBAPIError, "no_such_function"),
    ("42P01", lambda s: s.read("a", "SELECT * FROM no_such_table"), DBAPIError, "no_such_table"),
    ("42601", lambda s: s.read("a", "SELEKT"), DBAPIError, "syntax error"),
    ("42703", lambda s: s.read("a", "SELECT no_such_column FROM message_store.messages"), DBAPIError, "no_such_column"),
    (
        "57014",
        # By itself, since a timeout that is short for this statement may be so for others on a busy machine.
        lambda s: s.read_stream(
            "a-1", condition="CASE WHEN pg_cancel_backend(pg_backend_pid()) THEN pg_sleep(60) IS NULL END"
        ),
        DBAPIError,
        "canceling statement",
    ),
]


@pytest.mark.parametrize(("state", "call", "error", "text"), SQLSTATES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_what_the_server_refuses_is_named_by_argument_or_stays_sqlalchemys(
    messagedb_url: str,
    store: Store,
    driver: str,
    state: str,
    call: Callable[[Store], object],
    error: type[Exception],
    text: str,
) -> None:
    def serialize(value: Any) -> str:
        return "1e140000" if value == LONG else "no json" if value == NO_JSON else json.dumps(value)

    store.write("a-1", "T", {})
    if driver == "asyncpg":
        given: dict[str, Any] = {"server_settings": {"message_store.sql_condition": "on"}}
    else:
        given = {"options": "-c message_store.sql_condition=on"}
    with store_on(driver, messagedb_url, connect_args=given, json_serializer=serialize) as refused:
        with pytest.raises(error, match=text) as caught:
            call(refused)
        cause: Any = caught.value.__cause__ if isinstance(caught.value, MessageDBError) else caught.value
        assert server_error(cause).state == state
        assert refused.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert refused.read("a-1", position=1) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_the_callers_transaction_or_engine_forbids_stays_sqlalchemys(
    messagedb_url: str, store: Store, driver: str
) -> None:
    def body(connection: Connection) -> list[str | None]:
        joined, states = Store(connection), []
        connection.execute(text("SET TRANSACTION READ ONLY"))
        for _ in range(2):
            with pytest.raises(DBAPIError) as caught:
                joined.write("a-1", "T", {})
            states.append(server_error(caught.value).state)
        connection.rollback()
        return states

    assert on(driver, messagedb_url, body) == ["25006", "25P02"]


@pytest.mark.parametrize("clock", [-1, 0, -(10**21)])
def test_a_clock_before_1970_gives_valid_ids(store: Store, monkeypatch: pytest.MonkeyPatch, clock: int) -> None:
    monkeypatch.setattr("time.time_ns", lambda: clock)
    assert store.write("a-1", "T", {}) == 0
    assert store.write_batch("a-1", [("T", {})] * 3) == 3
    assert {UUID(message.id).version for message in store.read("a-1")} == {7}


# ---- missing privileges


@pytest.fixture
def stranger(messagedb_engine: Engine, store: Store, login: Callable[..., str]) -> Iterator[str]:
    """A role that may do nothing with the store. Its name needs quotes."""
    name = login('"messagedb stranger"').strip('"')
    yield name
    with messagedb_engine.begin() as connection:
        connection.execute(text('DROP OWNED BY "messagedb stranger"'))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_missing_privilege_names_the_role_and_the_object_and_the_grants(
    messagedb_url: str, messagedb_engine: Engine, stranger: str, driver: str
) -> None:
    url = make_url(messagedb_url).set(username=stranger).render_as_string(hide_password=False)
    with store_on(driver, url, poolclass=NullPool) as refused:
        with pytest.raises(MissingPrivilege) as caught:
            refused.read("account")
        assert (caught.value.role, caught.value.reason) == (stranger, "permission denied for schema message_store")
        assert isinstance(caught.value.__cause__, DBAPIError)
        by_membership, _, one_by_one = str(caught.value).partition("; or, if the server has no role message_store: ")
        assert by_membership.endswith('run: GRANT message_store TO "messagedb stranger"')
        with messagedb_engine.begin() as connection:
            for grant in one_by_one.split(";")[:-1]:
                connection.execute(text(grant))
        for call in EVERYTHING:
            call(refused)


def test_membership_in_the_role_is_enough(messagedb_url: str, messagedb_engine: Engine, stranger: str) -> None:
    with messagedb_engine.begin() as connection:
        connection.execute(text('GRANT message_store TO "messagedb stranger"'))
    member = Store(as_role(messagedb_engine, stranger))
    for call in EVERYTHING:
        call(member)


@pytest.mark.parametrize(
    ("revoked", "call", "named"),
    [
        ("INSERT ON message_store.messages", lambda s: s.write("a-1", "T", {}), "table messages"),
        ("SELECT ON message_store.messages", lambda s: s.read("a-1"), "table messages"),
        ("SELECT ON message_store.messages", lambda s: s.read("a", "TABLE message_store.messages"), "table messages"),
        (
            "USAGE ON SEQUENCE message_store.messages_global_position_seq",
            lambda s: s.write("a-1", "T", {}),
            "sequence messages_global_position_seq",
        ),
        (
            "SELECT ON message_store.type_summary",
            lambda s: s.read("a", "SELECT m.* FROM message_store.messages m, message_store.type_summary"),
            "view type_summary",
        ),
    ],
)
def test_each_privilege_that_is_missing_is_named(
    messagedb_engine: Engine, stranger: str, revoked: str, call: Callable[[Store], object], named: str
) -> None:
    role = '"messagedb stranger"'
    with messagedb_engine.begin() as connection:
        for granted in (
            "USAGE ON SCHEMA message_store",
            "SELECT ON ALL TABLES IN SCHEMA message_store",
            "INSERT ON message_store.messages",
            "USAGE, SELECT ON ALL SEQUENCES IN SCHEMA message_store",
        ):
            connection.execute(text(f"GRANT {granted} TO {role}"))
        connection.execute(text(f"REVOKE {revoked} FROM {role}"))
    with pytest.raises(
        MissingPrivilege, match=f"role 'messagedb stranger' lacks a privilege .permission denied for {named}"
    ):
        call(Store(as_role(messagedb_engine, stranger)))


def test_a_function_that_may_not_be_executed_is_named(stranger: str, empty_database: Engine) -> None:
    install.upgrade(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text('GRANT USAGE ON SCHEMA message_store TO "messagedb stranger"'))
        connection.execute(text("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA message_store FROM public"))
    with pytest.raises(MissingPrivilege, match="permission denied for function message_store_version"):
        Store(as_role(empty_database, stranger)).version()


def test_a_privilege_on_an_object_of_the_callers_own_stays_sqlalchemys(messagedb_engine: Engine, stranger: str) -> None:
    with messagedb_engine.begin() as connection:
        connection.execute(text('GRANT message_store TO "messagedb stranger"'))
    with pytest.raises(ProgrammingError, match="permission denied for table pg_authid"):
        Store(as_role(messagedb_engine, stranger)).read(
            "a", "SELECT m.* FROM message_store.messages m, pg_catalog.pg_authid"
        )


def test_a_lost_connection_stays_the_drivers_error_and_the_next_call_works(messagedb_url: str, store: Store) -> None:
    cut_off = Store.from_url(messagedb_url, pool_size=1, connect_args={"application_name": "cut off"})
    assert cut_off.version() == "1.3.0"
    with store.engine.connect() as connection:
        ended = text("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'cut off'")
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
        MissingPrivilege("app", "permission denied for schema message_store"),
        MissingPrivilege(None, "permission denied for schema message_store"),
        ConditionNotActivated(),
        CannotSettle(7, "a standby server does not know"),
        errors.NotCaughtUp("account", "greeter", 3, 7),
        errors.NotCaughtUp("account", None, None, 7),
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
