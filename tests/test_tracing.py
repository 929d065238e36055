"""Tracing: spans of writes and of handlers, and the context that messages carry from one to the other."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from messagedb_sa import (
    AsyncStore,
    InvalidArgument,
    Message,
    MessageTypes,
    NewMessage,
    Store,
    Tracing,
    WrongExpectedVersion,
)

from .conftest import DRIVERS, numbers, store_on

ID = "7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11"
OTHERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


# ---- writing


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
def test_a_write_to_several_streams_is_one_span_and_says_what_they_have_in_common(
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


def test_instances_carry_the_context_beside_their_version(
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
def test_joined_writes_are_traced_when_awaited(
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


# ---- what goes into the metadata


def test_the_callers_metadata_is_not_modified(traced: Store) -> None:
    alone: dict[str, Any] = {}
    in_a_batch = {"by": "Ada"}
    traced.write("account-1", "Opened", {}, alone)
    traced.write_batch("account-1", [("Opened", {}, in_a_batch)])
    assert (alone, in_a_batch) == ({}, {"by": "Ada"})


@pytest.mark.parametrize("metadata", [[1], "text", 7, True])
def test_metadata_that_is_no_object_is_left_as_it_is(traced: Store, metadata: Any) -> None:
    traced.write("account-1", "Opened", {}, metadata)
    traced.write_batch("account-1", [("Opened", {}, metadata)])
    assert [each.metadata for each in traced.read("account-1")] == [metadata] * 2


def test_tracestate_and_baggage_are_carried_too(traced: Store, exporter: InMemorySpanExporter) -> None:
    with under(baggage.set_baggage("tenant", "blue", of_a_caller(TraceState([("vendor", "x")])))):
        traced.write("account-1", "Opened", {})
    (written,) = traced.read("account-1")
    assert written.metadata == {
        "traceparent": carried(only(exporter)),
        "tracestate": "vendor=x",
        "baggage": "tenant=blue",
    }


def test_a_key_that_the_caller_set_is_left_alone(traced: Store, exporter: InMemorySpanExporter) -> None:
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


def test_the_global_propagator_says_what_is_carried(
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


def of_a_caller(state: TraceState | None = None) -> context.Context:
    remote = SpanContext(int(OTHERS.split("-")[1], 16), int(OTHERS.split("-")[2], 16), True, TraceFlags(1), state)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))


@contextmanager
def under(current: context.Context) -> Iterator[None]:
    token = context.attach(current)
    yield
    context.detach(token)


# ---- errors


def test_a_write_that_is_refused_is_a_span_with_the_error(each_traced: Store, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(WrongExpectedVersion):
        each_traced.write("account-1", "Opened", {}, expected_version=7)
    assert_failed(only(exporter), "messagedb_sa.errors.WrongExpectedVersion", "stream 'account-1' is at version -1")


def test_so_is_each_combined_write_that_is_refused(
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


def test_so_is_a_write_with_an_argument_that_no_store_takes(traced: Store, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidArgument):
        traced.write_batch("account-1", [("Opened", {}), ("Closed", object())])
    assert_failed(only(exporter), "messagedb_sa.errors.InvalidArgument", "messages[1].data")


@pytest.mark.parametrize("stream_name", [7, "", "a-\0", "a-\ud800"])
def test_a_stream_name_that_is_none_is_an_invalid_argument_and_no_span(
    traced: Store, exporter: InMemorySpanExporter, stream_name: Any
) -> None:
    with pytest.raises(InvalidArgument, match="stream_name"):
        traced.write(stream_name, "Opened", {})
    with pytest.raises(InvalidArgument, match="stream_name"):
        traced.write_batch(stream_name, [("Opened", {})])
    assert exporter.get_finished_spans() == ()


def assert_failed(span: ReadableSpan, error_type: str, text: str) -> None:
    assert span.status.status_code is StatusCode.ERROR
    assert text in (span.status.description or "")
    assert (span.attributes or {})["error.type"] == error_type
    (recorded,) = span.events
    assert recorded.name == "exception"
    assert (recorded.attributes or {})["exception.type"] == error_type


@pytest.mark.parametrize("no_tracing", [True, "on", trace.NoOpTracerProvider(), Tracing])
def test_what_is_no_tracing_is_refused(engine: Engine, no_tracing: Any) -> None:
    with pytest.raises(InvalidArgument, match="is no Tracing"):
        Store(engine, tracing=no_tracing)
    with pytest.raises(InvalidArgument, match="is no Tracing"):
        AsyncStore.from_url("postgresql://", tracing=no_tracing)


def test_what_is_no_tracer_provider_is_refused(tracer: trace.Tracer) -> None:
    for wrong in (tracer, TracerProvider, "global"):
        with pytest.raises(InvalidArgument, match="is no TracerProvider"):
            Tracing(wrong)  # type: ignore[arg-type]


# ---- handling


def test_handling_is_a_span_named_as_the_conventions_say(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.handling(message(), category="account", identifier="mailer", group_member=0):
        pass
    span = only(exporter)
    assert (span.name, span.kind, span.status.status_code) == ("process account", SpanKind.CONSUMER, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "messaging.system": "message_db",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "account",
        "messaging.consumer.group.name": "mailer",
        "messaging.message_db.consumer_group.member": 0,
        "messaging.message_db.stream_name": "account-1",
        "messaging.message.id": ID,
        "messaging.message_db.message.type": "Opened",
        "messaging.message_db.message.position": 7,
        "messaging.message_db.message.global_position": 42,
    }


def test_a_consumer_without_identifier_and_group_has_no_such_attributes(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.handling(message(), category="account"):
        pass
    assert not [name for name in only(exporter).attributes or {} if "consumer" in name]


def test_one_trace_leads_from_the_writer_through_the_handler_to_what_it_writes(
    each_traced: Store, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    each_traced.write_batch("account-1", [("Opened", {}), ("Deposited", {})])
    for each in each_traced.read("account"):
        with tracing.handling(each, category="account"):
            each_traced.write(f"mail-{each.position}", "Sent", {})
    batch, sent_0, process_0, sent_1, process_1 = exporter.get_finished_spans()
    for process, sent in ((process_0, sent_0), (process_1, sent_1)):
        assert (parent(process), linked(process)) == (carried(batch), [carried(batch)])
        assert parent(sent) == carried(process)
    assert each_traced.read("mail-1")[0].metadata == {"traceparent": carried(sent_1)}


def test_within_another_span_handling_is_its_child_and_links_to_the_writers(
    tracing: Tracing, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    with tracer.start_as_current_span("job") as job:
        with tracing.handling(message({"traceparent": OTHERS, "baggage": "tenant=blue"}), category="account"):
            assert baggage.get_baggage("tenant") == "blue"
        assert trace.get_current_span() is job
    process, _ = exporter.get_finished_spans()
    assert (parent(process), linked(process)) == (carried(job), [OTHERS])


def test_the_writers_baggage_is_current_in_the_handler_only(tracing: Tracing) -> None:
    with tracing.handling(message({"baggage": "tenant=blue"}), category="account"):
        assert baggage.get_baggage("tenant") == "blue"
    assert baggage.get_baggage("tenant") is None
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        [OTHERS],
        "text",
        7,
        {"traceparent": "garbage"},
        {"traceparent": 7, "tracestate": 8, "baggage": 9},
        {"traceparent": [1], "tracestate": {"a": 1}, "baggage": [None]},
        {"traceparent": [], "tracestate": True, "baggage": {}},
    ],
)
def test_a_message_without_a_context_starts_a_trace(
    tracing: Tracing, exporter: InMemorySpanExporter, metadata: Any
) -> None:
    with tracing.handling(message(metadata), category="account"):
        pass
    assert (parent(only(exporter)), linked(only(exporter))) == (None, [])


def test_an_exception_of_the_handler_is_recorded_and_passes(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="no such account"), tracing.handling(message(), category="account"):
        raise ValueError("no such account")
    assert_failed(only(exporter), "ValueError", "no such account")
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_handler_that_is_cancelled_has_not_failed(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    async def main() -> None:
        with tracing.handling(message(), category="account"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert only(exporter).status.status_code is StatusCode.UNSET


def test_coroutines_that_are_handled_at_the_same_time_are_kept_apart(
    tracing: Tracing, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    async def handle(number: int, meeting: Callable[[], Any]) -> None:
        with tracing.handling(message(), category=f"c{number}"):
            await meeting()
            tracer.start_span(f"within {number}").end()

    async def main() -> None:
        there, all_there = set(), asyncio.Event()

        async def meeting() -> None:
            there.add(asyncio.current_task())
            if len(there) == 3:
                all_there.set()
            await all_there.wait()

        await asyncio.gather(*(handle(number, meeting) for number in range(3)))

    asyncio.run(main())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    for number in range(3):
        assert parent(spans[f"within {number}"]) == carried(spans[f"process c{number}"])


def test_a_coroutine_awaited_from_sqlalchemys_greenlet_sees_the_span(
    tracing: Tracing, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    async def handler(number: int) -> None:
        await asyncio.sleep(0)
        tracer.start_span(f"handler {number}").end()

    def consume() -> None:
        for number in range(2):
            with tracing.handling(message({"traceparent": OTHERS}), category="account"):
                await_only(handler(number))
                tracer.start_span(f"after {number}").end()
            assert trace.get_current_span() is trace.INVALID_SPAN

    async def main() -> None:
        await greenlet_spawn(consume)
        assert trace.get_current_span() is trace.INVALID_SPAN

    asyncio.run(main())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    first, second = (span for span in exporter.get_finished_spans() if span.name == "process account")
    assert parent(spans["handler 0"]) == parent(spans["after 0"]) == carried(first)
    assert parent(spans["handler 1"]) == parent(spans["after 1"]) == carried(second)
    assert parent(first) == parent(second) == OTHERS


# ---- the global provider, and no OpenTelemetry at all


def test_without_a_provider_the_global_one_is_used_though_it_be_set_later() -> None:
    run("""
        from datetime import datetime
        from messagedb_sa import Message, Tracing
        tracing = Tracing()
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        message = Message("", "a-1", "T", 0, 1, None, None, datetime.now())
        with tracing.handling(message, category="a"):
            span = trace.get_current_span()
        assert span.name == "process a", span
        assert span.instrumentation_scope.name == "messagedb_sa"
        assert span.instrumentation_scope.version
    """)


def test_opentelemetry_is_not_imported_where_nothing_is_traced() -> None:
    run("""
        import sys
        import messagedb_sa
        messagedb_sa.Store.from_url("postgresql://"), messagedb_sa.AsyncStore
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """)


def test_everything_but_tracing_works_without_opentelemetry(messagedb_url: str, store: Store) -> None:
    run(
        """
        import importlib, pkgutil, sys

        class Refusing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "opentelemetry":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Refusing())
        import messagedb_sa

        for module in pkgutil.iter_modules(messagedb_sa.__path__):
            if module.name not in ("migrations", "_postgres_keeper"):
                importlib.import_module(f"messagedb_sa.{module.name}")
        for name in messagedb_sa.__all__:
            getattr(messagedb_sa, name)
        store = messagedb_sa.Store.from_url(sys.argv[1])
        store.write("account-1", "Opened", {})
        store.write_batch("account-1", [("Opened", {})])
        store.write_streams([("account-1", [("Opened", {})])])
        assert [each.metadata for each in store.read("account-1")] == [None] * 3
        store.engine.dispose()
        try:
            messagedb_sa.Tracing()
        except messagedb_sa.MessageDBError as error:
            assert 'pip install "messagedb-sa[opentelemetry]"' in str(error)
        else:
            raise AssertionError("no error")
        """,
        messagedb_url,
    )


def run(program: str, *arguments: str) -> None:
    lines = program.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    code = "\n".join(line[indent:] for line in lines)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
