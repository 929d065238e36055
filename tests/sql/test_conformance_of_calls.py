"""The same calls get the same answers from our install and from the official Message DB 1.3.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine

from messagedb_sa import install
from messagedb_sa.schema import VERSION_TABLE

from ..migrations.support import install_as_upstream_does
from ..support import examples
from .official import NO_PATH, OFFICIAL_PATH, answer, answers, empty_database
from .support import HELPERS, VIEWS

FIRST_MESSAGES = """
    INSERT INTO message_store.messages (id, stream_name, position, type, data, metadata)
    SELECT md5(n::text)::uuid, (ARRAY['a-1', 'a-2', 'a-1+2', 'b-1'])[mod(n, 4) + 1], n / 4,
        (ARRAY['T', 'U'])[mod(n / 4, 2) + 1], jsonb_build_object('n', n),
        jsonb_build_object('correlationStreamName', (ARRAY['a', 'b-1', NULL])[mod(n, 3) + 1])
    FROM generate_series(0, 23) AS n ORDER BY n
"""


streams = st.sampled_from(["a-1", "a-2", "a-1+2", "b-1"])


categories = st.sampled_from(["a", "b"])


names = st.sampled_from(
    [
        *("a-1-2", "a-", "a-+", "a-+1", "a", "b", "-", "--", "-a", "", " ", "+", ":", "A-1", "a:c", "a:c-1", "a+b-1"),
        *("a:x+y-1+2", "a%", "a%s-1", "a_-%", "a'-'1", 'a"-"1', "a\\-\\1", "a-\n1", "a\n-1", "é-ü", "e\u0301-1"),
        *("漢-字+字", "𝄞-👩‍👩‍👧", "a-$1", "a-{b}", "x" * 300 + "-1", "a-" + "y" * 300, None),
    ]
) | st.text("ab-+:%_'\"\\é漢\n\t $", max_size=6)


# Of what is given several times more is drawn.
any_stream = streams | streams | streams | streams | names


any_category = categories | categories | categories | categories | names


few = st.sampled_from([None, 0, 1, 2, 3])


integers = st.sampled_from([None, -(2**63), -2, -1, 0, 1, 2, 3, 5, 1000, 32767, 32768, 2**62, 2**63 - 1])


odd_ids = st.sampled_from(
    [
        *("cfcd2084-95d5-65ef-66e7-dff9f98764da", "CFCD208495D565EF66E7DFF9F98764DA"),  # the first message's
        *("00000000-0000-0000-0000-000000000000", "no-uuid", "", "1", None),
        *("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
    ]
)


types = st.sampled_from(["T", "T", "T", "U", "U", "", "É%'", None])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('a"\\é𝄞\n\0', max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["n", "é", ""]), inner, max_size=2),
    max_leaves=3,
)


data = st.sampled_from(
    ['{"n": 1}', '{"n": "1"}', "{}", "[1, 2.50, 1e3]", "null", '"x"', '{"n": 1, "n": 2}', " [ ] ", "{", "", None]
) | json_values.map(json.dumps)


correlations = st.sampled_from(["a", "a-1", "b", "b-1", "", "-", "a:c-1", 7, ["a"], None])


metadata = correlations.map(lambda name: json.dumps({"correlationStreamName": name})) | data


good_conditions = st.sampled_from(
    [
        *("true", "type = 'T'", "messages.type = 'U'", "position > 0", "global_position % 2 = 0", "data->>'n' = '1'"),
        *("data @> '{\"n\": 1}'", "metadata IS NULL", "stream_name LIKE 'a%'", "stream_name LIKE '%s'", "time IS NULL"),
        *("message_store.category(stream_name) = 'a'", "EXISTS (SELECT FROM message_store.messages)", "$1 IS NULL"),
        *("true OR true", "false OR true", "type = 'T' OR type = 'U'", "/* */ true", "true --\n"),
        *("true) --", "NULL", "data IS NULL OR type = 'T'", "stream_name = $1 OR true"),
    ]
)


bad_conditions = st.sampled_from(
    [
        *("true --", "true) LIMIT 1 --", "true; SELECT 1", "", " ", ")", "(", "true)", "bad(", "1", "type", "nonsense"),
        *("nonsense()", "1 / 0 = 1", "id = 'no-uuid'", "$9", "count(*) > 0", "%", "%s", "%1$s", "\\", "'", "/*", "$$"),
    ]
)


conditions = st.none() | st.none() | good_conditions | good_conditions | bad_conditions


# It leaves the parentheses that it is put in. In a category's read it also gets the messages of other categories, which
# are then in another order here: by category first, as in the index that the read uses.
outside_parentheses = st.just("false) OR (true")


class Call(NamedTuple):
    function: str
    arguments: dict[str, Any]


CASTS = {
    **dict.fromkeys(["position", "batch_size", "expected_version"], "bigint"),
    **dict.fromkeys(["consumer_group_member", "consumer_group_size"], "bigint"),
    **dict.fromkeys(["data", "metadata"], "jsonb"),
}


def calls(
    function: str, required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(function), st.fixed_dictionaries(required, optional=optional))


message = {"stream_name": any_stream, "type": types, "data": data}


writes = calls(
    "write_message",
    {"id": st.uuids().map(str), **message},
    metadata=metadata,
    expected_version=st.none() | st.integers(-2, 8),
)


odd_writes = calls("write_message", {"id": odd_ids, **message}, metadata=data, expected_version=integers)


batches = {"position": few | few | integers, "batch_size": few | few | integers, "condition": conditions}


category_batches = {**batches, "correlation": st.none() | any_category}


groups = {"consumer_group_member": few | few | integers, "consumer_group_size": few | few | integers}


stream_reads = calls(
    "get_stream_messages",
    {"stream_name": any_stream},
    **{**batches, "condition": conditions | outside_parentheses},
)


category_reads = calls("get_category_messages", {"category": any_category}, **category_batches)


consumer_reads = calls("get_category_messages", {"category": categories, **groups}, **category_batches)


last_reads = calls("get_last_stream_message", {"stream_name": any_stream}, type=types)


class Conformance(RuleBasedStateMachine):
    """The same calls, one after the other, on the official store and on others."""

    def __init__(self, official: Connection, *others: Connection) -> None:
        super().__init__()
        self.connections = [official, *others]
        self.on_all("TRUNCATE message_store.messages RESTART IDENTITY")
        self.on_all(FIRST_MESSAGES)
        self.on_all("SET message_store.sql_condition = 'on'")

    def on_all(self, sql: str) -> None:
        for connection in self.connections:
            connection.exec_driver_sql(sql)

    def compare(self, sql: str, values: dict[str, Any] | None = None) -> None:
        theirs, *others = (answer(connection, sql, values) for connection in self.connections)
        for own in others:
            assert own == theirs

    def compare_call(self, call: Call) -> None:
        all_but_time = "id, stream_name, type, position, global_position, data, metadata"
        result = all_but_time if call.function.startswith("get_") else "*"
        given = (f'"{name}" => CAST(%({name})s AS {CASTS.get(name, "varchar")})' for name in call.arguments)
        self.compare(f"SELECT {result} FROM message_store.{call.function}({', '.join(given)})", call.arguments)

    write = rule(call=writes)(compare_call)
    write_more = rule(call=writes)(compare_call)
    write_oddly = rule(call=odd_writes)(compare_call)
    read_stream = rule(call=stream_reads)(compare_call)
    read_category = rule(call=category_reads)(compare_call)
    read_as_consumer = rule(call=consumer_reads)(compare_call)
    read_last = rule(call=last_reads)(compare_call)

    @rule(name=any_stream)
    def ask(self, name: str | None) -> None:
        functions = [*HELPERS, "acquire_lock", "stream_version"]
        asked = ", ".join(f"message_store.{function}(CAST(%(name)s AS varchar))" for function in functions)
        # Sent together they are one transaction, which holds the lock.
        held = "SELECT classid, objid, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
        self.compare(f"SELECT message_store.message_store_version(), {asked}", {"name": name})
        self.compare(f"SELECT {asked}; {held}", {"name": name})

    @rule(view=st.sampled_from([*VIEWS]))
    def look(self, view: str) -> None:
        self.compare(f"SELECT * FROM message_store.{view}")
        self.compare("SELECT to_jsonb(m) - 'time' FROM message_store.messages AS m ORDER BY global_position")
        self.compare("SELECT last_value, is_called FROM message_store.messages_global_position_seq")

    @rule(value=st.sampled_from(["on", "on", "on", "ON", "yes", "off"]))
    def switch_conditions(self, value: str) -> None:
        self.on_all(f"SET message_store.sql_condition = '{value}'")


# Without the phase that explains, a failure is there within half a minute.
PROFILE = settings(stateful_step_count=30, report_multiple_bugs=False, phases=set(Phase) - {Phase.explain})


@contextmanager
def session(engine: Engine, path: str = OFFICIAL_PATH) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.exec_driver_sql(path)
        yield connection


# Thousands of calls: on a busy machine they take longer than a test usually may.
@pytest.mark.timeout(600)
def test_every_call_gets_the_same_answer_whatever_our_search_path_is(
    messagedb_server_url: str, official: Engine, ours: Engine
) -> None:
    with empty_database(messagedb_server_url) as pathless:
        install.upgrade(pathless)
        with session(official) as theirs, session(ours) as own, session(pathless, NO_PATH) as own_without_path:

            class Both(Conformance):
                def __init__(self) -> None:
                    super().__init__(theirs, own, own_without_path)

            run_state_machine_as_test(Both, settings=settings(PROFILE, max_examples=examples(250)))  # type: ignore[no-untyped-call, unused-ignore]


@pytest.mark.timeout(600)
def test_after_an_adoption_every_call_gets_the_same_answer(
    messagedb_server_url: str, official: Engine, official_sql: Path
) -> None:
    with empty_database(messagedb_server_url) as adopted:
        install_as_upstream_does(adopted, official_sql)
        with session(official) as theirs, session(adopted) as own:

            class Adopted(Conformance):
                """A second official store is taken over while it has messages and an open session."""

                def __init__(self) -> None:
                    answers(adopted, "DROP SCHEMA message_store CASCADE", f"DROP TABLE IF EXISTS {VERSION_TABLE}")
                    install_as_upstream_does(adopted, official_sql)
                    super().__init__(theirs, own)

                @initialize(before=st.lists(writes, max_size=20))
                def adopt(self, before: list[Call]) -> None:
                    for call in before:
                        self.compare_call(call)
                    install.upgrade(adopted)
                    self.look("stream_summary")

            run_state_machine_as_test(Adopted, settings=settings(PROFILE, max_examples=examples(40)))  # type: ignore[no-untyped-call, unused-ignore]
