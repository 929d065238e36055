"""What OpenTelemetry's reader has, as the tests compare it."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from messagedb_sa import Metrics

SHORT = {
    "messaging.destination.name": "category",
    "messaging.consumer.group.name": "consumer",
    "messaging.message_db.message.type": "type",
    "messaging.message_db.consumer_group.member": "member",
    "messaging.message_db.consumer_group.size": "size",
    "messaging.message_db.settled": "settled",
    "error.type": "error",
}


class Measured:
    """Metrics, and what was measured with them."""

    def __init__(self, **options: Any) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])
        self.metrics = Metrics(self.provider, **options)

    def raw(self) -> dict[str, Any]:
        """Each metric by its name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def points(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """The value of a counter or gauge, and the count of a histogram, by those attributes that tell them apart."""
        metric = self.raw().get(name)
        if metric is None:
            return {}
        found = {}
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            assert attributes["messaging.system"] == "message_db"
            key = tuple(sorted((SHORT[each], value) for each, value in attributes.items() if each in SHORT))
            assert key not in found
            found[key] = point.count if hasattr(point, "count") else point.value
        return found


def by(**attributes: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(attributes.items()))


SENT = "messaging.client.sent.messages"
WRITES = "messaging.client.operation.duration"
CONSUMED = "messaging.client.consumed.messages"
PROCESSED = "messaging.process.duration"
PARKED = "messaging.message_db.consumer.parked_messages"
RETRIES = "messaging.message_db.consumer.retries"
CONNECTIONS = "messaging.message_db.consumer.connections"
RECONNECTS = "messaging.message_db.consumer.reconnects"
SETTLED = "messaging.message_db.settle.duration"
LAG = "messaging.message_db.consumer.lag"
