"""Instances of dataclasses, attrs, msgspec and pydantic classes: as data that JSON can hold, and back."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from messagedb_sa.errors import InvalidArgument

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]

OWN_FUNCTIONS = "pass encode= and decode="


class Conversion(NamedTuple):
    """``decode`` raises what it likes where the data does not fit."""

    encode: Callable[[Any], Any]
    decode: Callable[[dict[str, Any]], Any]


class Field(NamedTuple):
    """``name`` is the attribute's and the data's, ``argument`` that of the constructor."""

    name: str
    argument: str
    annotation: Any
    required: bool


def of_class(cls: type) -> Conversion:
    """InvalidArgument for a class whose instances would not come back as they were."""
    if hasattr(cls, "__pydantic_validator__"):
        return _of_pydantic(cls)
    if msgspec and issubclass(cls, msgspec.Struct):
        return _of_struct(cls)
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
        fields = fields_of(cls)
        if all(_kinds(field.annotation) is not None for field in fields):
            return by_plain_types(cls, fields)
        return by_msgspec(cls, fields)
    raise InvalidArgument("cls", cls, f"is no dataclass, attrs, msgspec or pydantic class: {OWN_FUNCTIONS}")


def _of_pydantic(cls: type) -> Conversion:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(cls)

    def encode(instance: Any) -> Any:
        # round_trip leaves out what is computed. What it would warn of, is found where the data is read back.
        return adapter.dump_python(instance, mode="json", by_alias=True, round_trip=True, warnings=False)

    def decode(data: dict[str, Any]) -> Any:
        try:
            return adapter.validate_python(data)
        except ValidationError:
            # A strict model takes a text for a time from JSON only.
            return adapter.validate_json(json.dumps(data))

    return Conversion(encode, decode)


def _of_struct(cls: type[msgspec.Struct]) -> Conversion:
    if cls.__struct_config__.array_like:
        raise InvalidArgument("cls", cls, "is array_like, and the data of a message is an object")
    _check_by_msgspec(cls, cls)
    return Conversion(_to_builtins, lambda data: msgspec.convert(data, cls, str_keys=True))


def _to_builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)


def fields_of(cls: type) -> list[Field]:
    """What the class's constructor takes. An instance is made by it, and so is checked and converted as it says."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        parameters = inspect.signature(cls).parameters
    except (NameError, TypeError, ValueError) as error:
        raise InvalidArgument("cls", cls, f"its annotations can't be resolved: {error}; or {OWN_FUNCTIONS}") from error
    if dataclasses.is_dataclass(cls):
        known = [(field.name, field.name, hints[field.name]) for field in dataclasses.fields(cls) if field.init]
    else:
        attributes: Sequence[Any] = getattr(cls, "__attrs_attrs__")  # noqa: B009 - a type has none for mypy
        known = [
            (each.name, each.alias, hints.get(each.name, Any if each.type is None else each.type))
            for each in attributes
            if each.init
        ]
    others = {argument for _, argument, _ in known} ^ set(parameters)
    if others:
        reason = f"its constructor's {', '.join(sorted(others))} and its fields are not the same: {OWN_FUNCTIONS}"
        raise InvalidArgument("cls", cls, reason)
    return [
        Field(name, argument, annotation, parameters[argument].default is inspect.Parameter.empty)
        for name, argument, annotation in known
    ]


# ---- by msgspec


def by_msgspec(cls: type, fields: Sequence[Field]) -> Conversion:
    if msgspec is None:
        name, annotation = next((each.name, each.annotation) for each in fields if _kinds(each.annotation) is None)
        reason = f"its field {name} is a {_named(annotation)}: install messagedb-sa[msgspec], or {OWN_FUNCTIONS}"
        raise InvalidArgument("cls", cls, reason)
    absent = msgspec.UNSET
    taken: list[Any] = [
        (each.name, each.annotation) if each.required else (each.name, each.annotation, absent) for each in fields
    ]
    as_struct = msgspec.defstruct(cls.__name__, taken, kw_only=True)
    _check_by_msgspec(cls, as_struct)
    arguments = [(each.name, each.argument) for each in fields]

    def encode(instance: Any) -> Any:
        return _to_builtins({name: getattr(instance, name) for name, _ in arguments})

    def decode(data: dict[str, Any]) -> Any:
        converted = msgspec.convert(data, as_struct, str_keys=True)
        values = ((argument, getattr(converted, name)) for name, argument in arguments)
        return cls(**{argument: value for argument, value in values if value is not absent})

    return Conversion(encode, decode)


def _check_by_msgspec(cls: type, as_struct: type) -> None:
    try:
        found = list(_nodes(msgspec.inspect.type_info(as_struct), set()))
    except (NameError, TypeError) as error:
        raise InvalidArgument("cls", cls, f"{error}: {OWN_FUNCTIONS}") from error
    for node in found:
        part = getattr(node, "cls", None)
        if (
            isinstance(node, msgspec.inspect.CustomType)
            # It is more than msgspec sees of it.
            or hasattr(part, "__pydantic_validator__")
            # msgspec drops these when it encodes.
            or any(each.name.startswith("_") for each in getattr(part, "__attrs_attrs__", ()))
        ):
            raise InvalidArgument("cls", cls, f"msgspec can't convert the {_named(part)} in it: {OWN_FUNCTIONS}")


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """The types that a type is made of, each once."""
    if isinstance(node, tuple):
        for each in node:
            yield from _nodes(each, seen)
    elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(node) not in seen:
        seen.add(id(node))
        yield node
        for name in node.__struct_fields__:
            yield from _nodes(getattr(node, name), seen)


# ---- by ourselves: what JSON itself knows


class Misfit(ValueError):
    """Data that does not fit the class."""


# For each class of value that an annotation takes, what makes the value of it; None leaves it as it is.
_Kinds: TypeAlias = "Mapping[type, Callable[[Any], Any] | None]"

_ANYTHING: _Kinds = {}
_SCALARS: dict[Any, _Kinds] = {each: {each: None} for each in (str, int, bool, type(None))}
_SCALARS[float] = {float: None, int: float}
_SCALARS[Any] = _ANYTHING


def _kinds(annotation: Any) -> _Kinds | None:
    """None for an annotation that is not of plain JSON types."""
    if annotation is None:
        annotation = type(None)
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _kinds_of_union([_kinds(each) for each in inner])
    if origin is dict and (not inner or inner[0] is str):
        of = _kinds(inner[1]) if inner else _ANYTHING
        return None if of is None else {dict: _each_of_dict(of)}
    if origin is list:
        of = _kinds(inner[0]) if inner else _ANYTHING
        return None if of is None else {list: _each_of_list(of)}
    try:
        return _SCALARS.get(annotation)
    except TypeError:
        return None


def _kinds_of_union(members: Sequence[_Kinds | None]) -> _Kinds | None:
    known = [each for each in members if each is not None]
    if len(known) < len(members):
        return None
    if _ANYTHING in known:
        return _ANYTHING
    both: dict[type, Callable[[Any], Any] | None] = {}
    for kinds in known:
        for kind, convert in kinds.items():
            if kind in both and kind is not int:
                # Two kinds of list: which one it is can't be seen.
                return None
            # An integer stays one where the union has int beside float.
            both[kind] = None if both.get(kind, convert) is None else convert
    return both


def _each_of_dict(of: _Kinds) -> Callable[[Any], Any] | None:
    return None if of is _ANYTHING else lambda value: {key: _fitted(of, item) for key, item in value.items()}


def _each_of_list(of: _Kinds) -> Callable[[Any], Any] | None:
    return None if of is _ANYTHING else lambda value: [_fitted(of, item) for item in value]


def _fitted(kinds: _Kinds, value: Any) -> Any:
    kind = value.__class__
    if kind not in kinds:
        if kinds is _ANYTHING:
            return value
        # What is written may be of a class of its own, such as an IntEnum; but a bool is no integer.
        kind = next((each for each in kind.__mro__ if each in kinds and kind is not bool), None)
        if kind is None:
            expected = " or ".join(each.__name__ for each in kinds)
            raise Misfit(f"expected {expected}, got {value.__class__.__name__}")
    convert = kinds[kind]
    if convert is None:
        return value
    try:
        return convert(value)
    except OverflowError as error:
        raise Misfit(str(error)) from error


def by_plain_types(cls: type, fields: Sequence[Field]) -> Conversion:
    """For annotations of plain JSON types: no library is needed, and with msgspec it would be the same."""
    each_field = [(each.name, each.argument, _kinds(each.annotation) or _ANYTHING, each.required) for each in fields]

    def encode(instance: Any) -> dict[str, Any]:
        return {name: getattr(instance, name) for name, _, _, _ in each_field}

    def decode(data: dict[str, Any]) -> Any:
        values = {}
        for name, argument, kinds, required in each_field:
            if name in data:
                try:
                    values[argument] = _fitted(kinds, data[name])
                except Misfit as misfit:
                    raise Misfit(f"{name}: {misfit}") from misfit.__cause__
            elif required:
                raise Misfit(f"{name} is missing")
        return cls(**values)

    return Conversion(encode, decode)


def _named(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
