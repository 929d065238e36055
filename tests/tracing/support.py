"""Spans and their contexts, as the tests compare them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags, TraceState

from messagedb_sa import Message

ID = "7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11"


OTHERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def written_out(span_context: SpanContext) -> str:
    """As W3C's traceparent."""
    return f"00-{span_context.trace_id:032x}-{span_context.span_id:016x}-{span_context.trace_flags:02x}"


def carried(span: ReadableSpan | trace.Span) -> str:
    ours = span.get_span_context()
    assert ours is not None
    return written_out(ours)


def linked(span: ReadableSpan) -> list[str]:
    return [written_out(link.context) for link in span.links]


def parent(span: ReadableSpan) -> str | None:
    return span.parent and written_out(span.parent)


def message(metadata: Any = None) -> Message:
    return Message(ID, "account-1", "Opened", 7, 42, {"n": 1}, metadata, datetime.now(timezone.utc))


def of_a_caller(state: TraceState | None = None) -> context.Context:
    remote = SpanContext(int(OTHERS.split("-")[1], 16), int(OTHERS.split("-")[2], 16), True, TraceFlags(1), state)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))


@contextmanager
def under(current: context.Context) -> Iterator[None]:
    token = context.attach(current)
    yield
    context.detach(token)


def assert_failed(span: ReadableSpan, error_type: str, text: str) -> None:
    assert span.status.status_code is StatusCode.ERROR
    assert text in (span.status.description or "")
    assert (span.attributes or {})["error.type"] == error_type
    (recorded,) = span.events
    assert recorded.name == "exception"
    assert (recorded.attributes or {})["exception.type"] == error_type
