"""A message that does not fit its class raises MessageNotDecodable."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from sqlalchemy import Engine, select

from messagedb_sa import MessageNotDecodable, MessageTypes, Store, functions
from messagedb_sa import _class_codecs as conversion

from .support import Checked, Deposited, Model, Moved, Opened, Struct, Withdrawn


@pytest.mark.parametrize(
    ("data", "metadata", "reason"),
    [
        ({"first": "Ada"}, {"schemaVersion": 3}, "last is missing"),
        ({"first": "Ada", "last": "Lovelace", "country": 5}, {"schemaVersion": 3}, "country: expected str, got int"),
        ({}, {"schemaVersion": 4}, "it has schema version 4, but the class has version 3"),
        ({}, {"schemaVersion": 0}, "its metadata's schemaVersion must be an integer from 1, got 0"),
        ({}, {"schemaVersion": True}, "its metadata's schemaVersion must be an integer from 1, got True"),
        ({}, {"schemaVersion": "three"}, "its metadata's schemaVersion must be an integer from 1, got 'three'"),
        ({}, None, "the upcaster from schema version 1: KeyError: 'owner'"),
        (None, {"schemaVersion": 3}, "first is missing"),
        (None, None, "the upcaster from schema version 1: KeyError: 'owner'"),
        ([1], {"schemaVersion": 3}, "its data must be a JSON object, got list"),
        ("text", ["no object either"], "its data must be a JSON object, got str"),
    ],
)
def test_a_message_that_does_not_fit_raises_an_error_with_its_position(
    messagedb_engine: Engine, store: Store, versions: MessageTypes, data: Any, metadata: Any, reason: str
) -> None:
    typed = Store(messagedb_engine, types=versions)
    store.write("a-1", "Noted", {})
    with messagedb_engine.begin() as connection:
        # By another client: metadata may be anything.
        connection.execute(select(functions.write_message(uuid4(), "a-1", "Opened", data, metadata)))
    for read in (
        lambda: typed.read("a-1"),
        lambda: typed.read_last_message("a-1"),
        lambda: list(typed.iter_category("a")),
    ):
        with pytest.raises(MessageNotDecodable) as caught:
            read()
        error = caught.value
        assert (error.stream_name, error.position, error.global_position, error.type) == ("a-1", 1, 2, "Opened")
        assert error.reason == reason
        assert str(error) == f"cannot decode message 1 of stream 'a-1' (global position 2) as 'Opened': {reason}"
    assert typed.read("a-1", no_of_messages=1)[0].data == {}


@pytest.mark.parametrize(
    ("cls", "cause"),
    [
        (Model, pydantic.ValidationError),
        (Checked, pydantic.ValidationError),
        (Struct, msgspec.ValidationError),
        (Moved, msgspec.ValidationError),
        (Withdrawn, conversion.Misfit),
    ],
)
def test_the_error_of_the_library_is_the_cause(typed: Store, store: Store, cls: type, cause: type[Exception]) -> None:
    store.write("a-1", cls.__name__, {"amount": "many"})
    with pytest.raises(MessageNotDecodable) as caught:
        typed.read("a-1")
    assert type(caught.value.__cause__) is cause


def test_a_missing_upcaster_and_one_that_does_not_return_a_dict_are_named(
    messagedb_engine: Engine, store: Store
) -> None:
    types = MessageTypes()
    types.register(Opened, version=3)
    typed = Store(messagedb_engine, types=types)
    store.write("a-1", "Opened", {})
    with pytest.raises(MessageNotDecodable, match="there is no upcaster from schema version 1"):
        typed.read("a-1")
    types.upcast("Opened", from_version=1)(lambda data: data.clear())
    with pytest.raises(
        MessageNotDecodable, match="the upcaster from schema version 1 must return a dict, got a NoneType"
    ):
        typed.read("a-1")


def test_an_unreadable_message_leaves_the_callers_transaction_usable(
    messagedb_engine: Engine, store: Store, types: MessageTypes
) -> None:
    store.write("a-1", "Deposited", {})
    with messagedb_engine.begin() as connection:
        joined = Store(connection, types=types)
        with pytest.raises(MessageNotDecodable):
            joined.read("a-1")
        assert joined.write("a-1", Deposited(5)) == 1


def test_an_iterator_yields_the_messages_before_it_first(each_typed: Store, store: Store) -> None:
    store.write_batch("a-1", [("Deposited", {"amount": 1}), ("Noted", {}), ("Deposited", {})])
    for messages in (each_typed.iter_stream("a-1"), each_typed.iter_category("a"), each_typed.iter_all()):
        assert [next(messages).data for _ in range(2)] == [Deposited(1), {}]
        with pytest.raises(MessageNotDecodable):
            next(messages)


def test_its_cause_and_data_are_those_of_the_first_conversion(store: Store, messagedb_engine: Engine) -> None:
    """What a class does to the data is done once, also if it then fails."""
    seen: list[Any] = []
    errors = {2: LookupError("no such account"), 3: StopIteration("enough")}

    def decode(data: dict[str, Any]) -> Any:
        seen.append(data.pop("amount"))
        raise errors[seen[-1]]

    types = MessageTypes()
    types.register(Deposited, encode=vars, decode=decode)
    store.write_batch("a-1", [("Noted", {}), ("Deposited", {"amount": 2}), ("Deposited", {"amount": 3})])
    for position, amount in ((1, 2), (2, 3)):
        with pytest.raises(MessageNotDecodable) as caught:
            Store(messagedb_engine, types=types).read("a-1", position=position)
        assert (caught.value.position, caught.value.__cause__) == (position, errors[amount])
    assert seen == [2, 3]
