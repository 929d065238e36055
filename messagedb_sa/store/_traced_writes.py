"""The spans of writes, and the trace context in the metadata of what they write. Imports OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from messagedb_sa import _arguments as arguments
from messagedb_sa import _spans as spans
from messagedb_sa import stream_name as names

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

with suppress(ImportError):
    # Without it there is no Tracing, so nothing here is used.
    from opentelemetry import propagate, trace


class TracedWrites:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def writing(self, stream_name: object = None) -> Iterator[None]:
        category, attributes = None, {}
        if stream_name is not None:
            name = arguments.text("stream_name", stream_name)
            category = names.category(name)
            attributes = {spans.CATEGORY: category, spans.STREAM: name}
        with spans.span(self._tracer, "write", "send", category, trace.SpanKind.PRODUCER, attributes):
            yield

    def describe_message(self, stream_name: str, id: str, message_type: str) -> None:
        trace.get_current_span().set_attributes({spans.ID: id, spans.TYPE: message_type})

    def describe_batch(self, types: Mapping[str, Sequence[str]]) -> None:
        attributes: dict[str, Any] = {"messaging.batch.message_count": sum(map(len, types.values()))}
        span = trace.get_current_span()
        categories = {names.category(name) for name in types}
        if len(categories) == 1:
            (attributes[spans.CATEGORY],) = categories
            span.update_name(f"write {attributes[spans.CATEGORY]}")
        if len(types) == 1:
            (attributes[spans.STREAM],) = types
        span.set_attributes(attributes)

    def with_context(self, metadata: list[Any]) -> list[Any]:
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            return metadata
        context: dict[str, str] = {}
        propagate.inject(context)
        with_context = []
        for own in metadata:
            if own is None:
                with_context.append(context)
            elif (other := trace.get_current_span(spans.context_in(own)).get_span_context()).is_valid:
                span.add_link(other)
                with_context.append(own)
            else:
                with_context.append({**context, **own})
        return with_context
