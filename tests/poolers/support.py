"""Runs PgBouncer between a test and the server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import NullPool, create_engine, make_url, text

from ..waits import wait_until

# Debian's packages of PgBouncer and of those libraries that not every Debian has. They are unpacked, not installed. A
# network that drops everything must not hold up the tests for long.
DOWNLOAD = """
cd "$0"
libraries=$(apt-cache depends pgbouncer | sed -n 's/.*Depends: \\(libevent.*\\|libc-ares.*\\)/\\1/p')
limits="-o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10"
apt-get $limits download pgbouncer $libraries
for package in *.deb; do dpkg -x "$package" .; done
"""


def version_of(program: Path) -> tuple[int, int] | None:
    """Its version, or None if it does not run."""
    printed = subprocess.run([program, "--version"], env=environment(program), capture_output=True, text=True)
    found = re.match(r"PgBouncer (\d+)\.(\d+)", printed.stdout)
    return None if found is None else (int(found[1]), int(found[2]))


def environment(program: Path) -> dict[str, str]:
    """With the libraries that were unpacked beside it."""
    libraries = os.pathsep.join(str(each) for each in program.parents[1].glob("lib/*-linux-*"))
    return {**os.environ, "LD_LIBRARY_PATH": libraries}


@contextmanager
def pooled(program: Path, url: str, **settings: object) -> Iterator[str]:
    """The URL of the same database behind PgBouncer, which gives each transaction to another of three sessions."""
    server = make_url(url)
    address = {"host": server.host, "port": server.port or 5432, **server.query}
    # PgBouncer does not run as root: the server's user runs it, or nobody.
    owner = Path(str(address["host"])) if str(address["host"]).startswith("/") else None
    uid, gid = (owner.stat().st_uid, owner.stat().st_gid) if owner else (65534, 65534)
    as_owner: dict[str, Any] = {"user": uid, "group": gid} if os.getuid() == 0 else {}
    with TemporaryDirectory(dir=Path("/tmp").resolve(), prefix="pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        options = {
            "listen_addr": "",
            "listen_port": 6432,
            "unix_socket_dir": folder / "run",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 3,
            "server_round_robin": 1,
            # It would set a session aside, to look whether it still answers, and the order would be another.
            "server_check_delay": 86_400,
            # Since 1.21 it can keep what clients prepare. Not all do.
            **({"max_prepared_statements": 0} if (version_of(program) or (0, 0)) >= (1, 21) else {}),
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in options.items()]
        database = f"* = host={address['host']} port={address['port']} user={server.username}"
        if server.password:
            database += f" password={server.password}"
        (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
        (folder / "pgbouncer.ini").chmod(0o644)
        if as_owner:
            shutil.chown(folder / "run", uid, gid)
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(
                [program, folder / "pgbouncer.ini"], stdout=log, stderr=log, env=environment(program), **as_owner
            )
            try:
                wait_until(lambda: answers(folder / "run" / ".s.PGSQL.6432") or process.poll() is not None)
                assert process.poll() is None, (folder / "log").read_text()
                behind = server.set(host=None, port=None, query={"host": str(folder / "run"), "port": "6432"})
                open_sessions(behind.render_as_string(hide_password=False))
                yield behind.render_as_string(hide_password=False)
            finally:
                # SIGTERM waits until all clients have left, also those of a test that failed.
                process.kill()
                process.wait()


def answers(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(address)) == 0


def open_sessions(url: str) -> None:
    """Let PgBouncer open its three sessions: three transactions are open at the same time."""
    engine = create_engine(url, poolclass=NullPool)
    connections = [engine.connect() for _ in range(3)]
    sessions = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in connections}
    for connection in connections:
        connection.close()
    assert len(sessions) == 3
