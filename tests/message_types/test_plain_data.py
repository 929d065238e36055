"""Plain data under a registered name: what a read could not make an instance of is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from messagedb_sa import Consumer, Message, MessageTypes, NewMessage, Store
from messagedb_sa import _class_codecs as conversion
from messagedb_sa._round_trips import as_read

from .support import ID, Checked, Deposited, Model, Moved, Opened, Ordered, Struct, Withdrawn, refused

WRONG = {"amount": "many"}
NEWER = {"first": "Ada", "last": "Lovelace", "country": "GB"}


@pytest.mark.parametrize(
    ("write", "argument"),
    [
        (lambda store: store.write("a-1", "Deposited", WRONG), "data"),
        (lambda store: store.write_batch("a-1", [("T", {}), ("Deposited", WRONG)]), "messages[1].data"),
        (lambda store: store.write_batch("a-1", [("Deposited", WRONG, {"by": "Ada"})]), "messages[0].data"),
        (lambda store: store.write_batch("a-1", [NewMessage("Deposited", WRONG)]), "messages[0].data"),
        (lambda store: store.write_streams([("a-1", [("Deposited", WRONG)])]), "writes[0].messages[0].data"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_every_method(
    each_typed: Store, store: Store, write: Callable[[Store], object], argument: str
) -> None:
    error = refused(lambda: write(each_typed))
    assert (error.argument, error.value) == (argument, WRONG)
    assert error.reason == "must be data that can be read as 'Deposited', but amount: expected int, got str"
    assert store.read("$all") == []


@pytest.mark.parametrize(
    ("cls", "cause"),
    [
        (Model, pydantic.ValidationError),
        (Checked, pydantic.ValidationError),
        (Withdrawn, conversion.Misfit),
    ],
)
def test_data_is_checked_for_each_kind_of_class(typed: Store, store: Store, cls: type, cause: type[Exception]) -> None:
    error = refused(lambda: typed.write("a-1", cls.__name__, WRONG))
    assert isinstance(error.__cause__, cause)
    for other in (Moved, Struct, Ordered):
        assert f"read as {other.__name__!r}" in refused(lambda: typed.write("a-1", other.__name__, WRONG)).reason  # noqa: B023
    assert store.read("$all") == []


@pytest.mark.parametrize("data", [[], "text", 5, [{"amount": 5}], None, {}])
def test_data_that_is_not_an_object_or_lacks_a_field_is_refused(typed: Store, data: Any) -> None:
    assert refused(lambda: typed.write("a-1", "Deposited", data)).value == data


def test_data_that_fits_is_stored_as_it_was_given(each_typed: Store, store: Store) -> None:
    given_data = {"amount": 5, "of": ["another", {"version": 1}]}
    each_typed.write("a-1", "Deposited", given_data, {"by": "Ada"}, id=ID)
    each_typed.write_batch("a-1", [("Deposited", given_data)])
    assert given_data == {"amount": 5, "of": ["another", {"version": 1}]}
    assert [message.data for message in store.read("a-1")] == [given_data, given_data]
    assert [message.data for message in each_typed.read("a-1")] == [Deposited(5), Deposited(5)]


def test_data_of_types_that_are_not_registered_is_not_checked(typed: Store, store: Store) -> None:
    typed.write_batch("a-1", [("Other", WRONG), ("Other", None), ("Other", [])])
    store.write("a-1", "Deposited", WRONG)
    assert [message.data for message in store.read("a-1")] == [WRONG, None, [], WRONG]


def test_older_data_is_checked_through_the_upcasters(
    messagedb_engine: Engine, store: Store, versions: MessageTypes
) -> None:
    typed = Store(messagedb_engine, types=versions)
    oldest = {"owner": "Ada Lovelace"}
    # The upcaster takes the owner out of its argument.
    typed.write("a-1", "Opened", oldest)
    typed.write("a-1", "Opened", {"first": "Ada", "last": "Lovelace"}, {"schemaVersion": "2"})
    typed.write_batch("a-1", [("Opened", NEWER, {"schemaVersion": 3})])
    assert oldest == {"owner": "Ada Lovelace"}
    assert store.read("a-1")[0].data == oldest
    assert [message.data for message in typed.read("a-1")] == [Opened(**NEWER)] * 3


@pytest.mark.parametrize(
    ("data", "metadata", "reason"),
    [
        (NEWER, None, "the upcaster from schema version 1: KeyError: 'owner'"),
        (None, None, "the upcaster from schema version 1: KeyError: 'owner'"),
        ({"owner": "Ada"}, {"schemaVersion": 3}, "first is missing"),
        ({"owner": "Ada"}, MappingProxyType({"schemaVersion": 3}), "first is missing"),
    ],
)
def test_data_is_checked_as_of_the_schema_version_in_the_metadata(
    messagedb_engine: Engine, store: Store, versions: MessageTypes, data: Any, metadata: Any, reason: str
) -> None:
    typed = Store(messagedb_engine, types=versions)
    for write in (
        lambda: typed.write("a-1", "Opened", data, metadata),
        lambda: typed.write_batch("a-1", [("Opened", data, metadata)]),
    ):
        assert refused(write).reason == f"must be data that can be read as 'Opened', but {reason}"
    assert store.read("a-1") == []


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"schemaVersion": 4}, "it has schema version 4, but the class has version 3"),
        ({"schemaVersion": "1.0"}, "its metadata's schemaVersion must be an integer from 1, got '1.0'"),
    ],
)
def test_a_schema_version_that_cannot_be_read_is_the_metadatas_fault(
    messagedb_engine: Engine, versions: MessageTypes, metadata: Any, reason: str
) -> None:
    typed = Store(messagedb_engine, types=versions)
    for write, argument in (
        (lambda: typed.write("a-1", "Opened", NEWER, metadata), "metadata"),
        (lambda: typed.write_batch("a-1", [("Opened", NEWER, metadata)]), "messages[0].metadata"),
    ):
        error = refused(write)
        assert (error.argument, error.value) == (argument, metadata)
        assert error.reason == f"must have a schemaVersion that can be read as 'Opened': {reason}"


@pytest.mark.parametrize("options", [{}, {"json_serializer": json.dumps}])
def test_the_schema_version_counts_in_metadata_of_every_kind_of_mapping(
    messagedb_url: str, store: Store, versions: MessageTypes, options: dict[str, Any]
) -> None:
    engine = create_engine(messagedb_url, **options)
    typed = Store(engine, types=versions)
    metadata = MappingProxyType({"schemaVersion": "3"})
    typed.write("a-1", "Opened", NEWER, metadata)
    typed.write_batch("a-1", [("Opened", NEWER, metadata)])
    assert [message.data for message in typed.read("a-1")] == [Opened(**NEWER)] * 2
    engine.dispose()


def test_a_consumer_parks_what_a_store_with_types_would_refuse(typed: Store, store: Store) -> None:
    store.write_batch("account-1", [("Deposited", WRONG), ("Deposited", {"amount": 5})])
    for transactional in (False, True):
        handled: list[Message] = []

        def handle(message: Message, *_: Any, handled: list[Message] = handled) -> None:
            handled.append(message)

        options: Any = {"transactional": transactional, "on_failure": "park"}
        Consumer(typed, "account", handle, f"mailer{transactional}", **options).run_until_caught_up()
        assert [message.data for message in handled] == [Deposited(5)]
        (dead,) = store.read(f"account:dead-mailer{transactional}")
        assert (dead.type, dead.data) == ("Deposited", WRONG)


def test_data_is_checked_as_the_engines_json_functions_change_it(
    messagedb_engine: Engine, store: Store, types: MessageTypes
) -> None:
    engine = create_engine(messagedb_engine.url, json_serializer=partial(json.dumps, default=str))
    typed = Store(engine, types=types)
    typed.write("a-1", "Deposited", {"amount": 5, "note": UUID(ID)})
    assert typed.read("a-1")[0].data == Deposited(5, ID)
    engine.dispose()


def test_data_is_checked_as_the_engines_json_deserializer_reads_it(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()

    @types.register
    class Priced(pydantic.BaseModel):
        price: Decimal = pydantic.Field(strict=True)

    engine = create_engine(messagedb_engine.url, json_deserializer=partial(json.loads, parse_float=Decimal))
    typed = Store(engine, types=types)
    typed.write("a-1", "Priced", {"price": 1.5})
    assert typed.read("a-1")[0].data == Priced(price=Decimal("1.5"))
    engine.dispose()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé\\", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)


@given(values=st.lists(json_values, min_size=1, max_size=20))
def test_a_copy_as_read_is_what_a_read_returns(store: Store, values: list[Any]) -> None:
    last = store.write("a-1", "T", values)
    read = store.read_stream("a-1", position=last)[0].data
    # As text: 1, 1.0 and True are equal. jsonb has no negative zero, and orders keys.
    assert _text(read) == _text(as_read(values))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True).replace("-0.0", "0.0")
