"""Fixtures of the tests of migrations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine

from messagedb_sa import install
from messagedb_sa.testing import temporary_database


@pytest.fixture
def new_install(messagedb_server_url: str) -> Iterator[Engine]:
    """A database with a new store, not the one that the tests share, in which others have granted privileges."""
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        yield engine
        engine.dispose()
