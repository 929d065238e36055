"""Diagnosing a store: each finding is provoked, and what its remedy runs makes it go away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import InvalidArgument, Store, _diagnosis, install
from messagedb_sa.install import Finding, diagnose
from messagedb_sa.testing import temporary_server

from ..standby import primary_and_standby
from ..support import DRIVERS, HEAD, REPOSITORY, as_role, on
from ..waits import wait_until


@pytest.fixture
def engine(empty_database: Engine) -> Engine:
    """A database of its own with a store in it."""
    install.upgrade(empty_database)
    return empty_database


@pytest.fixture
def app(login: Callable[..., str], engine: Engine) -> Iterator[Engine]:
    """The same database, for a role without any privilege."""
    role = login(f"messagedb_app_{uuid4().hex[:8]}")
    yield as_role(engine, role)
    run(engine, "SET default_transaction_read_only = off", f"DROP OWNED BY {role}")


def run(engine: Engine, *statements: str) -> None:
    """Each by itself: some do not run in a transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for each in statements:
            connection.exec_driver_sql(each.replace("%", "%%"))


def findings(engine: Engine, code: str, seconds: float = 60.0) -> list[Finding]:
    """Those of this check that are not well."""
    found = [each for each in diagnose(engine, long_transaction_seconds=seconds) if each.code == code]
    assert found
    return [each for each in found if each.severity != "ok"]


def fine(engine: Engine, code: str, seconds: float = 60.0) -> Finding:
    """The only finding of this check, which is well."""
    (found,) = (each for each in diagnose(engine, long_transaction_seconds=seconds) if each.code == code)
    assert found.severity == "ok"
    return found


def troubled(engine: Engine, code: str, seconds: float = 60.0) -> Finding:
    (found,) = findings(engine, code, seconds)
    assert found.remedy
    return found


# ---- a store in which all is well


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_new_store_has_nothing_but_good_findings_on_every_driver(engine: Engine, driver: str) -> None:
    found = on(driver, engine.url.render_as_string(hide_password=False), diagnose)
    assert [each for each in found if each.severity != "ok"] == []


def test_the_manual_lists_every_check_in_its_order(engine: Engine) -> None:
    page = (REPOSITORY / "docs" / "operate" / "doctor.md").read_text("utf-8")
    table = page.partition("| code |")[2].partition("\n\n")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert listed == [each.code for each in diagnose(engine)]


def test_nothing_is_changed_and_the_callers_transaction_goes_on(engine: Engine) -> None:
    with engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        assert {each.severity for each in diagnose(connection)} == {"ok"}
        connection.commit()
    assert Store(engine).stream_version("account-1") == 0


def test_what_is_not_a_bind_or_a_time_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match=r"bind=<Store.*must be an Engine or a Connection"):
        diagnose(Store(engine))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="long_transaction_seconds=-1"):
        diagnose(engine, long_transaction_seconds=-1)


# ---- the store


def test_a_database_without_a_store_has_one_error_for_that(empty_database: Engine) -> None:
    found = troubled(empty_database, "store")
    assert (found.severity, found.found) == ("error", "this database has no store")
    assert "privileges_read" not in {each.code for each in diagnose(empty_database)}
    install.upgrade(empty_database)
    assert fine(empty_database, "store").found == f"Message DB 1.3.0 at {HEAD}, the newest revision"


def test_a_store_behind_the_newest_revision_is_found(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0003")
    found = troubled(empty_database, "store")
    assert (found.severity, found.found) == ("warning", f"Message DB 1.3.0 at messagedb_0003, behind {HEAD}")
    assert {each.code for each in diagnose(empty_database) if each.severity != "ok"} == {"store"}
    assert "there is no table consumer_positions" in fine(empty_database, "privileges_consume").found
    install.upgrade(empty_database)
    assert fine(empty_database, "store")
    assert "has SELECT on consumer_positions" in fine(empty_database, "privileges_consume").found


def test_a_store_that_others_installed_is_found(engine: Engine) -> None:
    run(engine, "DROP TABLE messagedb_alembic_version")
    assert "not installed by this package" in troubled(engine, "store").found
    install.upgrade(engine)
    assert fine(engine, "store")


def test_a_store_at_a_later_revision_than_this_package_knows_is_found(engine: Engine) -> None:
    run(engine, "UPDATE messagedb_alembic_version SET version_num = 'messagedb_9999'")
    assert "messagedb_9999, which this package does not know" in troubled(engine, "store").found
    with pytest.raises(CommandError, match="messagedb_9999"):
        install.upgrade(engine)


# ---- privileges


def test_the_grants_of_each_task_are_all_that_the_role_needs(engine: Engine, app: Engine) -> None:
    codes = ["privileges_read", "privileges_write", "privileges_consume"]
    assert [findings(app, each)[0].severity for each in codes] == ["error", "warning", "warning"]
    with pytest.raises(Exception, match="permission denied"):
        Store(app).read("account")

    found = troubled(app, "privileges_read")
    assert "it lacks USAGE on the schema, SELECT on messages, SELECT on messages_global_position_seq" in found.found
    run(engine, *found.sql)
    assert findings(app, "privileges_read") == []
    assert Store(app).read("$all") == []

    run(engine, *troubled(app, "privileges_write").sql)
    assert findings(app, "privileges_write") == []
    assert Store(app).write("account-1", "Opened", {}) == 0

    found = troubled(app, "privileges_consume")
    assert found.found.endswith("it lacks INSERT on consumer_positions, UPDATE on consumer_positions")
    run(engine, *found.sql)
    assert [each for each in diagnose(app) if each.severity != "ok"] == []


def test_a_function_that_the_role_may_not_call_is_found(engine: Engine, app: Engine) -> None:
    run(engine, f"GRANT message_store TO {app.url.username}")
    assert findings(app, "privileges_read") == []
    name = "message_store.get_last_stream_message(varchar, varchar)"
    run(engine, *(f"REVOKE EXECUTE ON FUNCTION {name} FROM {role}" for role in ("public", "message_store")))
    found = troubled(app, "privileges_read")
    assert found.found.endswith("it lacks EXECUTE on its functions")
    run(engine, *found.sql)
    assert findings(app, "privileges_read") == []


def test_a_role_without_privileges_is_told_what_it_may_not_see(app: Engine) -> None:
    version = fine(app, "store").found
    assert version.startswith(f"a store at {HEAD}, the newest revision, by its objects, since messagedb_app_")
    assert version.endswith("may not read public.messagedb_alembic_version")
    assert "may not see whether message_store.messages_global_position_seq is ahead" in fine(app, "sequence").found


def test_a_role_that_sees_no_version_is_told_of_an_older_revision_by_its_objects(
    empty_database: Engine, login: Callable[..., str]
) -> None:
    install.upgrade(empty_database, "messagedb_0004")
    found = troubled(as_role(empty_database, login("messagedb_app")), "store")
    assert found.found.startswith(f"a store at messagedb_0004, behind {HEAD}, by its objects")


def test_a_role_with_a_name_that_must_be_quoted_gets_grants_that_work(
    engine: Engine, login: Callable[..., str]
) -> None:
    role = login('"the ""app"""')
    app = as_role(engine, 'the "app"')
    try:
        run(engine, *troubled(app, "privileges_read").sql)
        assert findings(app, "privileges_read") == []
    finally:
        run(engine, f"DROP OWNED BY {role}")


# ---- indexes


@pytest.mark.parametrize("name", ["messages_id", "messages_stream", "messages_category", "messages_recorded"])
def test_a_missing_index_is_found_and_made(engine: Engine, name: str) -> None:
    run(engine, f"DROP INDEX message_store.{name}")
    found = troubled(engine, "indexes")
    assert found.found == f"the index {name} is missing"
    assert found.severity == ("warning" if name == "messages_recorded" else "error")
    run(engine, *found.sql)
    assert name in fine(engine, "indexes").found


def test_a_missing_primary_key_is_found_and_made(engine: Engine) -> None:
    run(engine, "ALTER TABLE message_store.messages DROP CONSTRAINT messages_pkey")
    run(engine, *troubled(engine, "indexes").sql)
    assert fine(engine, "indexes")


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("messages_id", "CREATE INDEX messages_id ON message_store.messages (id)"),
        ("messages_stream", "CREATE UNIQUE INDEX messages_stream ON message_store.messages (position, stream_name)"),
        ("messages_category", "CREATE INDEX messages_category ON message_store.messages (stream_name)"),
        ("messages_recorded", "CREATE INDEX messages_recorded ON message_store.messages (type)"),
    ],
)
def test_an_index_on_something_else_is_found_and_made_again(engine: Engine, name: str, definition: str) -> None:
    run(engine, f"DROP INDEX message_store.{name}", definition)
    found = troubled(engine, "indexes")
    assert found.found.startswith(f"the index {name} is not Message DB's: CREATE ")
    run(engine, *found.sql)
    assert fine(engine, "indexes")


def test_a_primary_key_on_something_else_is_found_and_made_again(engine: Engine) -> None:
    table = "ALTER TABLE message_store.messages"
    run(engine, f"{table} DROP CONSTRAINT messages_pkey", f"{table} ADD CONSTRAINT messages_pkey PRIMARY KEY (id)")
    run(engine, *troubled(engine, "indexes").sql)
    assert fine(engine, "indexes")


def test_the_search_path_does_not_make_an_index_another_one(engine: Engine) -> None:
    inside = create_engine(engine.url, connect_args={"options": "-c search_path=message_store"}, poolclass=NullPool)
    assert fine(inside, "indexes")


def test_an_index_that_could_not_be_made_is_found_and_made_again(engine: Engine) -> None:
    run(engine, "DROP INDEX message_store.messages_id")
    insert = "INSERT INTO message_store.messages (stream_name, type, position, id) VALUES ('a-1', 'T', %s, '{}')"
    run(engine, *(insert.replace("%s", str(n)).replace("{}", str(_ID)) for n in (0, 1)))
    # As when duplicates were found while it was made concurrently.
    with pytest.raises(DBAPIError, match="could not create unique index"):
        run(engine, *troubled(engine, "indexes").sql)
    found = troubled(engine, "indexes")
    assert (found.severity, "messages_id is invalid" in found.found) == ("error", True)
    run(engine, "DELETE FROM message_store.messages WHERE position = 1", *found.sql)
    assert fine(engine, "indexes")


def test_an_invalid_index_of_ones_own_is_a_warning(engine: Engine) -> None:
    insert = "INSERT INTO message_store.messages (stream_name, type, position) VALUES ('a-1', 'T', 0), ('a-2', 'T', 0)"
    run(engine, insert)
    with pytest.raises(DBAPIError, match="could not create unique index"):
        run(engine, 'CREATE UNIQUE INDEX CONCURRENTLY "My own" ON message_store.messages (type)')
    found = troubled(engine, "indexes")
    assert (found.severity, "My own is invalid" in found.found) == ("warning", True)
    run(engine, "DELETE FROM message_store.messages WHERE stream_name = 'a-2'", *found.sql)
    assert "My own" in fine(engine, "indexes").found


_ID = "0193a2b4-0000-7000-8000-000000000000"


# ---- the sequence


def test_a_sequence_behind_the_table_is_found_and_set(engine: Engine) -> None:
    run(
        engine,
        "INSERT INTO message_store.messages (global_position, stream_name, type, position) VALUES (1, 'a-1', 'T', 0)",
    )
    with pytest.raises(DBAPIError, match="messages_pkey"):
        Store(engine).write("a-2", "T", {})
    # The failed write has used number 1.
    run(engine, "ALTER SEQUENCE message_store.messages_global_position_seq RESTART")
    found = troubled(engine, "sequence")
    assert (found.severity, "gives 1 next, but the last message has global position 1" in found.found) == (
        "error",
        True,
    )
    run(engine, *found.sql)
    assert fine(engine, "sequence").found.endswith("gives 2 next, and the last message has 1")
    Store(engine).write("a-2", "T", {})
    assert Store(engine).last_global_position("$all") == 2


@pytest.mark.parametrize("option", ["CACHE 10", "INCREMENT 2"])
def test_a_sequence_that_gives_out_numbers_otherwise_than_one_by_one_is_found(engine: Engine, option: str) -> None:
    run(engine, f"ALTER SEQUENCE message_store.messages_global_position_seq {option}")
    found = troubled(engine, "sequence")
    assert (found.severity, option in found.found) == ("error", True)
    run(engine, *found.sql)
    assert fine(engine, "sequence")


# ---- settings


def set_for_database(engine: Engine, setting: str) -> None:
    run(engine, f'ALTER DATABASE "{engine.url.database}" SET {setting}')


@pytest.mark.parametrize(
    ("code", "setting", "found"),
    [
        ("sql_condition", "message_store.sql_condition = on", "whoever reads may pass SQL"),
        ("read_only", "default_transaction_read_only = on", "nothing can be written"),
        ("isolation", "default_transaction_isolation = 'repeatable read'", "is repeatable read: "),
        ("timeouts", "statement_timeout = '5s'", "statement_timeout is 5s: a longer statement fails"),
        ("timeouts", "idle_in_transaction_session_timeout = 900", "idle_in_transaction_session_timeout is 900ms: "),
        ("timeouts", "idle_session_timeout = '10s'", "idle_session_timeout is 10s: a consumer that waits"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_a_setting_in_the_way_is_found_and_changed(
    engine: Engine, app: Engine, code: str, setting: str, found: str
) -> None:
    set_for_database(engine, setting)
    troubles = findings(app, code)
    assert [found in each.found for each in troubles] == [True]
    run(engine, *troubles[0].sql)
    assert fine(app, code)


def test_a_setting_that_the_client_sends_has_to_be_changed_there(engine: Engine) -> None:
    sent = create_engine(engine.url, connect_args={"options": "-c statement_timeout=1000"}, poolclass=NullPool)
    found = troubled(sent, "timeouts")
    assert (found.remedy, found.sql) == ("Set it to '10s' where it is set: the connection's own options", ())


def test_a_transaction_timeout_is_found_where_the_server_has_it(engine: Engine) -> None:
    with engine.connect() as connection:
        if connection.scalar(text("SELECT current_setting('transaction_timeout', true)")) is None:
            pytest.skip("before PostgreSQL 17 there is none")
    set_for_database(engine, "transaction_timeout = '30s'")
    run(engine, *troubled(engine, "timeouts").sql)
    assert fine(engine, "timeouts")
    run(engine, f'ALTER ROLE postgres IN DATABASE "{engine.url.database}" RESET ALL')


def test_the_schema_is_added_to_the_search_path_for_other_clients(engine: Engine, app: Engine) -> None:
    run(engine, *troubled(app, "privileges_read").sql)
    found = fine(app, "search_path")
    assert found.found == 'message_store is not in the search_path: "$user", public. This package does not need it'
    assert found.remedy
    run(app, *found.sql)
    assert fine(app, "search_path").found == "message_store is in the search_path: message_store, public"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_another_encoding_is_found(messagedb_server_url: str, encoding: str) -> None:
    name = f"messagedb_{uuid4().hex[:16]}"
    admin = create_engine(messagedb_server_url, poolclass=NullPool)
    how = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    run(admin, f"CREATE DATABASE {name} {how}")
    try:
        found = troubled(
            create_engine(make_url(messagedb_server_url).set(database=name), poolclass=NullPool), "encoding"
        )
        assert (found.severity, encoding in found.found) == ("warning", True)
    finally:
        run(admin, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_server_that_the_package_is_not_tested_on_is_found(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_diagnosis, "_NEWEST", 13)
    assert troubled(engine, "server_version").severity == "warning"
    monkeypatch.setattr(_diagnosis, "_OLDEST", 99)
    assert troubled(engine, "server_version").severity == "error"


# ---- notifications


def test_notifications_that_are_off_are_no_trouble(engine: Engine) -> None:
    assert fine(engine, "notifications").found == "notifications are off: consumers poll"
    install.upgrade(engine, notify=True)
    assert fine(engine, "notifications").found == "notifications are on; their queue is 0% full"


@pytest.mark.parametrize(
    ("harm", "severity", "found"),
    [
        (["ALTER TABLE message_store.messages DISABLE TRIGGER messages_notify"], "warning", "is disabled"),
        (["ALTER TABLE message_store.messages ENABLE REPLICA TRIGGER messages_notify"], "warning", "is disabled"),
        (
            [
                "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
                "DROP TRIGGER messages_notify ON message_store.messages",
                "CREATE TRIGGER messages_notify AFTER INSERT ON message_store.messages EXECUTE FUNCTION own()",
            ],
            "error",
            "calls another function",
        ),
        (
            [
                "CREATE OR REPLACE FUNCTION message_store.notify_category() RETURNS trigger LANGUAGE plpgsql "
                "AS 'BEGIN RETURN NULL; END'"
            ],
            "error",
            "is not this package's",
        ),
    ],
    ids=["disabled", "for replicas only", "another function", "another body"],
)
def test_a_trigger_that_does_not_notify_is_found_and_mended(
    engine: Engine, harm: list[str], severity: str, found: str
) -> None:
    install.upgrade(engine, notify=True)
    run(engine, *harm)
    trouble = troubled(engine, "notifications")
    assert (trouble.severity, found in trouble.found) == (severity, True)
    run(engine, *trouble.sql)
    assert fine(engine, "notifications").found.startswith("notifications are on")


# ---- autovacuum and statistics


def test_a_table_without_autovacuum_and_statistics_is_found_and_mended(engine: Engine) -> None:
    run(engine, "ALTER TABLE message_store.messages SET (autovacuum_enabled = false)")
    Store(engine).write_batch("account-1", [("Opened", {"text": "x" * 1000}) for _ in range(2_000)])
    found = troubled(engine, "statistics")
    assert "was never analysed" in found.found
    run(engine, *found.sql)
    assert "has about 2,000 messages" in fine(engine, "statistics").found
    run(engine, *troubled(engine, "autovacuum").sql)
    assert fine(engine, "autovacuum")


def test_what_only_a_superuser_sets_for_the_server_is_found() -> None:
    settings = {"max_locks_per_transaction": "10", "autovacuum": "off", "max_prepared_transactions": "5"}
    settings["max_notify_queue_pages"] = "64"
    try:
        with temporary_server(settings=settings) as url:
            check_server(create_engine(url, poolclass=NullPool), has_small_queue=True)
    except Exception as error:
        # Before PostgreSQL 17 the server does not know the last one.
        if "max_notify_queue_pages" not in str(error):
            raise
        del settings["max_notify_queue_pages"]
        with temporary_server(settings=settings) as url:
            check_server(create_engine(url, poolclass=NullPool), has_small_queue=False)


def check_server(engine: Engine, *, has_small_queue: bool) -> None:
    install.upgrade(engine, notify=True)
    found = troubled(engine, "max_locks")
    assert "max_locks_per_transaction is 10: 1,050 locks for all transactions" in found.found
    run(engine, *found.sql)
    # A restart, which the remedy asks for, would apply it.
    with engine.connect() as connection:
        written = "SELECT setting FROM pg_file_settings WHERE name = 'max_locks_per_transaction'"
        assert connection.scalar(text(written)) == "64"
    autovacuum = troubled(engine, "autovacuum")
    run(engine, *autovacuum.sql)
    # What the server was started with takes precedence over ALTER SYSTEM.
    assert autovacuum.sql == ("ALTER SYSTEM SET autovacuum = on", "SELECT pg_reload_conf()")

    with engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        # Nothing that has notified can be prepared.
        connection.rollback()
        install.upgrade(engine, notify=False)
        Store(connection).write("account-1", "Opened", {})
        connection.execute(text("PREPARE TRANSACTION 'it''s mine'"))
    assert findings(engine, "prepared_transactions") == []
    found = troubled(engine, "prepared_transactions", 0)
    assert "it's mine" in found.found
    run(engine, *found.sql)
    assert fine(engine, "prepared_transactions", 0)

    if has_small_queue:
        install.upgrade(engine, notify=True)
        with listening(engine):
            fill(engine)
            assert "queue of notifications is" in troubled(engine, "notifications").found
            found = next(each for each in findings(engine, "old_transactions", 0) if "LISTEN" in each.found)
            run(engine, *found.sql)
        wait_until(lambda: not findings(engine, "notifications"), "the queue is read")


@contextmanager
def listening(engine: Engine) -> Iterator[None]:
    """A session that listens and then stays in a transaction."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.execute(text("LISTEN messages"))
    connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 -- after LISTEN")
    yield
    connection.invalidate()
    connection.close()


def fill(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(text("SELECT pg_notification_queue_usage()")) < 0.5:
            connection.execute(
                text("SELECT pg_notify('messages', n || repeat('x', 7000)) FROM generate_series(1, 10) n")
            )


# ---- what others do


def opened(connection: Connection) -> int:
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    assert isinstance(pid, int)
    return pid


def test_a_transaction_that_has_written_and_stays_open_is_found_and_ended(engine: Engine) -> None:
    with engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        pid = opened(connection)
        assert findings(engine, "open_writers") == []
        found = troubled(engine, "open_writers", 0)
        assert f"process {pid} (without an application_name) has written and is open" in found.found
        assert "idle in transaction: SELECT pg_backend_pid()" in found.found
        assert findings(engine, "old_transactions", 0) == []
        run(engine, *found.sql)
        wait_until(lambda: not findings(engine, "open_writers", 0), "the session has ended")
        connection.invalidate()
    assert Store(engine).stream_version("account-1") == -1


def test_a_transaction_that_only_reads_and_stays_open_is_found_and_ended(engine: Engine) -> None:
    named = create_engine(
        engine.url, connect_args={"application_name": "report"}, isolation_level="REPEATABLE READ", poolclass=NullPool
    )
    with named.connect() as connection:
        assert Store(connection).stream_version("account-1") == -1
        assert findings(engine, "old_transactions") == []
        found = troubled(engine, "old_transactions", 0)
        assert f"process {opened(connection)} (report) is open" in found.found
        run(engine, *found.sql)
        wait_until(lambda: not findings(engine, "old_transactions", 0), "the session has ended")
        connection.invalidate()


def test_a_role_is_told_of_which_sessions_it_may_not_see_since_when_they_are_open(engine: Engine, app: Engine) -> None:
    with engine.connect() as connection:
        Store(connection).write("account-1", "Opened", {})
        found = fine(app, "open_writers", 0)
        assert found.found.endswith(f"may not see since when these processes are in one: {opened(connection)}")
        run(engine, *found.sql)
        assert len(findings(app, "open_writers", 0)) == 1


# ---- a standby


def test_a_standby_is_found() -> None:
    with primary_and_standby() as pair:
        pair.catch_up()
        standby: Any = pair.engine(pair.standby)
        found = troubled(standby, "read_only")
        assert "the server is a standby" in found.found
        assert {each.code for each in diagnose(standby) if each.severity != "ok"} == {"read_only"}
        assert fine(pair.engine(pair.primary), "read_only")
