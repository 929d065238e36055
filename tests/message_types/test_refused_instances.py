"""What cannot be written is refused, with the argument and the reason."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pydantic
import pydantic.dataclasses
import pytest
from sqlalchemy import Engine

from messagedb_sa import MessageTypes, NewMessage, Store

from .support import WHEN, Deposited, Model, Moved, Struct, refused


@dataclass
class Unregistered:
    amount: int


def test_an_instance_of_an_unregistered_class_is_refused(typed: Store, store: Store) -> None:
    for each in (typed, store):
        error = refused(lambda each=each: each.write("a-1", Unregistered(1)))  # type: ignore[misc]
        assert (error.argument, error.value) == ("message_type", Unregistered(1))
        assert "MessageTypes.register" in error.reason
        error = refused(lambda each=each: each.write_batch("a-1", [("T", {}), Unregistered(1)]))  # type: ignore[misc]
        assert error.argument == "messages[1]"
        assert "MessageTypes.register" in error.reason
    assert store.read("a-1") == []


def test_an_instance_as_the_data_of_a_message_is_refused_with_what_to_do(typed: Store) -> None:
    for write in (
        lambda: typed.write("a-1", "Deposited", Deposited(1)),
        lambda: typed.write_batch("a-1", [NewMessage("Deposited", Deposited(1), {"by": "Ada"})]),
        lambda: typed.write_streams([("a-1", [("Deposited", Deposited(1))])]),
    ):
        error = refused(write)
        assert error.value == Deposited(1)
        assert "MessageTypes.new_message" in error.reason


def test_data_besides_an_instance_and_a_type_without_data_are_refused(typed: Store) -> None:
    write: Any = typed.write
    assert refused(lambda: write("a-1", Deposited(1), {})).argument == "data"
    assert refused(lambda: write("a-1", Deposited(1), None)).argument == "data"
    assert refused(lambda: write("a-1", "Deposited")).reason.startswith("has no data")
    assert refused(lambda: write("a-1", 5, {})).reason == "must be a string"


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        (Deposited("5"), "amount: expected int, got str"),  # type: ignore[arg-type]
        (Deposited(True), "amount: expected int, got bool"),
        (Struct("soon"), "Invalid RFC3339 encoded datetime - at `$.whenItWas`"),  # type: ignore[arg-type]
        (Model.model_construct(when=WHEN, in_cents=5), "Field required"),
        (Moved(WHEN, None), "Expected `object`, got `null` - at `$.line`"),  # type: ignore[arg-type]
    ],
)
def test_an_instance_that_could_not_be_read_again_is_not_written(
    typed: Store, store: Store, instance: object, reason: str
) -> None:
    assert reason in refused(lambda: typed.write("a-1", instance)).reason
    assert store.read("a-1") == []


def test_values_that_json_cannot_hold_are_refused(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Measured:
        value: float

    typed = Store(messagedb_engine, types=types)
    assert refused(lambda: typed.write("a-1", Measured(float("nan")))).argument == "data"
    assert refused(lambda: typed.write_batch("a-1", [Measured(float("nan"))])).argument == "messages[0].data"


def test_an_instance_must_become_a_json_object(messagedb_engine: Engine) -> None:
    types = MessageTypes()

    class Root(pydantic.RootModel[list[int] | dict[str, int]]):
        pass

    types.register(Root)
    typed = Store(messagedb_engine, types=types)
    typed.write("a-1", Root({"a": 1}))
    assert "it must become a dict, got a list" in refused(lambda: typed.write("a-1", Root([1]))).reason


@pytest.mark.parametrize("root", [list[int], str, tuple[int, ...]])
def test_a_root_model_that_never_becomes_an_object_is_refused_at_registration(root: Any) -> None:
    cls = pydantic.create_model("Root", __base__=pydantic.RootModel[root])
    assert "must be stored as an object, not as a " in refused(lambda: MessageTypes().register(cls)).reason


def test_a_class_in_place_of_its_instance_is_refused_by_name(typed: Store) -> None:
    cls: Any = Deposited
    for write in (lambda: typed.write("a-1", cls), lambda: typed.write_batch("a-1", [cls])):
        assert refused(write).reason == "must be an instance of Deposited, not the class"


def test_an_ordered_dict_is_refused_unless_it_has_the_order_of_jsonb(messagedb_engine: Engine) -> None:
    types = MessageTypes()

    @types.register
    class Ranked(pydantic.BaseModel):
        scores: OrderedDict[str, int]

    typed = Store(messagedb_engine, types=types)
    ranked = Ranked(scores=OrderedDict([("z", 1), ("aa", 2), ("é", 3)]))
    typed.write("a-1", ranked)
    assert typed.read("a-1")[0].data == ranked
    error = refused(lambda: typed.write("a-1", Ranked(scores=OrderedDict([("aa", 1), ("z", 2)]))))
    assert "its scores is OrderedDict" in error.reason


@pytest.mark.parametrize("metadata", [[], "text", 5])
def test_metadata_of_an_instance_must_be_a_dict(typed: Store, metadata: Any) -> None:
    assert refused(lambda: typed.write("a-1", Deposited(1), metadata=metadata)).argument == "metadata"


@pytest.mark.parametrize("types", [{}, [Deposited], "types"])
def test_types_must_be_message_types(messagedb_engine: Engine, types: Any) -> None:
    assert refused(lambda: Store(messagedb_engine, types=types)).argument == "types"
