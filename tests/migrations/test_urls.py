"""Alembic on every driver: where a URL or a connection comes from, and what is said of one that does not work."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, inspect, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import InvalidArgument, Store, install
from messagedb_sa.testing import temporary_database

from ..support import DRIVERS, HEAD, on
from .support import alembic, in_ini, url_of

ASYNCHRONOUS = ["psycopg_async", "asyncpg"]
PLACEHOLDER = "driver://user:pass@localhost/dbname"  # from Alembic's template


def url_on(driver: str, engine: Engine) -> str:
    return engine.url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Path]:
    """Writes the ini file of an application whose [alembic] and [messagedb] have these URLs."""

    def write(url: str | None = None, own_url: str | None = None, *, logging: str = "") -> Path:
        ini = f"[alembic]\nscript_location = migrations\n{setting(url)}"
        ini += f"[messagedb]\nscript_location = messagedb_sa:migrations\n{setting(own_url)}{logging}"
        (tmp_path / "alembic.ini").write_text(ini)
        return tmp_path

    def setting(url: str | None) -> str:
        return "" if url is None else f"sqlalchemy.url = {url}\n"

    return write


# ---- drivers and sources


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_driver_runs_each_command(driver: str, empty_database: Engine, host: Callable[..., Path]) -> None:
    folder = host()

    def run(*arguments: str, check: bool = True) -> str:
        url = url_on(driver, empty_database)
        done = alembic("-n", "messagedb", *arguments, cwd=folder, check=check, MESSAGEDB_URL=url)
        return done.stdout + done.stderr

    assert "messagedb_" not in run("current")
    assert "not up to date" in run("check", check=False)
    run("upgrade", "messagedb_0001")
    assert "messagedb_0001" in run("current")
    run("upgrade", "head")
    assert f"{HEAD} (head)" in run("current")
    assert "No new upgrade operations" in run("check")
    assert "(current)" in run("history", "--indicate-current")
    assert HEAD in run("heads")
    run("stamp", "messagedb_0002")
    run("upgrade", "head")
    assert install.current(empty_database) == HEAD
    Store(empty_database).write("account-1", "Opened", {})
    assert "would delete 1 messages" in run("downgrade", "base", check=False)
    run("-x", "discard_messages=yes", "downgrade", "base")
    assert install.current(empty_database) is None


@pytest.mark.parametrize("source", ["[alembic]", "[messagedb]", "the environment", "-x"])
def test_an_asynchronous_url_may_stand_anywhere(source: str, empty_database: Engine, host: Callable[..., Path]) -> None:
    url = url_on("asyncpg", empty_database)
    assert "%" in url
    folder = host(
        in_ini(url) if source == "[alembic]" else PLACEHOLDER, in_ini(url) if source == "[messagedb]" else None
    )
    # Empty is as good as not set.
    from_environment = url if source == "the environment" else ""
    switch = ["-x", f"url={url}"] if source == "-x" else []
    alembic("-n", "messagedb", *switch, "upgrade", "head", cwd=folder, MESSAGEDB_URL=from_environment)
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_url_may_have_what_only_its_driver_knows(
    driver: str, empty_database: Engine, host: Callable[..., Path]
) -> None:
    own = {"asyncpg": {"prepared_statement_cache_size": "0", "ssl": "prefer"}}
    of_libpq = {"sslmode": "prefer", "application_name": "deployment"}
    url = empty_database.url.update_query_dict(own.get(driver, of_libpq)).set(
        drivername=f"postgresql+{driver}", password="p@ss:w/rd%"
    )
    alembic("-n", "messagedb", "upgrade", "head", cwd=host(), MESSAGEDB_URL=url.render_as_string(hide_password=False))
    assert install.current(empty_database) == HEAD


def test_the_form_that_hosts_hand_out_will_do(empty_database: Engine, host: Callable[..., Path]) -> None:
    url = url_of(empty_database).replace("postgresql+psycopg2:", "postgres:")
    assert url.startswith("postgres:")
    alembic("-n", "messagedb", "upgrade", "head", cwd=host(in_ini(url)))
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async"])
def test_a_url_may_have_several_hosts(driver: str, empty_database: Engine, host: Callable[..., Path]) -> None:
    folder, port = empty_database.url.query["host"], empty_database.url.query["port"]
    query = {"host": f"/nowhere,{folder}", "port": f"{port},{port}"}
    url = empty_database.url.set(drivername=f"postgresql+{driver}", query=query)
    alembic("-n", "messagedb", "upgrade", "head", cwd=host(), MESSAGEDB_URL=url.render_as_string())
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async"])
def test_a_url_may_name_a_service(
    driver: str, empty_database: Engine, host: Callable[..., Path], tmp_path: Path
) -> None:
    address = {**empty_database.url.query, "dbname": empty_database.url.database, "user": empty_database.url.username}
    lines = "\n".join(f"{name}={value}" for name, value in address.items())
    (tmp_path / "services").write_text(f"[store]\n{lines}\n")
    alembic(
        "-n",
        "messagedb",
        "upgrade",
        "head",
        cwd=host(f"postgresql+{driver}:///?service=store"),
        PGSERVICEFILE=str(tmp_path / "services"),
    )
    assert install.current(empty_database) == HEAD


# ---- in asynchronous code


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_upgrade_by_url_works_inside_an_event_loop(
    driver: str, empty_database: Engine, host: Callable[..., Path]
) -> None:
    config = Config(host(in_ini(url_on(driver, empty_database))) / "alembic.ini", ini_section="messagedb")

    async def main() -> None:
        command.upgrade(config, "head")

    asyncio.run(main())
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize("driver", DRIVERS)
def test_install_runs_on_a_connection_of_each_driver(driver: str, empty_database: Engine) -> None:
    url = url_of(empty_database)
    on(driver, url, install.upgrade)
    assert on(driver, url, install.current) == HEAD
    on(driver, url, install.downgrade)
    assert install.current(empty_database) is None


def test_what_is_asynchronous_is_refused_with_the_way_to_do_it(empty_database: Engine) -> None:
    calls: list[Callable[[Any], Any]] = [install.upgrade, install.downgrade, install.current]
    config = Config()
    config.set_main_option("script_location", "messagedb_sa:migrations")

    def by_attribute(bind: Any) -> None:
        config.attributes["connection"] = bind
        command.upgrade(config, "head")

    async def main() -> None:
        for driver in ASYNCHRONOUS:
            engine = create_async_engine(url_on(driver, empty_database))
            async with engine.connect() as connection:
                for bind in (engine, connection, engine.sync_engine, connection.sync_connection):
                    for call in (*calls, by_attribute):
                        with pytest.raises(InvalidArgument, match=re.escape("run_sync(install.upgrade)")):
                            call(bind)
            await engine.dispose()

    asyncio.run(main())
    assert install.current(empty_database) is None


def test_an_engine_may_be_passed_to_alembic(empty_database: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "messagedb_sa:migrations")
    config.attributes["connection"] = empty_database.execution_options(isolation_level="AUTOCOMMIT")
    command.upgrade(config, "head")
    assert install.current(empty_database) == HEAD


def test_none_that_is_passed_to_alembic_counts_as_nothing(empty_database: Engine, host: Callable[..., Path]) -> None:
    config = Config(host(in_ini(url_of(empty_database))) / "alembic.ini", ini_section="messagedb")
    config.attributes["connection"] = None
    command.upgrade(config, "head")
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_tasks_that_upgrade_two_databases_do_not_wait_for_each_other_for_ever(
    driver: str, messagedb_server_url: str
) -> None:
    async def upgrade(url: str) -> None:
        engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
        async with engine.begin() as connection:
            await connection.run_sync(install.upgrade)
        await engine.dispose()

    async def main(*urls: str) -> None:
        await asyncio.gather(*(upgrade(url) for url in urls))

    with temporary_database(messagedb_server_url) as one, temporary_database(messagedb_server_url) as other:
        asyncio.run(main(one, other, one, other))
        assert [install.current(create_engine(url, poolclass=NullPool)) for url in (one, other)] == [HEAD, HEAD]


def test_anything_else_that_is_passed_to_alembic_is_refused(empty_database: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "messagedb_sa:migrations")
    config.attributes["connection"] = url_of(empty_database)
    with pytest.raises(InvalidArgument, match=re.escape('attributes["connection"]=')):
        command.upgrade(config, "head")


# ---- URLs that do not work


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (PLACEHOLDER, "driver://user:***@localhost/dbname must be the URL of a PostgreSQL database"),
        ("mysql+pymysql://app:secret@localhost/app", "must be the URL of a PostgreSQL database"),
        ("localhost:5432 secret", "must be a database URL"),
        ("postgresql://app:my@secret@localhost/app", "write each @ in a user name or password as %40"),
        ("postgresql://app:secret@localhost:port/app", "must be a database URL"),
        ("postgresql+psycop://app:secret@localhost/app", "must have a driver that SQLAlchemy knows"),
        ("postgresql+pg8000://app:secret@localhost/app", "needs pg8000, which is not installed"),
        ("postgresql://app:secret@/app?host=/nowhere", "cannot connect to postgresql+psycopg2://app:***@/app"),
        ("postgresql+asyncpg://app:secret@/app?host=/nowhere", "cannot connect to postgresql+asyncpg://app:***@/app"),
    ],
)
def test_a_url_that_does_not_work_is_shown_without_its_password(
    url: str, reason: str, host: Callable[..., Path]
) -> None:
    done = alembic("-n", "messagedb", "upgrade", "head", cwd=host(in_ini(url)), check=False)
    assert done.returncode != 0
    assert "FAILED: sqlalchemy.url in [alembic]: " in done.stdout
    assert reason in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("sslmode=require", "got an unexpected keyword argument 'sslmode'"),
        ("statement_cache_size=0", "not supported between instances of 'str' and 'int'"),
    ],
)
def test_a_parameter_that_asyncpg_does_not_take_is_said_with_the_setting_it_came_from(
    option: str, reason: str, empty_database: Engine, host: Callable[..., Path]
) -> None:
    url = f"{url_on('asyncpg', empty_database)}&{option}"
    done = alembic("-n", "messagedb", "upgrade", "head", cwd=host(in_ini(url)), check=False)
    assert re.search(f"FAILED: sqlalchemy.url in .alembic.: cannot connect to .*: .*{reason}", done.stdout)
    assert "Traceback" not in done.stderr


def test_a_url_that_does_not_work_is_shown_with_the_setting_it_came_from(host: Callable[..., Path]) -> None:
    for urls, environment, arguments, source in (
        (["postgresql://"], PLACEHOLDER, ("-x", "url=bad"), "-x url="),
        (["postgresql://"], "bad", (), "the environment variable MESSAGEDB_URL"),
        (["postgresql://", "bad"], "", (), "sqlalchemy.url in [messagedb]"),
        (["bad"], "", (), "sqlalchemy.url in [alembic]"),
    ):
        command = ["-n", "messagedb", *arguments, "upgrade", "head"]
        done = alembic(*command, cwd=host(*urls), check=False, MESSAGEDB_URL=environment)
        assert f"FAILED: {source}: must be a database URL" in done.stdout


def test_a_percent_sign_that_the_ini_file_does_not_take_is_named_without_the_password(
    host: Callable[..., Path],
) -> None:
    done = alembic(
        "-n", "messagedb", "upgrade", "head", cwd=host("postgresql://app:se%40cret@localhost/app"), check=False
    )
    assert "FAILED: sqlalchemy.url in [alembic]: write each % as %%" in done.stdout + done.stderr
    assert "cret" not in done.stdout + done.stderr


# ---- what is printed

QUIET_LOGGERS = """
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = WARNING
handlers =
"""


def test_an_upgrade_says_what_it_did_without_any_configuration_of_logging(
    empty_database: Engine, host: Callable[..., Path]
) -> None:
    done = alembic("-n", "messagedb", "upgrade", "head", cwd=host(in_ini(url_of(empty_database))))
    assert done.stdout == ""
    assert "Running upgrade  -> messagedb_0001, Message DB 1.3.0" in done.stderr
    assert f"-> {HEAD}" in done.stderr


@pytest.mark.parametrize("how", ["-q", "the ini file's own loggers"])
def test_an_upgrade_says_nothing_if_it_is_told_to_be_quiet(
    how: str, empty_database: Engine, host: Callable[..., Path]
) -> None:
    own = QUIET_LOGGERS if how != "-q" else ""
    quiet = ["-q"] if how == "-q" else []
    folder = host(in_ini(url_of(empty_database)), logging=own)
    done = alembic(*quiet, "-n", "messagedb", "upgrade", "head", cwd=folder)
    assert done.stdout + done.stderr == ""
    assert install.current(empty_database) == HEAD


def test_an_upgrade_from_a_program_leaves_its_logging_alone(empty_database: Engine, host: Callable[..., Path]) -> None:
    config = Config(host(in_ini(url_of(empty_database))) / "alembic.ini", ini_section="messagedb")
    before = (list(logging.getLogger().handlers), logging.getLogger("alembic").level)
    command.upgrade(config, "head")
    assert (logging.getLogger().handlers, logging.getLogger("alembic").level) == before


# ---- a role that may only look


def test_current_creates_nothing(empty_database: Engine, login: Callable[..., str], host: Callable[..., Path]) -> None:
    looker = login("messagedb_looker")
    url = make_url(url_of(empty_database)).set(username=looker).render_as_string()
    with empty_database.begin() as connection:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM public")
    alembic("-n", "messagedb", "-x", "notify=on", "current", cwd=host(in_ini(url)))
    assert not inspect(empty_database).has_schema("message_store")


def test_an_asynchronous_host_may_install_the_store_in_a_revision(empty_database: Engine, tmp_path: Path) -> None:
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "versions" / "host1.py").write_text(
        """
from alembic import op
from messagedb_sa import install
revision, down_revision, branch_labels, depends_on = "host1", None, None, None
def upgrade():
    install.upgrade(op.get_bind())
    op.execute("CREATE TABLE after (n int)")
"""
    )
    (tmp_path / "migrations" / "env.py").write_text(
        """
import asyncio
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine
def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
async def main():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"))
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()
asyncio.run(main())
"""
    )
    url = in_ini(url_on("asyncpg", empty_database))
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = %(here)s/migrations\nsqlalchemy.url = {url}\n")
    alembic("upgrade", "head", cwd=tmp_path)
    assert install.current(empty_database) == HEAD
