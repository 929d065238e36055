"""Message types: instances are written, and instances are read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import (
    AsyncStore,
    InvalidArgument,
    Message,
    MessageNotDecodable,
    MessageTypes,
    NewMessage,
    Store,
    WrongExpectedVersion,
    conversion,
)

from .conftest import DRIVERS, Awaited

ID = "7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11"
WHEN = datetime(2026, 11, 23, 12, 30, tzinfo=timezone.utc)


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


@dataclass(frozen=True)
class Deposited:
    amount: int
    note: str | None = None


@dataclass(frozen=True)
class Line:
    item: str
    price: Decimal


@dataclass(frozen=True)
class Ordered:
    id: UUID
    at: datetime
    colour: Colour
    lines: list[Line]
    by_number: dict[int, date]


@attrs.frozen
class Withdrawn:
    amount: int = attrs.field(converter=int)
    _reason: str = "none"


@attrs.define
class Moved:
    at: datetime
    line: Line
    _secret: int = 7


class Struct(msgspec.Struct, rename="camel"):
    when_it_was: datetime
    tags: set[str] = set()


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    when: datetime
    in_cents: int = pydantic.Field(alias="inCents")
    price: Decimal

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def in_euros(self) -> float:
        return self.in_cents / 100


@pydantic.dataclasses.dataclass
class Checked:
    amount: Annotated[int, pydantic.Field(gt=0)]
    on: date


INSTANCES: list[tuple[object, dict[str, Any]]] = [
    (Deposited(5), {"amount": 5, "note": None}),
    (
        Ordered(UUID(ID), WHEN, Colour.RED, [Line("lamp", Decimal("9.90"))], {7: date(2026, 1, 2)}),
        {
            "id": ID,
            "at": "2026-11-23T12:30:00Z",
            "colour": "red",
            "lines": [{"item": "lamp", "price": "9.90"}],
            "by_number": {"7": "2026-01-02"},
        },
    ),
    (Withdrawn(3, "rent"), {"amount": 3, "_reason": "rent"}),
    (
        Moved(WHEN, Line("lamp", Decimal(1)), 8),
        {"at": "2026-11-23T12:30:00Z", "line": {"item": "lamp", "price": "1"}, "_secret": 8},
    ),
    (Struct(WHEN, {"a"}), {"whenItWas": "2026-11-23T12:30:00Z", "tags": ["a"]}),
    (
        Model(when=WHEN, inCents=990, price=Decimal("9.90")),
        {"when": "2026-11-23T12:30:00Z", "inCents": 990, "price": "9.90"},
    ),
    (Checked(5, date(2026, 1, 2)), {"amount": 5, "on": "2026-01-02"}),
]


@pytest.fixture
def types() -> MessageTypes:
    types = MessageTypes()
    for instance, _ in INSTANCES:
        types.register(type(instance))
    return types


@pytest.fixture
def typed(store: Store, messagedb_engine: Engine, types: MessageTypes) -> Store:
    """An empty store with all the classes above."""
    return Store(messagedb_engine, types=types)


@pytest.fixture(params=DRIVERS)
def each_typed(
    request: pytest.FixtureRequest, messagedb_url: str, store: Store, types: MessageTypes
) -> Iterator[Store]:
    url = make_url(messagedb_url).set(drivername=f"postgresql+{request.param}")
    if request.param in ("psycopg2", "psycopg"):
        engine = create_engine(url)
        yield Store(engine, types=types)
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    async_engine = create_async_engine(url)
    awaited: Any = Awaited(AsyncStore(async_engine, types=types), loop)
    yield awaited
    loop.run_until_complete(async_engine.dispose())
    loop.close()


# ---- written and read


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


def test_what_is_not_registered_stays_a_dict(typed: Store) -> None:
    typed.write("account-1", "Opened", {"owner": "Ada"}, {"schemaVersion": "old"})
    typed.write("account-1", "Closed", None)
    typed.write("account-1", "Deposited", {"amount": 3})
    assert [message.data for message in typed.read("account-1")] == [{"owner": "Ada"}, None, Deposited(3)]


def test_instances_stand_beside_other_messages_in_a_batch(each_typed: Store, types: MessageTypes) -> None:
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
    # It takes its argument apart, which leaves what is written whole.
    types.register(
        Money, name="Paid", encode=lambda money: {"is": money.text}, decode=lambda data: Money(data.pop("is"))
    )
    typed = Store(messagedb_engine, types=types)
    typed.write("account-1", Money("5 €"))
    (message,) = typed.read("account-1")
    assert type(message.data) is Money
    assert (message.type, message.data.text, store.read("account-1")[0].data) == ("Paid", "5 €", {"is": "5 €"})


def test_a_subclass_is_a_class_of_its_own(typed: Store) -> None:
    class Transferred(Deposited):
        pass

    with pytest.raises(InvalidArgument, match="a Transferred is no message"):
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


# ---- refused when it is written


@dataclass
class Unregistered:
    amount: int


def refused(call: Callable[[], object]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        call()
    return caught.value


def test_an_instance_of_no_registered_class_is_refused_and_told_how_to_register(typed: Store, store: Store) -> None:
    for each in (typed, store):
        error = refused(lambda each=each: each.write("a-1", Unregistered(1)))  # type: ignore[misc]
        assert (error.argument, error.value) == ("message_type", Unregistered(1))
        assert "MessageTypes.register" in error.reason
        error = refused(lambda each=each: each.write_batch("a-1", [("T", {}), Unregistered(1)]))  # type: ignore[misc]
        assert error.argument == "messages[1]"
        assert "MessageTypes.register" in error.reason
    assert store.read("a-1") == []


def test_data_beside_an_instance_and_a_type_without_data_are_refused(typed: Store) -> None:
    write: Any = typed.write
    assert refused(lambda: write("a-1", Deposited(1), {})).argument == "data"
    assert refused(lambda: write("a-1", Deposited(1), None)).argument == "data"
    assert refused(lambda: write("a-1", "Deposited")).reason.startswith("needs data")
    assert refused(lambda: write("a-1", 5, {})).reason == "is no text"


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
def test_what_could_not_be_read_any_more_is_not_written(
    typed: Store, store: Store, instance: object, reason: str
) -> None:
    assert reason in refused(lambda: typed.write("a-1", instance)).reason
    assert store.read("a-1") == []


def test_what_json_cannot_hold_is_refused_as_ever(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Measured:
        value: float

    typed = Store(messagedb_engine, types=types)
    assert refused(lambda: typed.write("a-1", Measured(float("nan")))).argument == "data"
    assert refused(lambda: typed.write_batch("a-1", [Measured(float("nan"))])).argument == "messages[0].data"


def test_what_becomes_no_object_is_refused(messagedb_engine: Engine) -> None:
    types = MessageTypes()

    @types.register
    class Root(pydantic.RootModel[list[int]]):
        pass

    assert "it became a list" in refused(lambda: Store(messagedb_engine, types=types).write("a-1", Root([1]))).reason


@pytest.mark.parametrize("metadata", [[], "text", 5])
def test_metadata_of_an_instance_is_a_dict(typed: Store, metadata: Any) -> None:
    assert refused(lambda: typed.write("a-1", Deposited(1), metadata=metadata)).argument == "metadata"


@pytest.mark.parametrize("types", [{}, [Deposited], "types"])
def test_types_are_message_types(messagedb_engine: Engine, types: Any) -> None:
    assert refused(lambda: Store(messagedb_engine, types=types)).argument == "types"


# ---- schema versions


@dataclass
class Opened:
    first: str
    last: str
    country: str


@pytest.fixture
def versions() -> MessageTypes:
    """Opened, in its third version."""
    types = MessageTypes()

    @types.upcast("Opened", from_version=1)
    def two_names(data: dict[str, Any]) -> dict[str, Any]:
        first, _, last = data.pop("owner").partition(" ")
        return {**data, "first": first, "last": last}

    @types.upcast("Opened", from_version=2)
    def with_country(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "country": "GB"}

    types.register(Opened, version=3)
    return types


def test_the_schema_version_is_written_where_it_is_above_one(
    messagedb_engine: Engine, store: Store, versions: MessageTypes
) -> None:
    versions.register(Deposited)
    typed = Store(messagedb_engine, types=versions)
    opened = Opened("Ada", "Lovelace", "GB")
    typed.write("a-1", Deposited(1))
    typed.write("a-1", opened)
    typed.write("a-1", opened, metadata={"by": "Ada"})
    typed.write_batch("a-1", [opened, versions.new_message(opened, {"schemaVersion": 3})])
    written = [message.metadata for message in store.read("a-1")]
    three = {"schemaVersion": "3"}
    assert written == [None, three, {"by": "Ada", **three}, three, three]
    assert [message.metadata for message in typed.read("a-1")] == written


def test_older_data_is_upcast_step_by_step(messagedb_engine: Engine, store: Store, versions: MessageTypes) -> None:
    old = {"owner": "Ada Lovelace"}
    second = {"first": "Ada", "last": "Lovelace"}
    store.write_batch(
        "a-1",
        [
            ("Opened", old),
            ("Opened", old, {"schemaVersion": 1}),
            ("Opened", old, {"schemaVersion": None}),
            ("Opened", second, {"schemaVersion": 2}),
            ("Opened", second, {"schemaVersion": "2"}),
            ("Opened", {**second, "country": "GB"}, {"schemaVersion": 3}),
        ],
    )
    versions.check()
    messages = Store(messagedb_engine, types=versions).read("a-1")
    assert [message.data for message in messages] == [Opened("Ada", "Lovelace", "GB")] * 6


@pytest.mark.parametrize("version", [1, 2, 4, "2", True, "three"])
def test_a_schema_version_of_the_callers_that_is_not_the_classs_is_refused(
    messagedb_engine: Engine, versions: MessageTypes, version: object
) -> None:
    typed = Store(messagedb_engine, types=versions)
    opened = Opened("Ada", "Lovelace", "GB")
    assert refused(lambda: typed.write("a-1", opened, metadata={"schemaVersion": version})).argument == "metadata"


def test_check_finds_gaps_and_upcasters_of_nothing() -> None:
    types = MessageTypes()
    types.register(Opened, version=3)
    types.upcast("Opened", from_version=1)(dict)
    with pytest.raises(InvalidArgument, match="types='Opened': has no upcaster from version 2"):
        types.check()
    types.upcast("Opened", from_version=2)(dict)
    types.check()
    types.upcast("Opened", from_version=3)(dict)
    with pytest.raises(InvalidArgument, match=r"types='Opened': has no class for .* from version 3"):
        types.check()


def test_an_upcaster_is_registered_once() -> None:
    types = MessageTypes()
    types.upcast("Opened", from_version=1)(dict)
    assert refused(lambda: types.upcast("Opened", from_version=1)).argument == "from_version"
    assert refused(lambda: types.upcast("Opened", from_version=0)).argument == "from_version"
    assert refused(lambda: types.upcast("", from_version=1)).argument == "name"


# ---- what can't be read as an instance


@pytest.mark.parametrize(
    ("data", "metadata", "reason"),
    [
        ({"first": "Ada"}, {"schemaVersion": 3}, "last is missing"),
        ({"first": "Ada", "last": "Lovelace", "country": 5}, {"schemaVersion": 3}, "country: expected str, got int"),
        ({}, {"schemaVersion": 4}, "it has schema version 4, and the class 3"),
        ({}, {"schemaVersion": 0}, "its metadata's schemaVersion is no version"),
        ({}, {"schemaVersion": True}, "its metadata's schemaVersion is no version"),
        ({}, {"schemaVersion": "three"}, "its metadata's schemaVersion is no version"),
        ({}, None, "the upcaster from schema version 1: KeyError: 'owner'"),
        (None, {"schemaVersion": 3}, "its data is no object"),
        (None, None, "its data is no object"),
        ([1], {"schemaVersion": 3}, "its data is no object"),
        ("text", ["no object either"], "its data is no object"),
    ],
)
def test_a_message_that_is_no_instance_raises_an_error_with_its_place(
    messagedb_engine: Engine, store: Store, versions: MessageTypes, data: Any, metadata: Any, reason: str
) -> None:
    typed = Store(messagedb_engine, types=versions)
    store.write_batch("a-1", [("Noted", {}), ("Opened", data, metadata)])
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
        assert str(error) == f"message 1 of stream 'a-1' (global position 2) is no 'Opened': {reason}"
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
def test_the_librarys_own_error_is_the_cause(typed: Store, cls: type, cause: type[Exception]) -> None:
    typed.write("a-1", cls.__name__, {"amount": "many"})
    with pytest.raises(MessageNotDecodable) as caught:
        typed.read("a-1")
    assert type(caught.value.__cause__) is cause


def test_a_missing_upcaster_and_one_that_gives_no_dict_are_named(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()
    types.register(Opened, version=3)
    typed = Store(messagedb_engine, types=types)
    store.write("a-1", "Opened", {})
    with pytest.raises(MessageNotDecodable, match="there is no upcaster from schema version 1"):
        typed.read("a-1")
    types.upcast("Opened", from_version=1)(lambda data: data.clear())
    with pytest.raises(MessageNotDecodable, match="the upcaster from schema version 1 gave a NoneType, no dict"):
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


# ---- registering


def test_the_name_is_the_classs_unless_told_otherwise() -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class One:
        pass

    @types.register(name="TheOther", version=2)
    @dataclass
    class Two:
        pass

    assert types.register(Deposited, name="PaidIn") is Deposited
    assert (types.name_of(One), types.name_of(Two), types.name_of(Deposited)) == ("One", "TheOther", "PaidIn")
    assert One in types
    assert Opened not in types
    assert refused(lambda: types.name_of(Opened)).value is Opened


def test_names_and_classes_are_registered_once() -> None:
    types = MessageTypes()
    types.register(Deposited)
    assert refused(lambda: types.register(Deposited, name="Other")).argument == "cls"
    assert refused(lambda: types.register(Opened, name="Deposited")).argument == "name"
    assert refused(lambda: types.register(Opened, name="")).argument == "name"
    assert refused(lambda: types.register(Opened, version=0)).argument == "version"
    # What was refused has left nothing behind.
    types.register(Opened)


class Pair(NamedTuple):
    type: str
    data: int


class ArrayLike(msgspec.Struct, array_like=True):
    amount: int


class Custom:
    pass


@dataclass
class WithCustom:
    parts: list[Custom]


class StructWithCustom(msgspec.Struct):
    part: Custom | None


@attrs.define
class Private:
    _hidden: int = 5


@dataclass
class WithPrivate:
    part: Private


@dataclass
class WithChecked:
    part: dict[str, Checked]


@dataclass
class WithInitVar:
    amount: int
    factor: InitVar[int] = 2


@dataclass(init=False)
class WithInit:
    amount: int

    def __init__(self, text: str) -> None:
        self.amount = int(text)


@dataclass
class Ambiguous:
    parts: list[int] | list[str]


@dataclass
class Unresolved:
    part: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Pair, "would be taken for"),
        (str, "would be taken for"),
        (list, "would be taken for"),
        (Deposited(5), "is no class"),
        (list[int], "is no class"),
        (Custom, "is no dataclass, attrs, msgspec or pydantic class: pass encode= and decode="),
        (ArrayLike, "array_like"),
        (WithCustom, "can't convert the Custom in it"),
        (StructWithCustom, "can't convert the Custom in it"),
        (WithPrivate, "can't convert the Private in it"),
        (WithChecked, "can't convert the Checked in it"),
        (WithInitVar, "constructor's factor and its fields"),
        (WithInit, "constructor's amount, text and its fields"),
        (Ambiguous, "more than one array-like"),
        (Unresolved, "'Nowhere' is not defined"),
    ],
)
def test_a_class_that_could_not_come_back_is_refused_at_registration(cls: Any, reason: str) -> None:
    error = refused(lambda: MessageTypes().register(cls))
    assert error.argument == "cls"
    assert reason in error.reason


def test_own_functions_are_given_both_or_neither() -> None:
    assert "both" in refused(lambda: MessageTypes().register(Custom, encode=vars)).reason
    assert "both" in refused(lambda: MessageTypes().register(Custom, decode=lambda _: Custom())).reason


# ---- with msgspec and without


@dataclass
class Plain:
    a_text: str
    a_number: int
    a_float: float
    a_switch: bool
    nothing: None
    anything: Any
    a_dict: dict[str, Any]
    a_list: list[Any]
    bare: dict  # type: ignore[type-arg]
    maybe: str | None
    either: typing.Optional[typing.Union[int, float, list[int]]]  # noqa: UP007, UP045
    float_or_text: float | str
    deep: list[dict[str, list[float | None]]]
    defaulted: int = 7
    made: list[int] = field(default_factory=list)


WHOLE: dict[str, Any] = {
    "a_text": "é",
    "a_number": 10**30,
    "a_float": 1,
    "a_switch": True,
    "nothing": None,
    "anything": {"a": [1, None]},
    "a_dict": {"a": {"b": 1}},
    "a_list": [1, "two", None],
    "bare": {"a": 1},
    "maybe": None,
    "either": 1.5,
    "float_or_text": 3,
    "deep": [{"a": [1, 1.5, None]}],
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just(10**400) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=5,
)


def outcome(convert: Callable[[dict[str, Any]], Any], data: dict[str, Any]) -> str:
    try:
        # As text: 1 and 1.0 are equal.
        return repr(convert(json.loads(json.dumps(data))))
    except (conversion.Misfit, msgspec.ValidationError):
        return "refused"


@given(changes=st.dictionaries(st.sampled_from(sorted({*WHOLE, "defaulted", "made", "unknown"})), values))
def test_plain_types_are_the_same_with_msgspec_and_without(changes: dict[str, Any]) -> None:
    fields = conversion.fields_of(Plain)
    ours, msgspecs = conversion.by_plain_types(Plain, fields), conversion.by_msgspec(Plain, fields)
    assert outcome(ours.decode, WHOLE) == outcome(msgspecs.decode, WHOLE) != "refused"
    assert outcome(ours.decode, {**WHOLE, **changes}) == outcome(msgspecs.decode, {**WHOLE, **changes})
    for missing in changes:
        fewer = {name: value for name, value in WHOLE.items() if name != missing}
        assert outcome(ours.decode, fewer) == outcome(msgspecs.decode, fewer)
    instance = ours.decode(WHOLE)
    assert ours.encode(instance) == msgspecs.encode(instance) == dataclasses.asdict(instance)


def test_an_integer_enum_is_an_integer_to_both(typed: Store, store: Store) -> None:
    typed.write("a-1", Deposited(Size.SMALL))
    assert repr(store.read("a-1")[0].data) == "{'note': None, 'amount': 1}"
    by_msgspec = conversion.by_msgspec(Deposited, conversion.fields_of(Deposited))
    assert by_msgspec.encode(Deposited(Size.SMALL)) == {"amount": 1, "note": None}


def test_without_msgspec_plain_types_are_registered_and_others_are_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, messagedb_engine: Engine, store: Store
) -> None:
    monkeypatch.setattr(conversion, "msgspec", None)
    types = MessageTypes()
    types.register(Deposited)
    types.register(Withdrawn)
    types.register(Model)
    typed = Store(messagedb_engine, types=types)
    typed.write_batch("a-1", [Deposited(5), Withdrawn(6)])
    assert [message.data for message in typed.read("a-1")] == [Deposited(5), Withdrawn(6)]
    for cls, field_name, annotation in ((Ordered, "id", "UUID"), (Moved, "at", "datetime")):
        error = refused(lambda cls=cls: types.register(cls))  # type: ignore[misc]
        assert error.reason.startswith(f"its field {field_name} is a {annotation}: install messagedb-sa[msgspec]")
        assert "pass encode= and decode=" in error.reason
