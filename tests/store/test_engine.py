"""The Store and its engine: URLs, transactions, threads, roles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from messagedb_sa import DuplicateMessageId, Store, WrongExpectedVersion, schema

from ..support import DRIVERS, as_role, numbers, store_on
from ..waits import released_together


def test_a_bare_url_means_psycopg2(messagedb_url: str, store: Store) -> None:
    bare = messagedb_url.replace("postgresql+psycopg2://", "postgresql://")
    assert bare != messagedb_url
    for url in (bare, bare.replace("postgresql://", "postgres://"), messagedb_url):
        other = Store.from_url(url, pool_size=1)
        assert other.engine.dialect.driver == "psycopg2"
        assert other.engine.pool.size() == 1  # type: ignore[attr-defined]
        assert other.version() == "1.3.0"
        other.engine.dispose()


def test_each_call_is_committed_and_gives_its_connection_back(messagedb_url: str, store: Store) -> None:
    store.write("account-1", "Opened", {"n": 1})
    other = Store.from_url(messagedb_url)
    assert numbers(other.read("account-1")) == [1]
    assert other.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    other.engine.dispose()


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("given", ["to the engine", "as an option"])
def test_a_write_is_committed_whatever_the_isolation_level_of_the_engine(
    messagedb_url: str, store: Store, level: Any, given: str
) -> None:
    plain = create_engine(messagedb_url)
    engine = (
        create_engine(messagedb_url, isolation_level=level)
        if given == "to the engine"
        else plain.execution_options(isolation_level=level)
    )
    assert Store(engine).write("account-1", "Opened", {}) == 0
    assert store.stream_version("account-1") == 0
    with engine.connect() as connection:
        assert connection.get_isolation_level() == ("READ COMMITTED" if level == "AUTOCOMMIT" else level)
    engine.dispose()


def test_threads_share_a_store(messagedb_engine: Any, store: Store) -> None:
    def write(n: int) -> None:
        for _ in range(25):
            store.write(f"account-{n}", "Deposited", {"n": n})

    with ThreadPoolExecutor(8) as threads:
        with released_together(messagedb_engine, "account-0", 8):
            writing = [threads.submit(write, n) for n in range(8)]
        for each in writing:
            each.result()
    assert [store.stream_version(f"account-{n}") for n in range(8)] == [24] * 8
    globals_in_commit_order = [message.global_position for message in store.read("account")]
    assert len(globals_in_commit_order) == 200
    assert globals_in_commit_order == sorted(globals_in_commit_order)


def test_the_role_message_store_can_do_all_of_it(messagedb_engine: Any, store: Store) -> None:
    for n in range(10):
        store.write(f"account-{n % 3 + 1}", "Deposited", {"n": n})
    store.write("accounting-1", "Booked", {"n": 10})
    store.write("account:snapshot-1", "Recorded", {"n": 11})

    store = Store(as_role(messagedb_engine, "message_store"))
    id = uuid4()
    assert store.write("account-1", "Opened", {"n": 1}, id=id) == 4
    assert store.write_batch("account-1", [("Opened", {"n": 1})], expected_version=4) == 5
    assert len(store.read("account-1")) == 6
    assert len(store.read("account")) == 12
    assert len(store.read("$all")) == 14
    assert store.stream_identifiers("account") == ["1", "2", "3"]
    assert store.read_last_message("account-1") is not None
    assert store.version() == "1.3.0"
    with pytest.raises(DuplicateMessageId) as caught:
        store.write("account-1", "Opened", {"n": 1}, id=id)
    assert caught.value.id == str(id)
    with store.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.category_type_summary)) == 4


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 2}])
def test_an_engine_that_asks_for_server_side_cursors_will_do(
    messagedb_url: str, store: Store, options: dict[str, Any]
) -> None:
    engine = create_engine(messagedb_url, execution_options=options)
    own = Store(engine)
    own.write_batch("account-1", [("Opened", {"n": n}) for n in range(5)])
    assert numbers(own.read("account-1")) == list(range(5))
    with engine.begin() as connection:
        assert numbers(Store(connection).read("account-1")) == list(range(5))
    engine.dispose()


@pytest.mark.parametrize("when", ["connect", "checkout", "engine_connect"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_in_a_transaction_that_a_listener_began_a_call_is_committed_all_the_same(
    messagedb_url: str, store: Store, driver: str, when: str
) -> None:
    with store_on(driver, messagedb_url) as listened:

        def set_tenant(connection: Any, *_: Any) -> None:
            if when == "engine_connect":
                connection.execute(text("SELECT set_config('app.tenant', 'seven', false)"))
            else:
                cursor = connection.cursor()
                cursor.execute("SELECT set_config('app.tenant', 'seven', false)")
                cursor.close()

        event.listen(listened.engine, when, set_tenant)
        assert [listened.write("account-1", "Opened", {}) for _ in range(3)] == [0, 1, 2]
        assert store.stream_version("account-1") == 2
        with pytest.raises(WrongExpectedVersion):
            listened.write("account-1", "Opened", {}, expected_version=7)
        assert listened.write("account-1", "Opened", {}, expected_version=2) == 3
    assert store.stream_version("account-1") == 3


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_read_only_engine_reads_and_does_not_write(messagedb_url: str, store: Store, driver: str) -> None:
    store.write("account-1", "Opened", {"n": 1})
    with store_on(driver, messagedb_url, execution_options={"postgresql_readonly": True}) as reader:
        assert numbers(reader.read("account-1")) == [1]
        with pytest.raises(DBAPIError, match="read-only transaction"):
            reader.write("account-1", "Opened", {})
    assert store.stream_version("account-1") == 0


# ---- what an engine is asked to do around a statement


def test_a_listener_sees_every_statement_and_may_change_it(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url)
    Store(engine).write("account-1", "Opened", {"n": 0})
    seen: list[str] = []

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def comment(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        seen.append(statement)
        return f"{statement} -- seen", parameters

    own = Store(engine)
    own.write("account-1", "Opened", {"n": 1})
    own.read_last_message("account-1")
    assert ["write_message(" in seen[0], "get_last_stream_message(" in seen[1]] == [True, True]
    engine.dispose()


def test_a_listener_is_told_of_an_error(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url)
    told: list[Any] = []
    event.listen(engine, "handle_error", lambda context: told.append(context.original_exception))
    with pytest.raises(WrongExpectedVersion):
        Store(engine).write("account-1", "Opened", {}, expected_version=7)
    assert "Wrong expected version" in str(told[0])
    engine.dispose()


def test_an_engine_that_logs_logs_every_statement(
    messagedb_url: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "sqlalchemy.engine"):
        # Whether it logs is looked up when the engine is made.
        engine = create_engine(messagedb_url)
        Store(engine).write("account-1", "Opened", {})
    assert "write_message(" in caplog.text
    engine.dispose()


@pytest.mark.parametrize("observed", [False, True])
def test_a_lost_connection_is_sqlalchemys_error_and_the_pool_makes_new_ones(
    messagedb_url: str, messagedb_engine: Any, store: Store, observed: bool
) -> None:
    engine = create_engine(messagedb_url, pool_size=3)
    if observed:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    own = Store(engine)
    with engine.connect() as one, engine.connect() as two:
        pids = [connection.scalar(text("SELECT pg_backend_pid()")) for connection in (one, two)]
    with messagedb_engine.connect() as admin:
        for pid in pids:
            admin.execute(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})
    with pytest.raises(OperationalError) as caught:
        own.write("account-1", "Opened", {"n": 1})
    assert caught.value.connection_invalidated
    assert "write_message(" in str(caught.value.statement)
    assert own.write("account-1", "Opened", {"n": 2}) == 0
    assert numbers(own.read("account-1")) == [2]
    assert "Current Checked out connections: 0" in engine.pool.status()
    engine.dispose()


def test_the_engines_schema_translate_map_applies(messagedb_url: str, store: Store) -> None:
    store.write("account-1", "Opened", {})
    engine = create_engine(messagedb_url, execution_options={"schema_translate_map": {"message_store": "elsewhere"}})
    with pytest.raises(DBAPIError, match=r"elsewhere\.messages"):
        Store(engine).stream_identifiers("account")
    engine.dispose()


@pytest.mark.parametrize("observed", [False, True])
def test_an_error_has_the_same_facts_either_way(messagedb_url: str, store: Store, observed: bool) -> None:
    engine = create_engine(messagedb_url, hide_parameters=True)
    if observed:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    id = uuid4()
    Store(engine).write("account-1", "Opened", {"n": 1}, id=id)
    with pytest.raises(DuplicateMessageId) as caught:
        Store(engine).write("account-1", "Opened", {"n": 1}, id=id)
    cause: Any = caught.value.__cause__
    assert type(cause).__name__ == "IntegrityError"
    assert cause.hide_parameters
    assert str(id) not in str(cause).partition("SQL:")[2]
    assert "write_message(" in cause.statement
    engine.dispose()
