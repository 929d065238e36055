"""PgBouncer's program, and a store's database behind it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from messagedb_sa import Store

from ..support import fetched_once
from .support import DOWNLOAD, pooled, version_of


@pytest.fixture(scope="session")
def pgbouncer(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The program: MESSAGEDB_PGBOUNCER, or the one of the PATH, or Debian's, which is downloaded once."""
    named = os.environ.get("MESSAGEDB_PGBOUNCER") or shutil.which("pgbouncer")
    if named:
        yield Path(named)
        return
    if shutil.which("apt-get") is None:
        pytest.skip("there is no pgbouncer in the PATH: install PgBouncer, or set MESSAGEDB_PGBOUNCER")
    fetched = fetched_once(request, "pgbouncer", lambda folder: ["sh", "-ec", DOWNLOAD, str(folder)])
    with TemporaryDirectory(prefix="pgbouncer-") as name:
        # Another user runs it if this one is root.
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(fetched / "usr", folder / "usr", symlinks=True)
        program = folder / "usr/sbin/pgbouncer"
        if version_of(program) is None:
            pytest.skip("Debian's pgbouncer does not run here: install PgBouncer, or set MESSAGEDB_PGBOUNCER")
        yield program


@pytest.fixture(scope="module", params=["sessions that others used before", "a new session for each transaction"])
def pooled_url(request: pytest.FixtureRequest, pgbouncer: Path, messagedb_url: str) -> Iterator[str]:
    """The database of ``messagedb_url`` behind PgBouncer in transaction mode.

    In sessions that others used before, there is what those have left. A new session has nothing that was prepared.
    """
    settings = {"server_lifetime": 0} if request.param.startswith("a new session") else {}
    with pooled(pgbouncer, messagedb_url, **settings) as url:
        yield url


@pytest.fixture(autouse=True)
def emptied(messagedb_store: Store) -> None:
    """Each test begins with an empty store."""
