"""Installing over a store of an older Message DB."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from messagedb_sa import install
from messagedb_sa.schema import VERSION_TABLE

from .support import call, everything, positions, rows, run, value


def unknown_to_alembic(connection: Connection) -> None:
    run(connection, f"DROP TABLE {VERSION_TABLE}")


def of_1_2(connection: Connection) -> None:
    unknown_to_alembic(connection)
    run(
        connection,
        "DROP FUNCTION message_store.get_last_stream_message(varchar, varchar)",
        """
        CREATE FUNCTION message_store.get_last_stream_message(stream_name varchar)
        RETURNS SETOF message_store.message LANGUAGE sql AS 'SELECT NULL::message_store.message'
        """,
        """
        CREATE OR REPLACE FUNCTION message_store.message_store_version()
        RETURNS varchar LANGUAGE plpgsql AS $$ BEGIN RETURN '1.2.6'; END $$
        """,
    )


@pytest.mark.parametrize("before", [unknown_to_alembic, of_1_2])
def test_an_older_store_is_updated_and_no_row_is_changed(
    connection: Connection, before: Callable[[Connection], None]
) -> None:
    signatures = """
        SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'message_store'::regnamespace ORDER BY 1
    """
    messages = "SELECT ctid::text, xmin::text, * FROM message_store.messages"
    everything(connection)
    wanted = [rows(connection, sql) for sql in (signatures, messages)]
    before(connection)
    install.upgrade(connection)
    assert [rows(connection, sql) for sql in (signatures, messages)] == wanted
    assert value(connection, "message_store_version") == "1.3.0"
    assert positions(call(connection, "get_last_stream_message", stream_name="account-1", type="T")) == [0]
