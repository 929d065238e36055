"""Every function works for any role with the rights, whatever its search_path holds."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import Connection

from .support import EVERYTHING, HELPERS, READS, VIEWS, column, everything, read, refusal, run, write

TAKEN = (
    "CREATE TABLE evil.messages (n int)",
    "CREATE TEMP TABLE messages (n int)",
    "CREATE TABLE evil.message (n int)",
    "CREATE SEQUENCE evil.messages_global_position_seq",
    """
    DO $$
    DECLARE
      signature text;
    BEGIN
      FOR signature IN
        SELECT DISTINCT format('%I(%s)', proname, arguments)
        FROM pg_proc, unnest(ARRAY['text', 'varchar']) AS texts,
          LATERAL (SELECT replace(array_to_string(proargtypes::regtype[], ', '), 'text', texts) AS arguments) AS its
        WHERE pronamespace = 'message_store'::regnamespace
          OR pronamespace = 'pg_catalog'::regnamespace AND proname IN (
            'split_part', 'strpos', 'substr', 'left', 'md5', 'mod', 'abs', 'max', 'now', 'gen_random_uuid', 'round',
            'current_setting', 'pg_advisory_xact_lock'
          )
      LOOP
        EXECUTE 'CREATE FUNCTION evil.' || signature
          || ' RETURNS int LANGUAGE plpgsql AS ''BEGIN RAISE EXCEPTION USING MESSAGE = 42; END''';
      END LOOP;
    END
    $$
    """,
)


OPERATORS = """
    DO $$
    DECLARE
      operands text;
    BEGIN
      FOREACH operands IN ARRAY '{{{pairs}}}'::text[] LOOP
        EXECUTE 'CREATE FUNCTION evil.operate(' || operands || ') RETURNS boolean LANGUAGE plpgsql'
          ' AS ''BEGIN RAISE EXCEPTION USING MESSAGE = 42; END''';
        EXECUTE (
          SELECT string_agg(
            format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.operate)',
              operator, split_part(operands, ',', 1), split_part(operands, ',', 2)),
            ';')
          FROM unnest(ARRAY['=', '<>', '>', '>=', '+', '||', '->>']) AS operator
        );
      END LOOP;
    END
    $$
"""


@pytest.mark.parametrize(
    ("hostile", "search_path"),
    [
        pytest.param((), "''", id="nothing"),
        pytest.param((), "message_store, public", id="the store"),
        pytest.param(TAKEN, "evil, message_store, public", id="functions and tables after pg_catalog"),
        pytest.param(TAKEN, "evil, pg_catalog, message_store", id="functions and tables before pg_catalog"),
        pytest.param(
            (OPERATORS.format(pairs='"bigint,bigint","int,int","text,text","jsonb,text"'),),
            "evil, pg_catalog",
            id="operators before pg_catalog",
        ),
        pytest.param(
            (OPERATORS.format(pairs='"text,varchar","varchar,varchar","varchar,text"'),),
            "public, evil",
            id="operators of varchar after pg_catalog",
        ),
        pytest.param(
            ("CREATE DOMAIN evil.text AS int", "CREATE DOMAIN evil.uuid AS int", "CREATE DOMAIN evil.jsonb AS int"),
            "evil, pg_catalog",
            id="types before pg_catalog",
        ),
        pytest.param(("CREATE TEMP TABLE text (n int)",), "public", id="a temporary table text"),
        pytest.param(("CREATE TEMP TABLE uuid (n int)",), "public", id="a temporary table uuid"),
    ],
)
def test_a_role_with_the_rights_can_call_everything_whatever_its_search_path(
    connection: Connection, hostile: tuple[str, ...], search_path: str
) -> None:
    role = f"passer_by_{uuid4().hex}"
    run(
        connection,
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA message_store TO {role}",
        f"GRANT SELECT, INSERT ON message_store.messages TO {role}",
        f"GRANT USAGE ON SEQUENCE message_store.messages_global_position_seq TO {role}",
        *(f"GRANT SELECT ON message_store.{view} TO {role}" for view in VIEWS),
        "CREATE SCHEMA evil",
        f"GRANT USAGE ON SCHEMA evil TO {role}",
        *hostile,
        f"SET LOCAL ROLE {role}",
        f"SET LOCAL search_path = {search_path}",
    )
    assert everything(connection) == EVERYTHING


def test_a_role_without_the_rights_can_neither_read_nor_write(connection: Connection) -> None:
    role = f"passer_by_{uuid4().hex}"
    run(connection, f"CREATE ROLE {role}", f"GRANT USAGE ON SCHEMA message_store TO {role}", f"SET LOCAL ROLE {role}")
    for function in READS:
        assert refusal(connection, read, function) == ("42501", "permission denied for table messages")
    assert refusal(connection, write, "account-1") == ("42501", "permission denied for table messages")


@pytest.mark.parametrize("helper", HELPERS)
def test_an_index_on_a_helper_can_be_made_analyzed_and_made_again_with_an_empty_search_path(
    connection: Connection, helper: str
) -> None:
    for n in range(10):
        write(connection, f"account-{n % 3}+{n}")
    run(
        connection,
        "SET LOCAL search_path = ''",
        f"CREATE INDEX on_helper ON message_store.messages (message_store.{helper}(stream_name))",
        "ANALYZE message_store.messages",
        "REINDEX INDEX message_store.on_helper",
    )
    sql = "SELECT null_frac FROM pg_stats WHERE schemaname = 'message_store' AND tablename = 'on_helper'"
    assert column(connection, sql) == [0]
