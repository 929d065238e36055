"""Entities on stores of other kinds: older ones, other roles, drivers that convert values, with tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, text

from messagedb_sa import NO_STREAM, NewMessage, Store, Tracing, WrongExpectedVersion, install

from ..store.support import usable
from ..store.test_typecasters import CASES, converting
from ..support import as_role
from ..tracing.support import carried
from .support import account as an_account
from .support import add, deposit, plus, total


def three(state: int) -> list[NewMessage]:
    return [NewMessage("Added", {"n": 1}), NewMessage("Added", {"n": 2}, {"by": "Ada"}), NewMessage("Added", {"n": 3})]


def test_a_store_without_our_functions_does_the_same(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0001")
    store = Store(empty_database)
    assert store.decide(total(snapshot_every=2), "1", three) == (6, 2)
    assert [each.metadata for each in store.read("total-1")] == [None, {"by": "Ada"}, None]
    assert store.load(total(snapshot_every=2), "1") == (6, 2)

    def lose(state: int) -> tuple[str, dict[str, int]]:
        store.write("total-1", "Added", {"n": 10})
        return "Added", {"n": 1}

    with pytest.raises(WrongExpectedVersion) as error:
        store.decide(total(), "1", lose)
    assert (error.value.expected_version, error.value.actual_version) == (2, 3)
    with empty_database.begin() as connection:
        with pytest.raises(WrongExpectedVersion) as error:
            Store(connection).decide(total(), "1", lose)
        assert (error.value.expected_version, error.value.actual_version) == (3, 4)
        assert usable(connection)
        assert Store(connection).decide(total(), "1", three) == (32, 7)


def test_the_role_message_store_may_do_all_of_it(store: Store) -> None:
    engine = as_role(store.engine, "message_store")
    limited = Store(engine)
    entity = total(snapshot_every=1, cache=1)
    assert limited.decide(entity, "1", plus(1)) == (1, 0)
    assert limited.load(total(snapshot_every=1), "1") == (1, 0)
    with engine.begin() as connection:
        assert Store(connection).decide(entity, "1", plus(1)) == (2, 1)
    assert len(store.read("total:snapshot")) == 2


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize(("name", "convert"), CASES)
def test_what_a_driver_converts_makes_no_difference(
    messagedb_url: str, store: Store, driver: str, name: str, convert: Callable[[str], Any]
) -> None:
    entity = an_account(snapshot_every=2)
    with converting(driver, messagedb_url, name, convert) as converts:
        for n in range(1, 4):
            state, version = converts.decide(entity, "1", deposit(1))
            assert (state.balance, version) == (n, n - 1)
            assert state.seen[-1].startswith(f"{version}@")
        assert converts.load(entity, "1") == store.load(an_account(), "1")


def test_its_writes_are_spans_and_carry_them(store: Store) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced = Store(store.engine, tracing=Tracing(provider))
    traced.decide(total(snapshot_every=1), "1", plus(1), metadata={"by": "Ada"})
    decision, snapshot = exporter.get_finished_spans()
    assert [decision.name, snapshot.name] == ["write total", "write total:snapshot"]
    assert decision.attributes["messaging.batch.message_count"] == 1  # type: ignore[index]
    for span, name in ((decision, "total"), (snapshot, "total:snapshot")):
        (message,) = store.read(name)
        assert message.metadata["traceparent"] == carried(span)
    assert store.read("total")[0].metadata["by"] == "Ada"
    exporter.clear()

    def lose(state: int) -> tuple[str, dict[str, int]]:
        store.write("total-2", "Added", {"n": 10})
        return "Added", {"n": 1}

    with pytest.raises(WrongExpectedVersion):
        traced.decide(total(), "2", lose)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "messagedb_sa.errors.WrongExpectedVersion"  # type: ignore[index]


def test_a_stream_of_a_database_that_was_emptied_begins_anew(store: Store) -> None:
    entity = total(cache=5, snapshot_every=1)
    store.decide(entity, "1", plus(1))
    with store.engine.begin() as connection:
        connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
    assert store.load(entity, "1") == (0, NO_STREAM)
    assert store.decide(entity, "1", plus(2)) == (2, 0)
    assert add(0, store.read("total-1")[0]) == 2
