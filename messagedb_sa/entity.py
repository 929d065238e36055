"""Entities: the state that a stream of events amounts to, and how each event changes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import isfunction
from typing import Any, Generic, TypeAlias, overload
from uuid import UUID

from typing_extensions import NamedTuple, TypeVar

from messagedb_sa import _arguments as arguments
from messagedb_sa._class_codecs import Conversion
from messagedb_sa._folding import APPLIES, Folding
from messagedb_sa._message_types import MessageTypes, RegisteredTypes, check_function, registered_in
from messagedb_sa._state_cache import StateCache
from messagedb_sa._state_codecs import conversion_of_state
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message, MessageInput

__all__ = ["AsyncDecision", "Decision", "Entity", "Loaded", "applies"]

_S = TypeVar("_S")
_D = TypeVar("_D")
_R = TypeVar("_R")
_M = TypeVar("_M", bound=Callable[[Any, Message[Any]], Any])

Decision: TypeAlias = Callable[[_S], "MessageInput | Iterable[MessageInput] | None"]
"""What ``decide`` takes: a function that gets the state, and returns a message, or several, or None."""

AsyncDecision: TypeAlias = Callable[
    [_S],
    "MessageInput | Iterable[MessageInput] | Awaitable[MessageInput | Iterable[MessageInput] | None] | None",
]
"""What ``decide`` of an AsyncStore takes: such a function, or a coroutine function."""


class Loaded(NamedTuple, Generic[_S]):
    """The state of an entity, and the position of the last event in it; NO_STREAM (-1) if there are no events."""

    state: _S
    version: int


@overload
def applies(message_type: str, /) -> Callable[[_M], _M]: ...


@overload
def applies(
    message_type: type[_D], /
) -> Callable[[Callable[[_S, Message[_D]], _R]], Callable[[_S, Message[Any]], _R]]: ...


def applies(message_type: type[Any] | str, /) -> Callable[[Any], Any]:
    """Decorate the method of a state's class that applies events of this type: its name, or the registered class.

    The method gets the whole message. It changes the state in place and returns None, or returns a new state. Several
    decorators may be above one method. A method that overrides it in a subclass needs none.
    """
    if not isinstance(message_type, (type, str)):
        raise InvalidArgument("message_type", message_type, "must be a message type, or a registered class")

    def decorate(method: Any) -> Any:
        check_function("method", method)
        if not isfunction(method):
            reason = "must be a method that gets the state as self: put no other decorator below this one"
            raise InvalidArgument("method", method, reason)
        setattr(method, APPLIES, (*getattr(method, APPLIES, ()), message_type))
        return method

    return decorate


class Entity(Generic[_S]):
    """What a stream of events amounts to. ``store.load`` and ``store.decide`` take one; share it between threads.

    The events of entity 123 of the category ``account`` are in the stream ``account-123``. ``begin`` is called without
    arguments, and returns the state without events; a class will do. ``apply`` is called with the state and a message,
    for each event in order, and returns the new state, or changes the state in place and returns None. Without
    ``apply``, the methods of the state's class that are decorated with ``applies`` do this, and messages of other types
    change nothing.

    ``types``: the events' registered classes; None for those of the store.

    ``snapshot_every``: after this many events, ``decide`` writes a snapshot of the state, and a load reads the last
    snapshot and the events after it. The state must be an instance of a dataclass, attrs, msgspec or pydantic class,
    always of the same one, or a JSON value. The messages are those of Eventide's entity-snapshot-postgres.
    ``state_version``, from 1: snapshots of other versions are ignored. Raise it if you change what ``apply`` does.

    ``cache``: how many states this process keeps, so that a load reads only what is new. Those that were used last are
    kept.

    Raises InvalidArgument. ``begin`` is called once when the entity is created, to find the class of the state.
    """

    # So that the class has the attributes too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "category", "types")

    category: str
    """The events' category."""

    types: MessageTypes | None
    """The option ``types``."""

    def __init__(
        self,
        category: str,
        begin: Callable[[], _S],
        apply: Callable[[_S, Message[Any]], _S | None] | None = None,
        *,
        types: MessageTypes | None = None,
        snapshot_every: int | None = None,
        state_version: int = 1,
        cache: int | None = None,
    ) -> None:
        self.category = arguments.category("category", category)
        if self.category == "$all":
            raise InvalidArgument("category", category, "must be the category of the events")
        check_function("begin", begin)
        if apply is not None:
            check_function("apply", apply)
        if not (types is None or isinstance(types, MessageTypes)):
            raise InvalidArgument("types", types, "must be a MessageTypes, or None for that of the store")
        self.types = types
        self._begin = begin
        self._apply = apply
        self._state_class: type[_S] = type(begin())
        self._foldings: dict[MessageTypes | None, Folding] = {}
        # Fails now, rather than at the first load, if no method can apply the events.
        if types is not None or apply is not None:
            self._folding(None)
        else:
            Folding.check(self._state_class)
        self._snapshot_every: int | None = None
        self._state_version = arguments.integer("state_version", state_version, minimum=1)
        self._conversion: Conversion | None = None
        if snapshot_every is not None:
            self._snapshot_every = arguments.integer("snapshot_every", snapshot_every, minimum=1)
            self._conversion = conversion_of_state(self._state_class, registered_in(types))
        elif state_version != 1:
            raise InvalidArgument("state_version", state_version, "has no effect without snapshot_every")
        self._cache = None if cache is None else StateCache(arguments.integer("cache", cache, minimum=1))

    def __repr__(self) -> str:
        return f"<Entity {self.category!r} of {self._state_class.__name__}>"

    def stream_name(self, id: str | UUID) -> str:
        """The stream of the entity's events, to read them: ``store.iter_stream(account.stream_name("123"))``."""
        if isinstance(id, UUID):
            id = str(id)
        return arguments.stream_to_write("id", f"{self.category}-{arguments.text('id', id)}")

    def _folding(self, types_of_store: MessageTypes | None) -> Folding:
        types = types_of_store if self.types is None else self.types
        folding = self._foldings.get(types)
        if folding is None:
            registered = registered_in(types) or RegisteredTypes()
            folding = self._foldings[types] = Folding(self._apply, self._state_class, registered)
        return folding
