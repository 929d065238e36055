"""Message types: classes whose instances are written as messages, and come back when these are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin, overload
from uuid import UUID

from messagedb_sa import arguments, conversion
from messagedb_sa.errors import InvalidArgument, MessageNotDecodable
from messagedb_sa.message import Message, NewMessage

__all__ = ["MessageTypes"]

T = TypeVar("T")
_Upcaster = TypeVar("_Upcaster", bound="Callable[[dict[str, Any]], dict[str, Any]]")

# In a message's metadata; the name is Eventide's.
_SCHEMA_VERSION = "schemaVersion"
_HOW_TO_REGISTER = "register it with MessageTypes.register, and pass these types to the store"


@dataclass(frozen=True)
class _Registered:
    name: str
    version: int
    cls: type
    conversion: conversion.Conversion


class MessageTypes:
    """The classes of an application's messages, for ``Store(…, types=…)``. Registered once, at import; then safe to
    share between threads and stores.

    An instance of a registered class is written as a message of its type; a message of a registered type is read with
    an instance as its ``data``. Messages of other types are as ever. The schema version is kept in the metadata, as
    Eventide's ``schemaVersion``, which is text, where it is above 1; a message without one has version 1.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _Registered] = {}
        self._by_class: dict[type, _Registered] = {}
        self._upcasters: dict[tuple[str, int], Callable[[dict[str, Any]], Any]] = {}

    @overload
    def register(
        self,
        cls: type[T],
        /,
        *,
        name: str | None = None,
        version: int = 1,
        encode: Callable[[T], dict[str, Any]] | None = None,
        decode: Callable[[dict[str, Any]], T] | None = None,
    ) -> type[T]: ...

    @overload
    def register(
        self,
        cls: None = None,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        encode: Callable[[Any], dict[str, Any]] | None = None,
        decode: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Callable[[type[T]], type[T]]: ...

    def register(
        self,
        cls: type[T] | None = None,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        encode: Callable[[T], dict[str, Any]] | None = None,
        decode: Callable[[dict[str, Any]], T] | None = None,
    ) -> Any:
        """Register a class, as a decorator (above the one that makes it a dataclass) or as a call; gives the class.

        ``name`` None means the class's own. ``version`` is that of its schema, from 1. Pydantic classes convert
        themselves, msgspec's and what has fields beyond plain JSON types (such as times) are converted by msgspec.
        ``encode`` and ``decode``, given together, are functions of your own between instances and dicts, for any class.

        Raises InvalidArgument for a name or class that is registered already, and for a class that can't be converted.
        """
        if cls is None:
            return lambda each: self.register(each, name=name, version=version, encode=encode, decode=decode)
        # Python 3.10 takes list[int] for one.
        if not isinstance(cls, type) or get_origin(cls) is not None:
            raise InvalidArgument("cls", cls, "is no class")
        if issubclass(cls, (str, tuple, list)):
            raise InvalidArgument("cls", cls, "its instances would be taken for a message's type, or for (type, data)")
        if cls in self._by_class:
            raise InvalidArgument("cls", cls, f"is registered already, as {self._by_class[cls].name!r}")
        name = arguments.text("name", cls.__name__ if name is None else name)
        if name in self._by_name:
            raise InvalidArgument("name", name, f"is registered already, for {self._by_name[name].cls!r}")
        version = arguments.integer("version", version, minimum=1)
        if encode is not None and decode is not None:
            by = conversion.Conversion(encode, decode)
        elif encode is not None or decode is not None:
            raise InvalidArgument("cls", cls, "encode= and decode= are given both, or neither")
        else:
            by = conversion.of_class(cls)
        self._by_name[name] = self._by_class[cls] = _Registered(name, version, cls, by)
        return cls

    def upcast(self, name: str, *, from_version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Register the decorated function, from the data (a dict) of this version of a type to that of the next one.

        Older messages go through one after the other, up to the version of the class. Nothing is written.
        """
        step = arguments.text("name", name), arguments.integer("from_version", from_version, minimum=1)
        if step in self._upcasters:
            raise InvalidArgument("from_version", from_version, f"{name!r} has an upcaster from there already")

        def decorate(function: _Upcaster) -> _Upcaster:
            self._upcasters[step] = function
            return function

        return decorate

    def check(self) -> None:
        """Raise InvalidArgument where the upcasters of a type are no chain from version 1 to that of its class.

        For a test of the application's: by itself a gap shows when a message of that version is read.
        """
        steps = {(each.name, version) for each in self._by_name.values() for version in range(1, each.version)}
        for name, version in sorted(steps ^ self._upcasters.keys()):
            what = "has no upcaster" if (name, version) in steps else "has no class for what the upcaster makes"
            raise InvalidArgument("types", name, f"{what} from version {version}")

    def name_of(self, cls: type) -> str:
        """The type of the messages that instances of this class are; InvalidArgument where it is not registered."""
        if cls not in self:
            raise InvalidArgument("cls", cls, f"is no registered class: {_HOW_TO_REGISTER}")
        return self._by_class[cls].name

    def new_message(
        self, instance: object, metadata: dict[str, Any] | None = None, *, id: UUID | str | None = None
    ) -> NewMessage:
        """An instance with metadata, or an id, of its own, for ``write_batch`` and ``write_streams``.

        Raises InvalidArgument as ``Store.write``.
        """
        return NewMessage(*self._as_message("instance", instance, "metadata", metadata), id)

    def __contains__(self, cls: object) -> bool:
        return cls in self._by_class

    def _as_message(
        self, argument: str, instance: object, metadata_argument: str = "metadata", metadata: Any = None
    ) -> tuple[str, Any, Any]:
        """Type, data and metadata. For the store, whose arguments these names are."""
        known = self._by_class.get(type(instance))
        if known is None:
            raise InvalidArgument(argument, instance, f"a {type(instance).__name__} is no message: {_HOW_TO_REGISTER}")
        try:
            data = known.conversion.encode(instance)
            if not isinstance(data, dict):
                raise TypeError(f"it became a {type(data).__name__}, and the data of a message is an object")
            # What could not be read any more is never written. A copy, for it may be taken apart.
            known.conversion.decode(_as_read(data))
        except Exception as error:
            raise InvalidArgument(argument, instance, _said(error)) from error
        return known.name, data, _versioned(known.version, metadata_argument, metadata)

    def _decoded(self, message: Message) -> Message:
        """The message, with an instance as its data where its type is registered. For the store."""
        known = self._by_name.get(message.type)
        if known is None:
            return message
        id, stream_name, type_, position, global_position, data, metadata, time = message
        version = _schema_version(metadata)
        if version is None:
            raise _not_decodable(message, f"its metadata's {_SCHEMA_VERSION} is no version")
        if version > known.version:
            raise _not_decodable(message, f"it has schema version {version}, and the class {known.version}")
        if not isinstance(data, dict):
            raise _not_decodable(message, "its data is no object")
        for step in range(version, known.version):
            upcaster = self._upcasters.get((known.name, step))
            if upcaster is None:
                raise _not_decodable(message, f"there is no upcaster from schema version {step}")
            try:
                data = upcaster(data)
            except Exception as error:
                raise _not_decodable(message, f"the upcaster from schema version {step}: {_said(error)}") from error
            if not isinstance(data, dict):
                reason = f"the upcaster from schema version {step} gave a {type(data).__name__}, no dict"
                raise _not_decodable(message, reason)
        try:
            instance = known.conversion.decode(data)
        except Exception as error:
            raise _not_decodable(message, _said(error)) from error
        # Several times as fast as _replace.
        return Message(id, stream_name, type_, position, global_position, instance, metadata, time)

    def _all_decoded(self, messages: list[Message]) -> list[Message]:
        return list(map(self._decoded, messages)) if self._by_name else messages


def _versioned(version: int, argument: str, metadata: Any) -> dict[str, Any] | None:
    if metadata is not None and not isinstance(metadata, dict):
        raise InvalidArgument(argument, metadata, "is no dict, which the metadata of an instance has to be")
    if metadata and _SCHEMA_VERSION in metadata and _schema_version(metadata) != version:
        raise InvalidArgument(argument, metadata, f"has a {_SCHEMA_VERSION} that is not the class's, {version}")
    return metadata if version == 1 else {**(metadata or {}), _SCHEMA_VERSION: str(version)}


def _schema_version(metadata: Any) -> int | None:
    """None for one that is none."""
    version = metadata.get(_SCHEMA_VERSION) if isinstance(metadata, dict) else None
    if version is None:
        return 1
    if isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) < 20:
        version = int(version)
    return version if type(version) is int and version >= 1 else None


def _as_read(value: Any) -> Any:
    """A copy, with tuples as the lists that they become."""
    if isinstance(value, dict):
        return {key: _as_read(item) for key, item in value.items()}
    return [_as_read(item) for item in value] if isinstance(value, (list, tuple)) else value


def _not_decodable(message: Message, reason: str) -> MessageNotDecodable:
    _, stream_name, type_, position, global_position, *_ = message
    return MessageNotDecodable(stream_name, position, global_position, type_, reason)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, conversion.Misfit) else f"{type(error).__name__}: {error}"
