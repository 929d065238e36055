"""Everything that a Store does, with the settings that the manual gives for each driver."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isfunction
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import (
    NO_STREAM,
    AppendConditionFailed,
    AsyncConsumer,
    AsyncStore,
    ConditionNotActivated,
    DeadLetter,
    DuplicateMessageId,
    Entity,
    Message,
    NewMessage,
    Query,
    SlotsLost,
    Store,
    WrongExpectedVersion,
    follow,
    install,
    transfer,
)
from messagedb_sa.testing import temporary_database

from ..subscription.support import following, write
from ..support import HEAD, REPOSITORY, Awaited, consumer_on, numbers, store_on
from .support import pooled

RECIPE = {"prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__"}

# By the driver, and where there are several, by what they are.
SETTINGS: dict[str, dict[str, Any]] = {
    "psycopg2": {},
    "psycopg": {"connect_args": {"prepare_threshold": None}},
    "psycopg_async": {"connect_args": {"prepare_threshold": None}},
    "asyncpg": {"connect_args": {"statement_cache_size": 0}},
    # SQLAlchemy's documentation has this one.
    "asyncpg, names": {"connect_args": {**RECIPE, "statement_cache_size": 0}, "poolclass": NullPool},
    "asyncpg, names in a pool": {
        "connect_args": {**RECIPE, "statement_cache_size": 0, "prepared_statement_cache_size": 0}
    },
}


def test_the_settings_are_those_of_the_manual() -> None:
    page = (REPOSITORY / "docs" / "operate" / "pools.md").read_text("utf-8")
    section = page.partition("## PgBouncer in transaction mode")[2].partition("\n## ")[0]
    for driver, option in (("psycopg2", None), ("psycopg", "prepare_threshold"), ("asyncpg", "statement_cache_size")):
        (row,) = re.findall(rf"^\| {driver}\b.* \| (.*) \|$", section, re.MULTILINE)
        if option is None:
            assert (row, SETTINGS[driver]) == ("none", {})
        else:
            value = SETTINGS[driver]["connect_args"][option]
            assert row == f'`connect_args={{"{option}": {value}}}`'
            assert SETTINGS[driver] == {"connect_args": {option: value}}


@pytest.fixture(params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A driver, and the options of its engine."""
    return request.param.partition(",")[0], SETTINGS[request.param]


@contextmanager
def joined(driver: str, url: str, kind: str, options: dict[str, Any]) -> Iterator[Store]:
    """A store in a transaction, on a connection or in a session, which is committed after the block."""
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    if driver in ("psycopg2", "psycopg"):
        engine = create_engine(with_driver, **options)
        with engine.connect() if kind == "connection" else Session(engine) as entered:
            yield Store(entered)
            entered.commit()
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete
    async_engine = create_async_engine(with_driver, **options)
    bind: Any = run(async_engine.connect().start()) if kind == "connection" else AsyncSession(async_engine)
    store: Any = Awaited(AsyncStore(bind), loop)
    yield store
    run(bind.commit())
    run(bind.close())
    run(async_engine.dispose())
    loop.close()


def use_everything(store: Store, n: int) -> set[str]:
    """Call each method of the store, and return their names. ``n`` tells repetitions apart."""
    one, other, category = f"account{n}-1", f"account{n}-2", f"account{n}"
    assert store.write(one, "Opened", {"n": 0}, expected_version=NO_STREAM) == 0
    assert store.write_batch(one, [("Deposited", {"n": 1}), ("Deposited", {"n": 2})], expected_version=0) == 2
    assert store.write_streams([(other, [NewMessage("Opened", {"n": 3})])]) == {other: 0}
    assert store.stream_version(one) == 2
    assert numbers(store.read_stream(one, position=1)) == [1, 2]
    assert numbers(store.read_category(category)) == [0, 1, 2, 3]
    assert numbers(store.read_category(category, consumer_group_member=0, consumer_group_size=1)) == [0, 1, 2, 3]
    assert numbers(store.read(one)) == [0, 1, 2]
    assert numbers(store.read("$all")[-4:]) == [0, 1, 2, 3]
    own = "SELECT * FROM message_store.get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s)"
    assert numbers(store.read(one, own)) == [0, 1, 2]
    assert numbers(store.iter_stream(one, batch_size=2)) == [0, 1, 2]
    assert numbers(store.iter_category(category, batch_size=2)) == [0, 1, 2, 3]
    assert numbers([*store.iter_all(batch_size=2)][-4:]) == [0, 1, 2, 3]
    last = store.read_last_message(one)
    assert last is not None
    assert last.data == {"n": 2}
    assert store.last_global_position(category) == store.read_category(category)[-1].global_position
    assert store.stream_identifiers(category) == ["1", "2"]
    store.write(f"note{n}-1", "Noted", {"n": 6}, {"correlationStreamName": one, **follow(last)})
    assert numbers(store.read_correlation(one)) == numbers(store.iter_correlation(one)) == [6]
    (effect,) = store.read_effects(last)
    assert store.read_causes(effect) == [last]
    assert store.read_message(effect.id) == effect
    assert numbers(store.read_metadata({"correlationStreamName": one})) == [6]
    assert numbers(store.iter_metadata({"correlationStreamName": one}, f"note{n}", batch_size=1)) == [6]
    counts = [{each.name: each.messages for each in store.categories(exact=exact)} for exact in (False, True)]
    assert [each[category] for each in counts] == [4, 4]
    streams = [*store.iter_streams(category, batch_size=1)]
    assert [(each.stream_name, each.version) for each in streams] == [(one, 2), (other, 0)]
    assert store.recent_streams(category) == streams[::-1]
    assert sum(each.messages for each in store.activity(category)) == 4
    assert store.open_writers() == []
    assert store.consumers(category) == []
    store.set_consumer_position(category, "end", "mailer", group_size=2)
    assert [status.lag for status in store.consumers(category)] == [0, 0]
    assert {status.lag for status in store.consumers(lag=False)} == {None}
    assert [status.lag for status in store.consumers(category, max_lag=5)] == [0, 0]
    assert store.forget_consumer(category, "mailer") == 2
    assert [*store.iter_dead_letters(category)] == []
    letter = DeadLetter(str(uuid4()), category, "mailer", last, "", "", last.time)
    assert [store.discard_dead_letters([letter]) for _ in range(2)] == [1, 0]
    assert store.read_dead_letter(letter.id) is None
    assert store.version() == "1.3.0"
    with pytest.raises(WrongExpectedVersion):
        store.write(one, "Opened", {}, expected_version=NO_STREAM)
    known = store.read_query(Query(category, ["Opened"]))
    assert numbers(known) == numbers(store.iter_query(Query(category, ["Opened"]), batch_size=1)) == [0, 3]
    assert store.write_streams([(other, [("Opened", {"n": 4})]), (one, [], 2)], condition=known.condition) == {other: 1}
    with pytest.raises(AppendConditionFailed):
        store.write_batch(other, [("Opened", {"n": 5})], condition=known.condition)
    total = Entity(f"total{n}", int, lambda state, message: state + message.data["n"])
    assert store.decide(total, "1", lambda state: ("Added", {"n": 5}), command_id=uuid4()) == (5, 0)
    assert store.load(total, "1") == (5, 0)
    return {
        *("load", "decide"),
        *("write", "write_batch", "write_streams", "stream_version", "read", "read_stream", "read_category"),
        *(
            "iter_stream",
            "iter_category",
            "iter_all",
            "read_query",
            "iter_query",
            "read_last_message",
            "stream_identifiers",
            "consumers",
            "last_global_position",
            "read_correlation",
            "iter_correlation",
            "read_causes",
            "read_effects",
            "read_message",
            "read_metadata",
            "iter_metadata",
            "categories",
            "iter_streams",
            "recent_streams",
            "activity",
            "open_writers",
            "set_consumer_position",
            "forget_consumer",
            "iter_dead_letters",
            "read_dead_letter",
            "discard_dead_letters",
            "version",
        ),
    }


def test_each_transaction_has_another_session(pooled_url: str) -> None:
    engine = create_engine(pooled_url)
    with engine.connect() as connection:
        sessions = []
        for _ in range(3):
            sessions.append(connection.scalar(text("SELECT pg_backend_pid()")))
            connection.commit()
    engine.dispose()
    assert len(set(sessions)) == 3


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_without_its_settings_a_driver_fails(pooled_url: str, driver: str) -> None:
    def use_it_often(store: Store) -> None:
        # psycopg prepares what it has executed five times.
        for n in range(7):
            use_everything(store, n)

    with store_on(driver, pooled_url) as store, pytest.raises(DBAPIError, match="prepared statement"):
        use_it_often(store)


def test_every_method_works_on_an_engine(pooled_url: str, settings: tuple[str, dict[str, Any]]) -> None:
    driver, options = settings
    with store_on(driver, pooled_url, **options) as store:
        for n in range(7):
            used = use_everything(store, n)
            store.set_consumer_position(f"account{n}", "end", "waited for")
            store.wait_for_consumer(f"account{n}", "waited for", seconds=0)
    assert used | {"wait_for_consumer"} == {
        name for name, value in vars(Store).items() if isfunction(value) and not name.startswith("_")
    }


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_every_method_works_in_a_transaction(
    pooled_url: str, settings: tuple[str, dict[str, Any]], kind: str, store: Store
) -> None:
    driver, options = settings
    for n in (0, 1):
        with joined(driver, pooled_url, kind, options) as in_transaction:
            use_everything(in_transaction, n)
    assert store.stream_version("account1-1") == 2


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_store_is_exported_imported_copied_and_compared(
    pooled_url: str, driver: str, store: Store, messagedb_server_url: str
) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(1500)])
    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        behind = make_url(pooled_url).set(database=make_url(url).database)
        with (
            store_on(driver, pooled_url, **SETTINGS[driver]) as source,
            store_on(driver, behind, **SETTINGS[driver]) as target,
        ):
            assert transfer.copy(source, target).messages == 1500
            assert transfer.verify(source, target).is_equal
            source.write("account-2", "Opened", {"n": 1500})
            file = BytesIO()
            transfer.export_messages(source, "$all", file, position=1501)
            file.seek(0)
            transfer.import_messages(target, file)
            assert transfer.verify(source, target).is_equal


def test_a_refused_write_leaves_nothing_behind(pooled_url: str, settings: tuple[str, dict[str, Any]]) -> None:
    driver, options = settings
    with store_on(driver, pooled_url, **options) as store:
        for n in range(4):
            identifier = uuid4()
            store.write("account-1", "Opened", {"n": n}, id=identifier)
            with pytest.raises(DuplicateMessageId):
                store.write("account-1", "Opened", {"n": n}, id=identifier)
        assert numbers(store.read("account-1")) == [0, 1, 2, 3]


def test_a_gap_of_the_whole_store_is_skipped(
    pooled_url: str, settings: tuple[str, dict[str, Any]], store: Store
) -> None:
    store.write("account-1", "Opened", {"n": 0})
    with store.engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        connection.rollback()
    store.write("account-1", "Opened", {"n": 1})
    driver, options = settings
    with store_on(driver, pooled_url, **options) as behind:
        assert [message.global_position for message in behind.read("$all")] == [1, 3]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith(("asyncpg", "psycopg_async"))])
def test_many_tasks_work_at_the_same_time(pooled_url: str, name: str) -> None:
    driver = name.partition(",")[0]

    async def main() -> None:
        engine = create_async_engine(make_url(pooled_url).set(drivername=f"postgresql+{driver}"), **SETTINGS[name])
        stores = (AsyncStore(engine), AsyncStore(engine, combine_writes=True))

        async def work(n: int) -> None:
            for position in range(5):
                store = stores[n % 2]
                assert await store.write(f"account-{n}", "Opened", {"n": n}, expected_version=position - 1) == position
                assert len(await store.read(f"account-{n}")) == position + 1

        await asyncio.gather(*(work(n) for n in range(12)))
        await engine.dispose()

    asyncio.run(main())


def test_a_condition_is_allowed_for_a_transaction(pooled_url: str, settings: tuple[str, dict[str, Any]]) -> None:
    driver, options = settings
    condition = "(messages.data->>'n')::int > 1"
    with store_on(driver, pooled_url, **options) as store:
        store.write_batch("account-1", [("Opened", {"n": n}) for n in range(4)])
        with joined(driver, pooled_url, "connection", options) as allowed:
            bind: Any = allowed._store.bind if isinstance(allowed, Awaited) else allowed.bind
            done = bind.execute(text("SET LOCAL message_store.sql_condition = on"))
            if isinstance(allowed, Awaited):
                allowed._loop.run_until_complete(done)
            assert numbers(allowed.read_category("account", condition=condition)) == [2, 3]
        # It does not last: the next transaction in that session may be another client's.
        for _ in range(4):
            with pytest.raises(ConditionNotActivated):
                store.read_category("account", condition=condition)


@pytest.mark.parametrize("notify", [False, True])
def test_a_consumer_polls(
    pooled_url: str, settings: tuple[str, dict[str, Any]], notify: bool, messagedb_url: str, store: Store
) -> None:
    driver, options = settings
    seen: list[Message] = []
    install.upgrade(store.engine, notify=notify)
    try:
        with store_on(driver, pooled_url, **options) as behind:
            behind.write_batch("account-1", [("Opened", {"n": n}) for n in range(30)])
            consumer = consumer_on(behind, "account", seen.append, "poller", batch_size=4, record_every=3)
            assert consumer.run_until_caught_up() == 30
            behind.write("account-1", "Opened", {"n": 30})
            assert consumer_on(behind, "account", seen.append, "poller").run_until_caught_up() == 1
            (status,) = behind.consumers("account")
            assert (status.identifier, status.lag) == ("poller", 0)
        assert numbers(seen) == list(range(31))
    finally:
        install.upgrade(store.engine, notify=False)


def test_a_subscription_polls(pooled_url: str, settings: tuple[str, dict[str, Any]], store: Store) -> None:
    driver, options = settings
    install.upgrade(store.engine, notify=True)
    try:
        with following(driver, pooled_url, "account", poll_seconds=0.01, engine_options=options) as followed:
            write(store, 0)
            followed.wait_for(0)
            write(store, 1, 2)
            followed.wait_for(0, 1, 2)
    finally:
        install.upgrade(store.engine, notify=False)


def test_a_transactional_consumer_works(pooled_url: str, settings: tuple[str, dict[str, Any]], store: Store) -> None:
    driver, options = settings

    def copy(message: Message, connection: Any) -> None:
        Store(connection).write("copy-1", "Copied", message.data)

    async def copy_async(message: Message, connection: Any) -> None:
        await AsyncStore(connection).write("copy-1", "Copied", message.data)

    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(10)])
    with store_on(driver, pooled_url, **options) as behind:
        if isinstance(behind, Awaited):
            consumer = AsyncConsumer(behind._store, "account", copy_async, "copier", transactional=True)
            behind._loop.run_until_complete(consumer.run_until_caught_up())
        else:
            consumer_on(behind, "account", copy, "copier", transactional=True).run_until_caught_up()
    assert numbers(store.read("copy-1")) == list(range(10))


def test_slots_are_refused_since_they_need_a_session(
    pooled_url: str, settings: tuple[str, dict[str, Any]], store: Store
) -> None:
    driver, options = settings
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(10)])
    with store_on(driver, pooled_url, **options) as behind, pytest.raises(SlotsLost):
        consumer_on(behind, "account", lambda message: None, "worker", slots=2).run()


def test_the_store_is_installed_through_it(
    pgbouncer: Any, messagedb_server_url: str, settings: tuple[str, dict[str, Any]]
) -> None:
    driver, options = settings
    with temporary_database(messagedb_server_url) as url, pooled(pgbouncer, url) as behind:
        with_driver = make_url(behind).set(drivername=f"postgresql+{driver}")

        async def upgrade() -> None:
            engine = create_async_engine(with_driver, **options)
            async with engine.begin() as connection:
                await connection.run_sync(install.upgrade)
            await engine.dispose()

        if driver in ("psycopg2", "psycopg"):
            install.upgrade(create_engine(with_driver, poolclass=NullPool, **options))
        else:
            asyncio.run(upgrade())
        assert install.current(create_engine(url, poolclass=NullPool)) == HEAD
