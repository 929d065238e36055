"""Fixtures of the tests of tracing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, create_engine

from messagedb_sa import Store, Tracing

from ..support import DRIVERS, store_on


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def tracer(provider: TracerProvider) -> trace.Tracer:
    """The application's own."""
    return provider.get_tracer("application")


@pytest.fixture
def tracing(provider: TracerProvider) -> Tracing:
    return Tracing(provider)


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def traced(engine: Engine, tracing: Tracing) -> Store:
    return Store(engine, tracing=tracing)


@pytest.fixture(params=DRIVERS)
def each_traced(request: pytest.FixtureRequest, messagedb_url: str, store: Store, tracing: Tracing) -> Iterator[Store]:
    """An empty store, traced, once on each driver."""
    with store_on(request.param, messagedb_url, tracing=tracing) as traced:
        yield traced
