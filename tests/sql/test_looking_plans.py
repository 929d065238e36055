"""How PostgreSQL finds what a look into a store asks for, in a table of more pages than are sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import NullPool, create_engine, text

from messagedb_sa import Store, install
from messagedb_sa.testing import temporary_database

from .test_plans import plans

# 40,000 streams of accounts with one message, 40 of orders with 1,000, and five messages that no sample has to meet.
FILL = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata, id)
    SELECT CASE n % 2 WHEN 0 THEN 'account-' || n ELSE 'order-' || n % 80 END, CASE n % 2 WHEN 0 THEN 0 ELSE n / 80 END,
        'Opened', jsonb_build_object('text', repeat('x', 200)), jsonb_build_object('tenant', n / 2 % 100),
        lpad(n::text, 32, '0')::uuid
    FROM generate_series(0, 79999) AS n
    UNION ALL SELECT 'rare-' || n, 0, 'Opened', NULL, NULL, gen_random_uuid() FROM generate_series(1, 5) AS n
"""


@pytest.fixture(scope="module", params=["analyzed", "not analyzed"])
def filled(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[str]:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE message_store.messages SET (autovacuum_enabled = off)"))
            connection.execute(text(FILL))
            if request.param == "analyzed":
                connection.execute(text("ANALYZE message_store.messages"))
        yield url


def test_the_table_has_more_pages_than_are_sampled(filled: str) -> None:
    with create_engine(filled, poolclass=NullPool).connect() as connection:
        pages = connection.scalar(text("SELECT pg_relation_size('message_store.messages') / 8192"))
    assert pages > 3_000


def test_large_categories_are_estimated_and_small_ones_counted(filled: str, caplog: pytest.LogCaptureFixture) -> None:
    found: list[Any] = []
    *_, plan = plans(filled, lambda store: found.extend(store.categories()), caplog)
    assert [(each.name, each.is_estimate) for each in found] == [("account", True), ("order", True), ("rare", False)]
    # The sample is the same each time. Were it another, it would be off by a few percent.
    assert all(0.7 * 40_000 < each.messages < 1.4 * 40_000 for each in found[:2])
    assert found[2].messages == 5
    assert "Sample Scan on messages" in plan
    assert "Seq Scan" not in plan
    rows = re.search(r"Sample Scan on messages.* rows=(\d+)\S* loops=1\)", plan)
    assert rows is not None
    assert int(rows[1]) < 40_000
    store = Store(create_engine(filled, poolclass=NullPool))
    assert store.categories() == found
    assert [each.messages for each in store.categories(exact=True)] == [40_000, 40_000, 5]


# The reads, the number of names that they look up, and of messages.
STREAMS: dict[str, tuple[int, Callable[[Store], Any]]] = {
    "of many messages": (40, lambda store: [*store.iter_streams("order")]),
    "of a page": (7, lambda store: next(store.iter_streams("account", batch_size=7))),
    "after one": (7, lambda store: next(store.iter_streams("account", batch_size=7, after="account-5"))),
    "the last ones": (39, lambda store: [*store.iter_streams("order", after="order-1")]),
}


@pytest.mark.parametrize("read", STREAMS)
def test_streams_are_looked_up_one_by_one(filled: str, read: str, caplog: pytest.LogCaptureFixture) -> None:
    number, call = STREAMS[read]
    (plan,) = plans(filled, call, caplog)
    looked_up = re.search(r"Recursive Union.* rows=(\d+)\S* loops=1\)", plan)
    assert looked_up is not None
    assert int(looked_up[1]) == number
    assert "Index Scan Backward using messages_stream" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan


LATEST: dict[str, tuple[str, Callable[[Store], Any]]] = {
    "streams of the store": ("messages_pkey", lambda store: store.recent_streams(no_of_messages=500)),
    "streams of a category": ("messages_category", lambda store: store.recent_streams("order", no_of_messages=500)),
    "activity of the store": ("messages_pkey", lambda store: store.activity(no_of_messages=500)),
    "activity of a category": ("messages_category", lambda store: store.activity("order", no_of_messages=500)),
}


@pytest.mark.parametrize("read", LATEST)
def test_the_latest_messages_are_read_by_an_index_and_no_more(
    filled: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    index, call = LATEST[read]
    (plan,) = plans(filled, call, caplog)
    assert re.search(rf"Index Scan Backward using {index} on messages.* rows=500\S* loops=1\)", plan)
    assert "Rows Removed" not in plan
    assert "Seq Scan" not in plan


OF_MANY: dict[str, Callable[[Store], Any]] = {
    "activity": lambda store: store.activity("order"),
    "streams": lambda store: store.recent_streams("order", no_of_messages=10_000),
    "messages backwards": lambda store: store.read("order", no_of_messages=10_000, backwards=True),
    "messages by metadata": lambda store: store.read_metadata({"tenant": 7}, "order", 1, 10_000),
}


@pytest.mark.parametrize("read", OF_MANY)
def test_nothing_is_sorted_for_more_messages_than_the_statistics_know(
    filled: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL expects some hundreds in the category, before the table is analyzed."""
    (plan,) = plans(filled, OF_MANY[read], caplog)
    assert re.search(r"Index Scan \w*\s?using messages_category on messages", plan)
    assert "Sort" not in plan
    assert "Seq Scan" not in plan


BY_METADATA: dict[str, tuple[str, Callable[[Store], Any]]] = {
    "all": ("Scan using messages_pkey", lambda store: store.read_metadata({"tenant": 7}, None, 1, 10)),
    "all backwards": (
        "Scan Backward using messages_pkey",
        lambda store: store.read_metadata({"tenant": 7}, no_of_messages=10, backwards=True),
    ),
    "a category": ("Scan using messages_category", lambda store: store.read_metadata({"tenant": 7}, "order", 1, 10)),
    "a category backwards": (
        "Scan Backward using messages_category",
        lambda store: store.read_metadata({"tenant": 7}, "order", no_of_messages=10, backwards=True),
    ),
    "a page of what is nowhere": (
        "Scan using messages_pkey",
        lambda store: next(store.iter_metadata({"tenant": 700}), None),
    ),
}


@pytest.mark.parametrize("read", BY_METADATA)
def test_messages_by_metadata_are_read_in_order_until_enough_are_found(
    filled: str, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    by, call = BY_METADATA[read]
    (plan,) = plans(filled, call, caplog)
    assert f"Index {by}" in plan
    assert "Sort" not in plan
    passed = re.search(r"Rows Removed by Filter: (\d+)", plan)
    assert passed is not None
    assert int(passed[1]) <= (80_005 if "nowhere" in read else 2_000)


def test_a_message_is_found_by_the_index_of_ids(filled: str, caplog: pytest.LogCaptureFixture) -> None:
    (plan,) = plans(filled, lambda store: store.read_message(UUID("0" * 27 + "12345")), caplog)
    assert re.search(r"Index Scan using messages_id on messages.* rows=1\S* loops=1\)", plan)
