"""OpenTelemetry's traces, from writer to handler: spans, and their context in the metadata of messages.

Names and attributes are those of OpenTelemetry's semantic conventions for messaging spans. A category is the
destination, as Kafka's topic is: the names of streams are too many for the name of a span.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from messagedb_sa import arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument, MessageDBError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, TracerProvider

    from messagedb_sa.message import Message

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

__all__ = ["Tracing"]

_CATEGORY = "messaging.destination.name"
_STREAM = "messaging.message_db.stream_name"
_ID = "messaging.message.id"
_TYPE = "messaging.message_db.message.type"


class Tracing:
    """Spans of writes and of handlers, for ``Store(…, tracing=…)`` and for consumers. Safe to share between threads,
    stores and consumers.

    A call of ``write``, ``write_batch`` or ``write_streams`` is a span of the kind PRODUCER. OpenTelemetry's global
    propagator puts its context into the metadata of what it writes, where that is a dict or None; by default these are
    the keys ``traceparent``, ``tracestate`` and ``baggage`` (W3C). A key that is there already stays; metadata that
    holds a span's context of its own stays as it is, and the span links to that one. Reads make no spans.

    ``tracer_provider`` None means OpenTelemetry's global one, also where it is set later. Without the extra
    ``opentelemetry``, MessageDBError.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        if _missing is not None:
            raise MessageDBError(
                'tracing needs the API of OpenTelemetry: pip install "messagedb-sa[opentelemetry]"'
            ) from _missing
        if not (tracer_provider is None or isinstance(tracer_provider, trace.TracerProvider)):
            raise InvalidArgument("tracer_provider", tracer_provider, "is no TracerProvider of OpenTelemetry")
        self._tracer = trace.get_tracer("messagedb_sa", version("messagedb-sa"), tracer_provider)

    @contextmanager
    def handling(
        self, message: Message, *, category: str, identifier: str | None = None, group_member: int | None = None
    ) -> Iterator[None]:
        """Around the handling of a message, in a coroutine too: a span of the kind CONSUMER, current in the block.

        Its parent is the span that wrote the message, to which it also links, so that one trace leads from the writer
        to all handlers. Inside of another span it is that one's child, and only links to the writer's: so the
        conventions have it. The writer's baggage is current in the block. ``identifier`` is the consumer's, None for
        one without; ``group_member`` is its number in a consumer group, None where there is no group. An exception is
        recorded, and passes.
        """
        attributes: dict[str, Any] = {
            _CATEGORY: category,
            _STREAM: message.stream_name,
            _ID: message.id,
            _TYPE: message.type,
            "messaging.message_db.message.position": message.position,
            "messaging.message_db.message.global_position": message.global_position,
        }
        if identifier is not None:
            attributes["messaging.consumer.group.name"] = identifier
        if group_member is not None:
            attributes["messaging.message_db.consumer_group.member"] = group_member
        around = trace.get_current_span()
        carried = _carried_by(message.metadata)
        writer = trace.get_current_span(carried).get_span_context()
        if around.get_span_context().is_valid:
            carried = trace.set_span_in_context(around, carried)
        token = contexts.attach(carried)
        try:
            links = [trace.Link(writer)] if writer.is_valid else []
            with self._span("process", "process", category, trace.SpanKind.CONSUMER, attributes, links):
                yield
        finally:
            contexts.detach(token)

    @contextmanager
    def _writing(self, stream_name: object = None) -> Iterator[None]:
        """Around a write, its building included; without a name, to several streams. This and the following for the
        store."""
        category, attributes = None, {}
        if stream_name is not None:
            name = arguments.text("stream_name", stream_name)
            category = names.category(name)
            attributes = {_CATEGORY: category, _STREAM: name}
        with self._span("write", "send", category, trace.SpanKind.PRODUCER, attributes):
            yield

    def _one(self, id: str, type_: str, metadata: Any) -> Any:
        """What the message's metadata is to be, for one that is written alone."""
        trace.get_current_span().set_attributes({_ID: id, _TYPE: type_})
        return self._each([metadata])[0]

    def _each(self, metadata: list[Any]) -> list[Any]:
        """What the metadata of each message is to be."""
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            return metadata
        ours: dict[str, str] = {}
        propagate.inject(ours)
        each = []
        for its_own in metadata:
            if its_own is None:
                each.append(ours)
            elif not isinstance(its_own, dict):
                each.append(its_own)
            elif (other := trace.get_current_span(_carried_by(its_own)).get_span_context()).is_valid:
                span.add_link(other)
                each.append(its_own)
            else:
                each.append({**ours, **its_own})
        return each

    def _batch(self, size: int, stream_names: Collection[str]) -> None:
        """Say of the current span how many messages it writes, and where to if that is one place."""
        attributes: dict[str, Any] = {"messaging.batch.message_count": size}
        span = trace.get_current_span()
        categories = {names.category(name) for name in stream_names}
        if len(categories) == 1:
            (attributes[_CATEGORY],) = categories
            span.update_name(f"write {attributes[_CATEGORY]}")
        if len(stream_names) == 1:
            (attributes[_STREAM],) = stream_names
        span.set_attributes(attributes)

    @contextmanager
    def _span(
        self,
        operation: str,
        its_type: str,
        category: str | None,
        kind: trace.SpanKind,
        attributes: dict[str, Any],
        links: list[Link] | None = None,
    ) -> Iterator[None]:
        attributes = {
            "messaging.system": "message_db",
            "messaging.operation.name": operation,
            "messaging.operation.type": its_type,
            **attributes,
        }
        name = operation if category is None else f"{operation} {category}"
        with self._tracer.start_as_current_span(name, kind=kind, attributes=attributes, links=links) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", _name(type(error)))
                raise


def _carried_by(metadata: Any) -> Context:
    """The current context with the span that the metadata tells of, an invalid one where it does not, and its baggage.

    Metadata is anybody's: a propagator expects text, and fails on other values.
    """
    texts = {}
    if isinstance(metadata, dict):
        texts = {key: value for key, value in metadata.items() if isinstance(key, str) and isinstance(value, str)}
    return propagate.extract(texts, trace.set_span_in_context(trace.INVALID_SPAN))


def _name(cls: type) -> str:
    """As OpenTelemetry names the exceptions that it records."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
