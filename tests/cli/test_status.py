"""The commands that show how a store is, and what is wrong with it."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, create_engine, text

from messagedb_sa import Activity, Consumer, Message, Store, install
from messagedb_sa.cli._status import per_minute

from .support import Terminal, messagedb, on_terminal, plain, rows, running


def refuse(message: Message) -> None:
    raise ValueError("no")


@pytest.fixture
def url(store: Store, messagedb_url: str) -> str:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    Consumer(store, "account", lambda message: None, "greeter").run_until_caught_up(progress=False)
    store.write("order-1", "Placed", {})
    Consumer(store, "order", refuse, "shipper", on_failure="park").run_until_caught_up(progress=False)
    store.write("account-1", "Closed", {"n": 3})
    return messagedb_url


def test_status_has_everything_on_one_screen(url: str, messagedb_engine: Engine) -> None:
    with messagedb_engine.connect() as connection:
        Store(connection).write("late-1", "A", {})
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        code, shown = on_terminal("status", columns=80, MESSAGEDB_URL=url)
        (found,) = rows(messagedb("status", "--json", url=url))
    assert code == 0
    lines = plain(shown).splitlines()
    # A terminal has 24 of them, and one is for the prompt.
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    # What is cut off says so: here the database's URL.
    assert lines[0].startswith("database ")
    assert lines[0].endswith("…")
    screen = "\n".join(lines)
    for part in (
        "Message DB 1.3.0 at messagedb_",
        "PostgreSQL ",
        "notifications are off",
        "Closed in account-1, global position",
        "account greeter    1",
        "parked: 1 of order shipper",
        f"in the way of $all: process {pid}",
        "doctor: all is well",
    ):
        assert part in screen
    assert found["messages"] == sum(each["messages"] for each in found["categories"])
    assert [each["messages"] for each in found["categories"] if each["name"] == "account"] == [4]
    assert found["last_message"]["type"] == "Closed"
    assert [(each["identifier"], each["lag"]) for each in found["consumers"]] == [("greeter", 1), ("shipper", 0)]
    assert found["parked"] == [{"category": "order", "identifier": "shipper", "messages": 1}]
    assert [each["process_id"] for each in found["open_writers"]] == [pid]
    assert (found["warnings"], found["errors"], found["trouble"]) == ([], [], None)


def test_status_of_an_empty_store_says_what_is_not_there_yet(store: Store, messagedb_url: str) -> None:
    done = messagedb("status", url=messagedb_url)
    assert done.returncode == 0
    for part in (
        "last message   none",
        "nothing has been written yet",
        "none has recorded a position",
        "parked: no messages",
    ):
        assert part in done.stdout


def test_status_of_a_database_without_a_store_is_an_error(empty_database: Engine) -> None:
    done = messagedb("status", url=empty_database.url.render_as_string(hide_password=False))
    assert (done.returncode, "messagedb install" in done.stderr) == (4, True)


def test_watching_goes_on_over_a_lost_connection_until_ctrl_c(
    url: str, store: Store, messagedb_server_url: str
) -> None:
    admin = create_engine(messagedb_server_url, isolation_level="AUTOCOMMIT")
    name = store.engine.url.database
    command = ["status", "--watch", "--every", "0.1", "--json"]
    with running(*command, url=url) as process, admin.connect() as connection:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["trouble"] is None
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        try:
            end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'messagedb'"
            connection.execute(text(end))
            while json.loads(process.stdout.readline())["trouble"] is None:
                connection.execute(text(end))
        finally:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
        while json.loads(process.stdout.readline())["trouble"] is not None:
            pass
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert (process.wait(), process.stderr.read()) == (130, "")
    admin.dispose()
    store.engine.dispose()


def test_watching_refreshes_in_place_and_gives_the_terminal_back(url: str, store: Store) -> None:
    terminal = Terminal(80)
    options = {"stdin": terminal.end, "stdout": terminal.end, "stderr": terminal.end}
    with running("status", "--watch", "--every", "0.1", url=url, **options) as process:
        os.close(terminal.end)
        terminal.read_until("Closed in account-1")
        store.write("account-1", "Reopened", {})
        terminal.read_until("Reopened in account-1")
        process.send_signal(signal.SIGINT)
        terminal.read_to_the_end()
        assert process.wait() == 130
    shown = terminal.output
    terminal.close()
    assert "Traceback" not in shown
    # The alternate screen, and the cursor: away, and back.
    for away, back in (("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h")):
        assert (shown.count(away), shown.rindex(back) > shown.rindex(away)) == (1, True)


NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=timezone.utc)


def at(minutes_ago: int, number: int) -> Activity:
    minute = NOW.replace(second=0) - timedelta(minutes=minutes_ago)
    return Activity(minute, "account", "Opened", number)


@pytest.mark.parametrize(
    ("activity", "rate"),
    [
        ([], 0),
        ([at(0, 5), at(3, 5)], 2),
        # Before the last five minutes.
        ([at(0, 5), at(7, 500)], 1),
        # The sample goes back a minute and a half.
        ([at(0, 6_000), at(1, 9_000)], 10_000),
    ],
    ids=["nothing", "some", "long ago", "a full sample"],
)
def test_the_rate_is_that_of_the_last_five_minutes(activity: list[Activity], rate: float) -> None:
    assert per_minute(activity, NOW) == rate


# ---- doctor


def test_the_exit_code_of_the_doctor_is_that_of_the_worst_finding(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    done = messagedb("doctor", url=url)
    assert (done.returncode, "error    store: this database has no store" in done.stdout) == (1, True)
    install.upgrade(empty_database)
    done = messagedb("doctor", url=url)
    assert (done.returncode, {line.split()[0] for line in done.stdout.splitlines()}) == (0, {"ok"})
    with empty_database.begin() as connection:
        connection.execute(text("DROP INDEX message_store.messages_recorded"))
    done = messagedb("doctor", url=url)
    assert done.returncode == 6
    assert "warning  indexes: the index messages_recorded is missing\n         Make it\n" in done.stdout
    assert "         CREATE INDEX CONCURRENTLY messages_recorded ON " in done.stdout


def test_programs_get_each_finding_with_its_remedy(store: Store, messagedb_engine: Engine, messagedb_url: str) -> None:
    with messagedb_engine.connect() as connection:
        Store(connection).write("late-1", "A", {})
        done = messagedb("doctor", "--long", "0", "--json", url=messagedb_url)
    assert done.returncode == 6
    (found,) = (row for row in map(json.loads, done.stdout.splitlines()) if row["code"] == "open_writers")
    assert list(found) == ["code", "severity", "found", "remedy", "sql"]
    (statement,) = found["sql"]
    assert statement.startswith("SELECT pg_terminate_backend(")


def test_the_doctor_prints_the_queries_of_others_safely(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url, connect_args={"application_name": "[bold]name[/]"})
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_current_xact_id(), '[red]\x1b[2J[/red]' -- \n"))
        done = messagedb("doctor", "--long", "0", url=messagedb_url)
        assert r"[bold]name[/]" in done.stdout
        assert r"'[red]\x1b[2J[/red]'" in done.stdout
        assert "\x1b" not in done.stdout
    engine.dispose()
