"""Taking over a Message DB that its own scripts installed, with messages in it.

The scripts come from npm (@eventide/message-db) into pytest's cache; without npm these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Store, install, schema

from .support import RELEASES, catalog, install_as_upstream_does


@pytest.fixture(params=RELEASES)
def upstream(request: pytest.FixtureRequest, releases: Path) -> Path:
    """The folder of a release's SQL files."""
    return releases / str(request.param) / "database"


def table(engine: Engine) -> list[tuple[Any, ...]]:
    """Every row with its location on disk and the transaction that wrote it, and the files of what upstream made."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT ctid::text, xmin::text, id, stream_name, type, position, global_position, data::text,"
                " metadata::text, time FROM message_store.messages ORDER BY global_position"
            )
        )
        files = connection.execute(
            text(
                "SELECT relname, pg_relation_filenode(oid) FROM pg_class"
                " WHERE relnamespace = 'message_store'::regnamespace AND relkind IN ('r', 'i', 'S')"
                " AND relname NOT IN ('consumer_positions', 'consumer_positions_pkey', 'messages_recorded') ORDER BY 1"
            )
        )
        return [*map(tuple, rows), *map(tuple, files)]


def test_no_row_is_moved_and_everything_works(upstream: Path, empty_database: Engine) -> None:
    install_as_upstream_does(empty_database, upstream)
    with empty_database.begin() as connection:
        connection.execute(text("SET LOCAL search_path = message_store, public"))
        for n in range(300):
            connection.execute(
                text(
                    "SELECT write_message(gen_random_uuid()::varchar, :stream, 'Deposited', CAST(:data AS jsonb),"
                    " CAST(:metadata AS jsonb))"
                ),
                {
                    "stream": f"account-{n % 7}",
                    "data": f'{{"n": {n}, "amount": 1.50}}',
                    "metadata": None if n % 2 else '{"correlationStreamName": "order-1"}',
                },
            )
    before = table(empty_database)
    assert len(before) > 300

    install.upgrade(empty_database)

    assert table(empty_database) == before
    store = Store(empty_database)
    assert store.version() == "1.3.0"
    assert [message.data["n"] for message in store.read("account")] == list(range(300))
    assert len(store.read_category("account", correlation="order")) == 150
    assert len(store.read_category("account", consumer_group_member=0, consumer_group_size=1)) == 300
    last = store.read_last_message("account-0", "Deposited")
    assert last is not None
    assert store.write("account-0", "Deposited", {"n": 300}, expected_version=last.position) == last.position + 1
    assert store.read("$all")[-1].global_position == 301


def test_writers_and_readers_go_on_while_it_is_taken_over(upstream: Path, empty_database: Engine) -> None:
    """The index was made before, as the manual says: the upgrade would block writers while it makes it."""
    install_as_upstream_does(empty_database, upstream)
    with empty_database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        (index,) = (each for each in schema.messages.indexes if each.name == "messages_recorded")
        made = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        connection.exec_driver_sql(made.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY"))
    options = "-c lock_timeout=60000 -c search_path=message_store"
    others = create_engine(empty_database.url, poolclass=NullPool, connect_args={"options": options})
    with empty_database.connect() as upgrading:
        install.upgrade(upgrading)
        with others.begin() as connection:
            written = "SELECT write_message(gen_random_uuid()::varchar, 'account-1', 'Opened', '{}')"
            assert connection.scalar(text(written)) == 0
            assert len(connection.execute(text("SELECT * FROM get_stream_messages('account-1')")).all()) == 1
        upgrading.commit()
    assert Store(empty_database).stream_version("account-1") == 0


def test_the_catalog_is_that_of_a_new_install(upstream: Path, empty_database: Engine, new_install: Engine) -> None:
    install_as_upstream_does(empty_database, upstream)
    install.upgrade(empty_database)

    def without_column_order(engine: Engine) -> list[Any]:
        # 1.1 had the columns of the table in another order.
        return [tuple(value for value in row if type(value) is not int) for row in catalog(engine)]

    assert without_column_order(empty_database) == without_column_order(new_install)


def test_what_the_old_clients_call_still_works(upstream: Path, empty_database: Engine) -> None:
    install_as_upstream_does(empty_database, upstream)
    install.upgrade(empty_database)
    with empty_database.connect() as connection:
        connection.execute(text("SET search_path = message_store, public"))
        connection.execute(text("SELECT write_message(gen_random_uuid()::varchar, 'account-1', 'Opened', '{}')"))
        for call in (
            "get_last_stream_message('account-1')",
            "get_stream_messages('account-1', 0, 10)",
            "get_category_messages('account', 1, 10, NULL, 0, 1)",
        ):
            assert len(connection.execute(text(f"SELECT * FROM {call}")).all()) == 1


def test_it_can_be_downgraded_like_any_other(upstream: Path, empty_database: Engine) -> None:
    install_as_upstream_does(empty_database, upstream)
    install.upgrade(empty_database)
    install.downgrade(empty_database)
    with empty_database.connect() as connection:
        assert connection.scalar(text("SELECT to_regnamespace('message_store')")) is None
