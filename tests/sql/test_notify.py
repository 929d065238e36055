"""Notifications of new messages: switching them on and off, what is sent and when, and that no writer ever fails."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, NullPool, create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Store, WrongExpectedVersion, functions, install, schema
from messagedb_sa._drivers.notifications import AWAIT
from messagedb_sa.install import MigrationRefused
from messagedb_sa.store._execute import run_joined
from messagedb_sa.store._operations import HAS_NOTIFICATIONS
from messagedb_sa.testing import temporary_database, temporary_server

from ..migrations.support import HOST_ENV, alembic, executed, url_of
from ..support import DRIVERS, HEAD, REPOSITORY, as_role, on, restored, store_on
from ..waits import awaited


def notifies(engine: Engine) -> bool:
    with engine.connect() as connection:
        return run_joined(connection, HAS_NOTIFICATIONS)


def triggers(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        found = text("SELECT oid, xmin::text FROM pg_trigger WHERE NOT tgisinternal")
        return [tuple(row) for row in connection.execute(found)]


@contextmanager
def listening(engine: Engine, *names: str) -> Iterator[Callable[[], list[str]]]:
    """What was heard since the last call: the notifications of all transactions committed by then, in order. It is
    of messages in these categories, by default in all, that writers notify."""
    with (
        awaited(engine, *names),
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.exec_driver_sql("LISTEN message_store")
        driver: Any = connection.connection.driver_connection

        def heard() -> list[str]:
            # PostgreSQL sends what there is with the answer to any statement.
            connection.exec_driver_sql("SELECT 1")
            payloads = [each.payload for each in driver.notifies]
            driver.notifies.clear()
            return payloads

        yield heard


@pytest.fixture(scope="module")
def notifying_url(messagedb_server_url: str) -> Iterator[str]:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine, notify=True)
        yield url


@pytest.fixture
def engine(notifying_url: str) -> Engine:
    engine = create_engine(notifying_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
    return engine


# ---- switching


def test_a_new_store_does_not_notify(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    assert not notifies(empty_database)
    with listening(empty_database) as heard:
        Store(empty_database).write("account-1", "Opened", {})
        assert heard() == []


def test_where_there_is_no_store_nothing_notifies(empty_database: Engine) -> None:
    assert not notifies(empty_database)


def test_it_is_switched_on_with_the_upgrade_or_at_any_time_later_and_off_again(empty_database: Engine) -> None:
    install.upgrade(empty_database, notify=True)
    assert notifies(empty_database)
    install.upgrade(empty_database, notify=False)
    assert not notifies(empty_database)
    assert triggers(empty_database) == []
    install.upgrade(empty_database, notify=True)
    assert notifies(empty_database)


@pytest.mark.parametrize("on", [True, False])
def test_where_nothing_is_said_it_stays_as_it_is(empty_database: Engine, on: bool) -> None:
    install.upgrade(empty_database, "messagedb_0003", notify=on)
    install.upgrade(empty_database)
    assert notifies(empty_database) is on


@pytest.mark.parametrize("on", [True, False])
def test_switching_to_what_it_is_already_changes_and_locks_nothing(empty_database: Engine, on: bool) -> None:
    install.upgrade(empty_database, notify=on)
    before = triggers(empty_database)
    locks = text(
        "SELECT mode FROM pg_locks WHERE relation = 'message_store.messages'::regclass"
        " AND mode NOT IN ('AccessShareLock', 'RowExclusiveLock')"
    )
    with empty_database.begin() as connection:
        install.upgrade(connection, notify=on)
        assert connection.scalars(locks).all() == []
    assert triggers(empty_database) == before


def test_a_trigger_that_somebody_disabled_is_off_and_can_be_switched_on(empty_database: Engine) -> None:
    install.upgrade(empty_database, notify=True)
    with empty_database.begin() as connection:
        connection.execute(text("ALTER TABLE message_store.messages DISABLE TRIGGER messages_notify"))
    assert not notifies(empty_database)
    install.upgrade(empty_database, notify=True)
    assert notifies(empty_database)


def test_it_is_switched_in_the_callers_transaction(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    with empty_database.connect() as connection:
        install.upgrade(connection, notify=True)
        assert run_joined(connection, HAS_NOTIFICATIONS)
        connection.rollback()
    assert not notifies(empty_database)


def test_before_the_revision_that_has_the_function_it_is_refused_and_nothing_is_made(empty_database: Engine) -> None:
    with pytest.raises(MigrationRefused, match="need the revision messagedb_0003"):
        install.upgrade(empty_database, "messagedb_0002", notify=True)
    assert install.current(empty_database) is None
    install.upgrade(empty_database, "messagedb_0002", notify=False)
    assert install.current(empty_database) == "messagedb_0002"


def test_a_downgrade_takes_the_trigger_and_the_function(empty_database: Engine) -> None:
    install.upgrade(empty_database, notify=True)
    Store(empty_database).write("account-1", "Opened", {})
    install.downgrade(empty_database, "messagedb_0002")
    assert triggers(empty_database) == []
    with empty_database.connect() as connection:
        assert connection.scalar(text("SELECT to_regproc('message_store.notify_category')")) is None
    assert Store(empty_database).write("account-1", "Closed", {}) == 1
    install.upgrade(empty_database)
    assert not notifies(empty_database)
    install.upgrade(empty_database, notify=True)
    install.downgrade(empty_database, discard_messages=True)
    assert install.current(empty_database) is None


def test_taking_a_store_over_again_leaves_it_on(empty_database: Engine) -> None:
    install.upgrade(empty_database, notify=True)
    with empty_database.begin() as connection:
        connection.execute(text("DROP TABLE messagedb_alembic_version"))
    install.upgrade(empty_database)
    assert notifies(empty_database)


def test_alembics_command_line_switches_it_at_head_too(empty_database: Engine) -> None:
    at = ("-x", f"url={url_of(empty_database)}")
    alembic(*at, "-x", "notify=on", "upgrade", "head", cwd=REPOSITORY)
    assert notifies(empty_database)
    alembic(*at, "upgrade", "head", cwd=REPOSITORY)
    assert notifies(empty_database)
    alembic(*at, "-x", "notify=off", "upgrade", "head", cwd=REPOSITORY)
    assert not notifies(empty_database)
    alembic(*at, "-x", "notify=yes", "upgrade", "head", cwd=REPOSITORY)
    assert notifies(empty_database)
    refused = alembic(*at, "-x", "notify=maybe", "upgrade", "head", cwd=REPOSITORY, check=False)
    assert "-x notify=maybe: must be yes or no" in refused.stdout + refused.stderr


def test_the_sql_that_offline_mode_prints_switches_it(empty_database: Engine) -> None:
    executed(empty_database, alembic("-x", "notify=on", "upgrade", "head", "--sql", cwd=REPOSITORY).stdout)
    assert install.current(empty_database) == HEAD
    assert notifies(empty_database)
    at_head = f"{HEAD}:head"
    executed(empty_database, alembic("-x", "notify=off", "upgrade", at_head, "--sql", cwd=REPOSITORY).stdout)
    assert not notifies(empty_database)
    assert "messages_notify" not in alembic("upgrade", at_head, "--sql", cwd=REPOSITORY).stdout


def test_a_connection_that_is_passed_to_alembic_is_switched_on_too(empty_database: Engine) -> None:
    config = Config(cmd_opts=Namespace(x=["notify=on"]))
    config.set_main_option("script_location", "messagedb_sa:migrations")
    with empty_database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    assert notifies(empty_database)


# Of the last revision: offline, Alembic takes it for the one that the database is at.
REVISION = f"""
from alembic import op
from messagedb_sa import install
revision, down_revision, branch_labels, depends_on = "host1", None, None, "{HEAD}"
def upgrade():
    op.execute(install.NOTIFY_ON)
def downgrade():
    op.execute(install.NOTIFY_OFF)
"""


@pytest.mark.parametrize("offline", [False, True])
def test_in_a_hosts_own_history_a_revision_of_the_hosts_switches_it(
    tmp_path: Path, empty_database: Engine, offline: bool
) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    env = HOST_ENV.replace("literal_binds=True", 'literal_binds=True, dialect_opts={"paramstyle": "named"}')
    (tmp_path / "migrations" / "env.py").write_text(env)
    (versions / "host1.py").write_text(REVISION)
    (tmp_path / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s/migrations\npath_separator = newline\n"
        "version_locations =\n    %(here)s/migrations/versions\n    messagedb_sa.migrations:versions\n"
        f"sqlalchemy.url = {url_of(empty_database).replace('%', '%%')}\n"
    )
    for direction, expected in (("upgrade host1", True), ("downgrade host1@base", False)):
        arguments = direction.split()
        if offline:
            if not expected:
                arguments[-1] = "host1:base"
            executed(empty_database, alembic(*arguments, "--sql", cwd=tmp_path).stdout)
        else:
            alembic(*arguments, cwd=tmp_path)
        assert notifies(empty_database) is expected


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_switches_it_and_tells_whether_it_is_on(driver: str, empty_database: Engine) -> None:
    def body(connection: Connection) -> None:
        assert not run_joined(connection, HAS_NOTIFICATIONS)
        install.upgrade(connection, notify=True)
        assert run_joined(connection, HAS_NOTIFICATIONS)

    on(driver, url_of(empty_database), body)
    assert notifies(empty_database)


# ---- what is sent


def test_a_write_notifies_of_its_category(engine: Engine) -> None:
    with listening(engine) as heard:
        Store(engine).write("account:command-1", "Open", {})
        assert heard() == ["account:command"]


def test_a_batch_notifies_once(engine: Engine) -> None:
    with listening(engine) as heard:
        Store(engine).write_batch("account-1", [("Deposited", {})] * 100)
        assert heard() == ["account"]


def test_a_write_to_several_streams_notifies_once_of_each_category(engine: Engine) -> None:
    with listening(engine) as heard:
        Store(engine).write_streams(
            [("account-1", [("T", {})] * 3), ("order-1", [("T", {})]), ("account-2", [("T", {})])]
        )
        assert sorted(heard()) == ["account", "order"]


def test_a_joined_transaction_notifies_at_its_commit_once_of_each_category(engine: Engine) -> None:
    with listening(engine) as heard:
        with engine.begin() as connection:
            joined = Store(connection)
            joined.write("account-1", "Opened", {})
            joined.write("order-1", "Placed", {})
            joined.write_batch("account-2", [("Opened", {}), ("Closed", {})])
            assert heard() == []
        assert sorted(heard()) == ["account", "order"]


def test_what_is_rolled_back_or_refused_notifies_nobody(engine: Engine) -> None:
    store = Store(engine)
    with listening(engine) as heard:
        with engine.connect() as connection:
            Store(connection).write("account-1", "Opened", {})
            connection.rollback()
        with pytest.raises(WrongExpectedVersion):
            store.write("account-1", "Opened", {}, expected_version=7)
        assert heard() == []


def test_each_transaction_notifies(engine: Engine) -> None:
    store = Store(engine)
    with listening(engine) as heard:
        for _ in range(3):
            store.write("account-1", "Deposited", {})
        assert heard() == ["account"] * 3


def test_combined_writes_notify(engine: Engine) -> None:
    with listening(engine) as heard:
        Store(engine, combine_writes=True).write("account-1", "Deposited", {})
        assert heard() == ["account"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_writers_on_every_driver_notify(driver: str, engine: Engine, notifying_url: str) -> None:
    with listening(engine) as heard, store_on(driver, notifying_url) as store:
        store.write("account-1", "Opened", {})
        store.write_batch("order-1", [("Placed", {})])
        store.write_streams([("stock-1", [("Taken", {})])])
        assert heard() == ["account", "order", "stock"]


def test_rows_that_no_function_of_the_stores_wrote_notify_too(engine: Engine) -> None:
    with listening(engine) as heard, engine.begin() as connection:
        connection.execute(insert(schema.messages).values(stream_name="account-1", position=0, type="T"))
        connection.execute(
            insert(schema.messages),
            [{"stream_name": "order-1", "position": n, "type": "T"} for n in range(3)],
        )
        connection.commit()
        assert heard() == ["account", "order"]


@pytest.mark.parametrize("stream_name", ["-1", "конто-1", "a b'\"-1", "account"])
def test_whatever_the_category_is_called_it_is_the_payload(engine: Engine, stream_name: str) -> None:
    with listening(engine) as heard:
        Store(engine).write(stream_name, "T", {})
        assert heard() == [stream_name.partition("-")[0]]


# ---- whom it is sent for


def test_nobody_is_notified_of_what_nobody_awaits(engine: Engine) -> None:
    with listening(engine, "order") as heard:
        Store(engine).write("account-1", "Opened", {})
        Store(engine).write_batch("account-1", [("Deposited", {})] * 3)
        assert heard() == []
        Store(engine).write("order-1", "Placed", {})
        assert heard() == ["order"]
        with awaited(engine, "account"):
            Store(engine).write("account-1", "Closed", {})
            assert heard() == ["account"]
        Store(engine).write("account-2", "Opened", {})
        assert heard() == []


def test_many_may_await_a_category_and_one_that_ends_does_not_matter(engine: Engine) -> None:
    with listening(engine, "account") as heard:
        for _ in range(2):
            with awaited(engine, "account"), awaited(engine, "account", "$all"):
                Store(engine).write("account-1", "Deposited", {})
                assert heard() == ["account"]


def test_a_writer_keeps_no_lock_and_waits_for_none(engine: Engine) -> None:
    locks = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND pid = pg_backend_pid()"
    )
    with awaited(engine, "account", "$all"), engine.connect() as one, engine.connect() as another:
        another.execute(text("SET lock_timeout = '1ms'"))
        for connection, category in ((one, "account"), (another, "account"), (one, "order"), (another, "stock")):
            # Without Message DB's own lock, for which the second would wait.
            row = {"stream_name": f"{category}-{id(connection)}", "position": 0, "type": "T"}
            connection.execute(insert(schema.messages).values(row))
            assert connection.scalar(locks) == 0
        one.commit()
        another.commit()
    with engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        assert connection.scalar(locks) == 0


def test_a_session_that_writes_what_it_awaits_itself_goes_on_awaiting_it(engine: Engine) -> None:
    with listening(engine, "other") as heard, engine.connect() as connection:
        assert connection.scalars(AWAIT, {"names": ["account"]}).all() == ["account"]
        Store(connection).write("account-1", "Opened", {})
        connection.commit()
        heard()
        Store(engine).write("account-1", "Closed", {})
        assert heard() == ["account"]
        # NullPool closes it.


# ---- no writer fails of it


@pytest.mark.parametrize("path", ["", "pg_temp, public", "hostile, pg_catalog"])
def test_a_writer_needs_the_roles_privileges_only_and_any_search_path_will_do(engine: Engine, path: str) -> None:
    with engine.begin() as connection:
        # Whoever lets nobody call the function by default still lets writers fire the trigger.
        connection.execute(text("REVOKE ALL ON FUNCTION message_store.notify_category() FROM PUBLIC"))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS hostile"))
        connection.execute(text("GRANT USAGE ON SCHEMA hostile TO PUBLIC"))
        for function in ("pg_notify(text, text) RETURNS void", "octet_length(text) RETURNS int"):
            connection.execute(
                text(f"CREATE OR REPLACE FUNCTION hostile.{function} LANGUAGE plpgsql AS 'BEGIN RAISE ''taken''; END'")
            )
    options = f"-c search_path={path.replace(' ', '')}"
    store = Store(as_role(engine, "message_store", connect_args={"options": options}))
    with listening(engine) as heard:
        store.write("account-1", "Opened", {})
        store.write_batch("account-1", [("Deposited", {})])
        with store.engine.begin() as connection:
            connection.execute(insert(schema.messages).values(stream_name="order-1", position=0, type="T"))
        assert heard() == ["account", "account", "order"]
        assert notifies(store.engine)


@pytest.mark.parametrize("letter", ["a", "ä"])
@pytest.mark.parametrize("size", [7998, 8000, 100_000])
def test_a_category_too_long_for_a_payload_is_written_in_silence(engine: Engine, letter: str, size: int) -> None:
    # PostgreSQL's limit is 7,999 bytes, and its index holds far longer names, if they can be compressed.
    category = letter * (size // len(letter.encode()))
    with listening(engine) as heard:
        write_by_another_client(engine, f"{category}-1")
        assert heard() == ([category] if size < 8000 else [])
    assert len(Store(engine).read_category(category)) == 1


def test_the_longest_payload_is_sent(engine: Engine) -> None:
    with listening(engine) as heard:
        write_by_another_client(engine, "a" * 7999 + "-1")
        assert heard() == ["a" * 7999]


def write_by_another_client(engine: Engine, stream_name: str) -> None:
    """Store refuses a name that an index may not hold."""
    with engine.begin() as connection:
        connection.execute(select(functions.write_message(str(uuid4()), stream_name, "T", {})))


def notify_for_ever(connection: Connection, payload: str) -> None:
    while True:
        connection.exec_driver_sql(f"NOTIFY others, '{payload}'")


def test_writers_go_on_while_a_listener_holds_up_postgresqls_queue(engine: Engine) -> None:
    with engine.connect() as connection:
        if connection.scalar(text("SELECT current_setting('max_notify_queue_pages', true)")) is None:
            pytest.skip("before PostgreSQL 17 the queue holds 8 GB")
    # 64 pages of 8 kB, the least.
    with temporary_server(settings={"max_notify_queue_pages": "64"}) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine, notify=True)
        with engine.connect() as holding, engine.connect() as others:
            for each in (holding, others):
                each.execution_options(isolation_level="AUTOCOMMIT")
            holding.exec_driver_sql("LISTEN message_store")
            holding.exec_driver_sql("BEGIN")
            for payload in ("x" * 7999, ""):
                with pytest.raises(DBAPIError, match="too many notifications"):
                    notify_for_ever(others, payload)
            assert Store(engine).write("account-1", "Opened", {}) == 0
            assert Store(engine).write_batch("account-1", [("Deposited", {})] * 2) == 2
            holding.exec_driver_sql("ROLLBACK")
        with listening(engine) as heard:
            Store(engine).write("account-1", "Closed", {})
            assert heard() == ["account"]


# ---- a copy of the database


def test_a_dump_restores_the_trigger_with_the_store(
    engine: Engine, notifying_url: str, messagedb_server_url: str
) -> None:
    Store(engine).write("account-1", "Opened", {})
    with restored(notifying_url, messagedb_server_url) as url:
        copy = create_engine(url, poolclass=NullPool)
        assert notifies(copy)
        with listening(copy) as heard:
            assert Store(copy).write("account-1", "Closed", {}) == 1
            assert heard() == ["account"]
