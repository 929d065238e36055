"""What is written is read as it was: a class that cannot keep this is refused, and so is an instance."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, ForwardRef, Generic, TypeVar, cast
from uuid import UUID, uuid4

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
)
from sqlalchemy import Engine, create_engine

from messagedb_sa import InvalidArgument, MessageTypes, Store

from .support import Colour, Size, refused

T = TypeVar("T")


# ---- Classes that are refused


@dataclass
class Made:
    amount: int
    id: UUID = field(init=False, default_factory=uuid4)


@dataclass
class MadeAndNotCompared:
    amount: int
    id: UUID = field(init=False, default_factory=lambda: uuid4(), compare=False)


@attrs.define
class MadeByAttrs:
    amount: int
    id: UUID = attrs.field(init=False, factory=uuid4)


@pydantic.dataclasses.dataclass
class MadeByPydantic:
    amount: int
    id: UUID = Field(init=False, default_factory=uuid4)


class MadePrivately(BaseModel):
    amount: int
    _id: UUID = PrivateAttr(default_factory=uuid4)


class MadeWithin(BaseModel):
    parts: dict[str, list[Made]]


@pydantic.dataclasses.dataclass
class InitOnly:
    amount: int
    factor: InitVar[int] = 2


@pydantic.dataclasses.dataclass(config=ConfigDict(extra="allow"))
class ExtraOfADataclass:
    amount: int


class WithSecret(BaseModel):
    user: str
    password: SecretStr


class WithSecrets(BaseModel):
    keys: dict[str, list[SecretBytes | None]] = {}


class WithSecretNumber(BaseModel):
    pin: Secret[int]


class WithSecretWithin(BaseModel):
    logins: list[WithSecret]
    next: WithSecretWithin | None = None


class Excluded(BaseModel):
    amount: int = Field(default=1, exclude=True)


class AliasToWrite(BaseModel):
    amount: int = Field(default=1, serialization_alias="inCents")


class AliasToRead(BaseModel):
    amount: int = Field(default=1, validation_alias=AliasChoices("cents", AliasPath("sum", "cents")))


@pydantic.dataclasses.dataclass
class AliasOfADataclass:
    amount: int = Field(default=1, serialization_alias="inCents")


class WithRaw(msgspec.Struct):
    part: msgspec.Raw


@dataclass
class WithTuplesAsKeys:
    at: dict[tuple[int, int], str]


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Made, "its field id must not have init=False and a factory"),
        (MadeAndNotCompared, "its field id must not have init=False and a factory"),
        (MadeByAttrs, "its field id must not have init=False and a factory"),
        (MadeByPydantic, "its field id must not have init=False and a factory"),
        (MadePrivately, "its private attribute _id must not have a factory"),
        (MadeWithin, "its field parts.id must not have init=False and a factory"),
        (InitOnly, "its field factor must not be an InitVar"),
        (ExtraOfADataclass, "its class ExtraOfADataclass must not be a dataclass with extra='allow'"),
        (WithSecret, "its field password must not be a secret, which is stored as asterisks"),
        (WithSecrets, "its field keys must not be a secret"),
        (WithSecretNumber, "its field pin must not be a secret"),
        (WithSecretWithin, "its field logins.password must not be a secret"),
        (Excluded, "its field amount must not have exclude=True"),
        (AliasToWrite, "its field amount must not be stored as 'inCents' and read as 'amount'"),
        (AliasToRead, "its field amount must not be stored as 'amount' and read as 'cents' or 'sum.cents'"),
        (AliasOfADataclass, "its field amount must not be stored as 'inCents' and read as 'amount'"),
        (WithRaw, "msgspec cannot convert the Raw in it"),
        (WithTuplesAsKeys, "its dicts must have text, times or numbers as keys"),
    ],
)
def test_a_class_whose_instances_cannot_come_back_is_refused_at_registration(cls: type, reason: str) -> None:
    error = refused(lambda: MessageTypes().register(cls))
    assert error.argument == "cls"
    assert error.reason.startswith(reason)
    assert error.reason.endswith("pass encode= and decode=")


def test_a_class_whose_part_is_defined_later_is_refused_at_the_first_write(
    messagedb_engine: Engine, store: Store
) -> None:
    # Before it, pydantic itself refuses such a class.
    pytest.importorskip("pydantic", minversion="2.10")
    types, part = MessageTypes(), cast("Any", (ForwardRef("DefinedLater"), ...))
    before_its_part = types.register(pydantic.create_model("BeforeItsPart", part=part))
    before_its_part.model_rebuild(_types_namespace={"DefinedLater": WithSecret})
    typed = Store(messagedb_engine, types=types)
    instance: Any = before_its_part(part={"user": "Ada", "password": "open sesame"})
    for _ in range(2):
        error = refused(lambda: typed.write("a-1", instance))
        assert error.reason.startswith("its field part.password must not be a secret")
    assert store.read("a-1") == []


# ---- Instances that are refused


@dataclass
class Base:
    amount: int


@dataclass
class Sub(Base):
    note: str = "lost"


@dataclass
class ById:
    id: int
    part: Base = field(compare=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.id == self.id


@dataclass(frozen=True, eq=False)
class HashedById:
    id: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedById) and other.id == self.id

    def __hash__(self) -> int:
        return self.id


@dataclass(frozen=True, eq=False)
class HashedSub(HashedById):
    note: str = "lost"


@dataclass
class Hashed:
    parts: set[HashedById]


@dataclass(eq=False)
class EqualToNothing:
    part: Base


@dataclass
class Parts:
    one: Base | None = None
    several: list[Base] = field(default_factory=list)
    named: dict[str, Base] = field(default_factory=dict)


class StructBase(msgspec.Struct):
    amount: int


class StructSub(StructBase):
    note: str = "lost"


class StructParts(msgspec.Struct):
    part: StructBase


class ModelBase(BaseModel):
    amount: int


class ModelSub(ModelBase):
    note: str = "lost"


class ModelParts(BaseModel):
    part: ModelBase


class SameShape(BaseModel):
    amount: int


class EitherShape(BaseModel):
    part: ModelBase | SameShape


class Lax(BaseModel):
    value: Annotated[int | str, Field(union_mode="left_to_right")]


class LaxSwitch(BaseModel):
    value: Annotated[bool | int, Field(union_mode="left_to_right")]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Private(BaseModel):
    _note: str = "none"


@dataclass
class Anything:
    value: Any
    at: datetime | None = None


@dataclass
class PlainAnything:
    value: Any


@dataclass
class GenericOne(Generic[T]):
    value: T
    at: datetime | None = None


@dataclass
class SetInPostInit:
    id: UUID = field(init=False)

    def __post_init__(self) -> None:
        self.id = uuid4()


@dataclass
class Doubled:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


@dataclass
class Pending:
    amount: int
    events: list[str] = field(init=False, default_factory=list)


def _plus_one(amount: int) -> int:
    return amount + 1


@attrs.define
class Converted:
    amount: int = attrs.field(converter=_plus_one)


@attrs.define
class Derived:
    amount: int
    twice: int = attrs.field(init=False)

    @twice.default
    def _twice(self) -> int:
        return 2 * self.amount


@dataclass
class Tuples:
    items: list[int]


def changed(instance: Any, name: str, value: Any) -> Any:
    setattr(instance, name, value)
    return instance


CHANGED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Parts(one=Sub(1)), "its one is Sub(amount=1, note='lost') and would be read as Base(amount=1)"),
    (lambda: Parts(several=[Base(1), Sub(2)]), "its several[1] is Sub(amount=2, note='lost')"),
    (lambda: Parts(named={"a": Sub(2)}), "its named['a'] is Sub(amount=2, note='lost')"),
    (lambda: ById(1, Sub(2)), "its part is Sub(amount=2, note='lost') and would be read as Base(amount=2)"),
    (lambda: Hashed({HashedSub(1)}), "is HashedSub(id=1, note='lost') and would be read as HashedById(id=1)"),
    (lambda: EqualToNothing(Sub(2)), "its part is Sub(amount=2, note='lost') and would be read as Base(amount=2)"),
    (lambda: StructParts(StructSub(1)), "its part is StructSub(amount=1, note='lost')"),
    (lambda: ModelParts(part=ModelSub(amount=1)), "its part is ModelSub(amount=1, note='lost')"),
    (lambda: EitherShape(part=SameShape(amount=1)), "its part is SameShape(amount=1) and would be read as ModelBase"),
    (lambda: Lax.model_construct(value="5"), "its value is '5' and would be read as 5"),
    (lambda: LaxSwitch.model_construct(value=1), "its value is 1 and would be read as True"),
    (lambda: Open(at=[UUID(int=1)]), "its model_extra['at'][0] is UUID("),  # type: ignore[call-arg]
    (lambda: changed(Private(), "_note", "some"), "its _note is 'some' and would be read as 'none'"),
    (
        lambda: Anything(UUID(int=1)),
        "its value is UUID('00000000-0000-0000-0000-000000000001') and would be read as '0",
    ),
    (lambda: Anything(Colour.RED), "its value is <Colour.RED: 'red'> and would be read as 'red'"),
    (lambda: Anything(Decimal("1.50")), "its value is Decimal('1.50') and would be read as '1.50'"),
    (lambda: Anything({1, 2}), "its value is {1, 2} and would be read as [1, 2]"),
    (lambda: Anything(b"a"), "its value is b'a' and would be read as 'YQ=='"),
    (lambda: Anything({"a": {1: 2}}), "its value['a'] is {1: 2} and would be read as {'1': 2}"),
    (lambda: Anything(Base(1)), "its value is Base(amount=1) and would be read as {'amount': 1}"),
    (lambda: PlainAnything((1, 2)), "its value is (1, 2) and would be read as [1, 2]"),
    (lambda: PlainAnything(3.076719770652207e16), "and would be read as 30767197706522070"),
    (lambda: GenericOne(UUID(int=1)), "its value is UUID("),
    (lambda: SetInPostInit(), "its id is UUID("),
    (lambda: Doubled(1), "its amount is 2 and would be read as 4"),
    (lambda: changed(Pending(1), "events", ["new"]), "its events is ['new'] and would be read as []"),
    (lambda: Converted(1), "its amount is 2 and would be read as 3"),
    (lambda: changed(Derived(1), "twice", 3), "its twice is 3 and would be read as 2"),
    (lambda: Tuples((1, 2)), "its items is (1, 2) and would be read as [1, 2]"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "change"), CHANGED)
def test_an_instance_that_would_be_read_as_another_is_not_written(
    messagedb_engine: Engine, store: Store, make: Callable[[], Any], change: str
) -> None:
    types, instance = MessageTypes(), make()
    types.register(type(instance))
    typed = Store(messagedb_engine, types=types)
    start = "must be read as it was written, but "
    for write, argument in (
        (lambda: typed.write("a-1", instance), "message_type"),
        (lambda: typed.write_batch("a-1", [("T", {}), instance]), "messages[1]"),
        (lambda: typed.write_streams([("a-1", [instance])]), "writes[0].messages[0]"),
        (lambda: types.new_message(instance), "instance"),
    ):
        error = refused(write)
        assert error.argument == argument
        assert error.value is instance
        assert error.reason.startswith(start)
        assert change in error.reason
    assert store.read("$all") == []


# ---- What comes back


class SetBack(tzinfo):
    """A time zone in the hour that comes twice, since its clock is set back."""

    def utcoffset(self, time: datetime | None) -> timedelta:
        return timedelta(hours=1 if time is not None and time.fold else 2)

    def dst(self, time: datetime | None) -> timedelta:
        return self.utcoffset(time) - timedelta(hours=1)

    def tzname(self, time: datetime | None) -> str:
        return "CET" if time is not None and time.fold else "CEST"


TWICE = datetime(2026, 10, 25, 2, 30, tzinfo=SetBack())


class Values(msgspec.Struct):
    value: Any = None
    at: datetime | None = None
    span: timedelta | None = None
    raw: bytes = b""
    some: set[int] = set()
    pair: tuple[int, str] = (1, "a")
    price: Decimal = Decimal(1)
    colour: Colour = Colour.RED
    by_number: dict[int, str] = {}
    by_id: dict[UUID, str] = {}
    real: float = 1.5
    unset: int | msgspec.UnsetType = msgspec.UNSET


class ModelValues(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    value: Any = None
    at: datetime | None = None
    span: timedelta | None = None
    raw: bytes = b""
    some: set[int] = set()
    pair: tuple[int, str] = (1, "a")
    price: Decimal = Decimal(1)
    colour: Colour = Colour.RED
    by_number: dict[int, str] = {}
    by_id: dict[UUID, str] = {}
    real: float = 1.5


@pytest.mark.parametrize("cls", [Values, ModelValues])
@pytest.mark.parametrize(
    "values",
    [
        {"value": {"a": [1, 1.5, None, True, "é", {"b": []}]}},
        {"at": datetime(2026, 1, 2, 3, 4, 5, 678901)},
        {"at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))},
        {"at": TWICE},
        {"at": TWICE.replace(fold=1)},
        {"span": timedelta(days=-1, microseconds=1)},
        {"raw": b"text"},
        {"some": {3, 1}},
        {"pair": (2, "b")},
        {"price": Decimal("1.10")},
        {"colour": Colour.RED},
        {"by_number": {7: "seven"}},
        {"by_id": {UUID(int=1): "one"}},
        {"real": 1e300},
        {"real": 3.076719770652207e16},
        {"real": 2},
    ],
)
def test_values_of_these_types_come_back(messagedb_engine: Engine, store: Store, cls: type, values: Any) -> None:
    types = MessageTypes()
    types.register(cls)
    typed = Store(messagedb_engine, types=types)
    typed.write("a-1", cls(**values))
    read = typed.read("a-1")[0].data
    for name, value in values.items():
        if value is TWICE:
            assert getattr(read, name) != value
        # A time within the hour that comes twice is not equal to itself in another time zone; its distance is 0.
        assert getattr(read, name) - value == timedelta(0) if name == "at" else getattr(read, name) == value
        assert isinstance(getattr(read, name), type(value)) or name == "real"


class WithSerializer(BaseModel):
    password: SecretStr

    @pydantic.field_serializer("password", when_used="json")
    def _shown(self, password: SecretStr) -> str:
        return password.get_secret_value()


class WithSerializerOfTheType(BaseModel):
    passwords: list[Annotated[SecretStr, PlainSerializer(SecretStr.get_secret_value)]]


class TwoAliases(BaseModel):
    amount: int = Field(serialization_alias="inCents", validation_alias=AliasChoices("cents", "inCents"))


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    amount: int = Field(validation_alias="inCents", serialization_alias="amount")


class ByHand(BaseModel):
    amount: int = Field(default=1, serialization_alias="inCents")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_cents(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"amount": data["inCents"]} if "inCents" in data else data


class PrivateList(BaseModel):
    _events: list[str] = PrivateAttr(default_factory=list)


@pydantic.dataclasses.dataclass
class DerivedByPydantic:
    amount: int
    twice: int = field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.amount


@dataclass
class NotAPart:
    amount: int
    cache: Any = field(init=False, default=None, compare=False)


@dataclass
class Counted:
    amount: int
    counts: collections.Counter[str] = field(init=False, default_factory=collections.Counter)


class Omitting(msgspec.Struct, omit_defaults=True, tag="omitting", rename="camel", forbid_unknown_fields=True):
    in_cents: int = 1
    id: UUID = msgspec.field(default_factory=uuid4)


class Box(BaseModel, Generic[T]):
    value: T


class WithBox(BaseModel):
    box: Box[int]


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


class WithMoney(BaseModel):
    sum: Annotated[
        Any,
        PlainSerializer(lambda money: money.cents),
        BeforeValidator(lambda value: value if isinstance(value, Money) else Money(value)),
    ]


KEPT: list[Callable[[], Any]] = [
    lambda: Parts(Base(1), [Base(2)], {"a": Base(3)}),
    lambda: EqualToNothing(Base(1)),
    lambda: Hashed({HashedById(1), HashedById(2)}),
    lambda: WithSerializer(password=SecretStr("open sesame")),
    lambda: WithSerializerOfTheType(passwords=[SecretStr("open sesame")]),
    lambda: TwoAliases(cents=5),  # type: ignore[call-arg]
    lambda: ByName(inCents=5),  # type: ignore[call-arg]
    lambda: ByHand(amount=5),
    lambda: Open(at=[1, "two"]),  # type: ignore[call-arg]
    lambda: PrivateList(),
    lambda: Pending(5),
    lambda: Derived(5),
    lambda: DerivedByPydantic(5),
    lambda: Counted(5),
    lambda: changed(NotAPart(5), "cache", object()),
    lambda: Omitting(),
    lambda: Omitting(5),
    lambda: Box[int](value=5),
    lambda: WithBox(box=Box[int](value=5)),
    lambda: WithMoney(sum=Money(5)),
    lambda: Doubled(0),
]


@pytest.mark.parametrize("make", KEPT)
def test_an_instance_that_comes_back_is_written(
    messagedb_engine: Engine, store: Store, make: Callable[[], Any]
) -> None:
    types, instance = MessageTypes(), make()
    types.register(type(instance))
    typed = Store(messagedb_engine, types=types)
    typed.write("a-1", instance)
    read = typed.read("a-1")[0].data
    assert type(read) is type(instance)
    assert types.new_message(read).data == types.new_message(instance).data


# ---- Functions of the application's own


@dataclass
class Paid:
    euros: float
    note: str = field(default="", compare=False)


def test_own_functions_must_give_back_an_equal_instance(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()
    types.register(Paid, encode=lambda paid: {"euros": int(paid.euros)}, decode=lambda data: Paid(data["euros"]))
    typed = Store(messagedb_engine, types=types)
    # They may leave out what the comparison leaves out.
    typed.write("a-1", Paid(1, "not kept"))
    assert typed.read("a-1")[0].data.note == ""
    error = refused(lambda: typed.write("a-1", Paid(1.5)))
    assert error.reason == "must be read as it was written, but its euros is 1.5 and would be read as 1"


@pytest.mark.parametrize("make", [Money, dataclasses.make_dataclass("EuroCents", ["cents"], eq=False)])
def test_instances_that_equal_nothing_are_compared_by_their_data(
    messagedb_engine: Engine, store: Store, make: Callable[[int], Any]
) -> None:
    types = MessageTypes()
    types.register(
        type(make(0)),
        encode=lambda money: {"sum": [money.cents]},
        decode=lambda data: make(abs(data["sum"].pop())),
    )
    typed = Store(messagedb_engine, types=types)
    typed.write("a-1", make(5))
    assert store.read("a-1")[0].data == {"sum": [5]}
    error = refused(lambda: typed.write("a-1", make(-5)))
    reason = "must be read as it was written, but its data['sum'][0] is -5 and would be 5 once it is read"
    assert error.reason == reason


class Incomparable:
    def __init__(self, parts: list[int]) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


def test_a_comparison_that_fails_is_a_difference() -> None:
    types = MessageTypes()
    types.register(Incomparable, encode=vars, decode=lambda data: Incomparable(**data))
    assert "but it would be read as <" in refused(lambda: types.new_message(Incomparable([1]))).reason


def test_the_engines_json_functions_are_a_part_of_the_comparison(messagedb_engine: Engine, store: Store) -> None:
    types = MessageTypes()
    types.register(PlainAnything)
    engine = create_engine(messagedb_engine.url, json_serializer=msgspec.json.encode)
    typed = Store(engine, types=types)
    typed.write("a-1", PlainAnything([1, "two"]))
    error = refused(lambda: typed.write("a-1", PlainAnything(UUID(int=1))))
    assert "its value is UUID(" in error.reason
    assert len(store.read("a-1")) == 1
    engine.dispose()


class Letter(Enum):
    A = "a"
    B = "b"


@dataclass
class Swapped:
    letter: Letter
    at: datetime | None = None

    def __post_init__(self) -> None:
        self.letter = Letter.B if self.letter is Letter.A else Letter.A


def test_members_of_an_enum_are_compared_by_identity() -> None:
    types = MessageTypes()
    types.register(Swapped)
    error = refused(lambda: types.new_message(Swapped(Letter.A)))
    assert error.reason.endswith("its letter is <Letter.B: 'b'> and would be read as <Letter.A: 'a'>")


# ---- Any value at all


class StructOfAny(msgspec.Struct):
    value: Any


class ModelOfAny(BaseModel):
    value: Any


class OpenModel(BaseModel):
    model_config = ConfigDict(extra="allow")


python_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=2)
    | st.uuids()
    | st.decimals(places=2)
    | st.datetimes()
    | st.timedeltas()
    | st.sampled_from([*Colour, *Size, Base(1), ModelBase(amount=1), SecretStr("open sesame")]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(values=st.lists(python_values, min_size=1, max_size=20))
def test_whatever_is_written_comes_back(store: Store, messagedb_engine: Engine, values: list[Any]) -> None:
    types = MessageTypes()
    makes: list[Callable[[Any], Any]] = [Anything, PlainAnything, StructOfAny]
    makes.append(lambda value: ModelOfAny(value=value))
    makes.append(lambda value: OpenModel(value=value))  # type: ignore[call-arg]
    for make in makes:
        types.register(type(make(None)))
    typed = Store(messagedb_engine, types=types)
    for make in makes:
        for value in values:
            instance = make(value)
            try:
                position = typed.write("a-1", instance)
            except InvalidArgument:
                assert not is_json_exactly(value)
                continue
            read = typed.read_stream("a-1", position)[0].data
            assert type(read) is type(instance)
            assert is_same(read.value, value)


def is_json_exactly(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json_exactly(item) for key, item in value.items()) and all(
            "\0" not in key and key.encode("utf-8", "replace").decode() == key for key in value
        )
    if isinstance(value, list):
        return all(map(is_json_exactly, value))
    if isinstance(value, str):
        return "\0" not in value and value.encode("utf-8", "replace").decode() == value
    if isinstance(value, float):
        return abs(value) < 1e16
    return value is None or type(value) in (bool, int)


def is_same(read: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return (
            type(read) is dict and read.keys() == value.keys() and all(is_same(read[key], value[key]) for key in value)
        )
    if isinstance(value, (list, tuple)):
        return type(read) is type(value) and len(read) == len(value) and all(map(is_same, read, value))
    return bool(read == value) and isinstance(read, bool) is isinstance(value, bool)
