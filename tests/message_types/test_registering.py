"""Registering classes: names, versions, and classes that cannot be converted."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import attrs
import msgspec
import pytest

from messagedb_sa import MessageTypes

from .support import Checked, Deposited, Opened, refused


def test_the_name_is_that_of_the_class_unless_one_is_given() -> None:
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
    # A refused call does not register anything.
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
        (Deposited(5), "must be a class"),
        (list[int], "must be a class"),
        (Custom, "must be a dataclass, attrs, msgspec or pydantic class; or pass encode= and decode="),
        (ArrayLike, "array_like"),
        (WithCustom, "cannot convert the Custom in it"),
        (StructWithCustom, "cannot convert the Custom in it"),
        (WithPrivate, "cannot convert the Private in it"),
        (WithChecked, "cannot convert the Checked in it"),
        (WithInitVar, "differs in factor"),
        (WithInit, "differs in amount, text"),
        (Ambiguous, "more than one array-like"),
        (Unresolved, "'Nowhere' is not defined"),
    ],
)
def test_a_class_that_could_not_be_read_again_is_refused_at_registration(cls: Any, reason: str) -> None:
    error = refused(lambda: MessageTypes().register(cls))
    assert error.argument == "cls"
    assert reason in error.reason


def test_own_functions_are_given_both_or_neither() -> None:
    assert "both" in refused(lambda: MessageTypes().register(Custom, encode=vars)).reason
    assert "both" in refused(lambda: MessageTypes().register(Custom, decode=lambda _: Custom())).reason


async def _later(value: Any) -> Any:
    return value


def _one_by_one(value: Any) -> Any:
    yield value


@pytest.mark.parametrize(
    ("function", "reason"), [(5, "must be a function"), (_later, "without async or yield"), (_one_by_one, "or yield")]
)
def test_own_functions_and_upcasters_must_be_functions_that_return(function: Any, reason: str) -> None:
    types = MessageTypes()
    for argument, register in {
        "encode": lambda: types.register(Deposited, encode=function, decode=lambda data: Deposited(**data)),
        "decode": lambda: types.register(Deposited, encode=vars, decode=function),
        "function": lambda: types.upcast("Deposited", from_version=1)(function),
    }.items():
        error = refused(register)
        assert (error.argument, error.value) == (argument, function)
        assert reason in error.reason
    assert Deposited not in types
