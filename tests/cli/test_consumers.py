"""The commands about consumers, and about what they parked."""

from __future__ import annotations

from pathlib import Path

import pytest

from messagedb_sa import Consumer, Message, Store

from .support import messagedb, on_terminal, plain, rows

WORKER = """
import asyncio, os
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Store

handled = []

def handle(message):
    if message.data["n"] == 3:
        raise ValueError("still [bold]not[/]\\x1b[2J")
    with open("handled", "a") as file:
        file.write(f"{message.data['n']} ")

async def handle_async(message):
    handle(message)

def make(store):
    return Consumer(store, "order", handle, "shipper", on_failure="park")

def make_async():
    url = os.environ["MESSAGEDB_URL"].replace("+psycopg2", "+asyncpg")
    return AsyncConsumer(AsyncStore.from_url(url), "order", handle_async, "shipper")

consumer = make(Store(create_engine(os.environ["MESSAGEDB_URL"])))
other = Consumer(Store(create_engine(os.environ["MESSAGEDB_URL"])), "order", handle, "other")
number = 7
"""


def refuse(message: Message) -> None:
    raise ValueError(f"no \x1b[2J[red]way[/red] for {message.data['n']}\nsecond line")


@pytest.fixture
def url(store: Store, messagedb_url: str) -> str:
    """A consumer with work left, and one that has parked four messages."""
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(4)])
    Consumer(store, "account", lambda message: None, "greeter").run_until_caught_up(progress=False)
    store.write("account-1", "Opened", {"n": 4})
    store.write_batch("order-1", [("Placed", {"n": n}) for n in range(4)])
    Consumer(store, "order", refuse, "shipper", on_failure="park").run_until_caught_up(progress=False)
    return messagedb_url


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path


def position(store: Store, identifier: str = "greeter") -> list[int | None]:
    return [each.position for each in store.consumers() if each.identifier == identifier]


# ---- consumers


def test_consumers_are_listed_with_their_lag_and_age(url: str) -> None:
    found = rows(messagedb("consumers", "list", "--json", url=url))
    assert [(each["category"], each["identifier"], each["position"], each["lag"]) for each in found] == [
        ("account", "greeter", 4, 1),
        ("order", "shipper", 10, 0),
    ]
    assert found[0]["age"] >= 0
    assert found[0]["waiting_since"]
    assert (found[1]["age"], found[1]["waiting_since"]) == (0, None)
    assert [each["lag"] for each in rows(messagedb("consumers", "list", "account", "--no-lag", "--json", url=url))] == [
        None
    ]
    code, shown = on_terminal("consumers", "list", MESSAGEDB_URL=url)
    assert code == 0
    assert plain(shown).splitlines()[1].split()[:4] == ["account", "greeter", "4", "1"]


def test_a_position_is_set_after_a_question_or_with_yes(url: str, store: Store) -> None:
    set_to = ["consumers", "set", "account", "2", "--identifier", "greeter"]
    done = messagedb(*set_to, url=url)
    assert (done.returncode, "pass --yes" in done.stderr, position(store)) == (2, True, [4])
    code, shown = on_terminal(*set_to, then=lambda terminal: terminal.type("n\n"), MESSAGEDB_URL=url)
    assert (code, "(now at 4) continue with global position 2? [y/N]" in plain(shown).replace("\n", "")) == (1, True)
    assert position(store) == [4]
    code, shown = on_terminal(*set_to, then=lambda terminal: terminal.type("y\n"), MESSAGEDB_URL=url)
    assert (code, position(store)) == (0, [1])
    done = messagedb("consumers", "set", "account", "end", "-i", "greeter", "--yes", "--json", url=url)
    assert rows(done) == [{"category": "account", "identifier": "greeter", "position": 6}]
    assert position(store) == [6]
    done = messagedb("consumers", "set", "account", "last", "-i", "greeter", "--yes", url=url)
    assert (done.returncode, "POSITION last: must be a global position, or end" in done.stderr) == (2, True)


def test_a_consumer_is_forgotten(url: str, store: Store) -> None:
    done = messagedb("consumers", "forget", "account", "-i", "greeter", url=url)
    assert (done.returncode, position(store)) == (2, [4])
    done = messagedb("consumers", "forget", "account", "-i", "greeter", "--yes", "--json", url=url)
    assert rows(done)[0]["forgotten"] == 1
    assert position(store) == []
    done = messagedb("consumers", "forget", "account", "-i", "greeter", "--yes", url=url)
    assert (done.returncode, done.stderr) == (1, "messagedb: the consumer 'account' 'greeter' has no position\n")


# ---- parked messages


def parked(store: Store) -> list[int]:
    return [each.message.data["n"] for each in store.iter_dead_letters()]


def test_parked_messages_are_listed_and_shown_safely(url: str, store: Store) -> None:
    found = rows(messagedb("parked", "list", "--json", url=url))
    assert [(each["category"], each["identifier"], each["type"], each["position"]) for each in found] == [
        ("order", "shipper", "Placed", n) for n in range(4)
    ]
    assert rows(messagedb("parked", "list", "order", "-n", "1", "--json", url=url)) == found[:1]
    done = messagedb("parked", "show", found[0]["id"], url=url)
    assert r"ValueError: no \x1b[2J[red]way[/red] for 0\nsecond line" in done.stdout
    assert "\x1b" not in done.stdout
    assert "in refuse" in done.stdout
    (shown,) = rows(messagedb("parked", "show", found[0]["id"], "--json", url=url))
    (original,) = store.read("order-1", no_of_messages=1)
    assert (shown["message_id"], shown["data"]) == (original.id, {"n": 0})
    assert "in refuse" in shown["traceback"]
    done = messagedb("parked", "show", original.id, url=url)
    assert (done.returncode, "no message with the id" in done.stderr) == (1, True)


def test_parked_messages_go_to_the_handlers_of_the_hosts_consumer(url: str, store: Store, worker: Path) -> None:
    letters = rows(messagedb("parked", "list", "--json", url=url))
    replay = ["parked", "replay", "--handlers"]
    done = messagedb(*replay, "worker:consumer", url=url, cwd=worker)
    assert (done.returncode, "Hand 4 parked messages to the handlers" in done.stderr) == (2, True)
    done = messagedb(*replay, "worker:consumer", letters[0]["id"], "--yes", url=url, cwd=worker)
    assert (done.returncode, done.stdout) == (0, "handled 1 of 1 parked message\n")
    assert parked(store) == [1, 2, 3]
    done = messagedb(*replay, "worker:make_async", letters[1]["id"], "--yes", "--json", url=url, cwd=worker)
    assert rows(done) == [{"category": "order", "identifier": "shipper", "parked": 1, "handled": 1}]
    # One fails again, and stays.
    done = messagedb(*replay, "worker:make", "--yes", url=url, cwd=worker)
    assert (done.returncode, done.stdout) == (1, "handled 1 of 2 parked messages\n")
    assert (worker / "handled").read_text() == "0 1 2 "
    (left,) = store.iter_dead_letters()
    assert left.error == "ValueError: still [bold]not[/]\x1b[2J"


@pytest.mark.parametrize(
    ("handlers", "code", "said"),
    [
        ("worker", 2, "must be MODULE:NAME"),
        ("nowhere.at:all", 2, "there is no module nowhere"),
        ("worker:nobody", 2, "worker has no nobody"),
        ("worker:number", 2, "must be a Consumer or an AsyncConsumer, or return one; got int"),
        ("worker:other", 2, "was parked by the consumer 'order' 'shipper', not by 'order' 'other'"),
    ],
)
def test_handlers_that_cannot_be_used_are_refused(
    url: str, store: Store, worker: Path, handlers: str, code: int, said: str
) -> None:
    ids = [each.id for each in store.iter_dead_letters()] if handlers == "worker:other" else []
    done = messagedb("parked", "replay", *ids, "--handlers", handlers, "--yes", url=url, cwd=worker)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert parked(store) == [0, 1, 2, 3]


def test_parked_messages_are_discarded_one_by_one_or_by_category(url: str, store: Store) -> None:
    (first, *_) = store.iter_dead_letters()
    done = messagedb("parked", "discard", first.id, url=url)
    assert (done.returncode, parked(store)) == (2, [0, 1, 2, 3])
    assert rows(messagedb("parked", "discard", first.id, "--yes", "--json", url=url)) == [{"discarded": 1}]
    assert parked(store) == [1, 2, 3]
    done = messagedb("parked", "discard", "--category", "order", "--yes", url=url)
    assert (done.stdout, parked(store)) == ("discarded 3 parked messages\n", [])
    done = messagedb("parked", "discard", first.id, "--yes", url=url)
    assert (done.returncode, "may be handled or discarded already" in done.stderr) == (1, True)
    assert messagedb("parked", "discard", "--yes", url=url).returncode == 2
