"""The metrics of one consumer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from messagedb_sa._clock import monotonic
from messagedb_sa._instruments import of_consumer
from messagedb_sa.consumer._options import Settings
from messagedb_sa.message import Message

if TYPE_CHECKING:
    from messagedb_sa.metrics import Metrics


class Meter:
    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self._instruments = metrics._instruments
        self._consumer = of_consumer(settings.category, settings.identifier)

    @contextmanager
    def processing(self, message: Message) -> Iterator[None]:
        """Around all that a message's attempt takes, its transaction included."""
        began = monotonic()
        try:
            yield
        except Exception as error:
            self._instruments.processed(self._consumer, message.type, monotonic() - began, error)
            raise
        self.processed(message, monotonic() - began)

    def processed(self, message: Message, seconds: float) -> None:
        self._instruments.processed(self._consumer, message.type, seconds)

    def retries(self) -> None:
        self._instruments.retries(self._consumer)

    def parked(self) -> None:
        self._instruments.parked(self._consumer)

    def connected(self, *, again: bool) -> None:
        self._instruments.connected(self._consumer, again=again)

    def disconnected(self) -> None:
        self._instruments.disconnected(self._consumer)


def meter_of(metrics: Metrics | None, settings: Settings) -> Meter | None:
    return None if metrics is None else Meter(metrics, settings)
