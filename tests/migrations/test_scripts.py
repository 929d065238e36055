"""What --sql prints: who can run it, and what it does to the session that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, create_mock_engine, inspect, text

from messagedb_sa import InvalidArgument, Store, install

from ..support import DRIVERS, HEAD, REPOSITORY
from .support import HOST_ENV, alembic, catalog, database_of_a_guest, executed


def script(*arguments: str) -> str:
    return alembic(*arguments, "--sql", cwd=REPOSITORY).stdout


@pytest.mark.parametrize("given", ["a schema", "create on the database"])
def test_a_script_runs_for_a_role_that_may_create_nothing_in_public(
    messagedb_server_url: str, login: Callable[..., str], given: str
) -> None:
    with database_of_a_guest(messagedb_server_url, login("messagedb_script_guest"), given) as engine:
        executed(engine, script("upgrade", "messagedb_0002"))
        assert inspect(engine).has_table("messagedb_alembic_version", schema="message_store")
        executed(engine, script("upgrade", "messagedb_0002:head"))
        assert install.current(engine) == HEAD
        assert Store(engine).write("account-1", "Opened", {}) == 0
        with pytest.raises(Exception, match="would delete 1 messages"):
            executed(engine, script("downgrade", "head:base"))
        executed(engine, script("-x", "discard_messages=yes", "downgrade", "head:base"))
        assert install.current(engine) is None
        executed(engine, script("upgrade", "head"))
        assert install.current(engine) == HEAD


def test_a_script_finds_the_version_table_that_the_search_path_hides(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0002")
    with empty_database.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    elsewhere = create_engine(empty_database.url, poolclass=NullPool, connect_args={"options": "-c search_path=other"})
    executed(elsewhere, script("upgrade", "messagedb_0002:head"))
    assert install.current(empty_database) == HEAD
    assert not inspect(empty_database).get_table_names(schema="other")


def test_a_script_leaves_the_search_path_as_it_was(empty_database: Engine) -> None:
    connection = empty_database.raw_connection()
    connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
    cursor = connection.cursor()
    cursor.execute("SHOW search_path")
    before = cursor.fetchone()
    cursor.execute(script("upgrade", "head"))
    cursor.execute("SHOW search_path")
    assert cursor.fetchone() == before
    connection.close()


# ---- as a part of a host's script


def config_on(engine: Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", "messagedb_sa:migrations")
    config.attributes["connection"] = engine
    return config


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_script_of_a_shared_history_is_the_same_on_each_driver(
    driver: str, tmp_path: Path, empty_database: Engine, new_install: Engine
) -> None:
    (tmp_path / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s\npath_separator = newline\n"
        "version_locations = messagedb_sa.migrations:versions\n"
    )
    (tmp_path / "env.py").write_text(
        "from alembic import context\n"
        f"context.configure(url='postgresql+{driver}://', literal_binds=True)\n"
        "with context.begin_transaction():\n    context.run_migrations()\n"
    )
    executed(empty_database, alembic("upgrade", "head", "--sql", cwd=tmp_path).stdout)
    assert catalog(empty_database) == catalog(new_install)


def test_a_mock_connection_outside_of_a_migration_is_refused(empty_database: Engine) -> None:
    bind: Any = create_mock_engine("postgresql://", print)
    # The process may have run a migration before.
    command.upgrade(config_on(empty_database), "head")
    for call in (install.upgrade, install.downgrade, install.current):
        with pytest.raises(InvalidArgument, match="must be an Engine or a Connection of SQLAlchemy"):
            call(bind)


HOST_REVISIONS = {
    "host1": """
def upgrade():
    op.execute("CREATE TABLE before (n int)")
    install.upgrade(op.get_bind(), "messagedb_0001", role=False)
    op.execute("CREATE TABLE after (n int)")
    assert context.get_context() is op.get_context()
def downgrade():
    install.downgrade(op.get_bind())
    op.execute("DROP TABLE before, after")
""",
    "host2": """
def upgrade():
    install.upgrade(op.get_bind(), notify=True)
def downgrade():
    install.downgrade(op.get_bind(), "messagedb_0001")
""",
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """An application whose revisions install the store."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(HOST_ENV)
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    before = None
    for name, code in HOST_REVISIONS.items():
        (tmp_path / "migrations" / "versions" / f"{name}.py").write_text(
            "from alembic import context, op\n"
            "from messagedb_sa import install\n"
            f"revision, down_revision, branch_labels, depends_on = {name!r}, {before!r}, None, None\n{code}"
        )
        before = name
    return tmp_path


def test_a_hosts_script_has_the_store_in_it(host: Path, empty_database: Engine, new_install: Engine) -> None:
    sql = alembic("upgrade", "head", "--sql", cwd=host).stdout
    assert (sql.count("BEGIN;"), sql.count("COMMIT;")) == (1, 1)
    executed(empty_database, sql)
    assert install.current(empty_database) == HEAD
    assert {"before", "after", "messagedb_alembic_version"} <= set(inspect(empty_database).get_table_names("public"))
    assert Store(empty_database).write("account-1", "Opened", {}) == 0
    with empty_database.connect() as connection:
        triggers = connection.scalars(text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")).all()
        assert len(triggers) == 1
    install.upgrade(empty_database, notify=False)
    assert [row[0] for row in catalog(empty_database)] == [row[0] for row in catalog(new_install)]


def test_a_hosts_script_of_a_downgrade_takes_the_store_back(host: Path, empty_database: Engine) -> None:
    executed(empty_database, alembic("upgrade", "head", "--sql", cwd=host).stdout)
    Store(empty_database).write("account-1", "Opened", {})
    sql = alembic("downgrade", "host2:base", "--sql", cwd=host).stdout
    with pytest.raises(Exception, match="would delete 1 messages"):
        executed(empty_database, sql)
    with empty_database.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages"))
    executed(empty_database, sql)
    assert install.current(empty_database) is None
    assert not inspect(empty_database).has_schema("message_store")
    assert not {"before", "after"} & set(inspect(empty_database).get_table_names("public"))


def test_a_hosts_later_script_says_what_the_database_has(host: Path, empty_database: Engine) -> None:
    executed(empty_database, alembic("upgrade", "host1", "--sql", cwd=host).stdout)
    later = host / "migrations" / "versions" / "host2.py"
    later.write_text(later.read_text().replace("notify=True", '"messagedb_0001:head"'))
    executed(empty_database, alembic("upgrade", "host1:head", "--sql", cwd=host).stdout)
    assert install.current(empty_database) == HEAD
