"""NULL data of a registered type is an empty object: Eventide writes that for a message without attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from sqlalchemy import Engine

from messagedb_sa import Message, MessageNotDecodable, MessageTypes, Store

from ..support import consumer_on
from .support import Checked, Deposited, Model, Moved, Struct, Withdrawn


@dataclass
class Closed:
    pass


@attrs.define
class Frozen:
    reason: str | None = None


class Thawed(msgspec.Struct):
    at: int = 0


class Sealed(pydantic.BaseModel):
    by: str = "nobody"


@pydantic.dataclasses.dataclass
class Opened:
    by: str = "nobody"


class Noted:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Noted)


WITHOUT_ATTRIBUTES: list[Any] = [Closed(), Frozen(), Thawed(), Sealed(), Opened(), Noted()]


@pytest.fixture
def types() -> MessageTypes:
    types = MessageTypes()
    for instance in WITHOUT_ATTRIBUTES[:-1]:
        types.register(type(instance))
    types.register(Noted, encode=vars, decode=lambda data: Noted(**data))
    return types


@pytest.fixture
def written(store: Store) -> list[Any]:
    store.write_batch("account-1", [(type(instance).__name__, None) for instance in WITHOUT_ATTRIBUTES])
    return WITHOUT_ATTRIBUTES


def test_every_read_makes_an_instance_of_null(written: list[Any], each_typed: Store) -> None:
    last = each_typed.read_last_message("account-1")
    assert last is not None
    assert last.data == written[-1]
    for messages in (
        each_typed.read("account-1"),
        each_typed.read("$all", "SELECT * FROM message_store.messages"),
        each_typed.read_category("account"),
        list(each_typed.iter_stream("account-1")),
        list(each_typed.iter_category("account", batch_size=2)),
        list(each_typed.iter_all()),
    ):
        assert [message.data for message in messages] == written


def test_a_message_that_was_read_as_null_is_decoded_later(
    written: list[Any], store: Store, types: MessageTypes
) -> None:
    assert [types.decode(message).data for message in store.read("account-1")] == written


def test_a_consumer_that_parks_is_handed_an_instance_of_null(written: list[Any], each_typed: Store) -> None:
    handled: list[Message] = []
    consumer_on(each_typed, "account", handled.append, "mailer", on_failure="park").run_until_caught_up()
    assert [message.data for message in handled] == written
    assert each_typed.read("account:dead") == []


def test_null_is_an_empty_object_before_the_upcasters(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()
    types.register(Sealed, version=2)
    types.upcast("Sealed", from_version=1)(lambda data: {"by": "Ada", **data})
    store.write_batch("account-1", [("Sealed", None), ("Sealed", None, {"schemaVersion": "2"})])
    messages = Store(messagedb_engine, types=types).read("account-1")
    assert [message.data for message in messages] == [Sealed(by="Ada"), Sealed()]


@pytest.mark.parametrize("cls", [Deposited, Withdrawn, Moved, Struct, Model, Checked])
def test_null_does_not_fit_a_class_with_required_fields(messagedb_engine: Engine, store: Store, cls: type) -> None:
    types = MessageTypes()
    types.register(cls)
    store.write_batch("a-1", [(cls.__name__, None), (cls.__name__, {})])
    reasons = []
    for message in store.read("a-1"):
        with pytest.raises(MessageNotDecodable) as caught:
            types.decode(message)
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]
    with pytest.raises(MessageNotDecodable):
        Store(messagedb_engine, types=types).read("a-1")


def test_an_instance_without_fields_is_stored_as_an_empty_object(each_typed: Store, store: Store) -> None:
    each_typed.write("account-1", Closed())
    each_typed.write_batch("account-1", [Closed()])
    assert [message.data for message in store.read("account-1")] == [{}, {}]
    assert [message.data for message in each_typed.read("account-1")] == [Closed(), Closed()]
