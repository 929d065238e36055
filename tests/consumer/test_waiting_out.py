"""What no handler caused is waited out: too few connections, a read-only server, locks and timeouts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Consumer, ConsumerError, HandlerFailed, Message, Store, install
from messagedb_sa.testing import temporary_database, temporary_server

from ..support import DRIVERS, as_role, consumer_on, numbers, orders, store_on
from ..waits import category_locked, wait_until
from .support import Failing, database_time, is_waiting, last_position, order_numbers, running, write

TRIES_AGAIN = "tries again"

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"record_every": 1},
    "slots": {"record_every": 1, "slots": 1},
    "transactional": {"transactional": True},
    "together": {"transactional": True, "record_every": 10},
}
POSITIONS = dict.fromkeys(KINDS, "account:position-mailer") | {"slots": "account:position-mailer-0-of-1"}


class Counting:
    """A handler that keeps the numbers that it is given."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, message: Message, *_: Any) -> None:
        self.numbers.append(message.data["n"])


# Connections


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._session._FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("record_every", [None, 10])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_an_exhausted_pool_is_not_the_failure_of_a_message(
    store: Store, messagedb_url: str, driver: str, record_every: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Counting()
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    with store_on(driver, messagedb_url, **pool) as own:
        consumer = Consumer(
            own, "account", handle, "mailer", transactional=True, record_every=record_every, on_failure="park"
        )
        write(store, 1)
        with running(consumer):
            wait_until(lambda: handle.numbers == [0])
            wait_until(lambda: own.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
            with own.engine.connect():
                write(store, 9, first=1)
                wait_until(
                    lambda: f"could not begin or commit a transaction, {TRIES_AGAIN}: TimeoutError" in caplog.text
                )
                assert handle.numbers == [0]
            wait_until(lambda: len(handle.numbers) == 10)
    assert handle.numbers == list(range(10))
    assert store.read("account:dead-mailer") == []


@pytest.mark.parametrize("options", [{}, {"record_every": 10}, {"slots": 2}])
def test_a_role_at_its_limit_of_connections_is_not_the_failure_of_a_message(
    each_store: Store,
    messagedb_store: Store,
    login: Callable[..., str],
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = Counting()
    role = login("two_connections", "CONNECTION LIMIT 2 IN ROLE message_store")
    driver = each_store.engine.url.drivername.partition("+")[2]
    driver = "psycopg_async" if each_store.engine.dialect.is_async and driver == "psycopg" else driver
    url = make_url(each_store.engine.url).set(username=role).render_as_string(hide_password=False)
    with store_on(driver, url, poolclass=NullPool) as own:
        consumer = consumer_on(own, "account", handle, "mailer", transactional=True, on_failure="park", **options)
        write(messagedb_store, 1)
        with running(consumer):
            wait_until(lambda: handle.numbers == [0])
            with taken(as_role(messagedb_store.engine, role)):
                write(messagedb_store, 9, first=1)
                wait_until(lambda: f"could not begin or commit a transaction, {TRIES_AGAIN}" in caplog.text)
            wait_until(lambda: len(handle.numbers) == 10)
    assert sorted(handle.numbers) == list(range(10))
    assert messagedb_store.read("account:dead-mailer") == []


@contextmanager
def taken(engine: Engine) -> Iterator[None]:
    """The role's last connection, as soon as there is one."""
    connections: list[Connection] = []

    def is_taken() -> bool:
        try:
            connections.append(engine.connect())
        except DBAPIError:
            return False
        return True

    wait_until(is_taken)
    with connections[0]:
        yield


def test_it_can_be_stopped_while_it_waits_for_a_connection(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    handle = Counting()
    consumer = Consumer(Store(engine), "account", handle, "mailer", transactional=True)
    write(store, 1)
    with ExitStack() as until_it_has_stopped, running(consumer):
        wait_until(lambda: handle.numbers == [0] and engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
        until_it_has_stopped.enter_context(engine.connect())
        write(store, 1, first=1)
        wait_until(lambda: TRIES_AGAIN in caplog.text)
    assert handle.numbers == [0]
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_stopping_does_not_take_as_long_as_the_pool_may_wait(
    store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._host.STOP_SECONDS", 0.2)
    handle = Counting()
    before = set(threading.enumerate())
    with store_on(driver, messagedb_url, pool_size=1, max_overflow=0, pool_timeout=3600) as own:
        consumer = consumer_on(own, "account", handle, "mailer", transactional=True, poll_seconds=0.01)
        write(store, 1)
        with running(consumer):
            pool: Any = own.engine.pool
            wait_until(lambda: handle.numbers == [0] and pool.checkedout() == 0)
            taken = pool.connect()
            write(store, 1, first=1)
            since = database_time(store.engine)
            # It has asked for messages, and found one.
            wait_until(lambda: is_waiting(store.engine, since))
        taken.invalidate()
        # The thread that waits for the pool gets a connection now, and gives it back. After the engine's end that
        # connection would stay open until it is garbage.
        wait_until(lambda: {each for each in threading.enumerate() if each.name == "messagedb_sa.connect"} <= before)
    assert handle.numbers == [0]


def test_a_role_with_another_time_zone_is_not_another_server(store: Store, messagedb_url: str) -> None:
    """As a pool connects again after a change of the role's settings."""
    engine = create_engine(messagedb_url)
    handle = Counting()
    change = text("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")
    change_back = text("ALTER ROLE CURRENT_USER RESET timezone")
    with running(Consumer(Store(engine), "account", handle, "mailer", transactional=True)):
        write(store, 1)
        wait_until(lambda: handle.numbers == [0] and engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
        with store.engine.begin() as connection:
            connection.execute(change)
        try:
            engine.dispose()
            write(store, 1, first=1)
            wait_until(lambda: handle.numbers == [0, 1])
        finally:
            with store.engine.begin() as connection:
                connection.execute(change_back)
    engine.dispose()


def test_a_handler_that_finds_the_pool_exhausted_has_failed(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        engine.connect()

    with pytest.raises(HandlerFailed, match="TimeoutError: QueuePool limit"):
        Consumer(Store(engine), "account", handle, "mailer", transactional=True).run_until_caught_up()
    engine.dispose()


# Read-only servers


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    with temporary_server(settings={"restart_after_crash": "on"}) as url:
        yield url


@pytest.fixture
def own_url(own_server: str) -> Iterator[str]:
    with temporary_database(own_server) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        yield url


@contextmanager
def read_only(engine: Engine) -> Iterator[None]:
    """The whole server, for all sessions but those of this engine."""

    def set_to(value: str) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {value}"))
            connection.execute(text("SELECT pg_reload_conf()"))
        with create_engine(engine.url, poolclass=NullPool).connect() as other:
            wait_until(lambda: other.scalar(text("SHOW default_transaction_read_only")) == value)

    set_to("on")
    try:
        yield
    finally:
        set_to("off")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_becomes_read_only_is_not_the_failure_of_a_message(
    own_url: str, driver: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    writable = create_engine(own_url, connect_args={"options": "-c default_transaction_read_only=off"})
    writer = Store(writable)
    handle = Counting()
    write(writer, 1)
    with (
        store_on(driver, own_url) as store,
        running(consumer_on(store, "account", handle, "mailer", on_failure="park", **KINDS[kind])),
    ):
        wait_until(lambda: last_position(writer, POSITIONS[kind]) == 1)
        with read_only(writable):
            write(writer, 5, first=1)
            wait_until(
                lambda: (
                    "cannot record its position, connecting again: ConsumerError: the server is read-only"
                    in caplog.text
                )
            )
        wait_until(lambda: set(handle.numbers) == set(range(6)))
        wait_until(lambda: last_position(writer, POSITIONS[kind]) == writer.read("account")[-1].global_position)
    assert writer.read("account:dead-mailer") == []
    writable.dispose()


def test_a_handler_that_makes_its_transaction_read_only_has_failed(store: Store, tables: None) -> None:
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(insert(orders).values(number=1))

    with pytest.raises(HandlerFailed, match="read-only transaction"):
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()


@pytest.mark.parametrize("transactional", [False, True])
def test_a_read_only_server_is_an_error_at_the_start(
    each_store: Store, login: Callable[..., str], transactional: bool
) -> None:
    with (
        each_store_as(each_store, login("reader", "SUPERUSER"), "default_transaction_read_only", "on") as own,
        pytest.raises(ConsumerError, match="the server is read-only"),
    ):
        consumer_on(own, "account", print, "mailer", transactional=transactional).run()


# Locks and timeouts


@contextmanager
def each_store_as(each_store: Store, role: str, setting: str, value: str) -> Iterator[Store]:
    """The store as a role with a setting of its own, on the same driver."""
    url = each_store.engine.url
    driver = url.drivername.partition("+")[2]
    driver = "psycopg_async" if each_store.engine.dialect.is_async and driver == "psycopg" else driver
    sync = create_engine(url.set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    with sync.begin() as connection:
        connection.execute(text(f"ALTER ROLE {role} SET {setting} = '{value}'"))
    with store_on(driver, url.set(username=role).render_as_string(hide_password=False)) as own:
        yield own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_a_timeout_while_the_position_is_recorded_is_tried_again(
    each_store: Store,
    messagedb_store: Store,
    login: Callable[..., str],
    setting: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = Counting()
    write(messagedb_store, 3)
    with (
        each_store_as(each_store, login("impatient", "SUPERUSER"), setting, "200ms") as own,
        ExitStack() as until_it_tries_again,
    ):
        # Before it runs, and records.
        until_it_tries_again.enter_context(category_locked(messagedb_store.engine, "account:position-1"))
        with running(consumer_on(own, "account", handle, "mailer", on_failure="park", **KINDS[kind])):
            wait_until(lambda: TRIES_AGAIN in caplog.text)
            until_it_tries_again.close()
            wait_until(lambda: last_position(messagedb_store, POSITIONS[kind]) == 3)
    assert set(handle.numbers) == {0, 1, 2}
    assert messagedb_store.read("account:dead-mailer") == []


@pytest.mark.parametrize("kind", ["plain", "transactional"])
def test_a_timeout_while_a_message_is_parked_is_tried_again(
    each_store: Store, messagedb_store: Store, login: Callable[..., str], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(at=1)
    write(messagedb_store, 3)
    with (
        each_store_as(each_store, login("impatient", "SUPERUSER"), "lock_timeout", "50ms") as own,
        ExitStack() as until_it_tries_again,
    ):
        # Before it runs, and parks.
        until_it_tries_again.enter_context(category_locked(messagedb_store.engine, "account:dead-1"))
        with running(consumer_on(own, "account", failing, "mailer", on_failure="park", **KINDS[kind])):
            wait_until(lambda: TRIES_AGAIN in caplog.text)
            until_it_tries_again.close()
            wait_until(lambda: failing.numbers[-1] == 2)
    assert failing.numbers == [0, 1, 2]
    assert numbers(messagedb_store.read("account:dead-mailer")) == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_while_messages_are_read_is_tried_again(
    each_store: Store, messagedb_store: Store, login: Callable[..., str], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Counting()
    write(messagedb_store, 1)
    with (
        each_store_as(each_store, login("impatient", "SUPERUSER"), "lock_timeout", "50ms") as own,
        running(consumer_on(own, "account", handle, "mailer", **KINDS[kind])),
    ):
        wait_until(lambda: last_position(messagedb_store, POSITIONS[kind]) == 1)
        with messagedb_store.engine.begin() as connection:
            connection.execute(text("LOCK TABLE message_store.messages"))
            wait_until(lambda: f"could not read or record, {TRIES_AGAIN}" in caplog.text)
        write(messagedb_store, 1, first=1)
        wait_until(lambda: handle.numbers == [0, 1])


def test_a_serialization_failure_while_the_position_is_recorded_is_tried_again(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger raises it once: it is hard to provoke in a statement that is a transaction of its own."""
    with store.engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE attempts"))
        connection.execute(
            text(
                "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF nextval('attempts') = 1 THEN RAISE 'once' USING ERRCODE = 'serialization_failure'; END IF;"
                " RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER fail_once BEFORE INSERT ON message_store.messages FOR EACH ROW"
                " WHEN (NEW.type = 'Recorded') EXECUTE FUNCTION fail_once()"
            )
        )
    write(store, 3)
    handle = Counting()
    try:
        Consumer(store, "account", handle, "mailer").run_until_caught_up()
    finally:
        with store.engine.begin() as connection:
            connection.execute(text("DROP TRIGGER fail_once ON message_store.messages"))
            connection.execute(text("DROP FUNCTION fail_once"))
            connection.execute(text("DROP SEQUENCE attempts"))
    assert handle.numbers == [0, 1, 2]
    assert last_position(store, "account:position-mailer") == 3
    assert TRIES_AGAIN in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_it_stops_and_warns_if_its_position_cannot_be_recorded(
    each_store: Store, messagedb_store: Store, login: Callable[..., str], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Counting()
    write(messagedb_store, 3)
    with (
        each_store_as(each_store, login("impatient", "SUPERUSER"), "lock_timeout", "50ms") as own,
        category_locked(messagedb_store.engine, "account:position-1"),
        running(consumer_on(own, "account", handle, "mailer", **KINDS[kind])),
    ):
        wait_until(lambda: TRIES_AGAIN in caplog.text)
    if "transactional" not in KINDS[kind]:
        assert "stops without recording its position" in caplog.text
    assert last_position(messagedb_store, POSITIONS[kind]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_stopped_while_it_cannot_read(
    each_store: Store, messagedb_store: Store, login: Callable[..., str], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        each_store_as(each_store, login("impatient", "SUPERUSER"), "lock_timeout", "50ms") as own,
        messagedb_store.engine.begin() as connection,
    ):
        connection.execute(text("LOCK TABLE message_store.messages"))
        with running(consumer_on(own, "account", print, "mailer", **KINDS[kind])):
            wait_until(lambda: f"could not read or record, {TRIES_AGAIN}" in caplog.text)


def test_an_error_of_a_handler_is_raised_although_the_position_cannot_be_recorded(
    store: Store, login: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 3)
    engine = as_role(store.engine, login("impatient", "SUPERUSER"), connect_args={"options": "-c lock_timeout=50ms"})
    consumer = Consumer(Store(engine), "account", refuse_after_the_first(), "mailer")
    with category_locked(store.engine, "account:position-1"), pytest.raises(KeyboardInterrupt):
        consumer.run()
    assert "stops without recording its position" in caplog.text


def refuse_after_the_first() -> Callable[[Message], None]:
    def handle(message: Message) -> None:
        if message.data["n"] > 0:
            raise KeyboardInterrupt

    return handle


# What is a handler's fault, although it is found at the commit


@pytest.mark.parametrize("record_every", [None, 10])
def test_a_deferred_constraint_that_is_violated_is_the_failure_of_its_message(
    store: Store, tables: None, record_every: int | None
) -> None:
    write(store, 3)
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders ADD CONSTRAINT once UNIQUE (number) DEFERRABLE INITIALLY DEFERRED"))
        connection.execute(text("ALTER TABLE orders DROP CONSTRAINT orders_pkey"))

    def handle(message: Message, connection: Connection) -> None:
        for _ in range(2 if message.data["n"] == 1 else 1):
            connection.execute(insert(orders).values(number=message.data["n"]))

    consumer = Consumer(
        store, "account", handle, "mailer", transactional=True, record_every=record_every, on_failure="park"
    )
    assert consumer.run_until_caught_up() == 3
    assert order_numbers(store) == [0, 2]
    assert numbers(store.read("account:dead-mailer")) == [1]


def test_an_error_of_the_database_that_a_handler_ignores_is_the_failure_of_its_message(
    store: Store, tables: None
) -> None:
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(HandlerFailed, match="transaction is aborted"):
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()


def test_a_lock_timeout_of_a_handler_is_the_failure_of_its_message(store: Store, tables: None) -> None:
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
        connection.execute(select(orders))

    with store.engine.begin() as connection:
        connection.execute(text("LOCK TABLE orders"))
        with pytest.raises(HandlerFailed, match="lock timeout"):
            Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()
