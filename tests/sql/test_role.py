"""The role message_store: what it may do, and what it may not."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from .support import EVERYTHING, VIEWS, column, everything, refusal, rows, run


def test_the_role_can_log_in_and_has_no_password_and_no_power(connection: Connection) -> None:
    sql = """
        SELECT rolcanlogin, rolpassword, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
        FROM pg_authid WHERE rolname = 'message_store'
    """
    assert rows(connection, sql) == [(True, None, False, False, False, False, False)]


def test_the_role_owns_nothing(connection: Connection) -> None:
    sql = "SELECT * FROM pg_shdepend WHERE refobjid = 'message_store'::regrole AND deptype = 'o'"
    assert rows(connection, sql) == []


def test_the_role_is_granted_exactly_this(connection: Connection) -> None:
    sql = """
        SELECT name, string_agg(privilege_type || repeat('*', is_grantable::int), ',' ORDER BY privilege_type) FROM (
          SELECT 'schema ' || nspname AS name, nspacl AS acl FROM pg_namespace
          UNION ALL SELECT 'relation ' || oid::regclass::text, relacl FROM pg_class
          UNION ALL SELECT 'column ' || attrelid::regclass::text || '.' || attname, attacl FROM pg_attribute
          UNION ALL SELECT 'function ' || oid::regproc::text, proacl FROM pg_proc
          UNION ALL SELECT 'type ' || oid::regtype::text, typacl FROM pg_type
          UNION ALL SELECT 'database ' || datname, datacl FROM pg_database WHERE datname = current_database()
          UNION ALL SELECT 'default ' || defaclobjtype::text, defaclacl FROM pg_default_acl
        ) AS objects, aclexplode(acl) WHERE grantee = 'message_store'::regrole GROUP BY 1
    """
    # To fire a trigger, a role does not need the right to call its function.
    functions = """
        SELECT oid::regproc::text FROM pg_proc
        WHERE pronamespace = 'message_store'::regnamespace AND prorettype <> 'trigger'::regtype
    """
    assert dict(rows(connection, sql)) == {
        "schema message_store": "USAGE",
        "relation message_store.messages": "INSERT,SELECT",
        "relation message_store.consumer_positions": "INSERT,SELECT,UPDATE",
        "relation message_store.messages_global_position_seq": "SELECT,USAGE",
        **{f"relation message_store.{view}": "SELECT" for view in VIEWS},
        **{f"function {name}": "EXECUTE" for name in column(connection, functions)},
    }


def test_the_role_is_not_a_member_of_another_role(connection: Connection) -> None:
    assert rows(connection, "SELECT * FROM pg_auth_members WHERE member = 'message_store'::regrole") == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE message_store.messages SET type = 'U'",
        "DELETE FROM message_store.messages",
        "TRUNCATE message_store.messages",
        "DELETE FROM message_store.consumer_positions",
        "SELECT setval('message_store.messages_global_position_seq', 1)",
        "ALTER TABLE message_store.messages ADD COLUMN more text",
        "CREATE TABLE message_store.more (n int)",
        "DROP VIEW message_store.type_summary",
        "DROP FUNCTION message_store.message_store_version()",
    ],
)
def test_the_role_cannot_change_what_was_written_nor_the_store(as_message_store: Connection, statement: str) -> None:
    assert refusal(as_message_store, run, statement)[0] == "42501"


def test_the_role_message_store_can_call_everything(as_message_store: Connection) -> None:
    assert everything(as_message_store) == EVERYTHING
