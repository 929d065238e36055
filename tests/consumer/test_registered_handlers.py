"""Handlers: registered with a decorator, by the name or the class of what they handle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Handlers, InvalidArgument, Message, MessageTypes, Store


@dataclass(frozen=True)
class Opened:
    owner: str


@dataclass(frozen=True)
class Deposited:
    cents: int


@pytest.fixture
def typed(store: Store) -> Store:
    types = MessageTypes()
    types.register(Opened)
    types.register(Deposited, name="PaidIn")
    return Store(store.engine, types=types)


def test_each_message_goes_to_the_function_of_its_class_or_name(typed: Store) -> None:
    handlers, handled = Handlers(), list[Any]()

    @handlers.on(Opened)
    def opened(message: Message[Opened]) -> None:
        handled.append(message.data.owner)

    @handlers.on(Deposited)
    def deposited(message: Message[Deposited]) -> None:
        handled.append(message.data.cents)

    @handlers.on("Noted")
    def noted(message: Message) -> None:
        handled.append(message.data["text"])

    typed.write_batch("account-1", [Opened("Ada"), Deposited(5), ("Noted", {"text": "hello"}), ("Closed", {})])
    assert Consumer(typed, "account", handlers, "c").run_until_caught_up() == 3
    assert handled == ["Ada", 5, "hello"]


def test_one_function_may_handle_several(typed: Store) -> None:
    handlers, handled = Handlers(), list[str]()

    @handlers.on("Noted", Opened)
    @handlers.on(Deposited)
    def note(message: Message) -> None:
        handled.append(message.type)

    typed.write_batch("account-1", [Opened("Ada"), Deposited(5), ("Noted", {})])
    Consumer(typed, "account", handlers, "c").run_until_caught_up()
    assert handled == ["Opened", "PaidIn", "Noted"]


def test_the_decorated_function_stays_what_it_was() -> None:
    handlers = Handlers()

    def note(message: Message) -> str:
        return message.type

    assert handlers.on("Noted")(note) is note


def test_a_transactional_handler_gets_the_connection_or_session(typed: Store) -> None:
    on_connection, on_session, handled = Handlers(), Handlers(), list[Any]()

    @on_connection.on(Opened)
    def by_connection(message: Message[Opened], connection: Connection) -> None:
        handled.append((message.data.owner, connection.scalar(select(1))))

    @on_session.on(Opened)
    def by_session(message: Message[Opened], session: Session) -> None:
        handled.append((message.data.owner, session.scalar(select(1))))

    typed.write("account-1", Opened("Ada"))
    Consumer(typed, "account", on_connection, "c", transactional=True).run_until_caught_up()
    Consumer(typed, "account", on_session, "s", transactional=Session).run_until_caught_up()
    assert handled == [("Ada", 1), ("Ada", 1)]
    with pytest.raises(InvalidArgument, match=r"handlers\['Opened'\]=.* must take one argument"):
        Consumer(typed, "account", on_connection, "c")


def test_an_asynchronous_consumer_awaits_them(typed: Store) -> None:
    handlers, handled = Handlers(), list[str]()

    @handlers.on(Opened)
    async def opened(message: Message[Opened], connection: AsyncConnection) -> None:
        await connection.scalar(select(1))
        handled.append(message.data.owner)

    typed.write("account-1", Opened("Ada"))

    async def main() -> None:
        engine = create_async_engine(make_url(typed.engine.url).set(drivername="postgresql+asyncpg"))
        consumer = AsyncConsumer(AsyncStore(engine, types=typed.types), "account", handlers, "c", transactional=True)
        await consumer.run_until_caught_up()
        await engine.dispose()

    asyncio.run(main())
    assert handled == ["Ada"]


def test_it_is_a_mapping() -> None:
    handlers = Handlers()
    handlers.on("Noted", Opened)(print)
    assert isinstance(handlers, Mapping)
    assert dict(handlers) == {"Noted": print, Opened: print}
    assert len(handlers) == 2
    assert Opened in handlers
    assert Deposited not in handlers
    assert repr(handlers) == "<Handlers: Noted, Opened>"
    assert repr(Handlers()) == "<Handlers: none registered>"


def test_a_second_function_for_a_type_is_refused_at_once_and_changes_nothing() -> None:
    handlers = Handlers()
    handlers.on(Opened)(print)
    for again in [(Opened,), ("Noted", Opened), ("Noted", "Noted")]:
        with pytest.raises(InvalidArgument, match="must not be given twice; it has a handler already"):
            handlers.on(*again)(repr)
    assert dict(handlers) == {Opened: print}


def test_a_class_and_its_name_are_one_type_to_a_consumer(typed: Store) -> None:
    handlers = Handlers()
    handlers.on(Deposited)(print)
    handlers.on("PaidIn")(print)
    with pytest.raises(InvalidArgument, match="must not be given twice; 'PaidIn' has a handler already"):
        Consumer(typed, "account", handlers, "c")


def test_a_class_that_the_store_does_not_know_is_refused_by_the_consumer(store: Store) -> None:
    handlers = Handlers()
    handlers.on(Opened)(print)
    with pytest.raises(InvalidArgument, match="must be registered"):
        Consumer(store, "account", handlers, "c")


def test_without_a_function_a_consumer_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^handlers=<Handlers: none registered>: must not be empty"):
        Consumer(store, "account", Handlers(), "c")


@pytest.mark.parametrize(
    ("message_types", "reason"),
    [
        ((), "must not be empty: pass names or classes"),
        ((5,), "must be a string"),
        (("",), "must not be empty"),
        ((print,), r"must be a message type, or a class: @handlers\.on\(Deposited\)"),
    ],
)
def test_what_names_no_type_is_refused(message_types: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^message_types=.*: {reason}"):
        Handlers().on(*message_types)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^function=5: must be a function"):
        Handlers().on("Noted")(5)  # type: ignore[type-var]
