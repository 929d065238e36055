"""What objects look like in a debugger or a log: they say what they are, and no password."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, InvalidArgument, MessageTypes, Store

URL = "postgresql+psycopg2://app:s3cret@db:5432/shop?sslpassword=s3cret&password=s3cret"
SHOWN = "postgresql+psycopg2://app:***@db:5432/shop?password=***&sslpassword=***"


@pytest.fixture
def engine() -> Engine:
    return create_engine(URL)


def test_a_store_shows_what_it_is_on(engine: Engine) -> None:
    assert repr(Store(engine)) == f"<Store on Engine {SHOWN}>"
    assert repr(Store(Session(engine))) == f"<Store on Session {SHOWN}>"


def test_an_async_store_shows_what_it_is_on() -> None:
    engine = create_async_engine(URL.replace("psycopg2", "asyncpg"))
    shown = SHOWN.replace("psycopg2", "asyncpg")
    assert repr(AsyncStore(engine)) == f"<AsyncStore on AsyncEngine {shown}>"
    assert repr(AsyncStore(AsyncSession(engine))) == f"<AsyncStore on AsyncSession {shown}>"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "'account'"),
        ({"identifier": "mailer"}, "'account' 'mailer'"),
        ({"identifier": "mailer", "slots": 4}, "'account' 'mailer' slots=4"),
        ({"group_member": 0, "group_size": 2}, "'account' group_member=0 group_size=2"),
        ({"identifier": "mailer", "transactional": True}, "'account' 'mailer' transactional"),
    ],
)
def test_a_consumer_shows_what_tells_it_from_others(engine: Engine, options: dict[str, Any], shown: str) -> None:
    assert repr(Consumer(Store(engine), "account", print, **options)) == f"<Consumer {shown} on {Store(engine)!r}>"
    store = AsyncStore(create_async_engine(URL.replace("psycopg2", "asyncpg")))
    assert repr(AsyncConsumer(store, "account", print, **options)) == f"<AsyncConsumer {shown} on {store!r}>"


def test_message_types_show_what_is_registered() -> None:
    types = MessageTypes()
    assert repr(types) == "<MessageTypes: none registered>"
    types.register(dataclasses.make_dataclass("Opened", [("owner", str)]))
    types.register(dataclasses.make_dataclass("Deposited", [("amount", int)]), name="PaidIn", version=3)
    assert repr(types) == "<MessageTypes: Opened, PaidIn (version 3)>"


@pytest.mark.parametrize(
    "fail",
    [
        lambda engine: Store(engine.url),
        lambda engine: Store(URL),  # type: ignore[arg-type]
        lambda engine: Store("postgresql://app:my s3cret@db/shop"),  # type: ignore[arg-type]
        lambda engine: Store("postgresql://db/shop?password=my s3cret&user=app"),  # type: ignore[arg-type]
        lambda engine: Consumer(URL, "account", print),  # type: ignore[call-overload]
        lambda engine: AsyncStore(engine),
        lambda engine: Consumer(Store(Session(engine)), "account", print),
    ],
)
def test_no_error_about_an_argument_shows_a_password(engine: Engine, fail: Callable[[Engine], object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        fail(engine)
    assert "s3cret" not in str(caught.value)
    assert "***" in str(caught.value)
