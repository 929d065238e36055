"""How a decision on an entity is made: load, call the function, write, and again if the race was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from copy import deepcopy
from inspect import isawaitable, iscoroutine
from typing import Any, TypeVar
from uuid import UUID, uuid5
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect

from messagedb_sa import _arguments as arguments
from messagedb_sa._message_types import SCHEMA_VERSION, MessageTypes
from messagedb_sa.entity import Entity, Loaded
from messagedb_sa.errors import DuplicateMessageId, InvalidArgument, WrongExpectedVersion
from messagedb_sa.store._entity_history import History
from messagedb_sa.store._entity_operations import EntityOperations
from messagedb_sa.store._operation import Steps

S = TypeVar("S")

DECIDED = "function(state)"
"""In errors, the name of what a function returns."""


class Entities:
    """The entities of one store, in steps without I/O. ``make`` makes the store's operations with other types;
    ``joined`` as in Operations; ``awaits``: functions may return an awaitable."""

    def __init__(
        self,
        make: Callable[..., EntityOperations],
        operations: EntityOperations,
        types: MessageTypes | None,
        dialect: Dialect,
        *,
        joined: bool,
        awaits: bool,
    ) -> None:
        self._operations = operations
        self._types = types
        self._make = make
        self._dialect = dialect
        self._joined = joined
        self._awaits = awaits
        self._with_types: WeakKeyDictionary[MessageTypes, EntityOperations] = WeakKeyDictionary()

    def load(self, entity: Entity[S], id: str | UUID) -> Steps[Loaded[S]]:
        history = self._history(entity, id)
        known, _ = yield from history.load(history.cached(), None)
        return Loaded(known.state, known.version)

    def decide(
        self,
        entity: Entity[S],
        id: str | UUID,
        function: Callable[[S], Any],
        metadata: Mapping[str, Any] | None,
        command_id: UUID | str | None,
        retries: int,
    ) -> Steps[Loaded[S]]:
        history = self._history(entity, id)
        check_decision(function)
        left = arguments.integer("retries", retries, minimum=0)
        if left and self._joined:
            reason = "must be 0 in the caller's transaction: roll that back, and begin again"
            raise InvalidArgument("retries", retries, reason)
        command = None if command_id is None else UUID(arguments.message_id("command_id", command_id))
        complete = _completing(history.stream_name, metadata, command)
        first_id = None if command is None else str(_id(command, history.stream_name, 0))
        known, is_repeated = yield from history.load(history.cached(), first_id)
        while not is_repeated:
            # A copy, which the function may change.
            decided: Any = function(deepcopy(known.state))
            if isawaitable(decided):
                self._check_awaitable(function, decided)
                decided = yield decided
            messages = messages_of(decided, history.operations)
            if not messages:
                break
            try:
                known = yield from history.write(known, DECIDED, messages, complete)
                break
            except (WrongExpectedVersion, DuplicateMessageId) as error:
                # With an error of the server, which knows no version, the caller's transaction is aborted.
                if self._joined and getattr(error, "actual_version", None) is None:
                    raise
                tries_again = left > 0 and isinstance(error, WrongExpectedVersion)
                if tries_again or command is not None:
                    known, is_repeated = yield from history.load(known, first_id)
                if not (tries_again or is_repeated):
                    raise
                left -= 1
        return Loaded(known.state, known.version)

    def _check_awaitable(self, function: object, decided: object) -> None:
        if not self._awaits:
            if iscoroutine(decided):
                decided.close()
            reason = "must be a function that returns the value: only an AsyncStore awaits it"
            raise InvalidArgument("function", function, reason)

    def _history(self, entity: Entity[S], id: str | UUID) -> History[S]:
        check_entity(entity)
        types = self._types if entity.types is None else entity.types
        operations = self._operations
        if types is not None and types is not self._types:
            known = self._with_types.get(types)
            operations = self._with_types[types] = self._make(types=types) if known is None else known
        return History(operations, entity, entity.stream_name(id), types, self._dialect, joined=self._joined)


def check_entity(entity: object) -> None:
    if not isinstance(entity, Entity):
        raise InvalidArgument("entity", entity, 'must be an Entity, such as Entity("account", Account)')


def check_decision(function: object) -> None:
    if not callable(function):
        raise InvalidArgument("function", function, "must be a function of the state; pass it without calling it")


def messages_of(decided: Any, operations: EntityOperations) -> list[Any]:
    """What a function has returned, one message or several, as a list."""
    if decided is None:
        return []
    is_one = (
        isinstance(decided, (str, bytes))
        or operations.is_registered(type(decided))
        or (isinstance(decided, tuple) and len(decided) > 0 and isinstance(decided[0], str))
    )
    # Not all that can be iterated over: an instance of a class that nobody registered may be, too.
    several = Sequence, Set, ValuesView, Iterator
    return list(decided) if not is_one and isinstance(decided, several) else [decided]


def _completing(
    stream_name: str, metadata: Mapping[str, Any] | None, command: UUID | None
) -> Callable[[int, Any, Any], tuple[Any, Any]]:
    of_all = arguments.metadata_to_write("metadata", metadata, stream_name)
    if of_all and SCHEMA_VERSION in of_all:
        raise InvalidArgument("metadata", metadata, f"must not have a {SCHEMA_VERSION}, which each message has itself")

    def complete(number: int, its_metadata: Any, id: Any) -> tuple[Any, Any]:
        if of_all:
            own = arguments.metadata(f"{DECIDED}[{number}].metadata", its_metadata)
            its_metadata = {**of_all, **(own or {})}
        if command is not None:
            if id is not None:
                reason = "must not be given with command_id, of which the ids are made"
                raise InvalidArgument(f"{DECIDED}[{number}].id", id, reason)
            id = _id(command, stream_name, number)
        return its_metadata, id

    return complete


def _id(command: UUID, stream_name: str, number: int) -> UUID:
    """The id of a command's message. A command may decide on several entities."""
    return uuid5(command, f"{stream_name}/{number}")
