"""The spans of handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy.util import await_only, greenlet_spawn

from messagedb_sa import Store, Tracing

from .support import ID, OTHERS, assert_failed, carried, linked, message, only, parent


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


class Name(str, Enum):
    CATEGORY = "account"
    STREAM = "account-1"
    TYPE = "Opened"


def test_names_of_an_enumeration_are_their_values(
    traced: Store, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    traced.write(Name.STREAM, Name.TYPE, {})
    traced.write_batch(Name.STREAM, [(Name.TYPE, {})])
    with tracing.handling(message(), category=Name.CATEGORY, identifier=Name.TYPE):
        pass
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["write account", "write account", "process account"]
    texts = [value for span in spans for value in (span.attributes or {}).values() if isinstance(value, str)]
    assert {"account", "account-1", "Opened"} <= set(texts)
    assert {type(each) for each in texts} == {str}


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


def test_an_exception_of_the_handler_is_recorded_and_raised(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
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


def test_coroutines_that_run_at_the_same_time_have_their_own_spans(
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
