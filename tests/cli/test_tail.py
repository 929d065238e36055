"""The command that prints the last messages, and those that follow."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, text

from messagedb_sa import Store

from ..waits import wait_until
from .support import messagedb, rows, running


def ns(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [row["data"]["n"] for row in rows(done)]


class Tail:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def next(self) -> int:
        """The number of the next message."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said()
        number: int = json.loads(line)["data"]["n"]
        return number

    def said(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait()


@contextmanager
def tailing(url: str, *arguments: str) -> Iterator[Tail]:
    with running("tail", *arguments, "--follow", "--json", url=url) as process:
        yield Tail(process)


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_the_last_messages_come_the_oldest_first(store: Store, messagedb_url: str, name: str) -> None:
    store.write_batch("account-1", [("A" if n % 2 else "B", {"n": n}) for n in range(12)])
    assert ns(messagedb("tail", name, "--json", url=messagedb_url)) == [*range(2, 12)]
    assert ns(messagedb("tail", name, "-n", "3", "--json", url=messagedb_url)) == [9, 10, 11]
    assert ns(messagedb("tail", name, "-n", "2", "--type", "B", "--json", url=messagedb_url)) == [8, 10]
    assert ns(messagedb("tail", name, "-n", "0", "--json", url=messagedb_url)) == []


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_followed_messages_come_after_the_last_ones_until_ctrl_c(store: Store, messagedb_url: str, name: str) -> None:
    store.write_batch("account-1", [("A", {"n": n}) for n in range(4)])
    with tailing(messagedb_url, name, "-n", "2") as tail:
        assert [tail.next(), tail.next()] == [2, 3]
        store.write("account-1", "A", {"n": 4})
        assert tail.next() == 4
        assert (tail.end(), tail.said()) == (130, "")


def test_of_a_stream_that_is_not_there_yet_everything_comes(store: Store, messagedb_url: str) -> None:
    with tailing(messagedb_url, "account-1") as tail:
        store.write_batch("account-1", [("A", {"n": n}) for n in range(3)])
        assert [tail.next() for _ in range(3)] == [0, 1, 2]
        assert tail.end(signal.SIGTERM) == 143


def test_a_type_is_followed_alone(store: Store, messagedb_url: str) -> None:
    store.write("account-1", "A", {"n": 0})
    with tailing(messagedb_url, "account", "--type", "A") as tail:
        assert tail.next() == 0
        store.write_batch("account-1", [("B", {"n": 1}), ("A", {"n": 2})])
        assert tail.next() == 2


def test_no_message_of_the_whole_store_is_printed_before_one_that_may_still_come(
    store: Store, messagedb_engine: Engine, messagedb_url: str
) -> None:
    store.write("account-1", "A", {"n": 1})
    with tailing(messagedb_url, "$all") as tail, messagedb_engine.connect() as connection:
        assert tail.next() == 1
        Store(connection).write("late-1", "A", {"n": 2})
        store.write("account-1", "A", {"n": 3})
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'messagedb' AND query LIKE '%pg_sleep%'"
        )
        with messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
            wait_until(lambda: looking.scalar(waits), "the command waits for the writer")
        connection.commit()
        assert [tail.next(), tail.next()] == [2, 3]


def test_a_lost_connection_is_made_again(store: Store, messagedb_engine: Engine, messagedb_url: str) -> None:
    store.write("account-1", "A", {"n": 0})
    with tailing(messagedb_url, "account") as tail:
        assert tail.next() == 0
        end = text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'messagedb'")
        with messagedb_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            wait_until(lambda: connection.scalar(end), "a connection of the command was ended")
        store.write("account-1", "A", {"n": 1})
        assert tail.next() == 1
        assert tail.end() == 130
        # The connection that reads, or the one that listens, or both.
        said = tail.said()
        assert "reads again" in said or "connected again" in said


def test_people_see_each_message_as_soon_as_it_comes(store: Store, messagedb_url: str) -> None:
    store.write("account-1", "A", {"n": 0})
    with running("tail", "account", "-f", url=messagedb_url) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[:3] == ["global_position", "time", "stream_name"]
        assert '{"n": 0}' in process.stdout.readline()
        store.write("account-1", "A", {"n": 1})
        assert '{"n": 1}' in process.stdout.readline()


def test_a_first_connection_that_fails_is_an_error(messagedb_url: str) -> None:
    done: Any = messagedb("tail", "account", "-f", url="postgresql://postgres@/app?host=/nonexistent")
    assert (done.returncode, "cannot connect" in done.stderr) == (3, True)
