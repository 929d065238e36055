"""OpenTelemetry tracing from the writer of a message to its handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from messagedb_sa import _arguments as arguments
from messagedb_sa import _spans as spans
from messagedb_sa.errors import InvalidArgument

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

    from messagedb_sa.message import Message

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
except ImportError:
    # Tracing says so when it is made.
    pass

__all__ = ["Tracing"]


class Tracing:
    """Spans of writes and of handlers, for ``Store(…, tracing=…)`` and for consumers. Safe to share between threads,
    stores and consumers.

    Each ``write``, ``write_batch`` and ``write_streams`` is a span of the kind PRODUCER. OpenTelemetry's global
    propagator adds the span's context to the metadata of the messages, by default under the keys ``traceparent``,
    ``tracestate`` and ``baggage`` (W3C). A key that exists already is kept. Metadata that carries another span's
    context is kept as it is, and the span links to that one. Reads make no spans.

    ``tracer_provider`` None means OpenTelemetry's global one, even if that is set later. Raises
    MessageDBError if OpenTelemetry (extra ``opentelemetry``) is not installed.
    """

    # So that the class has the attribute too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "tracer")

    tracer: Tracer
    """What makes the spans."""

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        spans.check_installed()
        if not (tracer_provider is None or isinstance(tracer_provider, trace.TracerProvider)):
            raise InvalidArgument("tracer_provider", tracer_provider, "must be a TracerProvider of OpenTelemetry")
        self.tracer = trace.get_tracer("messagedb_sa", version("messagedb-sa"), tracer_provider)

    @contextmanager
    def handling(
        self, message: Message, *, category: str, identifier: str | None = None, group_member: int | None = None
    ) -> Iterator[None]:
        """Put this around the code that handles a message, also in a coroutine: the block is a span of kind CONSUMER.

        Its parent is the span that wrote the message, to which it also links: one trace leads from the writer to all
        handlers. If another span is current, it is that span's child and only links to the writer's, as the
        conventions ask. The writer's baggage is current in the block. ``identifier`` is the consumer's, None if it has
        none; ``group_member`` is its number in a consumer group, None without a group. An exception is recorded and
        raised.
        """
        category = arguments.text("category", category)
        attributes: dict[str, Any] = {
            spans.CATEGORY: category,
            spans.STREAM: message.stream_name,
            spans.ID: message.id,
            spans.TYPE: message.type,
            "messaging.message_db.message.position": message.position,
            "messaging.message_db.message.global_position": message.global_position,
        }
        if identifier is not None:
            attributes[spans.CONSUMER] = arguments.text("identifier", identifier)
        if group_member is not None:
            attributes[spans.MEMBER] = group_member
        outer = trace.get_current_span()
        context = spans.context_in(message.metadata)
        writer = trace.get_current_span(context).get_span_context()
        if outer.get_span_context().is_valid:
            context = trace.set_span_in_context(outer, context)
        token = contexts.attach(context)
        try:
            links = [trace.Link(writer)] if writer.is_valid else []
            with spans.span(self.tracer, "process", "process", category, trace.SpanKind.CONSUMER, attributes, links):
                yield
        finally:
            contexts.detach(token)
