"""Where the URL of the database comes from, what is wrong with it, and that no password is shown."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from messagedb_sa import install
from messagedb_sa.testing import temporary_server

from ..support import free_port
from .support import messagedb, rows

NEWEST = [{"revision": "messagedb_0005", "newest": "messagedb_0005"}]
WRONG = "postgresql://nobody@127.0.0.1:1/none"


def current(*arguments: str, **options: object) -> list[dict[str, object]]:
    return rows(messagedb(*arguments, "--json", **options))  # type: ignore[arg-type]


def ini(folder: Path, content: str, name: str = "alembic.ini") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def test_it_may_stand_before_or_after_the_commands_name(messagedb_url: str) -> None:
    assert current("--url", messagedb_url, "current") == NEWEST
    assert current("current", "--url", messagedb_url) == NEWEST
    assert current("--url", WRONG, "current", "--url", messagedb_url) == NEWEST


@pytest.mark.parametrize("driver", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_any_driver_and_none_will_do(driver: str, messagedb_url: str) -> None:
    url = messagedb_url.replace("postgresql+psycopg2", driver)
    assert current("current", url=url) == NEWEST


def test_the_option_takes_precedence_over_the_environment_and_that_over_the_ini_file_that_is_here(
    messagedb_url: str, tmp_path: Path
) -> None:
    assert current("current", "--url", messagedb_url, url=WRONG) == NEWEST
    ini(tmp_path, f"[alembic]\nsqlalchemy.url = {WRONG}\n")
    assert current("current", url=messagedb_url, cwd=tmp_path) == NEWEST
    assert messagedb("current", cwd=tmp_path).returncode == 3


def test_an_ini_file_that_is_named_takes_precedence_over_the_environment(messagedb_url: str, tmp_path: Path) -> None:
    escaped = messagedb_url.replace("%", "%%")
    file = ini(tmp_path, f"[alembic]\nsqlalchemy.url = {escaped}\n", "other.ini")
    assert current("current", "--config", file, url=WRONG) == NEWEST
    assert current("--config", file, "current", url=WRONG) == NEWEST
    # After the command's name takes precedence, whichever of the two it is.
    assert current("--url", WRONG, "current", "--config", file) == NEWEST


def test_the_ini_file_is_read_as_alembic_reads_it(messagedb_url: str, tmp_path: Path) -> None:
    escaped = messagedb_url.replace("%", "%%").replace("/postgres@", "/%(user)s@")
    ini(
        tmp_path,
        f"[alembic]\nsqlalchemy.url = {WRONG}\n[messagedb]\nuser = postgres\nsqlalchemy.url = {escaped}\n",
    )
    assert current("current", cwd=tmp_path) == NEWEST


def test_without_a_url_it_says_where_one_can_be_set(tmp_path: Path) -> None:
    done = messagedb("current", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "messagedb: there is no database URL: pass --url postgresql://…, or set MESSAGEDB_URL, or set "
        "sqlalchemy.url in alembic.ini\n"
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "--url: must be a database URL"),
        ("sqlite:///x", "must be the URL of a PostgreSQL database"),
        ("postgresql+none://u:secret@h/d", "a driver that SQLAlchemy knows"),
        ("postgresql://u:sec@ret@h/d", "write each @ in a user name or password as %40"),
        ("postgresql://u:secret@h:port/d", "must be a database URL"),
    ],
)
def test_a_bad_url_is_one_line_without_its_password(url: str, said: str, tmp_path: Path) -> None:
    done = messagedb("current", "--url", url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("messagedb: ")
    assert said in done.stderr
    assert "sec" not in done.stderr
    assert "ret@" not in done.stderr
    in_file = messagedb("current", "--config", ini(tmp_path, f"[alembic]\nsqlalchemy.url = {url.replace('%', '%%')}\n"))
    assert (in_file.returncode, "sec" in in_file.stderr) == (2, False)
    assert f"{tmp_path}/alembic.ini: sqlalchemy.url in [alembic]" in in_file.stderr


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_an_option_that_libpq_does_not_know_makes_it_a_bad_url(driver: str) -> None:
    done = messagedb("current", "--url", f"postgresql+{driver}://u:secret@127.0.0.1:1/d?nonsense=1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"cannot connect to postgresql+{driver}://u:***@127.0.0.1:1/d" in done.stderr
    assert 'invalid connection option "nonsense"' in done.stderr
    assert "secret" not in done.stderr


def test_an_ini_file_that_is_missing_or_wrong_is_one_line(tmp_path: Path) -> None:
    missing = messagedb("current", "--config", str(tmp_path / "none.ini"))
    assert (missing.returncode, missing.stderr) == (
        2,
        f"messagedb: --config {tmp_path}/none.ini: there is no such file\n",
    )
    percent = ini(tmp_path, "[alembic]\nsqlalchemy.url = postgresql://u:secret%40@h/d\n")
    done = messagedb("current", "--config", percent)
    assert (done.returncode, done.stderr) == (2, "messagedb: sqlalchemy.url in [alembic]: write each % as %%\n")
    broken = messagedb("current", "--config", ini(tmp_path, "sqlalchemy.url = postgresql://u:secret@h/d\n"))
    assert (broken.returncode, broken.stderr.count("\n"), "secret" in broken.stderr) == (2, 1, False)


def test_no_server_is_one_line_without_the_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://ada:secret@127.0.0.1:{taken.getsockname()[1]}/app?sslpassword=secret"
        done = messagedb("current", url=url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "messagedb: cannot connect to postgresql+psycopg2://ada:***@127.0.0.1:" in done.stderr
    assert "Connection refused" in done.stderr
    assert "secret" not in done.stderr


def test_no_store_is_one_line(empty_database: Engine) -> None:
    done = messagedb("current", url=empty_database.url.render_as_string())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert "has no store. To change that: messagedb upgrade" in done.stderr


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_missing_privilege_is_one_line(driver: str, empty_database: Engine, login: Callable[..., str]) -> None:
    role = login("messagedb_nobody")
    url = make_url(empty_database.url).set(username=role, drivername=f"postgresql+{driver}").render_as_string()
    done = messagedb("install", url=url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert "permission denied for database" in done.stderr
    assert install.current(empty_database) is None


@pytest.fixture(scope="module")
def with_password() -> Iterator[int]:
    """The port of a server that asks for a password, which is ``secret``."""
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": str(port)}
    with temporary_server(settings=settings, password="secret") as url:
        from sqlalchemy import NullPool, create_engine

        install.upgrade(create_engine(url, poolclass=NullPool))
        yield port


def test_libpqs_own_variables_and_password_file_count(with_password: int, tmp_path: Path) -> None:
    address = {"PGHOST": "127.0.0.1", "PGPORT": str(with_password), "PGUSER": "postgres", "PGDATABASE": "postgres"}
    assert current("current", "--url", "postgresql://", variables={**address, "PGPASSWORD": "secret"}) == NEWEST
    file = tmp_path / "pgpass"
    file.write_text("127.0.0.1:*:*:postgres:secret\n")
    file.chmod(0o600)
    in_file = {"PGPASSFILE": str(file)}
    assert current("current", "--url", "postgresql://", variables={**address, **in_file}) == NEWEST
    url = f"postgresql://postgres@127.0.0.1:{with_password}/postgres"
    assert current("current", "--url", url, variables=in_file) == NEWEST


def test_a_wrong_password_is_not_shown(with_password: int) -> None:
    done = messagedb("current", url=f"postgresql://postgres:wrong-one@127.0.0.1:{with_password}/postgres")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "password authentication failed" in done.stderr
    assert "wrong-one" not in done.stderr
