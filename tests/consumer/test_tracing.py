"""The spans of a consumer."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import Connection, text

from messagedb_sa import Consumer, HandlerFailed, Message, Store, Tracing

from ..support import DRIVERS, consumer_on, store_on
from .support import write


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("transactional", [False, True])
def test_a_handler_belongs_to_the_trace_of_the_writer(
    store: Store, messagedb_url: str, driver: str, transactional: bool
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    with store_on(driver, messagedb_url, tracing=tracing) as traced:
        traced.write("account-1", "Even", {"n": 0})

        def handle(message: Message, *_: Any) -> None:
            with provider.get_tracer("test").start_as_current_span("handler"):
                pass

        consumer_on(traced, "account", handle, "mailer", transactional=transactional).run_until_caught_up()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"write account", "handler", "process account"}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["handler"].parent == spans["process account"].context


def test_a_failed_commit_is_an_error_of_the_span(store: Store) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("INSERT INTO once VALUES (1), (1)"))

    traced = Store(store.engine, tracing=Tracing(provider))
    with pytest.raises(HandlerFailed):
        Consumer(traced, "account", handle, "mailer", transactional=True).run_until_caught_up()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("process account", StatusCode.ERROR)
