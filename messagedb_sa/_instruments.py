"""The instruments of OpenTelemetry by which writes and consumers are measured: their names, units and attributes.

They are those of OpenTelemetry's semantic conventions for messaging metrics, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from messagedb_sa import _spans as spans

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

GROUP_SIZE = "messaging.message_db.consumer_group.size"
# As the conventions advise, in seconds.
_BOUNDARIES = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_LASTING = [*_BOUNDARIES, 30, 60, 300]


class Instruments:
    def __init__(self, meter: Meter, *, by_type: bool) -> None:
        self._by_type = by_type
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages that were written, or could not be written"
        )
        self._operations = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of writes",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages that handlers handled, or failed to handle"
        )
        self._processed = meter.create_histogram(
            "messaging.process.duration", "s", "Duration of handlers", explicit_bucket_boundaries_advisory=_LASTING
        )
        of_consumer = "messaging.message_db.consumer"
        self._parked = meter.create_counter(
            f"{of_consumer}.parked_messages", "{message}", "Messages that were parked as dead letters"
        )
        self._retries = meter.create_counter(
            f"{of_consumer}.retries", "{attempt}", "Further attempts to handle a message that failed"
        )
        self._connections = meter.create_up_down_counter(
            f"{of_consumer}.connections", "{connection}", "Consumers of this process that have a connection"
        )
        self._reconnects = meter.create_counter(
            f"{of_consumer}.reconnects", "{connection}", "Connections made again after one was lost"
        )
        self._settled = meter.create_histogram(
            "messaging.message_db.settle.duration",
            "s",
            "Time that reads of $all waited at a gap",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )

    # Writes

    def wrote(self, types: Mapping[str, Iterable[str]], seconds: float, error: Exception | None) -> None:
        """``types`` are those of the messages, by category."""
        of_write = {**_WRITE, **_error(error)}
        for category, of_messages in types.items():
            attributes = {**of_write, spans.CATEGORY: category}
            numbers: dict[str, int] = {}
            for each in of_messages:
                numbers[each] = numbers.get(each, 0) + 1
            if self._by_type:
                for each, number in numbers.items():
                    self._sent.add(number, {**attributes, spans.TYPE: each})
            else:
                self._sent.add(sum(numbers.values()), attributes)
        if len(types) == 1:
            (of_write[spans.CATEGORY],) = types
        self._operations.record(seconds, of_write)

    # Reads

    def settled(self, seconds: float, *, in_time: bool) -> None:
        self._settled.record(seconds, {**_SYSTEM, "messaging.message_db.settled": in_time})

    # Consumers

    def processed(
        self, consumer: Mapping[str, Any], message_type: str, seconds: float, error: Exception | None = None
    ) -> None:
        attributes = {**consumer, **_PROCESS, **_error(error)}
        if self._by_type:
            attributes[spans.TYPE] = message_type
        self._consumed.add(1, attributes)
        self._processed.record(seconds, attributes)

    def parked(self, consumer: Mapping[str, Any]) -> None:
        self._parked.add(1, consumer)

    def retries(self, consumer: Mapping[str, Any]) -> None:
        self._retries.add(1, consumer)

    def connected(self, consumer: Mapping[str, Any], *, again: bool) -> None:
        self._connections.add(1, consumer)
        if again:
            self._reconnects.add(1, consumer)

    def disconnected(self, consumer: Mapping[str, Any]) -> None:
        self._connections.add(-1, consumer)


_SYSTEM = dict([spans.SYSTEM])
_WRITE = {**_SYSTEM, spans.OPERATION: "write", spans.OPERATION_TYPE: "send"}
_PROCESS = {spans.OPERATION: "process", spans.OPERATION_TYPE: "process"}


def of_consumer(category: str, identifier: str | None) -> dict[str, str]:
    """The attributes of a consumer."""
    attributes = {**_SYSTEM, spans.CATEGORY: category}
    if identifier is not None:
        attributes[spans.CONSUMER] = identifier
    return attributes


def lag(meter: Meter, observed: Callable[[CallbackOptions], Iterable[Observation]]) -> None:
    meter.create_observable_gauge(
        "messaging.message_db.consumer.lag",
        [observed],
        "s",
        "Age of the first message that the consumer has not handled, 0 if there is none",
    )


def _error(error: Exception | None) -> dict[str, str]:
    return {} if error is None else {spans.ERROR: spans.full_name(type(error))}
