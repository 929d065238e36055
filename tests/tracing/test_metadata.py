"""What tracing adds to the metadata of messages."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from sqlalchemy import Engine

from messagedb_sa import Store, Tracing

from .support import OTHERS, carried, linked, of_a_caller, only, parent, under


def test_the_callers_metadata_is_not_modified(traced: Store) -> None:
    alone: dict[str, Any] = {}
    in_a_batch = {"by": "Ada"}
    traced.write("account-1", "Opened", {}, alone)
    traced.write_batch("account-1", [("Opened", {}, in_a_batch)])
    assert (alone, in_a_batch) == ({}, {"by": "Ada"})


def test_any_mapping_gets_the_context(traced: Store) -> None:
    metadata = MappingProxyType({"by": "Ada"})
    traced.write("account-1", "Opened", {}, metadata)
    traced.write_batch("account-1", [("Opened", {}, metadata)])
    assert [each.metadata.keys() for each in traced.read("account-1")] == [{"by", "traceparent"}] * 2


def test_tracestate_and_baggage_are_carried_too(traced: Store, exporter: InMemorySpanExporter) -> None:
    with under(baggage.set_baggage("tenant", "blue", of_a_caller(TraceState([("vendor", "x")])))):
        traced.write("account-1", "Opened", {})
    (written,) = traced.read("account-1")
    assert written.metadata == {
        "traceparent": carried(only(exporter)),
        "tracestate": "vendor=x",
        "baggage": "tenant=blue",
    }


def test_a_key_that_the_caller_set_is_left_as_it_is(traced: Store, exporter: InMemorySpanExporter) -> None:
    with under(baggage.set_baggage("tenant", "blue")):
        traced.write("account-1", "Opened", {}, {"baggage": "tenant=red"})
        traced.write("account-1", "Opened", {}, {"traceparent": None})
    first, second = (each.metadata for each in traced.read("account-1"))
    assert first == {"traceparent": carried(exporter.get_finished_spans()[0]), "baggage": "tenant=red"}
    assert second == {"traceparent": None, "baggage": "tenant=blue"}


def test_a_message_with_a_context_of_its_own_keeps_it_and_the_span_links_to_it(
    traced: Store, exporter: InMemorySpanExporter
) -> None:
    with under(baggage.set_baggage("tenant", "blue", of_a_caller(TraceState([("vendor", "x")])))):
        traced.write_batch("account-1", [("Opened", {}, {"traceparent": OTHERS}), ("Opened", {})])
    first, second = (each.metadata for each in traced.read("account-1"))
    assert first == {"traceparent": OTHERS}
    assert second["traceparent"] == carried(only(exporter))
    assert linked(only(exporter)) == [OTHERS]


def test_without_a_valid_span_nothing_is_carried(engine: Engine) -> None:
    store = Store(engine, tracing=Tracing(trace.NoOpTracerProvider()))
    with under(baggage.set_baggage("tenant", "blue")):
        store.write("account-1", "Opened", {})
        store.write_batch("account-1", [("Opened", {}, {"by": "Ada"})])
        store.write_streams([("account-1", [("Opened", {})])])
    assert [each.metadata for each in store.read("account-1")] == [None, {"by": "Ada"}, None]


def test_without_an_sdk_the_context_of_the_caller_is_passed_on(engine: Engine) -> None:
    store = Store(engine, tracing=Tracing(trace.NoOpTracerProvider()))
    with under(of_a_caller()):
        store.write("account-1", "Opened", {})
    assert store.read("account-1")[0].metadata == {"traceparent": OTHERS}


def test_a_span_that_is_not_sampled_carries_its_context(engine: Engine) -> None:
    store = Store(engine, tracing=Tracing(TracerProvider(sampler=ALWAYS_OFF)))
    store.write("account-1", "Opened", {})
    flags = int(store.read("account-1")[0].metadata["traceparent"].rpartition("-")[2], 16)
    assert not flags & TraceFlags.SAMPLED


def test_the_global_propagator_decides_what_is_carried(
    traced: Store, tracing: Tracing, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AsNumbers(TextMapPropagator):
        fields = {"span"}  # noqa: RUF012

        def inject(self, carrier: Any, context: Any = None, setter: Any = default_setter) -> None:
            ours = trace.get_current_span(context).get_span_context()
            setter.set(carrier, "span", f"{ours.trace_id} {ours.span_id} {ours.trace_flags}")

        def extract(self, carrier: Any, context: Any = None, getter: Any = default_getter) -> Any:
            found = getter.get(carrier, "span")
            if found is None:
                return context
            trace_id, span_id, flags = map(int, found[0].split())
            remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
            return trace.set_span_in_context(trace.NonRecordingSpan(remote), context)

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", AsNumbers())
    traced.write("account-1", "Opened", {})
    (written,) = traced.read("account-1")
    assert written.metadata.keys() == {"span"}
    with tracing.handling(written, category="account"):
        pass
    write, process = exporter.get_finished_spans()
    assert parent(process) == carried(write)
