"""Our install has the same catalog as the official Message DB 1.3.1, except for what we add."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from .official import NO_PATH, SCHEMA, answers

RELATIONS = f"(SELECT oid FROM pg_class WHERE relnamespace = {SCHEMA})"


CATALOG = {
    # Of the table, the indexes, the sequence, the views and the composite type.
    "columns": f"""
        SELECT attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull,
            attidentity::text, attgenerated::text, attcollation::regcollation::text, attstorage::text, attacl::text,
            pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid IN {RELATIONS} AND attnum > 0 AND NOT attisdropped
    """,
    "relations": f"""
        SELECT relname, relkind::text, relpersistence::text, reloptions::text, reltablespace, relrowsecurity,
            relreplident::text, relowner::regrole::text FROM pg_class WHERE relnamespace = {SCHEMA}
    """,
    "indexes": f"""
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisprimary, indisvalid, indimmediate
        FROM pg_index WHERE indrelid IN {RELATIONS}
    """,
    "constraints": f"""
        SELECT conname, contype::text, pg_get_constraintdef(oid), condeferrable, conindid::regclass::text
        FROM pg_constraint WHERE connamespace = {SCHEMA}
    """,
    "sequences": f"""
        SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmax, seqmin, seqcache,
            seqcycle, refobjid::regclass::text, refobjsubid, deptype::text
        FROM pg_sequence LEFT JOIN pg_depend ON objid = seqrelid AND refobjsubid > 0 WHERE seqrelid IN {RELATIONS}
    """,
    "functions": f"""
        SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid), prokind::text, provolatile::text,
            proisstrict, prosecdef, proleakproof, procost, prorows, proowner::regrole::text
        FROM pg_proc WHERE pronamespace = {SCHEMA}
    """,
    "types": f"SELECT typname, typtype::text, typrelid::regclass::text FROM pg_type WHERE typnamespace = {SCHEMA}",
    "privileges": f"""
        SELECT name, grantee::regrole::text, privilege_type, is_grantable FROM (
            SELECT relname::text, relacl FROM pg_class WHERE relnamespace = {SCHEMA}
            UNION ALL SELECT oid::regprocedure::text, proacl FROM pg_proc WHERE pronamespace = {SCHEMA}
            UNION ALL SELECT typname::text, typacl FROM pg_type WHERE typnamespace = {SCHEMA}
            UNION ALL SELECT nspname::text, nspacl FROM pg_namespace WHERE nspname IN ('message_store', 'public')
            UNION ALL SELECT 'database', datacl FROM pg_database WHERE datname = current_database()
        ) AS granted (name, acl), aclexplode(acl)
    """,
    "extensions": "SELECT extname FROM pg_extension",
    "how many of everything else": """
        SELECT (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_event_trigger),
            (SELECT count(*) FROM pg_policy), (SELECT count(*) FROM pg_default_acl), (SELECT count(*) FROM pg_operator),
            (SELECT count(*) FROM pg_cast), (SELECT count(*) FROM pg_statistic_ext), (SELECT count(*) FROM pg_rewrite),
            (SELECT count(*) FROM pg_description), (SELECT count(*) FROM pg_namespace),
            (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase <> 0)
    """,
}


@pytest.mark.parametrize("part", CATALOG)
def test_the_catalogs_are_equal_except_for_what_we_add(part: str, official: Engine, ours: Engine) -> None:
    theirs, own = (sorted(answers(engine, NO_PATH, CATALOG[part])[-1], key=str) for engine in (official, ours))
    added = ("write_messages", "notify_category", "get_query_messages", "consumer_positions", "messages_recorded")
    assert [row for row in own if not any(name in str(row) for name in added)] == theirs != []
