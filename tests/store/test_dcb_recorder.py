"""The test case that the package eventsourcing has for recorders with a dynamic consistency boundary.

It passes on a Store, by an adapter: https://pypi.org/project/eventsourcing
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import sleep
from types import SimpleNamespace

import pytest
from eventsourcing.dcb import tests
from eventsourcing.dcb.api import (
    DCBAppendCondition,
    DCBEvent,
    DCBQuery,
    DCBReadResponse,
    DCBRecorder,
    DCBSequencedEvent,
    DCBSubscription,
)
from eventsourcing.dcb.popo import SimpleDCBReadResponse
from eventsourcing.persistence import IntegrityError, ProgrammingError

from messagedb_sa import AppendCondition, AppendConditionFailed, NewMessage, Query, Store

from ..waits import HANG

CATEGORY = "event"
STREAM = "event-1"


class Recorder(DCBRecorder):
    """Events are the messages of one category. Their positions are global positions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        found = self._store.read_query(queries_of(query), (after or 0) + 1, -1 if limit is None else limit)
        events = [
            DCBSequencedEvent(
                DCBEvent(message.type, bytes.fromhex(message.data), message.metadata["tags"]), message.global_position
            )
            for message in found
        ]
        return SimpleDCBReadResponse(iter(events), found.condition.after[CATEGORY] or None)

    def append(self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None) -> int:
        if not events:
            raise ProgrammingError("no events")
        messages = [NewMessage(event.type, event.data.hex(), {"tags": event.tags}) for event in events]
        own = None
        if condition is not None:
            own = AppendCondition(queries_of(condition.fail_if_events_match), condition.after or 0)
        try:
            last = self._store.write_batch(STREAM, messages, condition=own)
        except AppendConditionFailed as error:
            raise IntegrityError(condition) from error
        return self._store.read_stream(STREAM, last)[0].global_position

    def subscribe(self, query: DCBQuery | None = None, *, after: int | None = None) -> Subscription:
        return Subscription(self, query, after)


class Subscription(DCBSubscription[Recorder]):
    def __next__(self) -> DCBSequencedEvent:
        while not self._has_been_stopped:
            for event in self._recorder.read(self._query, after=self._last_position, limit=1):
                self._last_position = event.position
                return event
            sleep(0.002)
        raise StopIteration


def queries_of(query: DCBQuery | None) -> list[Query]:
    items = [] if query is None else query.items
    return [Query(CATEGORY, item.types, item.tags) for item in items] or [Query(CATEGORY)]


def test_it_appends_and_reads(each_kind: Store) -> None:
    tests.DCBRecorderTestCase()._test_append_read(Recorder(each_kind))


class Event(threading.Event):
    """They wait a second for what is to happen, and a busy machine may take longer."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(HANG if timeout == 1 else timeout)


def test_it_appends_and_subscribes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests, "threading", SimpleNamespace(Event=Event))
    tests.DCBRecorderTestCase()._test_append_subscribe(Recorder(store))
