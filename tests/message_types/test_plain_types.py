"""Classes with plain types are converted without msgspec, and exactly as msgspec would."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from messagedb_sa import MessageTypes, Store
from messagedb_sa import _class_codecs as conversion

from .support import Deposited, Model, Moved, Ordered, Size, Withdrawn, refused


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


@dataclass
class NothingToConvert:
    a_text: str
    a_number: int
    a_float: float
    a_switch: bool
    a_dict: dict[str, Any]
    maybe: str | None
    either: int | float | None


@dataclass(init=False)
class OtherOrder:
    """Its constructor takes the fields in another order."""

    a_text: str
    maybe: str | None

    def __init__(self, maybe: str | None, a_text: str) -> None:
        self.maybe, self.a_text = maybe, a_text


@dataclass(kw_only=True)
class ByName:
    a_text: str
    maybe: str | None


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


@pytest.mark.parametrize("cls", [Plain, NothingToConvert, OtherOrder, ByName])
@given(changes=st.dictionaries(st.sampled_from(sorted({*WHOLE, "defaulted", "made", "unknown"})), values))
def test_plain_types_are_the_same_with_msgspec_and_without(cls: Any, changes: dict[str, Any]) -> None:
    fields = conversion.fields_of(cls)
    ours, msgspecs = conversion.by_plain_types(cls, fields), conversion.by_msgspec(cls, fields)
    whole = {"unknown": 1} | {name: WHOLE[name] for name in cls.__annotations__ if name in WHOLE}
    for data in (whole, {**whole, "a_float": 2.5}, {**whole, **changes}):
        assert outcome(ours.decode, data) == outcome(msgspecs.decode, data)
    assert outcome(ours.decode, whole) != "refused"
    for missing in changes:
        fewer = {name: value for name, value in whole.items() if name != missing}
        assert outcome(ours.decode, fewer) == outcome(msgspecs.decode, fewer)
    instance = ours.decode(whole)
    assert ours.encode(instance) == msgspecs.encode(instance) == dataclasses.asdict(instance)


def test_an_integer_enum_is_an_integer_to_both(typed: Store, store: Store) -> None:
    typed.write("a-1", Deposited(Size.SMALL))
    assert repr(store.read("a-1")[0].data) == "{'note': None, 'amount': 1}"
    by_msgspec = conversion.by_msgspec(Deposited, conversion.fields_of(Deposited))
    assert by_msgspec.encode(Deposited(Size.SMALL)) == {"amount": 1, "note": None}


def test_without_msgspec_only_plain_types_can_be_registered(
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
