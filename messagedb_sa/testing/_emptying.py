"""Emptying a store and an application's own tables between tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData, Table

# TRUNCATE makes new files for each table and index, which takes about 4 ms a table. So only tables that may have rows,
# or whose sequences were used, are emptied. Tables that do not exist, and views, are left out.
_USED = """
    SELECT CAST(CAST(c.oid AS regclass) AS text)
    FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) AS of(schema, name)
    JOIN pg_catalog.pg_class AS c ON c.oid = to_regclass(concat_ws('.', quote_ident(schema), quote_ident(name)))
    WHERE c.relkind = 'p' OR c.relkind = 'r' AND (
        pg_relation_size(c.oid) > 0 OR EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = d.objid
            WHERE d.refobjid = c.oid AND d.classid = CAST('pg_class' AS regclass) AND d.deptype IN ('a', 'i')
                AND pg_sequence_last_value(s.seqrelid) IS NOT NULL
        )
    )
"""


def empty(engine: Engine, tables: MetaData | Iterable[Table]) -> None:
    """Remove all messages and all rows of these tables, and of those that refer to them. Sequences begin anew.

    Raises OperationalError if another transaction has used one of them for five seconds.
    """
    from sqlalchemy import text

    from messagedb_sa import schema

    found = [*_tables(schema.metadata), *_tables(tables)]
    parameters = {"schemas": [table.schema for table in found], "names": [table.name for table in found]}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        used = connection.scalars(text(_USED), parameters)
        truncate = f"TRUNCATE {', '.join(['message_store.messages', *used])} RESTART IDENTITY CASCADE"
        # The driver takes a single % for a parameter.
        connection.exec_driver_sql(truncate.replace("%", "%%"))


def _tables(tables: Any) -> list[Table]:
    from sqlalchemy import MetaData, Table

    if tables is None:
        return []
    each_table = tables.tables.values() if isinstance(tables, MetaData) else tables
    try:
        found = [getattr(each, "__table__", each) for each in each_table]
    except TypeError:
        found = [None]
    if not all(isinstance(each, Table) for each in found):
        raise TypeError(f"messagedb_tables must return a MetaData or a list of Tables, got {tables!r}")
    return found
