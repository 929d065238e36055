"""PostgreSQL servers, throwaway or kept. Each has a keeper, a separate process that starts and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from messagedb_sa.errors import InvalidArgument, PostgresNotFound, PostgresNotStarted
from messagedb_sa.testing._programs import find_programs

# Other users can see a program's arguments, but not its environment.
_PASSWORD = "MESSAGEDB_SERVER_PASSWORD"

_KEEPER = Path(__file__).resolve().with_name("_keeper.py")

# The data need not survive a crash.
_THROWN_AWAY = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

_SETTINGS = {
    # No TCP port: only users with access to the server's folder can connect.
    "listen_addresses": "",
    "port": "5432",
    # If the server is killed, everything that it leaves behind is in its folder.
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# With other values, the keeper would not find the server.
_FIXED_SETTINGS = ("data_directory", "unix_socket_directories")


@contextlib.contextmanager
def temporary_server(
    *,
    settings: Mapping[str, str] | None = None,
    folder: str | PathLike[str] | None = None,
    password: str | None = None,
) -> Iterator[str]:
    """Run a PostgreSQL server during the block and yield its URL. It is new and empty, unless it has a ``folder``.

    The URL is for SQLAlchemy with psycopg2, with the superuser postgres. For psycopg 3 or asyncpg, use
    ``make_url(url).set(drivername=...)``. The server listens on a Unix socket in a temporary folder. It is fast, and
    its data does not survive a crash.

    With ``folder``, the data stays in this folder, survives a crash, and is there when a server is started on the
    folder again. The folder is created if it does not exist. Only one server at a time can run on it.

    With ``password``, clients over TCP must give it. By itself the server has no TCP port; pass ``settings`` with
    ``listen_addresses`` to open one. Without a password, all who reach the port may log in. In a folder whose data
    exists, the password stays as it was.

    ``settings`` are server settings as in ``postgresql.conf``. They take precedence over the defaults here: fsync off,
    100 connections, time zone UTC and others.

    When the block ends, the server is stopped, and all but ``folder`` is removed. If this process dies, even if it is
    killed, that happens within five seconds; a server with a ``folder`` first writes its data to disk. A forked child
    process that leaves the block does not stop the server. PostgreSQL refuses to run as root: if you are root, an
    unprivileged user runs the server, and must be able to enter ``folder``.

    Raises PostgresNotFound if there are no server programs, or on Windows. Raises PostgresNotStarted, with the text
    that PostgreSQL printed, if the server does not start.
    """
    if sys.platform == "win32":
        raise PostgresNotFound("throwaway servers need Linux or macOS: use the URL of a running server instead")
    defaults = _SETTINGS if folder is not None else {**_SETTINGS, **_THROWN_AWAY}
    server_settings = {**defaults, **_checked(settings or {})}
    owner = os.getpid()
    keeper = _start_keeper(find_programs(), server_settings, folder, password)
    try:
        socket = _server_folder(keeper)
        # Without a port in the URL, the environment variable PGPORT would be used.
        port = server_settings["port"]
        yield f"postgresql+psycopg2://postgres@/postgres?host={quote(socket, safe='')}&port={port}"
    finally:
        if os.getpid() == owner:
            _stop_keeper(keeper)


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings with lower-case names, as the server compares them. The server checks the rest when it starts."""
    checked = {}
    for name, value in settings.items():
        lower_name = name.lower()
        if not re.fullmatch(r"[a-z_][a-z0-9_$.]*", lower_name) or not isinstance(value, str) or "\0" in value:
            reason = "must be a server setting as in postgresql.conf, with a string as value"
            raise InvalidArgument(f"settings[{name!r}]", value, reason)
        if lower_name in _FIXED_SETTINGS:
            raise InvalidArgument(f"settings[{name!r}]", value, "must be left out: it cannot be changed")
        checked[lower_name] = value
    return checked


def _start_keeper(
    programs: Path, settings: Mapping[str, str], kept: str | PathLike[str] | None, password: str | None
) -> subprocess.Popen[bytes]:
    job: dict[str, object] = {"owner": os.getpid(), "programs": str(programs), "settings": settings}
    job["temp"] = str(Path(tempfile.gettempdir()).resolve())
    job["password"] = None if password is None else _PASSWORD
    job["kept"] = None if kept is None else str(Path(kept).resolve())
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _KEEPER, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ if password is None else {**os.environ, _PASSWORD: password},
        bufsize=0,
        cwd="/",
        # A Ctrl-C in the terminal must not reach the keeper, which has to outlive this process.
        start_new_session=True,
    )


def _server_folder(keeper: subprocess.Popen[bytes]) -> str:
    """Wait until the server accepts connections, and return its folder."""
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    line = keeper.stdout.readline()
    if not line:
        printed = keeper.stderr.read().decode("utf-8", "replace").strip()
        raise PostgresNotStarted(f"the keeper of the server ended with exit status {keeper.wait()}:\n{printed}")
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        raise PostgresNotStarted(answer["error"])
    return answer["folder"]


def _stop_keeper(keeper: subprocess.Popen[bytes]) -> None:
    """Stop the server, and return when the server and its folder are removed."""
    assert keeper.stdin is not None
    # Closing the pipe is not enough if a forked child process has it open too.
    with contextlib.suppress(BrokenPipeError):
        keeper.stdin.write(b"stop\n")
    with keeper:
        pass
