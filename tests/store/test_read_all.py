"""``$all`` without holes: no message is passed over that commits later with a lower global position."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, select, text

from messagedb_sa import CannotSettle, Message, Store, install, schema
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._gaps import before_gap
from messagedb_sa.store._operations import Operations
from messagedb_sa.testing import temporary_database, temporary_server

from ..support import as_role, clocks_stopped, store_on
from ..waits import HANG, wait_until


def positions(messages: Any) -> list[int]:
    return [message.global_position for message in messages]


@contextmanager
def being_written(engine: Engine, stream_name: str = "slow-1") -> Iterator[Connection]:
    """A transaction that has written a message and is still open."""
    with engine.connect() as connection:
        Store(connection).write(stream_name, "Written", {})
        yield connection


def leave_a_gap(engine: Engine) -> None:
    with being_written(engine) as writing:
        writing.rollback()


def wait_until_somebody_waits(engine: Engine) -> None:
    sleeps = text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database())"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(sleeps), "a reader waits for writers")


# ---- what is still being written


def test_a_message_that_commits_later_is_waited_for_and_comes_in_order(each_store: Store, store: Store) -> None:
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        reading = threads.submit(each_store.read, "$all", position=1, settle_seconds=HANG)
        wait_until_somebody_waits(store.engine)
        writing.commit()
        assert [message.stream_name for message in reading.result()] == ["slow-1", "quick-1"]


def test_so_does_one_that_an_iteration_comes_upon(each_store: Store, store: Store) -> None:
    store.write_batch("quick-1", [("Written", {})] * 3)
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing:
        store.write_batch("quick-1", [("Written", {})] * 3)
        reading = threads.submit(lambda: positions(each_store.iter_all(batch_size=2, settle_seconds=HANG)))
        wait_until_somebody_waits(store.engine)
        writing.commit()
        assert reading.result() == [1, 2, 3, 4, 5, 6, 7]


def test_the_plain_read_misses_it_for_good(each_store: Store, store: Store) -> None:
    with being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        seen = each_store.read("$all", allow_holes=True)
        writing.commit()
    seen += each_store.read("$all", position=seen[-1].global_position + 1, allow_holes=True)
    assert positions(seen) == [2]
    assert positions(store.read("$all")) == [1, 2]


def test_a_number_whose_transaction_was_rolled_back_is_passed(each_store: Store, store: Store) -> None:
    store.write("quick-1", "Written", {})
    leave_a_gap(store.engine)
    store.write("quick-1", "Written", {})
    assert positions(each_store.read("$all", settle_seconds=0)) == [1, 3]
    assert positions(each_store.read("$all", position=2, settle_seconds=0)) == [3]
    assert positions(each_store.iter_all(settle_seconds=0)) == [1, 3]


def test_so_is_one_that_is_rolled_back_while_the_reader_waits(each_store: Store, store: Store) -> None:
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        reading = threads.submit(each_store.read, "$all", position=1, settle_seconds=HANG)
        wait_until_somebody_waits(store.engine)
        writing.rollback()
        assert positions(reading.result()) == [2]


def test_where_no_number_is_missing_nobody_is_waited_for(each_store: Store, store: Store) -> None:
    store.write_batch("quick-1", [("Written", {})] * 3)
    with being_written(store.engine):
        assert positions(each_store.read("$all", settle_seconds=HANG)) == [1, 2, 3]
        assert positions(each_store.read("$all", position=4, settle_seconds=HANG)) == []
        store.write("quick-1", "Written", {})
        assert positions(each_store.read("$all", no_of_messages=2, settle_seconds=HANG)) == [1, 2]
        assert positions(each_store.read("$all", position=5, settle_seconds=HANG)) == [5]


def test_a_writer_that_came_after_the_missing_number_is_not_waited_for(store: Store) -> None:
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        reading = threads.submit(store.read, "$all", settle_seconds=HANG)
        wait_until_somebody_waits(store.engine)
        with being_written(store.engine, "later-1"):
            store.write("quick-1", "Written", {})
            writing.commit()
            assert positions(reading.result()) == [1, 2]


def test_the_writers_of_another_database_are_not_waited_for(messagedb_server_url: str) -> None:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        leave_a_gap(engine)
        Store(engine).write("quick-1", "Written", {})
        # A copy's table has the same number in the catalog.
        with (
            temporary_database(messagedb_server_url, template=make_url(url).database) as copy,
            being_written(create_engine(copy, poolclass=NullPool)),
        ):
            assert positions(Store(engine).read("$all", settle_seconds=0)) == [2]


# ---- the bound


def test_at_the_bound_there_is_what_comes_before_the_missing_number_and_a_warning_says_why(
    each_store: Store, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_batch("quick-1", [("Written", {})] * 2)
    with being_written(store.engine) as writing:
        (pid,) = writing.execute(text("SELECT pg_backend_pid()")).one()
        store.write("quick-1", "Written", {})
        assert positions(each_store.read("$all", settle_seconds=0.05)) == [1, 2]
        (warning,) = caplog.messages
        assert "stopped reading $all before global position 3" in warning
        assert f"process {pid}" in warning
        assert each_store.read("$all", position=3, settle_seconds=0.05) == []
        assert positions(each_store.iter_all(batch_size=1, settle_seconds=0.05)) == [1, 2]
        writing.commit()
    assert positions(each_store.read("$all", position=3)) == [3, 4]
    assert {record.name for record in caplog.records} == {"messagedb_sa.store"}


def test_the_bound_is_reached_though_the_clock_stands_still(each_store: Store, store: Store) -> None:
    with being_written(store.engine), clocks_stopped(0):
        store.write("quick-1", "Written", {})
        assert positions(each_store.read("$all", settle_seconds=0.05)) == []


def test_without_a_wait_the_bound_is_there_at_once_and_nobody_is_warned(
    each_store: Store, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("quick-1", "Written", {})
    with being_written(store.engine):
        store.write("quick-1", "Written", {})
        assert positions(each_store.read("$all", settle_seconds=0)) == [1]
    assert caplog.messages == []


def test_where_nothing_is_said_the_wait_has_a_bound(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with being_written(store.engine):
        store.write("quick-1", "Written", {})
        with ThreadPoolExecutor() as threads:
            iteration = threads.submit(lambda: list(store.iter_all()))
            assert store.read("$all") == iteration.result() == []
    assert len(caplog.messages) == 2
    assert all(float(message.split()[1]) >= 1 for message in caplog.messages)


def test_after_the_bound_an_iteration_has_ended(store: Store) -> None:
    with being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        iteration = store.iter_all(settle_seconds=0)
        assert list(iteration) == []
        writing.commit()
        assert list(iteration) == []


# ---- pages, which a consumer asks for one after the other


def test_a_page_goes_on_where_it_ended_also_where_there_was_nothing(store: Store) -> None:
    def run(page: Any) -> list[int]:
        with store.engine.connect() as connection:
            messages[:] = run_alone(connection, page)
        return positions(messages)

    messages: list[Message] = []
    page = Operations(store.engine.dialect, joined=False).read_all(1, 2, False, 0)
    assert run(page) == []
    store.write_batch("quick-1", [("Written", {})] * 3)
    assert run(page) == [1, 2]
    page = page.at(3)
    assert run(page) == [3]
    page = page.at(4)
    assert run(page) == []
    store.write("quick-1", "Written", {})
    assert run(page) == [4]


def test_what_a_page_learnt_about_missing_numbers_the_next_ones_know(store: Store) -> None:
    def run(page: Any) -> list[Message]:
        with store.engine.connect() as connection:
            return run_alone(connection, page)

    for _ in range(3):
        leave_a_gap(store.engine)
        store.write("quick-1", "Written", {})
    page = Operations(store.engine.dialect, joined=False).read_all(1, 1, False, 0)
    first = run(page)
    assert positions(first) == [2]
    # A new reader would be kept from going on.
    with being_written(store.engine):
        assert store.read("$all", position=3, settle_seconds=0) == []
        second = run(page.at(3))
        assert positions(second) == [4]
        assert positions(run(page.at(5))) == [6]


@given(st.sets(st.integers(1, 30)), st.integers(1, 35))
def test_a_page_is_cut_before_the_first_number_that_is_missing(numbers: set[int], position: int) -> None:
    page: Any = [Message("", "", "", 0, number, None, None, None) for number in sorted(numbers)]  # type: ignore[arg-type]
    last = max(numbers, default=0)
    expected = next((number for number in range(position, last) if number not in numbers), None)
    end, missing = before_gap(page, position)
    assert missing == expected
    assert positions(page[:end]) == [n for n in sorted(numbers) if expected is None or n < expected]


# ---- in the caller's transaction


def test_in_a_transaction_its_own_messages_are_read_and_its_own_lock_is_in_nobodys_way(store: Store) -> None:
    store.write("quick-1", "Written", {})
    leave_a_gap(store.engine)
    with store.engine.connect() as connection:
        joined = Store(connection)
        joined.write("own-1", "Written", {})
        with connection.begin_nested() as savepoint:
            joined.write("own-1", "Written", {})
            savepoint.rollback()
        joined.write("own-1", "Written", {})
        assert positions(joined.read("$all", settle_seconds=0)) == positions(joined.iter_all()) == [1, 3, 5]


def test_in_a_transaction_others_are_waited_for_too(store: Store) -> None:
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing, store.engine.connect() as connection:
        joined = Store(connection)
        joined.write("own-1", "Written", {})
        assert joined.read("$all", settle_seconds=0) == []
        reading = threads.submit(joined.read, "$all", settle_seconds=HANG)
        wait_until_somebody_waits(store.engine)
        writing.commit()
        assert positions(reading.result()) == [1, 2]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_nothing_new_cannot_tell(store: Store, level: str) -> None:
    store.write_batch("quick-1", [("Written", {})] * 2)
    with store.engine.connect().execution_options(isolation_level=level) as connection:
        joined = Store(connection)
        assert positions(joined.read("$all")) == [1, 2]
        connection.rollback()
        leave_a_gap(store.engine)
        store.write("quick-1", "Written", {})
        exported: list[Message] = []
        with pytest.raises(CannotSettle, match=level) as caught:
            exported.extend(joined.iter_all(batch_size=1))
        assert positions(exported) == [1, 2]
        assert caught.value.position == 3
        assert level in caught.value.reason
        assert "allow_holes=True" in str(caught.value)
        # The transaction goes on.
        assert positions(joined.iter_all(allow_holes=True)) == [1, 2, 4]


def test_nor_can_a_call_that_is_such_a_transaction_of_its_own(messagedb_url: str, store: Store) -> None:
    leave_a_gap(store.engine)
    store.write("quick-1", "Written", {})
    # A read-only engine's statements are transactions that the driver begins.
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    for driver in ("psycopg2", "psycopg_async", "asyncpg"):
        with store_on(driver, messagedb_url, execution_options=options) as reading:
            with pytest.raises(CannotSettle, match="REPEATABLE READ"):
                reading.read("$all")
            assert positions(reading.read("$all", allow_holes=True)) == [2]


def test_calls_that_are_transactions_of_their_own_can_tell_whatever_the_level(messagedb_url: str, store: Store) -> None:
    leave_a_gap(store.engine)
    store.write("quick-1", "Written", {})
    by_default = {"options": "-c default_transaction_isolation=serializable"}
    for options in ({"isolation_level": "REPEATABLE READ"}, {"connect_args": by_default}):
        own = create_engine(messagedb_url, **options)
        assert positions(Store(own).read("$all")) == [2]
        with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert positions(Store(connection).read("$all")) == [2]
        own.dispose()


# ---- whose server it is


def test_the_role_message_store_needs_nothing_more(messagedb_engine: Engine, store: Store) -> None:
    own = Store(as_role(messagedb_engine, "message_store"))
    with being_written(own.engine) as writing:
        store.write("quick-1", "Written", {})
        assert own.read("$all", settle_seconds=0) == []
        writing.rollback()
    assert positions(own.read("$all")) == positions(own.iter_all()) == [2]


def test_neither_does_a_role_that_only_reads(messagedb_engine: Engine, store: Store, login: Callable[..., str]) -> None:
    role = login("messagedb_reader")
    with messagedb_engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {role}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {role}"))
    own = Store(as_role(messagedb_engine, role))
    with being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        assert own.read("$all", settle_seconds=0) == []
        writing.rollback()
    assert positions(own.read("$all")) == [2]
    with messagedb_engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))


def test_a_prepared_transaction_is_waited_for_as_any_other(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_server(settings={"max_prepared_transactions": "1"}) as url, ThreadPoolExecutor() as threads:
        engine = create_engine(url)
        install.upgrade(engine)
        store = Store(engine)
        with being_written(engine) as writing:
            store.write("quick-1", "Written", {})
            reading = threads.submit(store.read, "$all", settle_seconds=HANG)
            wait_until_somebody_waits(engine)
            writing.execute(text("PREPARE TRANSACTION 'later'"))
        assert store.read("$all", settle_seconds=0.05) == []
        assert "a prepared transaction" in caplog.text
        # The one that saw it before it was prepared goes on waiting.
        wait_until_somebody_waits(engine)
        assert not reading.done()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("COMMIT PREPARED 'later'"))
        assert positions(reading.result()) == positions(store.read("$all")) == [1, 2]
        engine.dispose()


@contextmanager
def standby_of(url: str) -> Iterator[str]:
    """A server that is a copy of this one and in recovery for ever. The first one starts it, as the user it runs as."""
    folder = Path(str(make_url(url).query["host"]))
    copy = folder / "standby"
    pid_file = copy / "postmaster.pid"
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        programs = connection.scalar(text("SELECT setting FROM pg_config WHERE name = 'BINDIR'"))
        connection.execute(text("CHECKPOINT"))
        command = (
            f"cp -R {folder}/data {copy} && rm {pid_file} && touch {copy}/standby.signal && "
            f"({programs}/postgres -D {copy} -c listen_addresses= -c port=5433 -c unix_socket_directories={folder} "
            f"</dev/null >{copy}.log 2>&1 &)"
        )
        connection.exec_driver_sql(f"COPY (SELECT) TO PROGRAM '{command}'")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().rstrip().endswith("ready"), "the standby is ready")
    yield make_url(url).update_query_dict({"port": "5433"}).render_as_string()
    os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGQUIT)
    wait_until(lambda: not pid_file.exists(), "the standby has ended")


def test_a_standby_cannot_tell() -> None:
    with temporary_server() as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        Store(engine).write_batch("quick-1", [("Written", {})] * 2)
        leave_a_gap(engine)
        Store(engine).write("quick-1", "Written", {})
        with standby_of(url) as standby:
            reading = Store(create_engine(standby, poolclass=NullPool))
            assert positions(reading.read("$all", no_of_messages=2)) == [1, 2]
            with pytest.raises(CannotSettle, match="standby") as caught:
                reading.read("$all")
            assert caught.value.position == 3
            assert positions(reading.read("$all", allow_holes=True)) == [1, 2, 4]
            assert positions(reading.read("$all", backwards=True)) == [4, 2, 1]


# ---- under load


class Load(NamedTuple):
    """Global positions: those of the table in order, and those that each of two readers got in the meantime."""

    stored: list[int]
    settled: list[int]
    plain: list[int]


def under_load(url: str, driver: str, *, writers: int = 8, transactions: int = 40, reads: int = 10) -> Load:
    """Each writer commits so many transactions, and more until both readers have found something so often: one to three
    messages to as many of 40 categories, with pauses of up to 10 ms after each; a fifth of the transactions is rolled
    back."""
    engine = create_engine(url, pool_size=writers + 1)
    found = {"settled": 0, "plain": 0}
    done = Event()

    def write(number: int) -> None:
        random = Random(number)
        last = time.monotonic() + HANG
        with engine.connect() as connection:
            store = Store(connection)
            written = 0
            while written < transactions or min(found.values()) < reads:
                assert time.monotonic() < last, f"the readers do not keep up: {found}"
                # In one order everywhere, so that nobody waits in a circle.
                for category in sorted(random.sample(range(40), random.randint(1, 3))):
                    store.write(f"category{category}-{number}", "Written", {"n": written})
                    time.sleep(random.random() / 100)
                connection.rollback() if random.random() < 0.2 else connection.commit()
                written += 1

    def follow(store: Store, name: str, **how: Any) -> list[int]:
        read: list[int] = []
        while True:
            is_last = done.is_set()
            new = positions(store.iter_all(read[-1] + 1 if read else 1, batch_size=100, **how))
            read += new
            found[name] += bool(new)
            if is_last:
                return read

    with store_on(driver, url) as store, ThreadPoolExecutor(writers + 2) as threads:
        readers = [
            threads.submit(follow, store, "settled", settle_seconds=HANG),
            threads.submit(follow, Store(engine), "plain", allow_holes=True),
        ]
        try:
            list(threads.map(write, range(writers)))
        finally:
            done.set()
        settled, plain = (reader.result() for reader in readers)
    with engine.connect() as connection:
        in_order = select(schema.messages.c.global_position).order_by(schema.messages.c.global_position)
        stored = list(connection.scalars(in_order))
    engine.dispose()
    return Load(stored, settled, plain)


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_under_load_a_reader_gets_what_the_table_holds_in_its_order(
    messagedb_url: str, store: Store, driver: str
) -> None:
    load = under_load(messagedb_url, driver)
    assert load.settled == load.stored
    assert len(load.stored) > 300
    assert load.stored[-1] > len(load.stored)
    # What the plain reader gets is in order too, and there. It misses what commits late, so there was such a thing.
    assert sorted(set(load.plain)) == load.plain
    assert set(load.plain) < set(load.stored)
