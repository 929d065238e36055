"""The spans of writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import Engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import AppendConditionFailed, AsyncStore, Message, MessageTypes, NewMessage, Query, Store, Tracing

from ..support import numbers
from .support import ID, assert_failed, carried, only, parent


def test_a_write_is_a_span_named_as_the_conventions_say(each_traced: Store, exporter: InMemorySpanExporter) -> None:
    each_traced.write("account:command-1", "Open", {"n": 1}, id=ID)
    span = only(exporter)
    assert (span.name, span.kind, span.status.status_code) == (
        "write account:command",
        SpanKind.PRODUCER,
        StatusCode.UNSET,
    )
    assert dict(span.attributes or {}) == {
        "messaging.system": "message_db",
        "messaging.operation.name": "write",
        "messaging.operation.type": "send",
        "messaging.destination.name": "account:command",
        "messaging.message_db.stream_name": "account:command-1",
        "messaging.message.id": ID,
        "messaging.message_db.message.type": "Open",
    }


def test_a_message_carries_the_context_of_its_writes_span(each_traced: Store, exporter: InMemorySpanExporter) -> None:
    each_traced.write("account-1", "Opened", {}, {"by": "Ada"})
    assert each_traced.read("account-1")[0].metadata == {"by": "Ada", "traceparent": carried(only(exporter))}


def test_a_conditional_write_is_a_span_about_what_it_writes(each_traced: Store, exporter: InMemorySpanExporter) -> None:
    condition = each_traced.read_query([Query("limit"), Query("account")]).condition
    each_traced.write_streams([("account-1", [("Opened", {})]), ("user-1", [], -1)], condition=condition)
    attributes = dict(only(exporter).attributes or {})
    assert attributes["messaging.batch.message_count"] == 1
    assert attributes["messaging.message_db.stream_name"] == "account-1"
    assert each_traced.read("account-1")[0].metadata == {"traceparent": carried(only(exporter))}
    exporter.clear()
    with pytest.raises(AppendConditionFailed):
        each_traced.write_batch("account-1", [("Opened", {})], condition=condition)
    assert_failed(only(exporter), "messagedb_sa.errors.AppendConditionFailed", "a message of type 'Opened' matches")


def test_the_span_is_current_while_its_statement_runs(
    each_traced: Store, exporter: InMemorySpanExporter, tracer: trace.Tracer
) -> None:
    @event.listens_for(each_traced.engine, "before_cursor_execute")
    def statement(*_: Any) -> None:
        tracer.start_span("statement").end()

    each_traced.write("account-1", "Opened", {})
    ours, outer = exporter.get_finished_spans()[-2:]
    assert (ours.name, parent(ours)) == ("statement", carried(outer))


def test_a_batch_is_one_span_whose_context_each_message_carries(
    each_traced: Store, exporter: InMemorySpanExporter
) -> None:
    each_traced.write_batch("account-1", [("Opened", {}), ("Deposited", {}, {"n": 1}), NewMessage("Closed", {})])
    span = only(exporter)
    assert (span.name, span.kind) == ("write account", SpanKind.PRODUCER)
    assert dict(span.attributes or {}) == {
        "messaging.system": "message_db",
        "messaging.operation.name": "write",
        "messaging.operation.type": "send",
        "messaging.destination.name": "account",
        "messaging.message_db.stream_name": "account-1",
        "messaging.batch.message_count": 3,
    }
    ours = carried(span)
    written = [each.metadata for each in each_traced.read("account-1")]
    assert written == [{"traceparent": ours}, {"n": 1, "traceparent": ours}, {"traceparent": ours}]


@pytest.mark.parametrize(
    ("streams", "name", "where"),
    [
        (["account-1"], "write account", {"destination.name": "account", "message_db.stream_name": "account-1"}),
        (["account-1", "account-2"], "write account", {"destination.name": "account"}),
        (["account-1", "mail-1"], "write", {}),
    ],
)
def test_a_write_to_several_streams_is_one_span_with_what_they_have_in_common(
    each_traced: Store, exporter: InMemorySpanExporter, streams: list[str], name: str, where: dict[str, str]
) -> None:
    each_traced.write_streams((stream, [("Opened", {}), ("Closed", {})]) for stream in streams)
    span = only(exporter)
    assert (span.name, span.kind) == (name, SpanKind.PRODUCER)
    assert dict(span.attributes or {}) == {
        "messaging.system": "message_db",
        "messaging.operation.name": "write",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 2 * len(streams),
        **{f"messaging.{key}": value for key, value in where.items()},
    }
    written = [each.metadata for stream in streams for each in each_traced.read(stream)]
    assert written == [{"traceparent": carried(span)}] * 2 * len(streams)


def test_a_write_is_a_child_of_the_current_span(
    each_traced: Store, exporter: InMemorySpanExporter, tracer: trace.Tracer
) -> None:
    with tracer.start_as_current_span("request") as request:
        each_traced.write("account-1", "Opened", {})
        assert trace.get_current_span() is request
    assert parent(exporter.get_finished_spans()[0]) == carried(request)


def test_reads_make_no_spans(each_traced: Store, store: Store, exporter: InMemorySpanExporter) -> None:
    store.write("account-1", "Opened", {})
    assert each_traced.read("$all") == each_traced.read_stream("account-1") == each_traced.read_category("account")
    assert list(each_traced.iter_stream("account-1")) == [each_traced.read_last_message("account-1")]
    assert each_traced.stream_version("account-1") == 0
    assert exporter.get_finished_spans() == ()


def test_a_store_without_tracing_adds_nothing(store: Store, tracer: trace.Tracer) -> None:
    with tracer.start_as_current_span("request"):
        store.write("account-1", "Opened", {})
        store.write_batch("account-1", [("Deposited", {}, {"by": "Ada"})])
    assert [each.metadata for each in store.read("account-1")] == [None, {"by": "Ada"}]


def test_instances_carry_the_context_and_their_version(
    engine: Engine, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    types = MessageTypes()

    @types.register(version=2)
    @dataclass(frozen=True)
    class Opened:
        owner: str

    store = Store(engine, tracing=tracing, types=types)
    store.write("account-1", Opened("Ada"), metadata={"by": "teller"})
    store.write_batch("account-1", [Opened("Ada")])
    one, two = map(carried, exporter.get_finished_spans())
    assert [(each.data, each.metadata) for each in store.read("account-1")] == [
        (Opened("Ada"), {"by": "teller", "schemaVersion": "2", "traceparent": one}),
        (Opened("Ada"), {"schemaVersion": "2", "traceparent": two}),
    ]


@pytest.mark.parametrize("expected_version", [None, 0])
def test_joined_writes_are_traced(
    engine: Engine, tracing: Tracing, store: Store, exporter: InMemorySpanExporter, expected_version: int | None
) -> None:
    store.write("account-1", "Opened", {})
    with engine.begin() as connection:
        Store(connection, tracing=tracing).write("account-1", "One", {}, None, expected_version)
    with Session(engine) as session:
        version = None if expected_version is None else 1
        Store(session, tracing=tracing).write_batch("account-1", [("Two", {})], version)
        session.commit()
    assert [each.metadata for each in store.read("account-1", position=1)] == [
        {"traceparent": carried(span)} for span in exporter.get_finished_spans()
    ]


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
def test_joined_asynchronous_writes_are_traced(
    messagedb_url: str, tracing: Tracing, store: Store, exporter: InMemorySpanExporter, driver: str
) -> None:
    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        async with engine.begin() as connection:
            await AsyncStore(connection, tracing=tracing).write("account-1", "One", {}, expected_version=-1)
        async with AsyncSession(engine) as session:
            await AsyncStore(session, tracing=tracing).write_streams([("account-1", [("Two", {})], 0)])
            await session.commit()
        await engine.dispose()

    asyncio.run(main())
    assert [each.metadata for each in store.read("account-1")] == [
        {"traceparent": carried(span)} for span in exporter.get_finished_spans()
    ]


def test_combined_writes_have_a_span_and_a_context_each(
    engine: Engine, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    combining = Store(engine, combine_writes=True, tracing=tracing)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: combining.write(f"account-{n}", "Opened", {"n": n}), range(40)))
    assert_each_has_its_own(combining.read("account"), exporter.get_finished_spans())


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
def test_combined_writes_of_tasks_have_a_span_and_a_context_each(
    messagedb_url: str, store: Store, tracing: Tracing, exporter: InMemorySpanExporter, driver: str
) -> None:
    async def main() -> None:
        url = make_url(messagedb_url).set(drivername=f"postgresql+{driver}")
        combining = AsyncStore.from_url(url, combine_writes=True, tracing=tracing)
        await asyncio.gather(*(combining.write(f"account-{n}", "Opened", {"n": n}) for n in range(40)))
        await combining.engine.dispose()

    asyncio.run(main())
    assert_each_has_its_own(store.read("account"), exporter.get_finished_spans())


def assert_each_has_its_own(messages: list[Message], spans: Sequence[ReadableSpan]) -> None:
    assert sorted(numbers(messages)) == list(range(40))
    by_message = {(span.attributes or {})["messaging.message.id"]: carried(span) for span in spans}
    assert len(set(by_message.values())) == len(spans) == 40
    assert {each.id: each.metadata["traceparent"] for each in messages} == by_message
