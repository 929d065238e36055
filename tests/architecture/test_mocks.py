"""Mocks that applications make of the public classes for their own tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    AsyncSubscription,
    Consumer,
    Entity,
    MessageTypes,
    Store,
    Subscription,
    Tracing,
)


def instances() -> list[Any]:
    store = Store(create_engine("postgresql://"))
    async_store = AsyncStore(create_async_engine("postgresql+asyncpg://"))

    async def handle(message: Any) -> None:
        pass

    consumers = Consumer(store, "account", print), AsyncConsumer(async_store, "account", handle)
    subscriptions = Subscription(store, "account"), AsyncSubscription(async_store, "account")
    return [store, async_store, *consumers, *subscriptions, MessageTypes(), Tracing(), Entity("account", int, max)]


@pytest.mark.parametrize("mocked", [lambda cls: Mock(spec=cls), lambda cls: create_autospec(cls, instance=True)])
def test_a_mock_has_the_attributes_of_an_instance(mocked: Callable[[type], Any]) -> None:
    for instance in instances():
        mock = mocked(type(instance))
        public = [name for name in dir(instance) if not name.startswith("_")]
        assert [name for name in public if not hasattr(mock, name)] == [], type(instance)
        assert isinstance(mock, type(instance))


def test_a_mocked_store_answers_what_the_test_says() -> None:
    store = create_autospec(Store, instance=True)
    store.stream_version.return_value = 7
    assert store.stream_version("account-1") == 7
    with pytest.raises(TypeError):
        store.stream_version()
