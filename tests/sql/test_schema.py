"""The metadata: what it says of the store is what the migrations made."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, Table, func, insert, literal, select, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import MessageDBError, Store, schema


def test_alembic_finds_no_difference_between_the_metadata_and_the_database(store: Store) -> None:
    described = MetaData()
    messages = schema.messages.to_metadata(described)
    schema.consumer_positions.to_metadata(described)
    # Alembic cannot compare expressions; the next test does.
    of_expressions = ("messages_category", "messages_recorded")
    messages.indexes = {index for index in messages.indexes if index.name not in of_expressions}

    def ours(name: str | None, type_: str, parents: Any) -> bool:
        return name == "message_store" if type_ == "schema" else name not in ("alembic", *of_expressions)

    with store.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_schemas": True, "include_name": ours, "compare_server_default": True}
        )
        assert compare_metadata(context, described) == []


def test_the_indexes_are_those_of_the_database(store: Store) -> None:
    with store.engine.connect() as connection:
        definitions = text("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'messages'")
        made = {row.indexname: row.indexdef for row in connection.execute(definitions)}
        assert made.pop("messages_pkey")
        connection.execute(text("DROP INDEX " + ", ".join(f"message_store.{name}" for name in made)))
        for index in schema.messages.indexes:
            connection.execute(CreateIndex(index))
        described = {row.indexname: row.indexdef for row in connection.execute(definitions)}
        assert described.pop("messages_pkey")
        assert described == made
        connection.rollback()


@pytest.mark.parametrize("view", [each for each in schema.metadata.tables.values() if each.info.get("is_view")])
def test_the_views_have_the_columns_of_the_metadata(store: Store, view: Table) -> None:
    with store.engine.connect() as connection:
        reflected = Table(view.name, MetaData(), schema="message_store", autoload_with=connection)
    assert [column.name for column in reflected.c] == [column.name for column in view.c]
    for described, found in zip(view.c, reflected.c, strict=True):
        assert described.type.python_type is found.type.python_type


def test_views_are_for_reports(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {}), ("Deposited", {})])
    store.write("order-1", "Opened", {})
    with store.engine.connect() as connection:

        def rows(view: Table) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(select(view))]

        third, two_thirds = Decimal("33.33"), Decimal("66.67")
        assert rows(schema.type_summary) == [("Deposited", 1, third), ("Opened", 2, two_thirds)]
        assert rows(schema.stream_summary) == [("account-1", 2, two_thirds), ("order-1", 1, third)]
        assert rows(schema.category_type_summary) == [
            ("account", "Deposited", 1, third),
            ("account", "Opened", 1, third),
            ("order", "Opened", 1, third),
        ]
        assert rows(schema.type_category_summary)[1:] == [
            ("Opened", "account", 1, third),
            ("Opened", "order", 1, third),
        ]
        assert rows(schema.stream_type_summary)[0] == ("account-1", "Deposited", 1, third)
        assert rows(schema.type_stream_summary)[0] == ("Deposited", "account-1", 1, third)


def test_messages_can_be_queried_like_any_table(store: Store) -> None:
    # The server's clock is ours, to a second.
    zone, second = timezone(timedelta(hours=5)), timedelta(seconds=1)
    before = datetime.now(zone) - second
    id = uuid4()
    store.write("account-1", "Opened", {"name": "Ada"}, id=id)
    after = datetime.now(zone) + second
    messages = schema.messages
    with store.engine.connect() as connection:
        row = connection.execute(
            select(messages).where(messages.c.time > before, messages.c.data["name"].astext == "Ada")
        ).one()
        assert (row.id, row.data, row.metadata, row.global_position) == (id, {"name": "Ada"}, None, 1)
        assert row.time.tzinfo is timezone.utc
        later = select(func.count()).where(messages.c.time > after)
        assert connection.scalar(later) == 0


def test_none_in_a_json_column_is_null(store: Store) -> None:
    with store.engine.connect() as connection:
        row = connection.execute(
            insert(schema.messages)
            .values(stream_name="account-1", position=0, type="T", data=None, time=datetime(2026, 1, 1))
            .returning(schema.messages.c.data.is_(None), schema.messages.c.time)
        ).one()
        assert tuple(row) == (True, datetime(2026, 1, 1, tzinfo=timezone.utc))
        connection.rollback()


def test_json_text_travels_both_ways(store: Store) -> None:
    with store.engine.connect() as connection:
        for value in ({"a": [1, None]}, None, "x"):
            assert connection.scalar(select(literal(value, schema.JSONText))) == value


def test_the_metadata_makes_and_drops_nothing(store: Store) -> None:
    for call in (schema.metadata.create_all, schema.metadata.drop_all):
        with pytest.raises(MessageDBError, match=r"install\.upgrade"):
            call(store.engine)
    assert store.version() == "1.3.0"
