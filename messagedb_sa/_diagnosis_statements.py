"""The SQL of ``install.diagnose``: what the catalog and the statistics show to every role, and what a privilege shows.

No name is looked up as ``regclass``: PostgreSQL refuses that to a role without the right to use the schema.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Double,
    Executable,
    Integer,
    ScalarSelect,
    String,
    Text,
    TextualSelect,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    extract,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    table,
    text,
)

from messagedb_sa._drivers.catalog import (
    activity,
    classes,
    functions,
    indexes,
    locks,
    namespaces,
    prepared_transactions,
    sequences,
    settings,
    this_database,
    triggers,
)
from messagedb_sa.schema import SCHEMA, VERSION_TABLE, messages

SEQUENCE = "messages_global_position_seq"
TRIGGER = "messages_notify"
NOTIFY_FUNCTION = "notify_category"

REVISION_OBJECTS = {
    "messagedb_0002": "function write_messages",
    "messagedb_0003": f"function {NOTIFY_FUNCTION}",
    "messagedb_0004": "table consumer_positions",
    "messagedb_0005": "function get_query_messages",
}
"""An object that each revision after the first adds: a role that may not read the version table sees these."""

INDEXES = {
    "messages_pkey": "CREATE UNIQUE INDEX messages_pkey ON message_store.messages USING btree (global_position)",
    "messages_id": "CREATE UNIQUE INDEX messages_id ON message_store.messages USING btree (id)",
    "messages_stream": (
        'CREATE UNIQUE INDEX messages_stream ON message_store.messages USING btree (stream_name, "position")'
    ),
    "messages_category": (
        "CREATE INDEX messages_category ON message_store.messages USING btree "
        "(message_store.category((stream_name)::character varying), global_position, "
        "message_store.category(((metadata ->> 'correlationStreamName'::text))::character varying))"
    ),
    "messages_recorded": (
        "CREATE INDEX messages_recorded ON message_store.messages USING btree "
        "(message_store.hash_64(message_store.category((stream_name)::character varying)), stream_name, "
        "\"position\") WHERE ((type = 'Recorded'::text) AND "
        "((message_store.category((stream_name)::character varying))::text ~ ':(.*[+])?position$'::text))"
    ),
}
"""The definition of each index that a store at head has, as PostgreSQL prints it."""


def _text(value: str) -> ColumnElement[str]:
    return literal_column("'" + value.replace("'", "''") + "'")


_in_schema = classes.c.relnamespace == namespaces.c.oid, namespaces.c.nspname == _text(SCHEMA)


def _relation(name: str) -> ScalarSelect[int]:
    return select(classes.c.oid).where(*_in_schema, classes.c.relname == _text(name)).scalar_subquery()


def _function(name: str) -> Any:
    its_schema = functions.c.pronamespace == namespaces.c.oid, namespaces.c.nspname == _text(SCHEMA)
    return select(literal_column("1")).where(*its_schema, functions.c.proname == _text(name)).exists()


def _setting(name: str) -> ColumnElement[str]:
    return func.current_setting(_text(name), literal_column("true"), type_=String())


def _exists(kind_and_name: str) -> ColumnElement[bool]:
    kind, _, name = kind_and_name.partition(" ")
    return _function(name) if kind == "function" else _relation(name).is_not(None)


_messages = _relation(messages.name)

SERVER = select(
    cast(_setting("server_version_num"), Integer).label("version_number"),
    _setting("server_version").label("version"),
    _setting("server_encoding").label("encoding"),
    func.pg_is_in_recovery().label("is_standby"),
    literal_column("current_user").label("role"),
    literal_column("session_user").label("login"),
    func.current_database().label("database"),
    func.pg_backend_pid().label("process"),
    (_text(SCHEMA) == func.any(func.current_schemas(false()))).label("is_in_search_path"),
    func.pg_notification_queue_usage().label("queue_usage"),
    _setting("message_store.sql_condition").label("sql_condition"),
    _messages.is_not(None).label("has_messages"),
    _function("message_store_version").label("has_version"),
)
"""One row about the server, the session, and whether there is a store."""

STORE = select(
    *(_exists(each).label(revision) for revision, each in REVISION_OBJECTS.items()),
    exists(literal_column("1"))
    .where(namespaces.c.nspname == bindparam("version_schema"), classes.c.relnamespace == namespaces.c.oid)
    .where(classes.c.relname == _text(VERSION_TABLE))
    .label("has_version_table"),
    func.coalesce(
        select(
            and_(
                func.has_schema_privilege(namespaces.c.oid, _text("USAGE")),
                func.has_table_privilege(classes.c.oid, _text("SELECT")),
            )
        )
        .where(namespaces.c.nspname == bindparam("version_schema"), classes.c.relnamespace == namespaces.c.oid)
        .where(classes.c.relname == _text(VERSION_TABLE))
        .scalar_subquery(),
        false(),
    ).label("may_read_version"),
)
"""Which objects there are, and what the role sees of the version table."""


def version_in(schema: str) -> Executable:
    return select(column("version_num", String)).select_from(table(VERSION_TABLE, schema=schema))


SETTINGS = select(settings.c.name, func.current_setting(settings.c.name), settings.c.setting, settings.c.source).where(
    settings.c.name == func.any(bindparam("names", type_=ARRAY(Text())))
)
"""Of each setting: its value as people write it, as a number in its unit, and where it was set."""


def _may(check: str, name: str, privilege: str) -> ColumnElement[bool]:
    return func.coalesce(getattr(func, f"has_{check}_privilege")(_relation(name), _text(privilege)), false())


_schema_oid = select(namespaces.c.oid).where(namespaces.c.nspname == _text(SCHEMA)).scalar_subquery()
_refused_function = (
    exists(literal_column("1"))
    .where(functions.c.pronamespace == _schema_oid)
    .where(not_(func.has_function_privilege(functions.c.oid, _text("EXECUTE"))))
)
_positions = "consumer_positions"

READ_PRIVILEGES = {
    "USAGE on the schema": func.coalesce(func.has_schema_privilege(_schema_oid, _text("USAGE")), false()),
    "SELECT on messages": _may("table", "messages", "SELECT"),
    f"SELECT on {SEQUENCE}": _may("sequence", SEQUENCE, "SELECT"),
    "EXECUTE on its functions": not_(_refused_function),
}
WRITE_PRIVILEGES = {
    "INSERT on messages": _may("table", "messages", "INSERT"),
    f"USAGE on {SEQUENCE}": _may("sequence", SEQUENCE, "USAGE"),
}
CONSUME_PRIVILEGES = {
    f"{each} on {_positions}": or_(_relation(_positions).is_(None), _may("table", _positions, each))
    for each in ("SELECT", "INSERT", "UPDATE")
}
PRIVILEGES = select(
    *READ_PRIVILEGES.values(),
    *WRITE_PRIVILEGES.values(),
    *CONSUME_PRIVILEGES.values(),
    _relation(_positions).is_not(None),
)
"""Whether the role has each of them, in this order; then whether there is the table that the last ones are about."""

_index_classes = classes.alias("index_classes")
ALL_INDEXES = (
    select(
        _index_classes.c.relname,
        func.pg_get_indexdef(indexes.c.indexrelid),
        indexes.c.indisvalid,
        indexes.c.indisready,
    )
    .select_from(indexes)
    .join(_index_classes, _index_classes.c.oid == indexes.c.indexrelid)
    .where(or_(indexes.c.indrelid == _messages, indexes.c.indrelid == _relation(_positions)))
    .order_by(_index_classes.c.relname)
)
"""Each index of the store's tables: its name, its definition, whether it is valid, and whether writes maintain it."""

SEQUENCE_OPTIONS = select(sequences.c.seqcache, sequences.c.seqincrement).where(
    sequences.c.seqrelid == _relation(SEQUENCE)
)
SEQUENCE_NEXT: TextualSelect = text(
    "SELECT last_value + CASE WHEN is_called THEN 1 ELSE 0 END, "
    "(SELECT max(global_position) FROM message_store.messages) FROM message_store.messages_global_position_seq"
).columns(column("next", Integer), column("last", Integer))
"""The next number, and the last message's. A sequence is not part of the snapshot, so that it is never behind."""

_its_schema = namespaces.alias("its_schema")
NOTIFICATION_TRIGGER = (
    select(
        triggers.c.tgenabled,
        and_(_its_schema.c.nspname == _text(SCHEMA), functions.c.proname == _text(NOTIFY_FUNCTION)),
        functions.c.prosrc,
    )
    .select_from(triggers)
    .join(functions, functions.c.oid == triggers.c.tgfoid)
    .join(_its_schema, _its_schema.c.oid == functions.c.pronamespace)
    .where(triggers.c.tgrelid == _messages, triggers.c.tgname == _text(TRIGGER))
)
"""Whether it is enabled, whether it calls our function, and the body of the function that it calls."""

TABLE = select(
    classes.c.reltuples,
    func.pg_relation_size(classes.c.oid),
    func.coalesce(_text("autovacuum_enabled=false") == func.any(classes.c.reloptions), false()),
).where(classes.c.oid == _messages)
"""PostgreSQL's estimate of the rows, -1 if there is none; the size in bytes; and whether autovacuum is off."""

_writes = exists(literal_column("1")).where(
    locks.c.pid == activity.c.pid,
    locks.c.locktype == _text("relation"),
    locks.c.database == this_database,
    locks.c.relation == _messages,
    locks.c.mode == _text("RowExclusiveLock"),
    locks.c.granted,
)
_seconds = extract("epoch", func.clock_timestamp() - activity.c.xact_start)
TRANSACTIONS = (
    select(
        activity.c.pid,
        activity.c.application_name,
        activity.c.state,
        func.left(activity.c.query, literal_column("200")).label("query"),
        cast(_seconds, Double).label("seconds"),
        case((_messages.is_not(None), _writes), else_=false()).label("writes"),
    )
    .where(activity.c.datname == func.current_database(), activity.c.pid != func.pg_backend_pid())
    .where(or_(_writes, activity.c.backend_xmin.is_not(None), activity.c.xact_start.is_not(None)))
    # Not autovacuum, nor a replica.
    .where(func.coalesce(activity.c.backend_type, _text("client backend")) == _text("client backend"))
    .order_by(activity.c.xact_start, activity.c.pid)
)
"""The other sessions that are in a transaction. What they do, and since when, is NULL if the role may not see it."""

PREPARED = (
    select(
        prepared_transactions.c.gid,
        cast(extract("epoch", func.clock_timestamp() - prepared_transactions.c.prepared), Double),
    )
    .where(prepared_transactions.c.database == func.current_database())
    .order_by(prepared_transactions.c.prepared)
)
