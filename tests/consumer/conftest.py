"""Fixtures of the tests of consumers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from messagedb_sa import Store

from ..support import host


@pytest.fixture
def tables(store: Store) -> Iterator[None]:
    host.create_all(store.engine)
    yield
    host.drop_all(store.engine)
