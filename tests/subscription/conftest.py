"""Fixtures of the tests of subscriptions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from messagedb_sa import Store, install

from ..support import DRIVERS


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def notify(store: Store) -> Iterator[None]:
    install.upgrade(store.engine, notify=True)
    yield
    install.upgrade(store.engine, notify=False)
