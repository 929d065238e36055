"""The plugin's fixtures beside messagedb_store: asynchronous, with types, and emptying an application's own tables."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Message, MessageDBError, MessageTypes, Store, schema
from messagedb_sa._drivers.urls import for_asynchronous_code
from messagedb_sa.testing._emptying import empty

metadata = MetaData()
orders = Table('odd "%:name', metadata, Column("id", Integer, primary_key=True), Column("item", Text, nullable=False))
lines = Table("order_lines", metadata, Column("id", Integer, primary_key=True), Column("o", ForeignKey(orders.c.id)))
countries = Table("countries", metadata, Column("id", Integer, primary_key=True))
in_schema = Table("lines", metadata, Column("id", Integer, primary_key=True), schema="shop")
never_made = Table("never_made", metadata, Column("id", Integer, primary_key=True))


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)


@dataclass(frozen=True)
class Opened:
    owner: str


@pytest.fixture(scope="module")
def tables(messagedb_engine: Engine) -> Iterator[None]:
    made = [orders, lines, countries, in_schema]
    with messagedb_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA shop"))
        connection.execute(text("CREATE VIEW never_made AS SELECT 1 AS id"))
        metadata.create_all(connection, tables=made)
        Base.metadata.create_all(connection)
    yield
    with messagedb_engine.begin() as connection:
        metadata.drop_all(connection, tables=made)
        Base.metadata.drop_all(connection)
        connection.execute(text("DROP VIEW never_made"))
        connection.execute(text("DROP SCHEMA shop"))


@pytest.fixture
def empty_tables(tables: None, messagedb_engine: Engine) -> None:
    empty(messagedb_engine, metadata)


def add(connection: Connection, *to: Table) -> None:
    for table in to:
        values: dict[Table, dict[str, Any]] = {orders: {"item": "lamp"}, lines: {"o": 1}}
        connection.execute(insert(table).values(**values.get(table, {})))


def counts(engine: Engine, *of: Table) -> list[int]:
    with engine.connect() as connection:
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in of]


# ---- the asynchronous store


def test_without_an_asynchronous_driver_the_error_says_what_to_install(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MessageDBError, match=r'pip install "messagedb-sa\[asyncpg\]"'):
        request.getfixturevalue("messagedb_async_store")


def test_the_asynchronous_store_works_on_one_event_loop_after_the_other(messagedb_async_store: AsyncStore) -> None:
    for n in range(2):
        assert asyncio.run(messagedb_async_store.write("account-1", "Opened", {})) == n


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("n", range(2))
async def test_it_starts_empty_and_works_in_tests_of_a_plugin(
    messagedb_async_store: AsyncStore, anyio_backend: str, n: int
) -> None:
    assert await messagedb_async_store.read("$all") == []
    await messagedb_async_store.write("account-1", "Opened", {"n": 1})
    handled: list[Message] = []
    assert await AsyncConsumer(messagedb_async_store, "account", handled.append, "c").run_until_caught_up() == 1
    assert [message.global_position for message in handled] == [1]


class TestWithAFixtureThatWrites:
    @pytest.fixture
    def account(self, messagedb_store: Store) -> None:
        messagedb_store.write("account-1", "Opened", {})

    def test_both_stores_are_on_one_database_which_is_emptied_once(
        self, account: None, messagedb_async_store: AsyncStore, messagedb_store: Store
    ) -> None:
        assert messagedb_store.stream_version("account-1") == 0
        assert asyncio.run(messagedb_async_store.read("account")) == messagedb_store.read("account")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async", "asyncpg"])
def test_its_driver_is_that_of_the_url_or_takes_the_same_parameters(driver: str) -> None:
    url = make_url(f"postgresql+{driver}://me@/app?host=/tmp&application_name=tests")
    expected = "postgresql+psycopg" if driver == "psycopg2" else url.drivername
    assert for_asynchronous_code(url) == url.set(drivername=expected)


def test_without_psycopg_it_is_asyncpg_with_the_parameters_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    url = make_url("postgresql+psycopg2://me@/app?host=/tmp&port=7&sslmode=prefer&application_name=tests")
    assert for_asynchronous_code(url) == make_url("postgresql+asyncpg://me@/app?host=/tmp&port=7&ssl=prefer")


def test_the_asynchronous_store_may_be_on_asyncpg(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    store: AsyncStore = request.getfixturevalue("messagedb_async_store")
    assert store.engine.dialect.driver == "asyncpg"
    assert asyncio.run(store.version()) == "1.3.0"


# ---- types


class TestWithTypes:
    @pytest.fixture
    def messagedb_types(self) -> MessageTypes:
        types = MessageTypes()
        types.register(Opened)
        return types

    def test_the_stores_have_them(self, messagedb_store: Store, messagedb_async_store: AsyncStore) -> None:
        messagedb_store.write("account-1", Opened("Ada"))
        (message,) = asyncio.run(messagedb_async_store.read("account"))
        assert message.data == Opened("Ada")


# ---- own tables


class TestWithTables:
    @pytest.fixture
    def messagedb_tables(self, tables: None) -> MetaData:
        return metadata

    @pytest.mark.parametrize("n", range(2))
    def test_each_test_finds_them_empty(self, messagedb_store: Store, n: int) -> None:
        assert counts(messagedb_store.engine, orders, lines) == [0, 0]
        messagedb_store.write("order-1", "Placed", {})
        with messagedb_store.engine.begin() as connection:
            add(connection, orders, lines)

    @pytest.mark.parametrize("n", range(2))
    def test_a_test_that_uses_no_store_can_ask_for_it(
        self, messagedb_empty: None, messagedb_engine: Engine, n: int
    ) -> None:
        assert counts(messagedb_engine, orders, schema.messages) == [0, 0]
        with messagedb_engine.begin() as connection:
            add(connection, orders)


@pytest.mark.parametrize(
    "named", [metadata, [orders, lines, in_schema], iter(metadata.sorted_tables), {in_schema, lines, orders}], ids=type
)
def test_own_tables_are_emptied_and_count_from_1_again(
    store: Store, empty_tables: None, messagedb_engine: Engine, named: MetaData | Iterable[Table]
) -> None:
    with messagedb_engine.begin() as connection:
        add(connection, orders, lines, in_schema)
        connection.execute(orders.delete().where(orders.c.id > 1))
    empty(messagedb_engine, named)
    assert counts(messagedb_engine, orders, lines, in_schema) == [0, 0, 0]
    with messagedb_engine.connect() as connection:
        assert connection.execute(insert(orders).values(item="lamp")).inserted_primary_key == (1,)


def test_a_mapped_class_stands_for_its_table(store: Store, empty_tables: None, messagedb_engine: Engine) -> None:
    with messagedb_engine.begin() as connection:
        connection.execute(insert(Customer).values(id=7))
    empty(messagedb_engine, [Customer])  # type: ignore[list-item]
    assert counts(messagedb_engine, Base.metadata.tables["customers"]) == [0]


def test_a_sequence_that_only_a_failed_insert_has_used_begins_anew(
    store: Store, empty_tables: None, messagedb_engine: Engine
) -> None:
    with pytest.raises(IntegrityError, match="null value"), messagedb_engine.begin() as connection:
        connection.execute(insert(orders).values(item=None))
    empty(messagedb_engine, [orders])
    with messagedb_engine.connect() as connection:
        assert connection.execute(insert(orders).values(item="lamp")).inserted_primary_key == (1,)


def test_tables_that_refer_to_them_are_emptied_too_and_others_are_left_alone(
    store: Store, empty_tables: None, messagedb_engine: Engine
) -> None:
    with messagedb_engine.begin() as connection:
        add(connection, orders, lines, countries)
    empty(messagedb_engine, [orders])
    assert counts(messagedb_engine, orders, lines, countries) == [0, 0, 1]


def test_tables_without_rows_are_not_touched(store: Store, empty_tables: None, messagedb_engine: Engine) -> None:
    """To empty a table takes as long whether or not it has rows."""
    file = text("SELECT pg_relation_filenode('order_lines')")
    files = []
    for _ in range(2):
        empty(messagedb_engine, metadata)
        with messagedb_engine.connect() as connection:
            files.append(connection.scalar(file))
    assert files[0] == files[1]
    with messagedb_engine.begin() as connection:
        add(connection, orders, lines)
    empty(messagedb_engine, metadata)
    with messagedb_engine.connect() as connection:
        assert connection.scalar(file) != files[0]


def test_what_consumers_recorded_is_gone_too(store: Store, messagedb_engine: Engine) -> None:
    def handle(message: Message, connection: Connection) -> None:
        pass

    for _ in range(2):
        store.write("account-1", "Opened", {})
        assert Consumer(store, "account", handle, "c", transactional=True).run_until_caught_up() == 1
        empty(messagedb_engine, [])
        assert counts(messagedb_engine, schema.messages, schema.consumer_positions) == [0, 0]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_the_metadata_of_the_store_may_be_among_them(store: Store, messagedb_url: str, driver: str) -> None:
    engine = create_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
    store.write("account-1", "Opened", {})
    empty(engine, schema.metadata)
    assert store.write("account-1", "Opened", {}) == 0
    engine.dispose()


@pytest.mark.parametrize("named", ["orders", ["orders"], 5, orders, [None], Customer])
def test_what_names_no_tables_is_an_error_that_says_what_to_return(messagedb_engine: Engine, named: Any) -> None:
    with pytest.raises(TypeError, match=r"^messagedb_tables must return a MetaData or a list of Tables, got "):
        empty(messagedb_engine, named)


def test_that_error_fails_the_test(pytester: pytest.Pytester, messagedb_server_url: str) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def messagedb_tables():
            return ["orders"]

        def test_it(messagedb_store):
            pass
        """
    )
    outcome = pytester.runpytest_subprocess("--messagedb-url", messagedb_server_url)
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(["messagedb_tables must return a MetaData or a list of Tables, got *'orders'*"])
