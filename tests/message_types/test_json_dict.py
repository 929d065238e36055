"""A message as a dict that is ready for json.dumps, whatever its data is."""

from __future__ import annotations

import copy
import gc
import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Generic, TypeVar

import pydantic
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from messagedb_sa import InvalidArgument, Message, MessageTypes, Store

from ..support import NESTED
from .support import INSTANCES, Opened

MESSAGE: Message[Any] = Message(
    id="7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11",
    stream_name="account-1",
    type="Opened",
    position=0,
    global_position=1,
    data={"owner": "Ada", "lines": [1, 2.5, None, True]},
    metadata={"by": "Grace"},
    time=datetime(2026, 11, 23, 12, tzinfo=timezone.utc),
)


def refused(data: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        MESSAGE._replace(data=data).as_json_dict()
    return str(caught.value)


def test_it_has_all_eight_fields_in_their_order_with_the_time_as_text() -> None:
    as_dict = MESSAGE.as_json_dict()
    assert as_dict == {**dict(MESSAGE), "time": "2026-11-23T12:00:00.000000+00:00"}
    assert list(as_dict) == list(MESSAGE.keys())
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert datetime.fromisoformat(as_dict["time"]) == MESSAGE.time


@pytest.mark.parametrize("time", [datetime.min, datetime.max, datetime(2026, 1, 1) + timedelta(microseconds=7)])
def test_no_part_of_the_time_is_lost(time: datetime) -> None:
    time = time.replace(tzinfo=timezone.utc)
    assert datetime.fromisoformat(MESSAGE._replace(time=time).as_json_dict()["time"]) == time


@pytest.mark.parametrize("value", [None, "text", 7, 7.5, 10**400, False, [], [[{"a": [None]}]], {}])
def test_any_json_may_be_data_and_metadata(value: Any) -> None:
    as_dict = MESSAGE._replace(data=value, metadata=value).as_json_dict()
    assert (as_dict["data"], as_dict["metadata"]) == (value, value)


def test_changing_it_does_not_change_the_message() -> None:
    before = copy.deepcopy(MESSAGE)
    as_dict = MESSAGE.as_json_dict()
    as_dict["data"]["lines"].append("more")
    as_dict["metadata"].clear()
    assert before == MESSAGE


@pytest.mark.parametrize(("instance", "data"), INSTANCES)
def test_an_instance_becomes_its_json_data(store: Store, instance: object, data: dict[str, Any]) -> None:
    types = MessageTypes()
    types.register(type(instance))
    typed = Store(store.engine, types=types)
    typed.write("account-1", instance)
    (message,) = typed.read("account-1")
    (plain,) = store.read("account-1")
    assert message.data == instance
    assert message.as_json_dict() == plain.as_json_dict()
    assert message.as_json_dict()["data"] == data


def test_an_older_message_has_the_data_of_the_class_and_is_otherwise_as_it_is_stored(store: Store) -> None:
    types = MessageTypes()
    types.register(Opened, version=3)
    types.upcast("Opened", from_version=2)(lambda data: {**data, "country": "UK"})
    typed = Store(store.engine, types=types)
    store.write("account-1", "Opened", {"first": "Ada", "last": "Lovelace"}, {"schemaVersion": "2"})
    as_dict = typed.read("account-1")[0].as_json_dict()
    assert as_dict["data"] == {"first": "Ada", "last": "Lovelace", "country": "UK"}
    assert as_dict["metadata"] == {"schemaVersion": "2"}


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


def test_the_applications_own_functions_are_used() -> None:
    types = MessageTypes()
    types.register(Money, encode=lambda money: {"n": money.cents}, decode=lambda data: Money(data["n"]))
    assert MESSAGE._replace(data=Money(5)).as_json_dict()["data"] == {"n": 5}


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    content: T


def test_a_generic_that_pydantic_made_of_a_class_counts_as_the_class() -> None:
    MessageTypes().register(Box)
    assert MESSAGE._replace(data=Box[int](content=5)).as_json_dict()["data"] == {"content": 5}


class Colour(str, Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


def test_text_and_numbers_of_classes_of_their_own_become_plain() -> None:
    found = MESSAGE._replace(data={Colour.RED: (Colour.RED, Size.SMALL)}).as_json_dict()["data"]
    assert found == {"red": ["red", 1]}
    assert [type(each) for each in (*found, *found["red"])] == [str, str, int]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (Decimal(1), "data=Decimal('1'): must be text, a finite number, "),
        ({"a": [Decimal(1)]}, "data['a'][0]=Decimal('1'): must be text"),
        ({"a": float("nan")}, "data['a']=nan: must be text, a finite number"),
        ([float("-inf")], "data[0]=-inf: must be"),
        (
            {1: 2},
            "data={1: 2}: must be text, a finite number, True, False, None, a list, or a dict with text as keys; it",
        ),
        (b"bytes", "data=b'bytes': must be text"),
        ({"a": {"b"}}, "data['a']={'b'}: must be text"),
    ],
)
def test_what_json_does_not_have_is_refused_with_its_place(data: Any, error: str) -> None:
    assert refused(data).startswith(error)
    with pytest.raises(InvalidArgument, match=r"^metadata"):
        MESSAGE._replace(metadata=data).as_json_dict()


@dataclass
class NotRegistered:
    n: int


def test_an_instance_of_a_class_that_is_not_registered_is_refused() -> None:
    assert refused(NotRegistered(1)).endswith("or an instance of a class that is registered")


def test_an_error_of_the_applications_own_function_is_the_cause() -> None:
    class Odd(Money):
        pass

    MessageTypes().register(Odd, encode=lambda odd: {"n": odd.pence}, decode=lambda data: Odd(data["n"]))  # type: ignore[attr-defined]
    with pytest.raises(
        InvalidArgument, match="must be an instance that its class can encode: AttributeError"
    ) as caught:
        MESSAGE._replace(data=Odd(5)).as_json_dict()
    assert type(caught.value.__cause__) is AttributeError


def test_data_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = []
    for _ in NESTED:
        deep = [deep]
    with pytest.raises(InvalidArgument, match="must not be nested as deeply"):
        MESSAGE._replace(data=deep).as_json_dict()
    while deep:
        deep = deep.pop()
    gc.collect()


def test_what_the_engines_own_deserializer_makes_is_refused_if_json_does_not_have_it(store: Store) -> None:
    store.write("account-1", "Deposited", {"amount": 1.5})
    engine = create_engine(store.engine.url, json_deserializer=lambda text: json.loads(text, parse_float=Decimal))
    (message,) = Store(engine).read("account-1")
    with pytest.raises(InvalidArgument, match=r"^data\['amount'\]=Decimal\('1.5'\): must be text, a finite number"):
        message.as_json_dict()
    engine.dispose()


def test_fastapi_answers_with_it(store: Store) -> None:
    app = FastAPI()

    @app.get("/history")
    def history() -> list[dict[str, Any]]:
        return [message.as_json_dict() for message in store.iter_stream("account-1")]

    store.write("account-1", "Opened", {"owner": "Ada"})
    assert TestClient(app).get("/history").json() == [store.read("account-1")[0].as_json_dict()]
