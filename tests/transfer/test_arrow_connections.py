"""The connection that ADBC opens: made as the engine's are, and gone when the reader is."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from messagedb_sa import Store, install, transfer
from messagedb_sa._drivers.libpq import connection_string
from messagedb_sa.testing import temporary_server

from ..store.test_encodings import database_in
from ..support import store_on
from ..waits import HANG, wait_until

pa = pytest.importorskip("pyarrow")
pytest.importorskip("adbc_driver_postgresql")

DRIVERS = ["psycopg2", "psycopg"]
PASSWORD = "p'a\\ss w@r:d/%41?&=é"

LOST = "terminating connection|server closed the connection"

# Of the connections that ADBC opens here. Each test has a name of its own, so that those of others do not count.
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"


class Sessions:
    """The sessions of an engine whose connections have this name; only those that are not the engine's own."""

    def __init__(self, url: str, name: str) -> None:
        self._name = name
        self._admin = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.name = {"application_name": name}
        self.engine = create_engine(url, poolclass=NullPool, connect_args=self.name)

    def count(self, which: str = "true") -> int:
        with self._admin.connect() as connection:
            return int(connection.scalar(text(f"{_SESSIONS} AND {which}"), {"name": self._name}) or 0)

    def is_one(self) -> bool:
        """Whether only ADBC's is left: the server may still be ending those that the engine has closed before."""
        return self.count() == 1

    def end_all(self) -> None:
        wait_until(self.is_one, "only ADBC's connection is there")
        end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = :name"
        with self._admin.connect() as connection:
            assert connection.scalar(text(end), {"name": self._name}) == 1


@pytest.fixture
def sessions(messagedb_url: str, store: Store, request: pytest.FixtureRequest) -> Sessions:
    """On a store with more messages than the network's buffers hold."""
    with store.engine.begin() as connection:
        fill = (
            "INSERT INTO message_store.messages (stream_name, position, type, data)"
            " SELECT 'account-1', n, 'T', to_jsonb(repeat('x', 4000)) FROM generate_series(0, 9999) n"
        )
        connection.execute(text(fill))
    return Sessions(messagedb_url, request.node.name[-60:])


# ---- the end of the connection


def test_it_is_gone_when_all_is_read(sessions: Sessions) -> None:
    reader = transfer.to_arrow(Store(sessions.engine), "$all")
    reader.read_next_batch()
    wait_until(sessions.is_one, "only ADBC's connection is there")
    assert sum(batch.num_rows for batch in reader) < 10_000
    wait_until(lambda: sessions.count() == 0, "the connection is gone")


def end_by_close(reader: Any) -> None:
    reader.close()
    with pytest.raises(pa.ArrowInvalid, match="closed"):
        reader.read_next_batch()


def end_by_block(reader: Any) -> None:
    with reader:
        pass


def end_by_letting_go(reader: Any) -> None:
    del reader
    gc.collect()


@pytest.mark.parametrize("batches", [0, 1], ids=["unread", "midway"])
@pytest.mark.parametrize("end", [end_by_close, end_by_block, end_by_letting_go], ids=lambda end: end.__name__)
def test_it_is_gone_when_the_reader_is_closed_or_let_go(
    sessions: Sessions, end: Callable[[Any], None], batches: int
) -> None:
    readers = [transfer.to_arrow(Store(sessions.engine), "$all")]
    for _ in range(batches):
        readers[0].read_next_batch()
    wait_until(sessions.is_one, "only ADBC's connection is there")
    end(readers.pop())
    wait_until(lambda: sessions.count() == 0, "the connection is gone")


def test_a_query_that_sends_nothing_for_long_is_cancelled(sessions: Sessions, login: Callable[..., str]) -> None:
    role = login("slow_reader")
    admin = create_engine(sessions.engine.url, poolclass=NullPool)
    table = "message_store.messages"
    with admin.begin() as connection:
        connection.execute(text(f"GRANT message_store TO {role}"))
        connection.execute(text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))
        # The server sends some messages, and then sleeps.
        sleeps = f"position NOT BETWEEN 20 AND 9000 OR pg_sleep({2 * HANG}) IS NULL"
        connection.execute(text(f"CREATE POLICY slow ON {table} USING ({sleeps})"))
    try:
        engine = create_engine(sessions.engine.url.set(username=role), poolclass=NullPool, connect_args=sessions.name)
        reader = transfer.to_arrow(Store(engine), "account-1")
        wait_until(lambda: sessions.count("wait_event = 'PgSleep'") == 1, "the server sleeps")
        reader.close()
        wait_until(lambda: sessions.count() == 0, "the connection is gone")
    finally:
        with admin.begin() as connection:
            connection.execute(text(f"DROP POLICY slow ON {table}"))
            connection.execute(text(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"))
            connection.execute(text(f"REVOKE message_store FROM {role}"))


def test_a_connection_that_the_server_ends_is_an_error_of_the_reader(sessions: Sessions) -> None:
    reader = transfer.to_arrow(Store(sessions.engine), "$all")
    reader.read_next_batch()
    sessions.end_all()
    with pytest.raises(OSError, match=LOST):
        reader.read_all()


@pytest.mark.parametrize("export", [transfer.export_parquet, transfer.export_arrow], ids=["parquet", "arrow"])
def test_it_is_an_error_of_the_export_which_leaves_the_file_as_it_was(
    sessions: Sessions, export: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "messages"
    file.write_text("from yesterday")
    reached = []

    def kill_it(position: int, last: int | None) -> None:
        reached.append(position)
        sessions.end_all()

    with pytest.raises(OperationalError, match=LOST):
        export(Store(sessions.engine), "$all", file, on_progress=kill_it)
    assert len(reached) == 1
    assert 0 < reached[0] < 10_000
    assert [each.name for each in tmp_path.iterdir()] == ["messages"]
    assert file.read_text() == "from yesterday"


def test_an_export_that_is_interrupted_leaves_nothing_and_no_connection(sessions: Sessions, tmp_path: Path) -> None:
    def interrupt(position: int, last: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.export_parquet(Store(sessions.engine), "$all", tmp_path / "new", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: sessions.count() == 0, "the connection is gone")


# ---- how it is made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on which the role app needs a password."""
    rules = tmp_path_factory.mktemp("rules") / "pg_hba.conf"
    rules.write_text("local all app scram-sha-256\nlocal all all trust\n")
    for folder in (rules, *list(rules.parents)[:-2]):
        folder.chmod(0o755)
    with temporary_server(settings={"hba_file": str(rules)}) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            quoted = PASSWORD.replace("'", "''")
            connection.execute(text(f"CREATE ROLE app LOGIN PASSWORD '{quoted}'".replace(":", r"\:")))
            connection.execute(text("GRANT message_store TO app"))
        Store(engine).write("account-1", "Opened", {})
        yield url


def on_url(url: str) -> Engine:
    return create_engine(make_url(url).set(username="app", password=PASSWORD))


def on_connect_args(url: str) -> Engine:
    return create_engine(make_url(url).set(username="app"), connect_args={"password": PASSWORD})


def on_event(url: str) -> Engine:
    """As an application that gets a token for each new connection."""
    engine = create_engine(make_url(url).set(username="app", password="expired"))
    event.listen(engine, "do_connect", lambda *arguments: arguments[3].update(password=PASSWORD))
    return engine


def on_creator(url: str) -> Engine:
    at = make_url(url)
    where = {"host": at.query["host"], "port": at.query["port"], "dbname": at.database}
    return create_engine(
        "postgresql+psycopg2://", creator=lambda: psycopg2.connect(user="app", password=PASSWORD, **where)
    )


def on_environment(url: str) -> Engine:
    at = make_url(url)
    return create_engine(make_url(f"{at.drivername}://"), connect_args={"user": "app"})


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "make", [on_url, on_connect_args, on_event, on_creator, on_environment], ids=lambda make: make.__name__
)
def test_it_logs_in_as_the_engine_does(
    strict: str, make: Callable[[str], Engine], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = make_url(strict)
    if make is on_environment:
        names = {"PGHOST": at.query["host"], "PGPORT": at.query["port"], "PGDATABASE": at.database}
        for name, value in {**names, "PGPASSWORD": PASSWORD}.items():
            monkeypatch.setenv(name, str(value))
    engine = make(at.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False))
    assert transfer.to_arrow(Store(engine), "account").read_all().num_rows == 1
    engine.dispose()


def test_a_wrong_password_is_the_drivers_error_and_not_shown(strict: str) -> None:
    engine = create_engine(make_url(strict).set(username="app", password="s3cret"))
    with pytest.raises(OperationalError, match="password authentication failed") as caught:
        transfer.to_arrow(Store(engine), "account")
    assert "s3cret" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_parameter_arrives_as_it_was_given(strict: str, driver: str) -> None:
    given = {
        "application_name": "it's a \\ test",
        "options": "-c search_path=message_store -c work_mem=5MB",
        "connect_timeout": "7",
    }
    with store_on(driver, strict, connect_args=given) as store:
        connection = store.engine.raw_connection()
        string = connection_string(connection.driver_connection, client_encoding="UTF8")
        connection.close()
    at = make_url(strict)
    expected = {"host": at.query["host"], "port": at.query["port"], "user": "postgres", "dbname": at.database}
    parsed = parse_dsn(string)
    assert {name: parsed[name] for name in (*given, *expected)} == {**given, **expected}
    assert parsed["client_encoding"] == "UTF8"


def test_an_engine_that_is_in_autocommit_or_in_another_encoding_reads_the_same(
    messagedb_url: str, store: Store
) -> None:
    store.write("account-1", "Eröffnet", {"owner": "Zoë"})
    engine = create_engine(messagedb_url, isolation_level="AUTOCOMMIT", connect_args={"client_encoding": "LATIN1"})
    (row,) = transfer.to_arrow(Store(engine), "$all").read_all().to_pylist()
    assert (row["type"], json.loads(row["data"])) == ("Eröffnet", {"owner": "Zoë"})
    engine.dispose()


# ---- databases in other encodings


@pytest.fixture(scope="module")
def latin1(messagedb_server_url: str) -> Iterator[str]:
    yield from database_in("LATIN1", messagedb_server_url)


@pytest.fixture(scope="module")
def any_bytes(messagedb_server_url: str) -> Iterator[str]:
    yield from database_in("SQL_ASCII", messagedb_server_url)


def test_text_is_utf8_whatever_the_databases_encoding(latin1: str) -> None:
    store = Store.from_url(latin1, poolclass=NullPool)
    store.write("café-é", "Größe", {"name": "Zoë"})
    for name in ("café-é", "café", "$all"):
        (row,) = transfer.to_arrow(store, name, types=["Größe"]).read_all().to_pylist()
        assert (row["stream_name"], row["type"], row["data"]) == ("café-é", "Größe", '{"name": "Zoë"}')


def test_bytes_that_are_not_text_are_an_error(any_bytes: str) -> None:
    store = Store.from_url(any_bytes, poolclass=NullPool)
    store.write("a-1", "T", {})
    assert transfer.to_arrow(store, "a-1").read_all().num_rows == 1
    with store.engine.begin() as connection:
        wrong = "INSERT INTO message_store.messages (stream_name, position, type) VALUES ('a-2', 0, E'\\xe9')"
        connection.exec_driver_sql(wrong)
    with pytest.raises(OSError, match="UTF8"):
        transfer.to_arrow(store, "a-2").read_all()
