"""What comes back of a value that is written and read: JSON's part of it, and the first difference that it makes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import count
from operator import attrgetter
from reprlib import Repr
from typing import Any, NamedTuple
from uuid import UUID

from messagedb_sa._drivers.urls import without_passwords

_COMPARED_AT_ONCE = frozenset({str, int, bool, float, bytes, UUID, Decimal, datetime, date, time, timedelta})
# From here on a float's text has an exponent and no fraction. PostgreSQL prints its digits without the exponent.
_FLOATS_BECOME_INTEGERS = 1e16


_repr = Repr()
_repr.maxstring = _repr.maxother = 100


class Difference(NamedTuple):
    """``path`` leads to the part that is different, such as ``.lines[0].price``. Empty for the value as a whole."""

    path: str
    written: Any
    read: Any


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def as_read(value: Any) -> Any:
    """A copy as JSON and jsonb would return it: lists for tuples, and integers for large floats."""
    if isinstance(value, dict):
        return {key: item if item.__class__ is str else as_read(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if item.__class__ is str else as_read(item) for item in value]
    if isinstance(value, float) and _FLOATS_BECOME_INTEGERS <= abs(value) < float("inf"):
        return int(Decimal(float.__repr__(value)))
    return value


def difference(written: Any, read: Any, opaque: list[Any]) -> Difference | None:
    """The first part of what was written that is read as another value; None if there is none.

    Instances are compared by their fields, whatever their ``__eq__``: a comparison by id alone would hide what is lost.
    Values that are equal to themselves only cannot be compared. They are added to ``opaque``.
    """
    if written is read:
        return None
    parts: Iterable[tuple[Any, Any, Any]]
    fields = _fields(written.__class__)
    if fields is not None:
        if written.__class__ is not read.__class__ and not _are_one_generic(written, read):
            return Difference("", written, read)
        parts = zip(fields.names, fields.values(written), fields.values(read), strict=True)
    elif isinstance(written, dict) and isinstance(read, dict):
        if written.keys() != read.keys():
            return Difference("", written, read)
        # The order is a part of no other dict.
        if isinstance(written, OrderedDict) and [*written] != (stored := sorted(written, key=_jsonb_order)):
            return Difference("", written, OrderedDict((key, read[key]) for key in stored))
        parts = zip(written, written.values(), map(read.__getitem__, written), strict=True)
    elif (isinstance(written, list) and isinstance(read, list)) or (
        isinstance(written, tuple) and written.__class__ is read.__class__
    ):
        if len(written) != len(read):
            return Difference("", written, read)
        parts = zip(count(), written, read)
    elif isinstance(written, (set, frozenset)) and written == read:
        equal = {item: item for item in read}
        parts = ((item, item, equal[item]) for item in written)
    else:
        return None if _is_same(written, read, opaque) else Difference("", written, read)
    for at, a, b in parts:
        if a is b or (a.__class__ is b.__class__ and a.__class__ in _COMPARED_AT_ONCE and a == b):
            continue
        if found := difference(a, b, opaque):
            step = f".{at}" if fields is not None else f"[{at!r}]"
            return Difference(f"{step}{found.path}", found.written, found.read)
    return None


def _jsonb_order(key: Any) -> tuple[int, bytes]:
    text = str.__str__(key) if isinstance(key, str) else str(key)
    encoded = text.encode(errors="surrogatepass")
    return len(encoded), encoded


def _is_same(written: Any, read: Any, opaque: list[Any]) -> bool:
    try:
        if written == read:
            # True is equal to 1.
            return isinstance(written, bool) is isinstance(read, bool)
        if isinstance(written, datetime) and isinstance(read, datetime):
            # A time within the hour that a clock is set back is not equal to itself with another tzinfo.
            return bool(written - read == timedelta(0))
        if written.__class__ is not read.__class__:
            return False
        if is_opaque(written.__class__) and not isinstance(written, Enum):
            opaque.append(written)
            return True
        # NaN.
        return bool(written != written and read != read)
    except Exception:  # noqa: BLE001 - a comparison of the application's
        return False


def makes_anew(factory: Any) -> bool:
    """Whether a default_factory may make another value at each call. ``list`` and its like do not."""
    return factory is object or getattr(factory, "__module__", None) not in ("builtins", "collections")


def is_opaque(cls: type) -> bool:
    """Whether its instances are equal to themselves only."""
    equality: Any = cls.__eq__
    return equality is object.__eq__


class _Fields(NamedTuple):
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]


@lru_cache(maxsize=1024)
def _fields(cls: type) -> _Fields | None:
    """The attributes that make up an instance of a class with fields. None for other classes."""
    names = _field_names(cls)
    if names is None:
        return None
    # attrgetter returns a tuple if it gets two names or more.
    quickly = attrgetter(*names) if len(names) > 1 else None

    def values(instance: Any) -> tuple[Any, ...]:
        if quickly is not None:
            try:
                found: tuple[Any, ...] = quickly(instance)
            except AttributeError:
                pass
            else:
                return found
        return tuple(getattr(instance, name, _ABSENT) for name in names)

    return _Fields(names, values)


def _field_names(cls: type) -> tuple[str, ...] | None:
    # A field that neither the constructor nor a comparison takes, such as a cache, is not a part of the instance.
    of: Any = cls
    if hasattr(cls, "__pydantic_private__") and hasattr(cls, "model_fields"):
        extra = ("model_extra",) if of.model_config.get("extra") == "allow" else ()
        return (*of.model_fields, *of.__private_attributes__, *extra)
    if hasattr(cls, "__struct_fields__"):
        return tuple(of.__struct_fields__)
    if dataclasses.is_dataclass(cls):
        return tuple(each.name for each in dataclasses.fields(cls) if each.init or each.compare)
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(each.name for each in of.__attrs_attrs__ if each.init or each.eq)
    return None


def _are_one_generic(written: Any, read: Any) -> bool:
    """Pydantic makes a Box[int] of a Box."""
    origins = [
        (getattr(each, "__pydantic_generic_metadata__", None) or {}).get("origin") or each.__class__
        for each in (written, read)
    ]
    return origins[0] is origins[1]


def shown(value: Any) -> str:
    """A short repr, for errors."""
    return without_passwords(_repr.repr(value))
