"""Tests of entities without a database: given events, when a decision is made, then events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from datetime import datetime, timedelta
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from messagedb_sa.errors import InvalidArgument

if TYPE_CHECKING:
    from sqlalchemy import Dialect

    from messagedb_sa.entity import AsyncDecision, Entity
    from messagedb_sa.message import Message, MessageInput
    from messagedb_sa.message_types import MessageTypes
    from messagedb_sa.store._entity_operations import EntityOperations

S = TypeVar("S")

_FIRST_TIME = datetime(2000, 1, 1)


def given(entity: Entity[S], *events: MessageInput, types: MessageTypes | None = None) -> Scenario[S]:
    """An entity with these events, to test decisions on it without a database. ::

        given(account, Opened("Ada"), Deposited(10)).when(withdraw(5)).then(Withdrawn(5))

    Events are messages as in ``write_batch``. They are checked, encoded, decoded and applied as a Store does it, with
    positions from 0, global positions from 1, and times that are made up. ``types`` are those of the store, if the
    entity has none. If the entity has snapshots, the state must be one that a snapshot can hold; otherwise
    InvalidArgument is raised.
    """
    from messagedb_sa.store._entities import check_entity

    check_entity(entity)
    return Scenario(_Host(entity, entity.types or types), entity._begin(), [], None)._with("events", events)[0]


class Scenario(Generic[S]):
    """An entity after the events that it was given, and after decisions on it. ``given`` makes it."""

    def __init__(self, host: _Host[S], state: S, events: list[_Event], decided: list[_Event] | None) -> None:
        self._host = host
        self._state = state
        self._events = events
        self._decided = decided

    @property
    def state(self) -> S:
        """The state after all events: a copy, which you may change."""
        return deepcopy(self._state)

    @property
    def messages(self) -> list[Message]:
        """All events, those of decisions included, as a store would return them."""
        return [deepcopy(each.message) for each in self._events]

    def when(self, function: AsyncDecision[S]) -> Scenario[S]:
        """Decide as ``store.decide`` does, and apply the events.

        Errors of the function are raised as they are: test them with ``pytest.raises``. A coroutine function runs on
        an event loop of its own.
        """
        from messagedb_sa.store._entities import DECIDED, check_decision, messages_of

        check_decision(function)
        decided: Any = function(deepcopy(self._state))
        if isawaitable(decided):
            decided = _awaited(function, decided)
        after, decided = self._with(DECIDED, messages_of(decided, self._host.operations))
        return Scenario(self._host, after._state, after._events, decided)

    def then(self, *events: MessageInput) -> Scenario[S]:
        """Raise AssertionError unless the last decision gave exactly these events, in this order; ``then()``: none.

        Types and data are compared, as they would be stored. Metadata is compared if the event has some here.
        """
        if self._decided is None:
            raise AssertionError("then() needs a decision before it: given(entity, …).when(function).then(…)")
        expected = self._host.made("events", events, len(self._events) - len(self._decided))
        if len(expected) != len(self._decided) or not all(map(_is_same, expected, self._decided)):
            with_metadata = any(each.metadata is not None for each in expected)
            lines = ["expected", *_shown(expected, with_metadata), "decided", *_shown(self._decided, with_metadata)]
            raise AssertionError("\n".join(lines))
        return self

    def _with(self, argument: str, messages: Iterable[Any]) -> tuple[Scenario[S], list[_Event]]:
        new = self._host.made(argument, messages, len(self._events))
        state = self._host.fold(deepcopy(self._state), new)
        return Scenario(self._host, state, [*self._events, *new], None), new


class _Event(NamedTuple):
    """``data`` and ``metadata`` are decoded JSON. The class of the data has a schemaVersion, which is not compared."""

    message: Message
    data: Any
    metadata: Any


class _Host(Generic[S]):
    """What a store does with an entity's events, but for the database."""

    def __init__(self, entity: Entity[S], types: MessageTypes | None) -> None:
        # Not at import, since pytest imports this package at each start, and SQLAlchemy takes its time.
        from sqlalchemy.dialects import postgresql

        from messagedb_sa.store._entity_operations import EntityOperations

        dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        self.operations: EntityOperations = EntityOperations(dialect, joined=False, types=types)
        self._entity = entity
        self._folding = entity._folding(types)
        self._stream_name = entity.stream_name("given")

    def made(self, argument: str, messages: Iterable[Any], first: int) -> list[_Event]:
        """The messages as a read would return them, with positions from ``first``."""
        messages = list(messages)
        if not messages:
            return []
        batch = self.operations._batch(argument, messages, self._stream_name)
        data, metadata = (
            self.operations.as_read(argument, json.loads(array)) for array in (batch.data, batch.metadata)
        )
        rows = [
            (
                id,
                self._stream_name,
                type_,
                first + number,
                first + number + 1,
                None if data[number] is None else json.dumps(data[number]),
                None if metadata[number] is None else json.dumps(metadata[number]),
                _FIRST_TIME + timedelta(seconds=first + number),
            )
            for number, (id, type_) in enumerate(zip(batch.ids, batch.types, strict=True))
        ]
        return [*map(_Event, self.operations._messages.all(rows), data, map(_without_version, metadata))]

    def fold(self, state: S, events: list[_Event]) -> S:
        from messagedb_sa._state_cache import Known
        from messagedb_sa.store._snapshots import encoded

        entity, messages = self._entity, [each.message for each in events]
        folded: S = self._folding.fold(state, messages)
        if entity._conversion is not None and messages:
            last = messages[-1]
            known = Known(folded, last.position, last.id, last.time, -1)
            of_class = entity._conversion, entity._state_class, entity._state_version
            snapshot = encoded(*of_class, known, last, self.operations.as_read)
            self.operations.write_snapshot(self._stream_name, *snapshot)
        return folded


def _awaited(function: object, decided: Any) -> Any:
    async def awaited() -> Any:
        return await decided

    with suppress(RuntimeError):
        asyncio.get_running_loop()
        if iscoroutine(decided):
            decided.close()
        reason = "must be a plain function in a test that runs on an event loop itself: make that test a plain function"
        raise InvalidArgument("function", function, reason)
    return asyncio.run(awaited())


def _without_version(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in (metadata or {}).items() if key != "schemaVersion"} or None


def _is_same(expected: _Event, actual: _Event) -> bool:
    is_same = expected.message.type == actual.message.type and _json(expected.data) == _json(actual.data)
    return is_same and (expected.metadata is None or _json(expected.metadata) == _json(actual.metadata))


def _json(value: Any) -> str:
    # As text, since True is equal to 1.
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(events: list[_Event], with_metadata: bool) -> list[str]:
    if not events:
        return ["  nothing"]
    return [
        f"  {each.message.type} {_json(each.data)}{f' metadata {_json(each.metadata)}' if with_metadata else ''}"
        for each in events
    ]
