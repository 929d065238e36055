"""The commands that read: categories, streams, types, read, last and find."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from messagedb_sa import Store, follow
from messagedb_sa.cli._app import app

from .support import PROGRAM, environment, messagedb, on_terminal, rows, running

HOSTILE = "\x1b]0;title\x07\x1b[2J [bold red]markup[/] :smile: line\nline\ttab \u202eevil 😀 שלום " + "long" * 300


@pytest.fixture
def url(store: Store, messagedb_url: str) -> str:
    """A store with some messages in it."""
    store.write_batch("account-1", [("Opened", {"n": 0}), ("Deposited", {"n": 1})])
    store.write_batch("account-2", [("Opened", {"n": 2}), ("Deposited", {"n": 3})])
    store.write("note-1", "Noted", {"n": 4})
    return messagedb_url


def ns(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [row["data"]["n"] for row in rows(done)]


# ---- categories, streams, types


def test_categories_streams_and_types_are_listed_for_programs(url: str) -> None:
    found = rows(messagedb("categories", "--json", url=url))
    assert [(each["category"], each["messages"], each["last_global_position"]) for each in found] == [
        ("account", 4, 4),
        ("note", 1, 5),
    ]
    assert rows(messagedb("categories", "--exact", "--json", url=url)) == found
    streams = rows(messagedb("streams", "account", "--json", url=url))
    assert [(each["stream_name"], each["version"]) for each in streams] == [("account-1", 1), ("account-2", 1)]
    assert rows(messagedb("streams", "account", "--after", "account-1", "--json", url=url)) == streams[1:]
    assert rows(messagedb("streams", "account", "-n", "1", "--json", url=url)) == streams[:1]


def test_types_are_counted_in_all_categories_in_one_and_in_the_last_messages(url: str) -> None:
    every = rows(messagedb("types", "--json", url=url))
    assert [tuple(each.values()) for each in every] == [
        ("account", "Deposited", 2),
        ("account", "Opened", 2),
        ("note", "Noted", 1),
    ]
    assert rows(messagedb("types", "account", "--json", url=url)) == every[:2]
    last = rows(messagedb("types", "--last", "2", "--json", url=url))
    assert [tuple(each.values()) for each in last] == [("account", "Deposited", 1), ("note", "Noted", 1)]


def test_people_get_a_table_with_the_same_names_in_the_same_order(url: str) -> None:
    printed = messagedb("categories", url=url).stdout.splitlines()
    (row, _) = rows(messagedb("categories", "--json", url=url))
    assert printed[0].split() == list(row)
    assert printed[1].split()[:2] == ["account", "4"]


def test_an_empty_store_is_no_error(store: Store, messagedb_url: str) -> None:
    for arguments in (["categories"], ["types"], ["read", "$all"], ["tail", "account"], ["streams", "account"]):
        done = messagedb(*arguments, url=messagedb_url)
        assert (done.returncode, done.stdout) == (0, "")
        assert "no messages" in done.stderr


def test_a_database_without_a_store_is_told_by_its_exit_code(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    for arguments in (["categories"], ["types"], ["read", "$all"]):
        done = messagedb(*arguments, url=url)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert "messagedb: this database has no Message DB 1.3" in done.stderr


def test_no_number_is_too_large_for_a_limit(url: str) -> None:
    for arguments in (["read", "$all", "--limit"], ["streams", "account", "--limit"], ["tail", "$all", "--lines"]):
        assert rows(messagedb(*arguments, str(10**30), "--json", url=url))


# ---- read and last


def test_read_takes_streams_categories_and_the_whole_store(url: str) -> None:
    assert ns(messagedb("read", "account-2", "--json", url=url)) == [2, 3]
    assert ns(messagedb("read", "account", "--json", url=url)) == [0, 1, 2, 3]
    assert ns(messagedb("read", "$all", "--json", url=url)) == [0, 1, 2, 3, 4]
    assert ns(messagedb("read", "$all", "--position", "4", "--json", url=url)) == [3, 4]
    assert ns(messagedb("read", "$all", "--backwards", "--limit", "2", "--json", url=url)) == [4, 3]
    assert ns(messagedb("read", "account", "--type", "Opened", "--json", url=url)) == [0, 2]
    assert ns(messagedb("read", "account", "--type", "Opened", "--limit", "1", "--json", url=url)) == [0]
    both = ["--type", "Opened", "--type", "Noted"]
    assert ns(messagedb("read", "$all", *both, "--json", url=url)) == [0, 2, 4]


def test_json_has_all_fields_of_a_message(store: Store, messagedb_url: str) -> None:
    store.write("account-1", "Opened", {"é": [1.5, None]}, {"by": "Ada"})
    (message,) = store.read("account-1")
    (row,) = rows(messagedb("read", "account-1", "--json", url=messagedb_url))
    assert row == message.as_json_dict()
    assert rows(messagedb("last", "account-1", "--json", url=messagedb_url)) == [row]


def test_the_members_of_a_group_divide_a_category(url: str) -> None:
    members = [ns(messagedb("read", "account", "--member", n, "--size", "2", "--json", url=url)) for n in "01"]
    assert sorted(members[0] + members[1]) == [0, 1, 2, 3]
    done = messagedb("read", "account-1", "--member", "0", "--size", "2", url=url)
    assert (done.returncode, "must be a category" in done.stderr) == (2, True)
    done = messagedb("read", "account", "--member", "2", "--size", "2", url=url)
    assert (done.returncode, "consumer_group_member=2" in done.stderr) == (2, True)


def test_last_prints_the_last_message_of_a_stream_or_says_that_there_is_none(url: str) -> None:
    assert ns(messagedb("last", "account-2", "--json", url=url)) == [3]
    assert ns(messagedb("last", "account-2", "--type", "Opened", "--json", url=url)) == [2]
    done = messagedb("last", "account-2", "--type", "Closed", url=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "messagedb: the stream 'account-2' has no message of type 'Closed'\n"


def test_a_role_that_may_read_is_enough_and_one_that_may_not_gets_its_grants(
    url: str, messagedb_engine: Engine, login: Any
) -> None:
    role = login("messagedb_reader")
    own = messagedb_engine.url.set(username=role).render_as_string(hide_password=False)
    for arguments in (["read", "account"], ["types"]):
        done = messagedb(*arguments, url=own)
        assert (done.returncode, "GRANT USAGE ON SCHEMA message_store TO messagedb_reader;" in done.stderr) == (5, True)
    with messagedb_engine.begin() as connection:
        for each in ("USAGE ON SCHEMA message_store", "SELECT ON ALL TABLES IN SCHEMA message_store"):
            connection.execute(text(f"GRANT {each} TO {role}"))
    try:
        for arguments in (["read", "$all"], ["categories"], ["streams", "account"], ["types"], ["status"]):
            assert messagedb(*arguments, url=own).returncode == 0
    finally:
        with messagedb_engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))


# ---- what a terminal would obey


def test_hostile_values_are_printed_safely_by_every_command(store: Store, messagedb_url: str) -> None:
    stream = f"{HOSTILE[:60]}-{HOSTILE[60:100]}"
    category = store.read_category
    store.write(stream, HOSTILE, {HOSTILE: HOSTILE}, {"correlationStreamName": HOSTILE[:50], HOSTILE: HOSTILE})
    (message,) = store.read(stream)
    assert category(message.category) == [message]
    commands = [
        ["categories"],
        ["streams", message.category],
        ["types"],
        ["read", "$all", "--full"],
        ["last", stream],
        ["tail", stream],
        ["find", message.id],
        ["find", message.id, "--tree"],
        ["find", "--correlation", HOSTILE[:50]],
        ["status"],
    ]
    shown = [messagedb(*arguments, url=messagedb_url) for arguments in commands]
    assert [(done.returncode, done.stderr) for done in shown] == [(0, "")] * len(commands)
    on_terminals = [on_terminal(*arguments, MESSAGEDB_URL=messagedb_url) for arguments in commands[3:9:2]]
    assert [code for code, _ in on_terminals] == [0] * len(on_terminals)
    # In this process, which is quicker. With psycopg2 the command changes how the whole process waits.
    variables = {"MESSAGEDB_URL": messagedb_url.replace("psycopg2", "psycopg")}
    as_json = [CliRunner().invoke(app, [*arguments, "--json"], env=variables) for arguments in commands]
    assert [(done.exit_code, done.stderr) for done in as_json] == [(0, "")] * len(commands)
    printed = [
        *(done.stdout for done in shown),
        *(each for _, each in on_terminals),
        *(done.stdout for done in as_json),
    ]
    for each in printed:
        assert not any(unsafe in each for unsafe in ("\x07", "\x1b]", "\x1b[2J", "\u202e", "line\nline"))
    assert [json.loads(done.stdout)["data"] for done in as_json[3:8]] == [message.data] * 5
    assert json.loads(as_json[3].stdout) == message.as_json_dict()


# ---- many messages


def test_memory_stays_the_same_however_many_messages_are_read(store: Store, messagedb_url: str) -> None:
    fill = text(
        "INSERT INTO message_store.messages (stream_name, type, position, data) "
        "SELECT 'big-' || n / 10, 'Filled', n % 10, jsonb_build_object('n', n, 'text', repeat('x', 200)) "
        "FROM generate_series(0, 199999) AS n"
    )
    with store.engine.begin() as connection:
        connection.execute(fill)
    few, many = (peak(messagedb_url, number) for number in (20_000, 200_000))
    # In kilobytes. A list of the messages would take a hundred megabytes more.
    assert many < few + 15_000


def peak(url: str, number: int) -> int:
    """The most memory that the command has used, while somebody else read what it prints."""
    command = [PROGRAM, "read", "big", "--limit", str(number), "--json"]
    with subprocess.Popen(command, env=environment(MESSAGEDB_URL=url), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = sum(1 for _ in process.stdout)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (lines, process.returncode) == (number, 0)
    return usage.ru_maxrss


def test_a_reader_that_has_enough_ends_the_command_without_a_word(store: Store, messagedb_url: str) -> None:
    store.write_batch("account-1", [("Opened", {"text": "x" * 1000}) for _ in range(2_000)])
    for arguments in (["read", "account", "--json"], ["read", "account"], ["tail", "account", "-n", "2000"]):
        with running(*arguments, url=messagedb_url) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert (process.wait(), process.stderr.read()) == (141, "")


# ---- find


@pytest.fixture
def caused(store: Store, messagedb_url: str) -> str:
    """A message that led to two others, of which one led to a third."""
    store.write("order-1", "Placed", {"n": 0}, {"correlationStreamName": "order-1", "user": "7", "tags": ["a", "b"]})
    for cause, stream, type_ in (
        ("order-1", "bill-1", "Billed"),
        ("order-1", "ship-1", "Shipped"),
        ("bill-1", "mail-1", "Sent"),
    ):
        message = store.read_last_message(cause)
        assert message is not None
        store.write(stream, type_, {"n": 1}, follow(message))
    return messagedb_url


def test_a_message_is_found_by_its_id(caused: str, store: Store) -> None:
    (message,) = store.read("ship-1")
    assert rows(messagedb("find", message.id, "--json", url=caused)) == [message.as_json_dict()]
    done = messagedb("find", "0193a2b4-0000-7000-8000-000000000000", url=caused)
    assert (done.returncode, "there is no message with the id" in done.stderr) == (1, True)
    done = messagedb("find", "7", url=caused)
    assert (done.returncode, "id='7': must be a UUID" in done.stderr) == (2, True)


def test_messages_are_found_by_metadata_and_by_correlation(caused: str) -> None:
    def types(*arguments: str) -> list[str]:
        return [row["type"] for row in rows(messagedb("find", *arguments, "--json", url=caused))]

    assert types("--metadata", "user=7") == ["Placed"]
    assert types("--metadata", '{"tags": ["b"]}', "--metadata", "user=7") == ["Placed"]
    assert types("--correlation", "order-1") == ["Placed", "Billed", "Shipped", "Sent"]
    newest = ["--metadata", "correlationStreamName=order-1", "--backwards", "-n", "2"]
    assert types(*newest) == ["Sent", "Shipped"]
    assert types(*newest[:2], "--category", "bill") == ["Billed"]
    done = messagedb("find", "--metadata", '{"user": 7}', url=caused)
    assert (done.returncode, done.stderr) == (1, "messagedb: there is no such message\n")


def test_a_tree_shows_what_caused_a_message_and_what_it_caused(caused: str, store: Store) -> None:
    (bill,) = store.read("bill-1")
    found = rows(messagedb("find", bill.id, "--tree", "--json", url=caused))
    assert [(row["depth"], row["type"]) for row in found] == [(0, "Placed"), (1, "Billed"), (2, "Sent"), (1, "Shipped")]
    printed = messagedb("find", bill.id, "--tree", url=caused).stdout.splitlines()
    # Up to the name of the type.
    assert [re.split(r"(?<=\w)  ", line)[0] for line in printed] == [
        "Placed",
        "├── Billed",
        "│   └── Sent",
        "└── Shipped",
    ]
    assert [row["depth"] for row in rows(messagedb("find", "--correlation", "order-1", "--tree", "--json", url=caused))]


def test_a_circle_of_causes_ends(store: Store, messagedb_url: str) -> None:
    def caused_by(stream: str) -> dict[str, Any]:
        return {"causationMessageStreamName": stream, "causationMessagePosition": 0, "correlationStreamName": "x-1"}

    store.write("a-1", "A", {}, caused_by("b-1"))
    store.write("b-1", "B", {}, caused_by("a-1"))
    found = rows(messagedb("find", "--correlation", "x-1", "--tree", "--json", url=messagedb_url))
    assert [(row["depth"], row["type"]) for row in found] == [(0, "A"), (1, "B")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "pass one of ID, --metadata and --correlation"),
        (["--metadata", "user"], "--metadata user: must be KEY=TEXT, or a JSON object"),
        (["--metadata", "{user}"], "--metadata {user}: must be a JSON object: "),
        (["--metadata", "a=1", "--metadata", "a=2"], "--metadata a=2: a is given twice"),
        (["--correlation", "a-1", "--category", "a"], "--category and --backwards are for --metadata"),
    ],
    ids=["nothing", "no value", "no JSON", "twice", "no category"],
)
def test_what_find_does_not_understand_is_refused(arguments: list[str], said: str, messagedb_url: str) -> None:
    done = messagedb("find", *arguments, url=messagedb_url)
    assert (done.returncode, said in done.stderr) == (2, True)
