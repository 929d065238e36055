"""MessageTypes, and what a store does with the classes that are registered there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, TypeVar, get_origin, overload
from uuid import UUID

from messagedb_sa import _arguments as arguments
from messagedb_sa import _class_codecs as conversion
from messagedb_sa._json_values import add_encoder
from messagedb_sa._round_trips import as_read
from messagedb_sa.errors import InvalidArgument, MessageNotDecodable
from messagedb_sa.message import Message, NewMessage

T = TypeVar("T")
_Upcaster = TypeVar("_Upcaster", bound="Callable[[dict[str, Any]], dict[str, Any]]")

# In a message's metadata; the name is Eventide's.
SCHEMA_VERSION = "schemaVersion"
_HOW_TO_REGISTER = "register the class with MessageTypes.register, and pass these types to the store"


@dataclass(frozen=True)
class _Registered:
    name: str
    version: int
    cls: type
    conversion: conversion.Conversion


class _Unreadable(Exception):
    """Why a message cannot be made an instance. The cause is the error of the application or the library, if any.

    ``is_version``: the schema version in its metadata is at fault.
    """

    is_version = False


class _UnreadableVersion(_Unreadable):
    is_version = True


class RegisteredTypes:
    """What is registered in a MessageTypes, and the conversions that a store needs: it knows what an engine's own JSON
    functions make of the data."""

    def __init__(self) -> None:
        self.by_name: dict[str, _Registered] = {}
        self.by_class: dict[type, _Registered] = {}
        self.upcasters: dict[tuple[str, int], Callable[[dict[str, Any]], Any]] = {}

    def decoded(self, message: Message) -> Message:
        """As MessageTypes.decode, for a message that nobody else has: upcasters and the class may change its data."""
        known = self.by_name.get(message.type)
        if known is None:
            return message
        id, stream_name, type_, position, global_position, data, metadata, time = message
        try:
            instance = self._instance(known, data, metadata)
        except _Unreadable as error:
            raise not_decodable(message, error) from error.__cause__
        # Several times as fast as _replace.
        return Message(id, stream_name, type_, position, global_position, instance, metadata, time)

    def instances(
        self, names: Sequence[str], data: Sequence[Any], metadata: Sequence[Any]
    ) -> tuple[list[Any], _Unreadable | None]:
        """The data of messages with these types, decoded as by ``decoded``: up to the first that cannot be, and why."""
        found: list[Any] = []
        try:
            for name, its_data, its_metadata in zip(names, data, metadata, strict=True):
                known = self.by_name.get(name)
                found.append(its_data if known is None else self._instance(known, its_data, its_metadata))
        except _Unreadable as error:
            return found, error
        return found, None

    def message_of(
        self, instance: object, metadata: Any, id: UUID | str | None, as_read: Callable[[Any], Any]
    ) -> NewMessage:
        """As MessageTypes.new_message. ``as_read`` makes of the data what a read would return."""
        known = self.by_class.get(type(instance))
        if known is None:
            reason = f"a {type(instance).__name__} is not a registered message type: {_HOW_TO_REGISTER}"
            if isinstance(instance, type) and instance in self.by_class:
                reason = f"must be an instance of {instance.__name__}, not the class"
            raise InvalidArgument("instance", instance, reason)
        try:
            data = known.conversion.encode(instance)
            if not isinstance(data, dict):
                raise TypeError(f"it must become a dict, got a {type(data).__name__}")
            # What could not be read back is never written. Decode a copy, since decoding may change it.
            change = known.conversion.change(instance, known.conversion.decode(as_read(data)))
        except InvalidArgument:
            raise
        except Exception as error:
            raise InvalidArgument("instance", instance, _reason(error)) from error
        if change:
            raise InvalidArgument("instance", instance, f"must be read as it was written, but {change}")
        return NewMessage(known.name, data, _versioned(known.version, metadata), id)

    def unreadable(self, name: str, data: Any, metadata: Any) -> _Unreadable | None:
        """Why a read of a registered type cannot make an instance of this data, if so."""
        try:
            self._instance(self.by_name[name], data, metadata)
        except _Unreadable as error:
            return error
        return None

    def _instance(self, known: _Registered, data: Any, metadata: Any) -> Any:
        version = 1 if metadata is None else _schema_version(metadata)
        if version is None:
            its_version = metadata[SCHEMA_VERSION]
            raise _UnreadableVersion(f"its metadata's {SCHEMA_VERSION} must be an integer from 1, got {its_version!r}")
        if version > known.version:
            raise _UnreadableVersion(f"it has schema version {version}, but the class has version {known.version}")
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise _Unreadable(f"its data must be a JSON object, got {type(data).__name__}")
        for step in range(version, known.version):
            upcaster = self.upcasters.get((known.name, step))
            if upcaster is None:
                raise _Unreadable(f"there is no upcaster from schema version {step}")
            try:
                data = upcaster(data)
            except Exception as error:
                raise _Unreadable(f"the upcaster from schema version {step}: {_reason(error)}") from error
            if not isinstance(data, dict):
                what = f"must return a dict, got a {type(data).__name__}"
                raise _Unreadable(f"the upcaster from schema version {step} {what}")
        try:
            return known.conversion.decode(data)
        except Exception as error:
            raise _Unreadable(_reason(error)) from error


class MessageTypes:
    """The classes of an application's messages, for ``Store(…, types=…)``. Register them at import; after that a
    MessageTypes is safe to share between threads and stores.

    An instance of a registered class is written as a message of its type. A message of a registered type is read with
    an instance as its ``data``. Messages of other types are written and read as without types. A schema version above 1
    is kept in the metadata, as Eventide's ``schemaVersion``, which is text; a message without one has version 1.

    An instance without fields is stored as ``{}``, so that every client reads an object. Eventide writes NULL for it:
    NULL data of a registered type is read as ``{}``.

    What is written is read unchanged. If a class cannot guarantee this, ``register`` refuses it. If a read would return
    a different instance, the write is refused, and the error names the field. Data that you write under a registered
    name must fit the class. It is stored as you pass it.
    """

    def __init__(self) -> None:
        self._registered = RegisteredTypes()

    def __repr__(self) -> str:
        registered = self._registered.by_name.values()
        shown = (each.name if each.version == 1 else f"{each.name} (version {each.version})" for each in registered)
        return f"<MessageTypes: {', '.join(shown) or 'none registered'}>"

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
        """Register a class, as a decorator (above the one that makes it a dataclass) or as a call; returns the class.

        ``name`` is the message type, None for the class's own name. ``version`` is that of the schema, from 1. Pydantic
        converts its own classes. msgspec converts its own classes, and those that have fields of other types than plain
        JSON (such as times). ``encode`` and ``decode``, given together, are your own functions between instances and
        dicts, for any class.

        Instances are compared by their fields, whether or not ``__eq__`` does; not by those with ``init=False`` and
        ``compare=False``, such as caches. With your own functions, they are compared by ``==``, or by what ``encode``
        returns if instances are equal to themselves only.

        Raises InvalidArgument if the name or the class is registered already, the class cannot be converted, or it has
        fields that would not be read as they were written, such as secrets, or an ``init=False`` field with a factory.
        """
        if cls is None:
            return lambda each: self.register(each, name=name, version=version, encode=encode, decode=decode)
        # For Python 3.10, list[int] is an instance of type.
        if not isinstance(cls, type) or get_origin(cls) is not None:
            raise InvalidArgument("cls", cls, "must be a class")
        if issubclass(cls, (str, tuple, list)):
            reason = "must not be a str, tuple or list: its instances would be taken for a type, or for (type, data)"
            raise InvalidArgument("cls", cls, reason)
        if cls in self._registered.by_class:
            raise InvalidArgument(
                "cls", cls, f"must not be registered twice; it is {self._registered.by_class[cls].name!r} already"
            )
        name = arguments.text("name", cls.__name__ if name is None else name)
        if name in self._registered.by_name:
            raise InvalidArgument(
                "name", name, f"must not be registered twice; {self._registered.by_name[name].cls!r} has it already"
            )
        version = arguments.integer("version", version, minimum=1)
        for argument, function in (("encode", encode), ("decode", decode)):
            if function is not None:
                check_function(argument, function)
        if encode is not None and decode is not None:
            by = conversion.Conversion(encode, decode, is_own=True)
        elif encode is not None or decode is not None:
            raise InvalidArgument("cls", cls, "must be registered with both encode= and decode=, or with neither")
        else:
            by = conversion.of_class(cls)
        self._registered.by_name[name] = self._registered.by_class[cls] = _Registered(name, version, cls, by)
        add_encoder(cls, by.encode)
        return cls

    def upcast(self, name: str, *, from_version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Register the decorated function, which turns data (a dict) of this version of a type into the next version's.

        A read passes older messages through one upcaster after the other, up to the version of the class. Nothing is
        written.
        """
        step = arguments.text("name", name), arguments.integer("from_version", from_version, minimum=1)
        if step in self._registered.upcasters:
            raise InvalidArgument(
                "from_version", from_version, f"must not have two upcasters; {name!r} has one from this version already"
            )

        def decorate(function: _Upcaster) -> _Upcaster:
            check_function("function", function)
            self._registered.upcasters[step] = function
            return function

        return decorate

    def check(self) -> None:
        """Raise InvalidArgument unless each type has one upcaster for every version from 1 up to that of its class.

        Call it in a test of your application: otherwise a gap shows when a message of that version is read.
        """
        steps = {
            (each.name, version) for each in self._registered.by_name.values() for version in range(1, each.version)
        }
        for name, version in sorted(steps ^ self._registered.upcasters.keys()):
            what = "an upcaster" if (name, version) in steps else "a class for what the upcaster returns"
            raise InvalidArgument("types", name, f"must have {what} from version {version}")

    def name_of(self, cls: type) -> str:
        """The message type of this class. Raises InvalidArgument if it is not registered."""
        if cls not in self:
            raise InvalidArgument("cls", cls, f"must be registered: {_HOW_TO_REGISTER}")
        return self._registered.by_class[cls].name

    def new_message(
        self, instance: object, metadata: Mapping[str, Any] | None = None, *, id: UUID | str | None = None
    ) -> NewMessage:
        """An instance as a message with its own metadata or id, for ``write_batch`` and ``write_streams``.

        Raises InvalidArgument if the instance would not be read as it is.
        """
        return self._registered.message_of(instance, metadata, id, as_read)

    def decode(self, message: Message) -> Message:
        """The message with an instance as its data, if its type is registered; otherwise the message itself.

        For messages whose data is still decoded JSON, as a Store without types reads them. Data that is None is ``{}``.
        The message that you pass is not changed, whatever upcasters or the class do with the data. Raises
        MessageNotDecodable.
        """
        if message.type not in self._registered.by_name:
            return message
        try:
            own = message._replace(data=as_read(message.data), metadata=as_read(message.metadata))
        except RecursionError as error:
            raise not_decodable(message, _Unreadable(_reason(error))) from error
        return self._registered.decoded(own)

    def __contains__(self, cls: object) -> bool:
        return cls in self._registered.by_class


def registered_in(types: MessageTypes | None) -> RegisteredTypes | None:
    return None if types is None else types._registered


def check_function(argument: str, value: object) -> None:
    if not callable(value):
        raise InvalidArgument(argument, value, "must be a function")
    if iscoroutinefunction(value) or isgeneratorfunction(value) or isasyncgenfunction(value):
        raise InvalidArgument(argument, value, "must be a function that returns the value: def, without async or yield")


def _versioned(version: int, metadata: Any) -> dict[str, Any] | None:
    metadata = arguments.metadata("metadata", metadata)
    if metadata and SCHEMA_VERSION in metadata and _schema_version(metadata) != version:
        raise InvalidArgument("metadata", metadata, f"must have the {SCHEMA_VERSION} of the class, {version}, or none")
    return metadata if version == 1 else {**(metadata or {}), SCHEMA_VERSION: str(version)}


def _schema_version(metadata: Any) -> int | None:
    """None if the metadata has a schemaVersion that is not a version."""
    version = metadata.get(SCHEMA_VERSION) if isinstance(metadata, dict) else None
    if version is None:
        return 1
    if isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) < 20:
        version = int(version)
    return version if type(version) is int and version >= 1 else None


def not_decodable(message: Sequence[Any], error: _Unreadable) -> MessageNotDecodable:
    """``message``: a Message, or the first five of its fields."""
    _, stream_name, type_, position, global_position, *_ = message
    return MessageNotDecodable(stream_name, position, global_position, type_, str(error))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (conversion.Misfit, _Unreadable)) else f"{type(error).__name__}: {error}"
