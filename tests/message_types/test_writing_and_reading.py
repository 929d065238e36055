"""Instances are written as data, and data is read as instances, by every method."""

from __future__ import annotations

import asyncio
import typing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from messagedb_sa import AsyncStore, InvalidArgument, Message, MessageTypes, NewMessage, Store, WrongExpectedVersion

from .support import ID, INSTANCES, Deposited, Withdrawn


def test_an_instance_is_written_as_data_and_read_as_an_instance(each_typed: Store, store: Store) -> None:
    for position, (instance, data) in enumerate(INSTANCES):
        assert each_typed.write("account-1", instance) == position
        last, untyped = each_typed.read_last_message("account-1"), store.read_last_message("account-1")
        assert last is not None
        assert untyped is not None
        assert last.data == instance
        assert type(last.data) is type(instance)
        assert (untyped.type, untyped.data, untyped.metadata) == (type(instance).__name__, data, None)
        assert last == untyped._replace(data=instance)


def test_every_read_gives_instances(each_typed: Store) -> None:
    each_typed.write("account-1", Deposited(5, "first"), metadata={"by": "Ada"}, expected_version=-1, id=ID)
    sql = "SELECT * FROM message_store.messages"
    expected = [("Deposited", Deposited(5, "first"), {"by": "Ada"}, ID)]
    for messages in (
        each_typed.read("account-1"),
        each_typed.read("account"),
        each_typed.read("$all"),
        each_typed.read("$all", sql),
        each_typed.read_stream("account-1"),
        each_typed.read_category("account"),
        [each_typed.read_last_message("account-1")],
        list(each_typed.iter_stream("account-1")),
        list(each_typed.iter_category("account")),
    ):
        assert [(m.type, m.data, m.metadata, m.id) for m in messages if m] == expected


def test_a_message_that_was_read_without_types_can_be_decoded_later(
    typed: Store, store: Store, types: MessageTypes
) -> None:
    typed.write("account-1", Deposited(5, "first"))
    typed.write("account-1", "Opened", {"owner": "Ada"})
    read = store.read("account-1")
    assert read[0].data == {"amount": 5, "note": "first"}
    assert [types.decode(message) for message in read] == typed.read("account-1")
    # A message of a type that is not registered is returned as it is.
    assert types.decode(read[1]) is read[1]


def test_data_of_an_unregistered_type_stays_a_dict(typed: Store) -> None:
    typed.write("account-1", "Opened", {"owner": "Ada"}, {"schemaVersion": "old"})
    typed.write("account-1", "Closed", None)
    typed.write("account-1", "Deposited", {"amount": 3})
    assert [message.data for message in typed.read("account-1")] == [{"owner": "Ada"}, None, Deposited(3)]


def test_a_batch_can_mix_instances_and_other_messages(each_typed: Store, types: MessageTypes) -> None:
    id = uuid4()
    last = each_typed.write_batch(
        "account-1",
        [
            Deposited(1),
            ("Opened", {"n": 2}),
            NewMessage("Deposited", {"amount": 3}),
            types.new_message(Deposited(4), {"by": "Ada"}, id=id),
        ],
        expected_version=-1,
    )
    assert last == 3
    messages = each_typed.read("account-1")
    assert [message.data for message in messages] == [Deposited(1), {"n": 2}, Deposited(3), Deposited(4)]
    assert (messages[3].metadata, messages[3].id) == ({"by": "Ada"}, str(id))


def test_instances_are_written_to_several_streams(each_typed: Store) -> None:
    writes: list[Any] = [("account-1", [Withdrawn(5)]), ("account-2", [Deposited(5), ("Noted", {})], -1)]
    assert each_typed.write_streams(writes) == {"account-1": 0, "account-2": 1}
    assert [message.data for message in each_typed.read("$all")] == [Withdrawn(5), Deposited(5), {}]


def test_a_joined_store_takes_types(messagedb_engine: Engine, store: Store, types: MessageTypes) -> None:
    with messagedb_engine.begin() as connection:
        joined = Store(connection, types=types)
        joined.write("account-1", Deposited(5), expected_version=-1)
        with pytest.raises(WrongExpectedVersion):
            joined.write("account-1", Deposited(6), expected_version=-1)
        assert joined.read("account-1")[0].data == Deposited(5)
    with Session(messagedb_engine) as session:
        assert Store(session, types=types).read("account-1")[0].data == Deposited(5)


def test_combined_writes_take_instances(messagedb_engine: Engine, store: Store, types: MessageTypes) -> None:
    combining = Store(messagedb_engine, combine_writes=True, types=types)
    assert combining.write("account-1", Deposited(5)) == 0
    assert combining.read("account-1")[0].data == Deposited(5)


def test_a_store_from_a_url_takes_types(messagedb_url: str, store: Store, types: MessageTypes) -> None:
    typed = Store.from_url(messagedb_url, types=types)
    typed.write("account-1", Deposited(5))
    typed.engine.dispose()

    async def read() -> list[Message]:
        from_url = AsyncStore.from_url(messagedb_url.replace("+psycopg2", ""), types=types)
        messages = await from_url.read("account-1")
        await from_url.engine.dispose()
        return messages

    assert [message.data for message in asyncio.run(read())] == [Deposited(5)]


def test_own_functions_convert_any_class(messagedb_engine: Engine, store: Store) -> None:
    class Money:
        def __init__(self, text: str) -> None:
            self.text = text

    types = MessageTypes()
    # decode changes its argument, which does not change what is stored.
    types.register(
        Money, name="Paid", encode=lambda money: {"is": money.text}, decode=lambda data: Money(data.pop("is"))
    )
    typed = Store(messagedb_engine, types=types)
    typed.write("account-1", Money("5 €"))
    (message,) = typed.read("account-1")
    assert type(message.data) is Money
    assert (message.type, message.data.text, store.read("account-1")[0].data) == ("Paid", "5 €", {"is": "5 €"})


def test_a_subclass_must_be_registered_itself(typed: Store) -> None:
    class Transferred(Deposited):
        pass

    with pytest.raises(InvalidArgument, match="a Transferred is not a registered message type"):
        typed.write("account-1", Transferred(5))


def test_fields_that_are_derived_are_not_stored(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Sum:
        numbers: list[int]
        total: int = field(init=False)
        kinds: typing.ClassVar[int] = 1

        def __post_init__(self) -> None:
            self.total = sum(self.numbers)

    typed = Store(messagedb_engine, types=types)
    typed.write("account-1", Sum([1, 2]))
    assert store.read("account-1")[0].data == {"numbers": [1, 2]}
    assert typed.read("account-1")[0].data.total == 3
