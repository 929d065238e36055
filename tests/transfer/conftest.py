"""Fixtures of the tests of transfers: a store of the official scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, NullPool, create_engine

from messagedb_sa.testing import temporary_database

from ..migrations.support import install_as_upstream_does


@pytest.fixture
def official(messagedb_server_url: str, releases: Path) -> Iterator[Engine]:
    """A database with the official Message DB 1.3.1."""
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install_as_upstream_does(engine, releases / "1.3.1" / "database")
        yield engine
