"""OpenTelemetry spans about messages, and the trace context that messages carry in their metadata.

Names and attributes are those of OpenTelemetry's semantic conventions for messaging spans. The category is the
destination, like a topic in Kafka: there are too many streams to name spans after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from messagedb_sa._error_texts import text_of
from messagedb_sa.errors import MessageDBError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

try:
    from opentelemetry import propagate, trace
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

SYSTEM = "messaging.system", "message_db"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
CATEGORY = "messaging.destination.name"
STREAM = "messaging.message_db.stream_name"
ID = "messaging.message.id"
TYPE = "messaging.message_db.message.type"
CONSUMER = "messaging.consumer.group.name"
MEMBER = "messaging.message_db.consumer_group.member"
ERROR = "error.type"


def check_installed(what: str = "tracing needs") -> None:
    if _missing is not None:
        raise MessageDBError(f'{what} the OpenTelemetry API: pip install "messagedb-sa[opentelemetry]"') from _missing


@contextmanager
def span(
    tracer: trace.Tracer,
    operation: str,
    operation_type: str,
    category: str | None,
    kind: trace.SpanKind,
    attributes: dict[str, Any],
    links: list[Link] | None = None,
) -> Iterator[None]:
    attributes = {
        SYSTEM[0]: SYSTEM[1],
        OPERATION: operation,
        OPERATION_TYPE: operation_type,
        **attributes,
    }
    name = operation if category is None else f"{operation} {category}"
    # Not recorded by OpenTelemetry, which would raise what the error's own __str__ raises.
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, links=links, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            _record(current, error)
            raise


def _record(current: trace.Span, error: Exception) -> None:
    name, described = full_name(type(error)), text_of(error)
    current.set_attribute(ERROR, name)
    try:
        current.record_exception(error)
    except Exception:  # noqa: BLE001 - the error's own
        current.add_event("exception", {"exception.type": name, "exception.message": described})
    current.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {described}"))


def context_in(metadata: Any) -> Context:
    """The current context with the metadata's span and baggage. The span is an invalid one if the metadata has none.

    Any client may have written the metadata: a propagator expects text, and fails on other values.
    """
    texts = {}
    if isinstance(metadata, dict):
        texts = {key: value for key, value in metadata.items() if isinstance(key, str) and isinstance(value, str)}
    return propagate.extract(texts, trace.set_span_in_context(trace.INVALID_SPAN))


def full_name(cls: type) -> str:
    """The name that OpenTelemetry gives to exceptions that it records."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
