"""Fixtures of the tests of the replacement for message-db-py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from messagedb_sa import Store
from messagedb_sa.compat import ConnectionPool, MessageDB

from .support import SEARCH_PATH, libpq


@pytest.fixture
def url(messagedb_url: str, store: Store) -> str:
    return libpq(messagedb_url)


@pytest.fixture
def old(url: str) -> Iterator[MessageDB]:
    """A client as message-db-py's users make one, on an empty store."""
    client = MessageDB.from_url(url, options=SEARCH_PATH)
    yield client
    client.connection_pool.closeall()


@pytest.fixture
def pool(url: str) -> Iterator[ConnectionPool]:
    pool = ConnectionPool.from_url(url, max_connections=2)
    yield pool
    pool.closeall()


@pytest.fixture
def filled(old: MessageDB) -> MessageDB:
    """Messages 0 to 5 in account-1 and account-2, alternating, and one in another category."""
    for n in range(6):
        old.write(f"account-{n % 2 + 1}", "Deposited", {"n": n})
    old.write("order-1", "Placed", {"n": 6})
    return old
