"""Convert instances of dataclasses, attrs, msgspec and pydantic classes to data that JSON can represent, and back."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import contains, itemgetter
from typing import Any, NamedTuple, TypeAlias

from messagedb_sa._pydantic_schemas import lossy_fields
from messagedb_sa._round_trips import as_read, difference, is_opaque, makes_anew, shown
from messagedb_sa.errors import InvalidArgument

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]

OWN_FUNCTIONS = "pass encode= and decode="


class Conversion(NamedTuple):
    """How to convert a class. ``decode`` may raise any error if the data does not fit the class. ``is_own``: these are
    functions of the application's."""

    encode: Callable[[Any], Any]
    decode: Callable[[dict[str, Any]], Any]
    is_own: bool = False

    def change(self, written: Any, read: Any) -> str | None:
        """How an instance is changed by writing and reading it. None if it comes back as it was."""
        if self.is_own and not is_opaque(type(written)) and _is_equal(written, read):
            # What the application's own comparison leaves out, its functions may leave out too.
            return None
        opaque: list[Any] = []
        if self.is_own and is_opaque(type(written)):
            opaque.append(written)
        elif found := difference(written, read, opaque):
            part = f"its {found.path.removeprefix('.')} is {shown(found.written)} and" if found.path else "it"
            return f"{part} would be read as {shown(found.read)}"
        if opaque and (found := difference(as_read(self.encode(written)), as_read(self.encode(read)), [])):
            return f"its data{found.path} is {shown(found.written)} and would be {shown(found.read)} once it is read"
        return None


class Field(NamedTuple):
    """A field of a class. ``name`` is its name in the class and the data, ``argument`` its name in the constructor."""

    name: str
    argument: str
    annotation: Any
    required: bool


def _is_equal(written: Any, read: Any) -> bool:
    try:
        return bool(written == read)
    except Exception:  # noqa: BLE001 - a comparison of the application's
        return False


def of_class(cls: type) -> Conversion:
    """The conversion for a class. InvalidArgument if its instances would change on the way to JSON and back."""
    if hasattr(cls, "__pydantic_validator__"):
        return _of_pydantic(cls)
    if msgspec and issubclass(cls, msgspec.Struct):
        return _of_struct(cls)
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
        fields = fields_of(cls)
        if all(_accepted(field.annotation) is not None for field in fields):
            return by_plain_types(cls, fields)
        return by_msgspec(cls, fields)
    raise InvalidArgument("cls", cls, f"must be a dataclass, attrs, msgspec or pydantic class; or {OWN_FUNCTIONS}")


def _of_pydantic(cls: type) -> Conversion:
    from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

    def check() -> None:
        for reason in lossy_fields(adapter.core_schema):
            raise InvalidArgument("cls", cls, f"{reason}; or {OWN_FUNCTIONS}")

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cls)
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        raise InvalidArgument("cls", cls, f"pydantic cannot convert it: {error}; or {OWN_FUNCTIONS}") from error
    is_checked = True
    try:
        check()
    except PydanticUserError:
        # A class within it is still to be defined. Pydantic looks for it when the adapter is used.
        is_checked = False

    def encode(instance: Any) -> Any:
        nonlocal is_checked
        # round_trip leaves out computed fields. No warnings: the caller decodes the data and finds every mistake.
        data = adapter.dump_python(instance, mode="json", by_alias=True, round_trip=True, warnings=False)
        if not is_checked:
            check()
            is_checked = True
        return data

    def decode(data: dict[str, Any]) -> Any:
        try:
            return adapter.validate_python(data)
        except ValidationError:
            # A strict model accepts a string as a time only from JSON.
            return adapter.validate_json(json.dumps(data))

    return Conversion(encode, decode)


def _of_struct(cls: type[msgspec.Struct]) -> Conversion:
    if cls.__struct_config__.array_like:
        raise InvalidArgument("cls", cls, "must not be array_like, since the data of a message is an object")
    return Conversion(_to_builtins, _checked_decoder(cls, cls))


def _to_builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)


def fields_of(cls: type) -> list[Field]:
    """The fields that the class's constructor takes. Instances are made with it, so its checks and converters run."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        parameters = inspect.signature(cls).parameters
    except (NameError, TypeError, ValueError) as error:
        reason = f"its annotations must be names that Python can resolve: {error}; or {OWN_FUNCTIONS}"
        raise InvalidArgument("cls", cls, reason) from error
    made_anew: list[str]
    if dataclasses.is_dataclass(cls):
        known = [(field.name, field.name, hints[field.name]) for field in dataclasses.fields(cls) if field.init]
        made_anew = [
            each.name
            for each in dataclasses.fields(cls)
            if not each.init and each.default_factory is not dataclasses.MISSING and makes_anew(each.default_factory)
        ]
    else:
        attributes: Sequence[Any] = getattr(cls, "__attrs_attrs__")  # noqa: B009 - mypy knows no such attribute
        # A factory that takes the instance may derive the value from the other fields.
        made_anew = [
            each.name
            for each in attributes
            if not each.init and not getattr(each.default, "takes_self", True) and makes_anew(each.default.factory)
        ]
        known = [
            (each.name, each.alias, hints.get(each.name, Any if each.type is None else each.type))
            for each in attributes
            if each.init
        ]
    if made_anew:
        reason = f"its field {made_anew[0]} must not have init=False and a factory, whose value is new at each read"
        raise InvalidArgument("cls", cls, f"{reason}; or {OWN_FUNCTIONS}")
    unmatched = {argument for _, argument, _ in known} ^ set(parameters)
    if unmatched:
        differences = ", ".join(sorted(unmatched))
        reason = f"its constructor must take exactly its fields, but differs in {differences}: {OWN_FUNCTIONS}"
        raise InvalidArgument("cls", cls, reason)
    return [
        Field(name, argument, annotation, parameters[argument].default is inspect.Parameter.empty)
        for name, argument, annotation in known
    ]


def _takes_by_position(cls: type, fields: Sequence[Field]) -> bool:
    """Whether the constructor takes its fields by position too, in this order. It takes them faster than by name."""
    parameters = inspect.signature(cls).parameters.values()
    return [each.argument for each in fields] == [each.name for each in parameters] and all(
        each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for each in parameters
    )


# ---- with msgspec


def by_msgspec(cls: type, fields: Sequence[Field]) -> Conversion:
    """A conversion by msgspec, for annotations that are not only plain JSON types."""
    if msgspec is None:
        name, annotation = next((each.name, each.annotation) for each in fields if _accepted(each.annotation) is None)
        reason = f"its field {name} is a {_type_name(annotation)}: install messagedb-sa[msgspec], or {OWN_FUNCTIONS}"
        raise InvalidArgument("cls", cls, reason)
    absent = msgspec.UNSET
    struct_fields: list[Any] = [
        (each.name, each.annotation) if each.required else (each.name, each.annotation, absent) for each in fields
    ]
    as_struct = msgspec.defstruct(cls.__name__, struct_fields, kw_only=True)
    convert = _checked_decoder(cls, as_struct)
    arguments = [(each.name, each.argument) for each in fields]
    is_quick = all(each.required for each in fields) and _takes_by_position(cls, fields)

    def encode(instance: Any) -> Any:
        return _to_builtins({name: getattr(instance, name) for name, _ in arguments})

    def decode(data: dict[str, Any]) -> Any:
        converted = convert(data)
        if is_quick:
            return cls(*msgspec.structs.astuple(converted))
        values = ((argument, getattr(converted, name)) for name, argument in arguments)
        return cls(**{argument: value for argument, value in values if value is not absent})

    return Conversion(encode, decode)


def _checked_decoder(cls: type, as_struct: type) -> Callable[[dict[str, Any]], Any]:
    """The conversion of data to a struct. InvalidArgument if it would lose a part of what ``cls`` has."""
    try:
        nodes = list(_type_nodes(msgspec.inspect.type_info(as_struct), set()))
    except (NameError, TypeError) as error:
        raise InvalidArgument("cls", cls, f"msgspec cannot convert it: {error}; {OWN_FUNCTIONS}") from error
    info = msgspec.inspect
    not_keys = info.BoolType, info.NoneType, info.TupleType, info.VarTupleType, info.NamedTupleType, info.FrozenSetType
    for node in nodes:
        part = getattr(node, "cls", None)
        if isinstance(node, info.DictType) and isinstance(node.key_type, not_keys):
            raise InvalidArgument("cls", cls, f"its dicts must have text, times or numbers as keys; or {OWN_FUNCTIONS}")
        if isinstance(node, info.RawType):
            part = msgspec.Raw
        if (
            isinstance(node, (info.CustomType, info.RawType))
            # msgspec does not run the validators of a pydantic class.
            or hasattr(part, "__pydantic_validator__")
            # msgspec leaves out attributes with an underscore when it encodes.
            or any(each.name.startswith("_") for each in getattr(part, "__attrs_attrs__", ()))
        ):
            raise InvalidArgument("cls", cls, f"msgspec cannot convert the {_type_name(part)} in it: {OWN_FUNCTIONS}")
    are_keys_texts = all(
        isinstance(node.key_type, (info.StrType, info.AnyType)) for node in nodes if isinstance(node, info.DictType)
    )
    # Other keys are made of texts. To look for them makes all data take twice as long.
    return partial(msgspec.convert, type=as_struct, **({} if are_keys_texts else {"str_keys": True}))


def _type_nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """All types that a type consists of, each once."""
    if isinstance(node, tuple):
        for each in node:
            yield from _type_nodes(each, seen)
    elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(node) not in seen:
        seen.add(id(node))
        yield node
        for name in node.__struct_fields__:
            yield from _type_nodes(getattr(node, name), seen)


# ---- without a library: plain JSON types


class Misfit(ValueError):
    """The data does not fit the annotations of the class. The text says which field, and what was expected."""


# The classes of value that an annotation accepts, each with the function that converts the value. None keeps the value.
_Accepted: TypeAlias = "Mapping[type, Callable[[Any], Any] | None]"

_ANYTHING: _Accepted = {}
_SCALARS: dict[Any, _Accepted] = {each: {each: None} for each in (str, int, bool, type(None))}
_SCALARS[float] = {float: None, int: float}
_SCALARS[Any] = _ANYTHING


def _accepted(annotation: Any) -> _Accepted | None:
    """None if the annotation has other types than plain JSON types."""
    if annotation is None:
        annotation = type(None)
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _accepted_by_union([_accepted(each) for each in inner])
    if origin is dict and (not inner or inner[0] is str):
        items = _accepted(inner[1]) if inner else _ANYTHING
        return None if items is None else {dict: _dict_converter(items)}
    if origin is list:
        items = _accepted(inner[0]) if inner else _ANYTHING
        return None if items is None else {list: _list_converter(items)}
    try:
        return _SCALARS.get(annotation)
    except TypeError:
        return None


def _accepted_by_union(members: Sequence[_Accepted | None]) -> _Accepted | None:
    known = [each for each in members if each is not None]
    if len(known) < len(members):
        return None
    if _ANYTHING in known:
        return _ANYTHING
    union: dict[type, Callable[[Any], Any] | None] = {}
    for accepted in known:
        for kind, convert in accepted.items():
            if kind in union and kind is not int:
                # A union of two lists or of two dicts: the data does not show which one it is.
                return None
            # If the union has int and float, an integer stays an integer.
            union[kind] = None if union.get(kind, convert) is None else convert
    return union


def _dict_converter(items: _Accepted) -> Callable[[Any], Any] | None:
    return None if items is _ANYTHING else lambda value: {key: _convert(items, item) for key, item in value.items()}


def _list_converter(items: _Accepted) -> Callable[[Any], Any] | None:
    return None if items is _ANYTHING else lambda value: [_convert(items, item) for item in value]


def _convert(accepted: _Accepted, value: Any) -> Any:
    kind = value.__class__
    if kind not in accepted:
        if accepted is _ANYTHING:
            return value
        # An instance that is written may hold a subclass, such as an IntEnum. A bool is not accepted as an int.
        kind = next((each for each in kind.__mro__ if each in accepted and kind is not bool), None)
        if kind is None:
            expected = " or ".join(each.__name__ for each in accepted)
            raise Misfit(f"expected {expected}, got {value.__class__.__name__}")
    convert = accepted[kind]
    if convert is None:
        return value
    try:
        return convert(value)
    except OverflowError as error:
        raise Misfit(str(error)) from error


def by_plain_types(cls: type, fields: Sequence[Field]) -> Conversion:
    """A conversion for annotations of plain JSON types. It needs no library and gives the same results as msgspec."""
    each_field = [(each.name, each.argument, _accepted(each.annotation) or _ANYTHING, each.required) for each in fields]
    names = {each.name for each in fields}
    # The classes whose values are taken as they are. Most data has no others, and all fields.
    kept = [{kind for kind in accepted if accepted[kind] is None} for _, _, accepted, _ in each_field]
    # For one name, itemgetter does not return a tuple.
    is_quick = len(fields) > 1 and all(kept) and _takes_by_position(cls, fields)
    values_of = itemgetter(*(each.name for each in fields)) if is_quick else None

    def encode(instance: Any) -> dict[str, Any]:
        return {name: getattr(instance, name) for name, _, _, _ in each_field}

    def decode(data: dict[str, Any]) -> Any:
        if values_of is not None and data.keys() >= names:
            kept_values = values_of(data)
            if all(map(contains, kept, map(type, kept_values))):
                return cls(*kept_values)
        values = {}
        for name, argument, accepted, required in each_field:
            if name in data:
                try:
                    values[argument] = _convert(accepted, data[name])
                except Misfit as misfit:
                    raise Misfit(f"{name}: {misfit}") from misfit.__cause__
            elif required:
                raise Misfit(f"{name} is missing")
        return cls(**values)

    return Conversion(encode, decode)


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
