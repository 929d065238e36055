"""Fixtures of the tests of message types."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, MessageTypes, Store

from ..support import DRIVERS, Awaited
from .support import INSTANCES, Opened


@pytest.fixture
def types() -> MessageTypes:
    types = MessageTypes()
    for instance, _ in INSTANCES:
        types.register(type(instance))
    return types


@pytest.fixture
def typed(store: Store, messagedb_engine: Engine, types: MessageTypes) -> Store:
    """An empty store with all the classes above."""
    return Store(messagedb_engine, types=types)


@pytest.fixture(params=DRIVERS)
def each_typed(
    request: pytest.FixtureRequest, messagedb_url: str, store: Store, types: MessageTypes
) -> Iterator[Store]:
    url = make_url(messagedb_url).set(drivername=f"postgresql+{request.param}")
    if request.param in ("psycopg2", "psycopg"):
        engine = create_engine(url)
        yield Store(engine, types=types)
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    async_engine = create_async_engine(url)
    awaited: Any = Awaited(AsyncStore(async_engine, types=types), loop)
    yield awaited
    loop.run_until_complete(async_engine.dispose())
    loop.close()


@pytest.fixture
def versions() -> MessageTypes:
    """Opened, in its third version."""
    types = MessageTypes()

    @types.upcast("Opened", from_version=1)
    def two_names(data: dict[str, Any]) -> dict[str, Any]:
        first, _, last = data.pop("owner").partition(" ")
        return {**data, "first": first, "last": last}

    @types.upcast("Opened", from_version=2)
    def with_country(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "country": "GB"}

    types.register(Opened, version=3)
    return types
