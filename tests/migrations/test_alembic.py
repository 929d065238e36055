"""Alembic's command line, as this repository and host applications use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, MetaData, NullPool, create_engine, inspect, text

from messagedb_sa import Store, install, schema
from messagedb_sa.testing import temporary_database

from ..support import HEAD, REPOSITORY
from .support import HOST_ENV, alembic, catalog, executed, in_ini, url_of


@pytest.fixture
def host(tmp_path: Path, empty_database: Engine) -> Path:
    """An application with an Alembic history of its own, which has our revisions as a second section."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(HOST_ENV)
    (tmp_path / "migrations" / "script.py.mako").write_text((REPOSITORY / "migrations/script.py.mako").read_text())
    (tmp_path / "alembic.ini").write_text(
        f"""
[alembic]
script_location = %(here)s/migrations
sqlalchemy.url = {in_ini(url_of(empty_database))}

[messagedb]
script_location = messagedb_sa:migrations
"""
    )
    return tmp_path


# ---- this repository


def test_from_the_repository_with_a_url_on_the_command_line(empty_database: Engine) -> None:
    alembic("-x", f"url={url_of(empty_database)}", "upgrade", "head", cwd=REPOSITORY)
    assert install.current(empty_database) == HEAD


def test_from_the_repository_with_a_bare_url_in_the_environment(empty_database: Engine) -> None:
    bare = url_of(empty_database).replace("+psycopg2", "")
    alembic("upgrade", "head", cwd=REPOSITORY, MESSAGEDB_URL=bare)
    assert install.current(empty_database) == HEAD


def test_the_command_line_goes_before_the_environment(empty_database: Engine) -> None:
    alembic(
        "-x", f"url={url_of(empty_database)}", "upgrade", "head", cwd=REPOSITORY, MESSAGEDB_URL="postgresql://nowhere"
    )
    assert install.current(empty_database) == HEAD


def test_without_a_url_it_says_how_to_name_one() -> None:
    done = alembic("upgrade", "head", cwd=REPOSITORY, check=False)
    assert done.returncode != 0
    assert "MESSAGEDB_URL" in done.stderr + done.stdout


def test_a_switch_that_is_neither_on_nor_off_is_refused(empty_database: Engine) -> None:
    done = alembic(
        "-x", f"url={url_of(empty_database)}", "-x", "role=maybe", "upgrade", "head", cwd=REPOSITORY, check=False
    )
    assert "-x role=maybe: must be yes or no" in done.stderr + done.stdout
    assert install.current(empty_database) is None


def test_the_role_can_be_left_out(messagedb_server_url: str, without_role: None) -> None:
    with temporary_database(messagedb_server_url) as url:
        alembic("-x", f"url={url}", "-x", "role=off", "upgrade", "head", cwd=REPOSITORY)
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT to_regrole('message_store') IS NULL")) is True


def test_a_downgrade_with_messages_fails_with_their_number_until_it_is_said_to_discard_them(
    empty_database: Engine,
) -> None:
    install.upgrade(empty_database)
    Store(empty_database).write("account-1", "Opened", {})
    at = ("-x", f"url={url_of(empty_database)}")
    done = alembic(*at, "downgrade", "base", cwd=REPOSITORY, check=False)
    assert done.returncode != 0
    assert "FAILED: this downgrade would delete 1 messages" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert Store(empty_database).stream_version("account-1") == 0
    alembic(*at, "-x", "discard_messages=yes", "downgrade", "base", cwd=REPOSITORY)
    assert not inspect(empty_database).has_schema("message_store")


def test_a_connection_that_the_caller_passes_in_stays_the_callers(empty_database: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "messagedb_sa:migrations")
    with empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert install.current(connection) == HEAD
        connection.rollback()
    assert install.current(empty_database) is None
    with empty_database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    assert install.current(empty_database) == HEAD


def test_the_sql_that_offline_mode_prints_installs_the_same_store(messagedb_server_url: str) -> None:
    script = alembic("upgrade", "head", "--sql", cwd=REPOSITORY).stdout
    with temporary_database(messagedb_server_url) as online, temporary_database(messagedb_server_url) as offline:
        engine = create_engine(online, poolclass=NullPool)
        twin = create_engine(offline, poolclass=NullPool)
        install.upgrade(engine)
        executed(twin, script)
        assert install.current(twin) == HEAD
        assert catalog(twin) == catalog(engine)
        assert Store(twin).write("account-1", "Opened", {}) == 0


def test_the_sql_of_a_downgrade_refuses_to_lose_messages(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    Store(empty_database).write("account-1", "Opened", {})
    script = alembic("downgrade", f"{HEAD}:base", "--sql", cwd=REPOSITORY).stdout
    with pytest.raises(Exception, match="would delete 1 messages"):
        executed(empty_database, script)
    assert Store(empty_database).stream_version("account-1") == 0
    script = alembic("-x", "discard_messages=yes", "downgrade", f"{HEAD}:base", "--sql", cwd=REPOSITORY).stdout
    executed(empty_database, script)
    assert not inspect(empty_database).has_schema("message_store")


# ---- host applications


def test_a_section_of_the_hosts_ini_upgrades_the_hosts_database(host: Path, empty_database: Engine) -> None:
    alembic("-n", "messagedb", "upgrade", "head", cwd=host)
    assert install.current(empty_database) == HEAD
    assert not inspect(empty_database).has_table("alembic_version")


def test_the_section_may_name_a_database_of_its_own(host: Path, messagedb_server_url: str) -> None:
    with temporary_database(messagedb_server_url) as url:
        with (host / "alembic.ini").open("a") as ini:
            ini.write(f"sqlalchemy.url = {in_ini(url)}\n")
        alembic("-n", "messagedb", "upgrade", "head", cwd=host)
        assert install.current(create_engine(url, poolclass=NullPool)) == HEAD


def test_a_revision_of_the_hosts_may_install_the_store_itself(host: Path, empty_database: Engine) -> None:
    (host / "migrations" / "versions" / "host1.py").write_text(
        """
from alembic import context, op
from messagedb_sa import install
revision, down_revision, branch_labels, depends_on = "host1", None, None, None
def upgrade():
    op.execute("CREATE TABLE before (n int)")
    install.upgrade(op.get_bind())
    op.execute("CREATE TABLE after (n int)")
    assert context.get_context() is op.get_context()
def downgrade():
    pass
"""
    )
    alembic("upgrade", "head", cwd=host)
    assert install.current(empty_database) == HEAD
    assert inspect(empty_database).has_table("after")


@pytest.mark.parametrize("include_schemas", [True, False])
def test_without_include_name_autogenerate_would_drop_ours_and_with_it_nothing(
    empty_database: Engine, include_schemas: bool
) -> None:
    install.upgrade(empty_database)

    def proposed(**options: object) -> set[str]:
        with empty_database.connect() as connection:
            context = MigrationContext.configure(connection, opts={"include_schemas": include_schemas, **options})
            return {f"{kind} {thing.name}" for kind, thing, *_ in compare_metadata(context, MetaData())}

    without = proposed()
    assert "remove_table messagedb_alembic_version" in without
    assert ("remove_table messages" in without) is include_schemas
    assert proposed(include_name=schema.include_name) == set()
