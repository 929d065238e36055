"""The tables of pg_catalog that we query."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    Boolean,
    DateTime,
    Double,
    Integer,
    ScalarSelect,
    Text,
    column,
    func,
    select,
    table,
)

locks = table(
    "pg_locks",
    column("locktype", Text),
    column("database", Integer),
    column("relation", Integer),
    column("classid", Integer),
    column("objid", Integer),
    column("objsubid", Integer),
    column("transactionid", Integer),
    column("virtualtransaction", Text),
    column("pid", Integer),
    column("mode", Text),
    column("granted", Boolean),
    schema="pg_catalog",
)
activity = table(
    "pg_stat_activity",
    column("datname", Text),
    column("pid", Integer),
    column("usename", Text),
    column("application_name", Text),
    column("xact_start", DateTime),
    column("state", Text),
    column("query", Text),
    column("backend_xmin", Text),
    column("backend_type", Text),
    schema="pg_catalog",
)
prepared_transactions = table(
    "pg_prepared_xacts",
    column("transaction", Integer),
    column("gid", Text),
    column("prepared", DateTime),
    column("owner", Text),
    column("database", Text),
    schema="pg_catalog",
)
databases = table("pg_database", column("oid", Integer), column("datname", Text), schema="pg_catalog")
classes = table(
    "pg_class",
    column("oid", Integer),
    column("relname", Text),
    column("relnamespace", Integer),
    column("relkind", Text),
    column("reltuples", Double),
    column("reloptions", ARRAY(Text)),
    schema="pg_catalog",
)
functions = table(
    "pg_proc",
    column("oid", Integer),
    column("proname", Text),
    column("pronamespace", Integer),
    column("prosrc", Text),
    schema="pg_catalog",
)
indexes = table(
    "pg_index",
    column("indexrelid", Integer),
    column("indrelid", Integer),
    column("indisvalid", Boolean),
    column("indisready", Boolean),
    schema="pg_catalog",
)
namespaces = table("pg_namespace", column("oid", Integer), column("nspname", Text), schema="pg_catalog")
sequences = table(
    "pg_sequence",
    column("seqrelid", Integer),
    column("seqcache", Integer),
    column("seqincrement", Integer),
    schema="pg_catalog",
)
settings = table(
    "pg_settings",
    column("name", Text),
    column("setting", Text),
    column("reset_val", Text),
    column("source", Text),
    schema="pg_catalog",
)
triggers = table(
    "pg_trigger",
    column("tgrelid", Integer),
    column("tgname", Text),
    column("tgenabled", Text),
    column("tgfoid", Integer),
    schema="pg_catalog",
)

this_database: ScalarSelect[int] = (
    select(databases.c.oid).where(databases.c.datname == func.current_database()).scalar_subquery()
)
"""The oid of the database that the connection is to."""
