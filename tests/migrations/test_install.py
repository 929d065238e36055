"""Installing, upgrading and removing a store from Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, inspect, text

from messagedb_sa import InvalidArgument, Store, install
from messagedb_sa.install import MigrationRefused
from messagedb_sa.testing import temporary_database

from ..support import HEAD, as_role
from ..waits import wait_until_blocked
from .support import database_of_a_guest


def in_schema(engine: Engine) -> int:
    """How many relations, functions and types the schema message_store holds."""
    with engine.connect() as connection:
        count: int = connection.execute(
            text(
                "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = n)"
                " + (SELECT count(*) FROM pg_proc WHERE pronamespace = n)"
                " + (SELECT count(*) FROM pg_type WHERE typnamespace = n)"
                " FROM (SELECT to_regnamespace('message_store')::oid AS n) AS schema"
            )
        ).scalar_one()
        return count


def role_exists(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT to_regrole('message_store') IS NOT NULL")))


def test_an_empty_database_gets_a_store(empty_database: Engine) -> None:
    assert install.current(empty_database) is None
    install.upgrade(empty_database)
    assert install.current(empty_database) == HEAD
    assert Store(empty_database).write("account-1", "Opened", {}) == 0


def test_a_database_that_is_current_is_left_alone(empty_database: Engine) -> None:
    install.upgrade(empty_database)

    def row_versions() -> list[Any]:
        with empty_database.connect() as connection:
            return [
                *connection.execute(text("SELECT oid, xmin::text FROM pg_proc ORDER BY oid")),
                *connection.execute(text("SELECT oid, xmin::text FROM pg_class ORDER BY oid")),
            ]

    before = row_versions()
    install.upgrade(empty_database)
    assert row_versions() == before


def test_upgrading_what_is_there_without_a_version_gives_the_same_catalog(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    Store(empty_database).write("account-1", "Opened", {"n": 1})
    before = in_schema(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("DROP TABLE messagedb_alembic_version"))
    install.upgrade(empty_database)
    assert in_schema(empty_database) == before
    assert Store(empty_database).read("account-1")[0].data == {"n": 1}


def test_on_a_connection_it_is_the_callers_transaction(empty_database: Engine) -> None:
    with empty_database.connect() as connection:
        install.upgrade(connection)
        assert install.current(connection) == HEAD
        connection.rollback()
    assert install.current(empty_database) is None
    assert not inspect(empty_database).has_schema("message_store")
    with empty_database.begin() as connection:
        connection.execute(text("CREATE TABLE own (id int)"))
        install.upgrade(connection)
    assert install.current(empty_database) == HEAD
    assert inspect(empty_database).has_table("own")


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_an_engine_of_any_isolation_level_will_do(empty_database: Engine, level: Any) -> None:
    install.upgrade(empty_database.execution_options(isolation_level=level))
    assert install.current(empty_database.execution_options(isolation_level=level)) == HEAD


def test_a_connection_in_autocommit_mode_is_refused_and_nothing_is_made(empty_database: Engine) -> None:
    with (
        empty_database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(InvalidArgument, match="autocommit"),
    ):
        install.upgrade(connection)
    assert not inspect(empty_database).has_schema("message_store")
    assert not inspect(empty_database).has_table("messagedb_alembic_version")


@pytest.mark.parametrize("bad", [None, "postgresql://", object()])
def test_anything_but_an_engine_or_a_connection_is_refused(bad: Any) -> None:
    for call in (install.upgrade, install.downgrade, install.current):
        with pytest.raises(InvalidArgument, match="bind="):
            call(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: install.upgrade(engine, role="off"),  # type: ignore[arg-type]
        lambda engine: install.upgrade(engine, notify="off"),  # type: ignore[arg-type]
        lambda engine: install.downgrade(engine, discard_messages="no"),  # type: ignore[arg-type]
    ],
)
def test_a_switch_is_true_or_false_and_not_a_text(empty_database: Engine, call: Any) -> None:
    install.upgrade(empty_database)
    Store(empty_database).write("account-1", "Opened", {})
    with pytest.raises(InvalidArgument, match="must be True or False"):
        call(empty_database)
    assert Store(empty_database).stream_version("account-1") == 0


def test_upgrades_at_the_same_moment_wait_for_each_other_and_all_succeed(messagedb_server_url: str) -> None:
    for _ in range(3):
        with temporary_database(messagedb_server_url) as url:

            def upgrade(n: int, url: str = url) -> str | None:
                engine = create_engine(url)
                install.upgrade(engine)
                revision = install.current(engine)
                engine.dispose()
                return revision

            # All of them wait for one that is taken back.
            before = create_engine(url, poolclass=NullPool)
            with ThreadPoolExecutor(4) as threads, before.connect() as connection:
                install.upgrade(connection)
                upgrades = [threads.submit(upgrade, n) for n in range(4)]
                wait_until_blocked(before, 4)
                connection.rollback()
                assert [each.result() for each in upgrades] == [HEAD] * 4


def test_an_upgrade_waits_for_one_that_is_not_committed_yet(empty_database: Engine) -> None:
    with empty_database.connect() as first:
        install.upgrade(first)
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(install.upgrade, empty_database)
            wait_until_blocked(empty_database)
            first.commit()
            second.result()
    assert install.current(empty_database) == HEAD


# ---- the role


def test_the_role_is_made_with_what_it_needs(messagedb_server_url: str, without_role: None) -> None:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        store = Store(as_role(engine, "message_store"))
        assert store.write("account-1", "Opened", {}) == 0
        assert len(store.read("account")) == 1
        engine.dispose()


def test_the_role_can_be_left_out_on_purpose(
    messagedb_server_url: str, without_role: None, caplog: pytest.LogCaptureFixture
) -> None:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url)
        install.upgrade(engine, role=False)
        assert not role_exists(engine)
        assert Store(engine).write("account-1", "Opened", {}) == 0
        engine.dispose()
    assert caplog.records == []


@contextmanager
def database_owned_by(owner: str, server_url: str) -> Iterator[Engine]:
    """An engine for the owner of a database, who is no superuser."""
    with temporary_database(server_url) as url:
        admin = create_engine(url, poolclass=NullPool)
        with admin.begin() as connection:
            connection.execute(text(f"ALTER DATABASE {admin.url.database} OWNER TO {owner}"))
            connection.execute(text(f"GRANT CREATE, USAGE ON SCHEMA public TO {owner}"))
        yield as_role(admin, owner)
        with admin.begin() as connection:
            connection.execute(text(f"ALTER DATABASE {admin.url.database} OWNER TO current_user"))
            connection.execute(text(f"DROP OWNED BY {owner}"))


def test_who_may_not_create_roles_gets_all_but_the_role_and_a_warning(
    messagedb_server_url: str, without_role: None, login: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    owner = login("messagedb_owner")
    with database_owned_by(owner, messagedb_server_url) as engine:
        with caplog.at_level(logging.WARNING):
            install.upgrade(engine)
        assert not role_exists(engine)
        (record,) = caplog.records
        assert record.name == "messagedb_sa.install"
        assert "message_store" in record.message
        assert owner in record.message
        assert Store(engine).write("account-1", "Opened", {}) == 0
        with pytest.raises(MigrationRefused, match="would delete 1 messages"):
            install.downgrade(engine)
        install.downgrade(engine, discard_messages=True)
        assert not inspect(engine).has_schema("message_store")


def test_who_may_create_roles_needs_to_be_no_superuser(
    messagedb_server_url: str, without_role: None, login: Callable[..., str]
) -> None:
    owner = login("messagedb_creator", "CREATEROLE")
    with database_owned_by(owner, messagedb_server_url) as engine:
        install.upgrade(engine)
        assert role_exists(engine)
        assert Store(as_role(engine, "message_store")).write("account-1", "Opened", {}) == 0
        install.downgrade(engine, discard_messages=True)
        assert not role_exists(engine)


@pytest.mark.parametrize("given", ["a schema", "create on the database"])
def test_who_may_create_nothing_elsewhere_has_all_of_it_in_the_stores_schema(
    messagedb_server_url: str, login: Callable[..., str], given: str
) -> None:
    with database_of_a_guest(messagedb_server_url, login("messagedb_guest"), given) as engine:
        assert install.current(engine) is None
        install.upgrade(engine)
        install.upgrade(engine)
        assert install.current(engine) == HEAD
        assert inspect(engine).has_table("messagedb_alembic_version", schema="message_store")
        assert Store(engine).write("account-1", "Opened", {}) == 0
        install.downgrade(engine, discard_messages=True)
        assert install.current(engine) is None
        assert inspect(engine).get_table_names(schema="message_store") == ["messagedb_alembic_version"]
        install.upgrade(engine)
        assert Store(engine).write("account-1", "Opened", {}) == 0


@pytest.mark.parametrize("later", ["", "other", "message_store", "pg_catalog"])
def test_the_search_path_does_not_hide_what_is_installed(empty_database: Engine, later: str) -> None:
    install.upgrade(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    elsewhere = create_engine(
        empty_database.url, poolclass=NullPool, connect_args={"options": f"-c search_path={later}"}
    )
    assert install.current(elsewhere) == HEAD
    install.upgrade(elsewhere)
    install.downgrade(elsewhere)
    assert install.current(empty_database) is None


@pytest.mark.parametrize("first", ["pg_catalog", "pg_temp"])
def test_the_version_table_is_never_one_of_the_systems_or_a_temporary_one(empty_database: Engine, first: str) -> None:
    options = {"options": f"-c search_path={first},public"}
    engine = create_engine(empty_database.url, poolclass=NullPool, connect_args=options)
    install.upgrade(engine, "messagedb_0002")
    install.upgrade(engine)
    assert install.current(empty_database) == HEAD


def test_an_empty_search_path_does_not_matter(empty_database: Engine) -> None:
    engine = create_engine(empty_database.url, poolclass=NullPool, connect_args={"options": "-c search_path="})
    install.upgrade(engine)
    assert install.current(engine) == install.current(empty_database) == HEAD


def test_what_an_engine_does_to_its_connections_does_not_matter(empty_database: Engine) -> None:
    engine = create_engine(empty_database.url, poolclass=NullPool).execution_options(
        schema_translate_map={None: "elsewhere"}
    )

    @event.listens_for(engine, "engine_connect")
    def set_timeout(connection: Connection) -> None:
        connection.execute(text("SET statement_timeout = 60000"))

    install.upgrade(engine)
    install.upgrade(engine)
    assert install.current(engine) == install.current(empty_database) == HEAD


# ---- downgrading


def test_a_downgrade_takes_back_all_that_was_made(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    install.downgrade(empty_database)
    assert install.current(empty_database) is None
    assert not inspect(empty_database).has_schema("message_store")
    install.upgrade(empty_database)
    assert install.current(empty_database) == HEAD


def test_a_downgrade_that_would_lose_messages_is_refused_and_says_how_many(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    store = Store(empty_database)
    store.write_batch("account-1", [("Opened", {})] * 12)
    with pytest.raises(MigrationRefused, match=r"would delete 12 messages.*discard_messages"):
        install.downgrade(empty_database)
    assert install.current(empty_database) == HEAD
    assert len(store.read("account-1")) == 12
    install.downgrade(empty_database, discard_messages=True)
    assert not inspect(empty_database).has_schema("message_store")


def test_a_downgrade_does_not_take_what_others_put_into_the_schema(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("CREATE VIEW message_store.own AS SELECT type FROM message_store.messages"))
    with pytest.raises(Exception, match="own"):
        install.downgrade(empty_database)
    assert install.current(empty_database) == HEAD
    assert Store(empty_database).write("account-1", "Opened", {}) == 0


def test_the_role_stays_while_another_database_uses_it(messagedb_url: str, empty_database: Engine) -> None:
    install.upgrade(empty_database)
    install.downgrade(empty_database)
    assert role_exists(empty_database)


def test_the_role_stays_while_others_are_its_members(
    messagedb_server_url: str, without_role: None, login: Callable[..., str]
) -> None:
    member = login("messagedb_member")
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text(f"GRANT message_store TO {member}"))
        install.downgrade(engine)
        assert role_exists(engine)
        with engine.begin() as connection:
            connection.execute(text(f"REVOKE message_store FROM {member}"))
        install.upgrade(engine)
        install.downgrade(engine)
        assert not role_exists(engine)
        engine.dispose()


# ---- what is there already


@pytest.mark.parametrize("version", ["1.0.0", "1.4.0", "2.0.0", "0.9", "1.30"])
def test_another_version_of_message_db_is_refused_and_left_alone(empty_database: Engine, version: str) -> None:
    with empty_database.begin() as connection:
        connection.execute(text("CREATE SCHEMA message_store"))
        connection.execute(
            text(
                "CREATE FUNCTION message_store.message_store_version() RETURNS varchar LANGUAGE sql"
                f" AS $$ SELECT '{version}'::varchar $$"
            )
        )
    with pytest.raises(MigrationRefused, match=f"this database has Message DB {version}, but"):
        install.upgrade(empty_database)
    assert install.current(empty_database) is None
    assert in_schema(empty_database) == 1


def test_a_table_messages_that_is_not_message_dbs_is_refused(empty_database: Engine) -> None:
    with empty_database.begin() as connection:
        connection.execute(text("CREATE SCHEMA message_store"))
        connection.execute(text("CREATE TABLE message_store.messages (id int)"))
    with pytest.raises(MigrationRefused, match="is not a Message DB"):
        install.upgrade(empty_database)


def test_a_type_message_that_is_not_message_dbs_is_refused(empty_database: Engine) -> None:
    with empty_database.begin() as connection:
        connection.execute(text("CREATE SCHEMA message_store"))
        connection.execute(text("CREATE TYPE message_store.message AS ENUM ('a')"))
    with pytest.raises(MigrationRefused, match="is not a Message DB"):
        install.upgrade(empty_database)
