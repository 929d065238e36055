"""Fixtures of the tests of the viewer: one test serves a Store and an AsyncStore."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.schema import CreateIndex
from starlette.testclient import TestClient

from messagedb_sa import AsyncStore, Store, schema
from messagedb_sa.viewer import viewer

from .support import browser


@pytest.fixture(params=["Store", "AsyncStore"])
def either_store(request: pytest.FixtureRequest, store: Store, messagedb_async_store: AsyncStore) -> Store | AsyncStore:
    return store if request.param == "Store" else messagedb_async_store


@pytest.fixture
def client(either_store: Store | AsyncStore) -> Iterator[TestClient]:
    with browser(viewer(either_store)) as client:
        yield client


@pytest.fixture
def indexes(store: Store) -> Iterator[None]:
    """Those on metadata."""
    with store.engine.begin() as connection:
        for index in (schema.correlation_index(), schema.causation_index()):
            connection.execute(CreateIndex(index))
    yield
    with store.engine.begin() as connection:
        for name in ("messages_correlation", "messages_causation"):
            connection.execute(text(f"DROP INDEX message_store.{name}"))
