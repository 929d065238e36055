"""What a page asks of a large store: few statements, each by an index, and no more rows than it looks at."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Store, install, schema
from messagedb_sa.testing import temporary_database
from messagedb_sa.viewer import viewer

from ..sql.test_plans import plans
from .support import browser, get

# 40 streams in each of two categories, 500 messages in each. Those of account cause those of order.
FILL = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT CASE n % 2 WHEN 0 THEN 'account-' ELSE 'order-' END || (n / 2) % 40, n / 80,
        CASE n % 1000 WHEN 8 THEN 'Closed' ELSE 'Opened' END, '{}',
        jsonb_build_object('correlationStreamName', 'transfer-' || n / 10) || CASE n % 2 WHEN 0 THEN '{}' ELSE
            jsonb_build_object('causationMessageStreamName', 'account-' || (n / 2) % 40,
                'causationMessagePosition', n / 80) END
    FROM generate_series(0, 39999) AS n
"""
# Of 5,000 parked messages, each hundredth is open.
PARKED = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT 'account:dead-mailer', n, 'Opened', '{}', jsonb_build_object(
        'causationMessageStreamName', 'account-0', 'causationMessagePosition', 0, 'causationMessageGlobalPosition', 1,
        'dead', jsonb_build_object('id', gen_random_uuid(), 'error', 'ValueError', 'time', '2026-01-01T00:00:00'))
    FROM generate_series(0, 4999) AS n
"""
RESOLVED = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT 'account:dead+outcome-' || id, 0, 'Handled', '{}', '{"dead": {}}'
    FROM message_store.messages WHERE stream_name = 'account:dead-mailer' AND position % 100 <> 0
"""
# The most rows that a scan reads for a page of 50: one more, to know whether there is a next page.
PAGE = 51
LOOKED_AT = 10_001
PAGES = {
    "overview": ("/", "messages_pkey", LOOKED_AT, 2),
    "all": ("/all", "messages_pkey", PAGE, 1),
    "all, oldest first": ("/all?order=oldest", "messages_pkey", PAGE, 1),
    "all, from the middle": ("/all?position=20000", "messages_pkey", PAGE, 1),
    "all, back": ("/all?position=20000&back=1", "messages_pkey", PAGE, 1),
    "all, of a type": ("/all?type=Closed", "messages_pkey", LOOKED_AT, 1),
    "all, by metadata": ("/all?metadata=correlationStreamName%3Dtransfer-3900", "messages_pkey", LOOKED_AT, 1),
    "a category": ("/category?name=account", "messages_category", PAGE, 1),
    "a category, oldest first": ("/category?name=account&order=oldest", "messages_category", PAGE, 1),
    "a category, from the middle": ("/category?name=account&position=20000", "messages_category", PAGE, 1),
    "a category, of a type": ("/category?name=account&type=Closed", "messages_category", LOOKED_AT, 1),
    "no category": ("/category?name=nothing", "messages_category", 0, 1),
    "a stream": ("/stream?name=account-7", "messages_stream", PAGE, 1),
    "a stream, oldest first": ("/stream?name=account-7&order=oldest&position=100", "messages_stream", PAGE, 1),
    "a stream, of a type": ("/stream?name=account-4&type=Closed", "messages_stream", 500, 1),
    "streams written lately": ("/streams?category=account", "messages_category", 1000, 1),
    "a message with its cause": ("/message?global_position=20002", "messages_pkey", 2, 3),
    "a message with its effect": ("/message?stream=account-7&position=100", "messages_stream", 2, 2),
    "a message by its position": ("/message?stream=order-7&position=100", "messages_stream", 2, 3),
    "parked messages": ("/parked", "messages_category", 1000, 4),
    "parked messages of a category": ("/parked?category=account", "messages_category", 1000, 2),
    "a correlation": ("/correlation?name=transfer-1000", "messages_correlation", 10, 1),
    "search": ("/search?q=nothing-here", "messages_stream", 0, 2),
}


@pytest.fixture(scope="module")
def large(messagedb_server_url: str) -> Iterator[str]:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text(FILL))
            connection.execute(text(PARKED))
            connection.execute(text(RESOLVED))
            for index in (schema.correlation_index(), schema.causation_index()):
                connection.execute(CreateIndex(index))
            connection.execute(text("ANALYZE message_store.messages"))
        yield url


@pytest.mark.parametrize("page", PAGES)
def test_a_page_reads_by_its_index_what_it_looks_at_and_no_more(
    large: str, page: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, by, most, statements = PAGES[page]
    found = plans(large, lambda store: get(browser(viewer(store)), path), caplog)
    assert 1 <= len(found) <= statements
    assert any(by in plan for plan in found)
    for plan in found:
        assert "Seq Scan on messages" not in plan
        for rows, loops in re.findall(
            r"(?:Index|Bitmap)[^\n]* on messages[^\n]*\(actual rows=([\d.]+) loops=(\d+)\)", plan
        ):
            assert float(rows) * int(loops) <= most, plan
        plan = re.sub(r"Scan[^\n]* on pg_index .*?Rows Removed by Filter: \d+", "", plan, flags=re.DOTALL)
        for removed in re.findall(r"Rows Removed by (?:Filter|Index Recheck|Join Filter): (\d+)", plan):
            assert int(removed) <= most, plan


def test_no_page_counts_the_table(large: str) -> None:
    engine: Engine = create_engine(large, poolclass=NullPool)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    with browser(viewer(Store(engine))) as client:
        for path, *_ in PAGES.values():
            statements.clear()
            get(client, path)
            ours = [each for each in statements if "message_store.messages" in each]
            assert 1 <= len(ours) <= 3, path
            assert not any("count(*)" in each and "LIMIT" not in each for each in ours), path
