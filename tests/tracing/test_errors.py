"""Failed writes in spans, and arguments that are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine

from messagedb_sa import AsyncStore, InvalidArgument, Store, Tracing, WrongExpectedVersion

from .support import assert_failed, only


def test_a_write_that_is_refused_is_a_span_with_the_error(each_traced: Store, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(WrongExpectedVersion):
        each_traced.write("account-1", "Opened", {}, expected_version=7)
    assert_failed(only(exporter), "messagedb_sa.errors.WrongExpectedVersion", "stream 'account-1' is at version -1")


def test_each_refused_combined_write_is_a_span_with_the_error(
    engine: Engine, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    combining = Store(engine, combine_writes=True, tracing=tracing)

    def write(number: int) -> None:
        with pytest.raises(WrongExpectedVersion):
            combining.write(f"account-{number}", "Opened", {}, expected_version=7)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    assert len(exporter.get_finished_spans()) == 8
    for span in exporter.get_finished_spans():
        assert_failed(span, "messagedb_sa.errors.WrongExpectedVersion", "is at version -1, expected 7")


def test_a_write_with_an_invalid_argument_is_a_span_with_the_error(
    traced: Store, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(InvalidArgument):
        traced.write_batch("account-1", [("Opened", {}), ("Closed", object())])
    assert_failed(only(exporter), "messagedb_sa.errors.InvalidArgument", "messages[1].data")


@pytest.mark.parametrize("stream_name", [7, "", "a-\0", "a-\ud800"])
def test_an_invalid_stream_name_makes_no_span(traced: Store, exporter: InMemorySpanExporter, stream_name: Any) -> None:
    with pytest.raises(InvalidArgument, match="stream_name"):
        traced.write(stream_name, "Opened", {})
    with pytest.raises(InvalidArgument, match="stream_name"):
        traced.write_batch(stream_name, [("Opened", {})])
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("no_tracing", [True, "on", trace.NoOpTracerProvider(), Tracing])
def test_tracing_must_be_a_tracing(engine: Engine, no_tracing: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be a Tracing"):
        Store(engine, tracing=no_tracing)
    with pytest.raises(InvalidArgument, match="must be a Tracing"):
        AsyncStore.from_url("postgresql://", tracing=no_tracing)


def test_the_provider_must_be_a_tracer_provider(tracer: trace.Tracer) -> None:
    for wrong in (tracer, TracerProvider, "global"):
        with pytest.raises(InvalidArgument, match="must be a TracerProvider"):
            Tracing(wrong)  # type: ignore[arg-type]
