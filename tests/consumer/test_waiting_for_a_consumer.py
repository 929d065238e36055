"""Waiting until a consumer has handled what is there: by its recorded positions, in both of their homes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, InvalidArgument, Message, NotCaughtUp, Store, install
from messagedb_sa.stream_name import consumer_group_member

from ..support import as_role, consumer_on, statements_of
from ..waits import HANG, wait_until
from .support import running, write

HOMES = [pytest.param(False, id="stream"), pytest.param(True, id="table")]


def ignore(*_: Any) -> None:
    pass


def catch_up(store: Store, category: str, *arguments: Any, **options: Any) -> None:
    consumer_on(store, category, ignore, *arguments, **options).run_until_caught_up(progress=False)


def behind(store: Store, *arguments: Any, **options: Any) -> tuple[int | None, int]:
    """Where the consumer is, and where it is to be."""
    with pytest.raises(NotCaughtUp) as caught:
        store.wait_for_consumer(*arguments, seconds=0, **options)
    return caught.value.position, caught.value.wanted


def last(store: Store, stream: str) -> int:
    message = store.read_last_message(stream)
    assert message is not None
    return message.global_position


def stream_of_member(member: int, size: int) -> str:
    return next(name for n in range(1000) if consumer_group_member(name := f"account-{n}", size) == member)


# ---- what it waits for


@pytest.mark.parametrize("transactional", HOMES)
def test_it_returns_once_everything_is_handled(each_store: Store, transactional: bool) -> None:
    write(each_store, 5)
    assert behind(each_store, "account", "greeter") == (None, 5)
    catch_up(each_store, "account", "greeter", transactional=transactional)
    each_store.wait_for_consumer("account", "greeter", seconds=0)
    write(each_store, 1, first=5)
    assert behind(each_store, "account", "greeter") == (5, last(each_store, "account-2"))
    catch_up(each_store, "account", "greeter", transactional=transactional)
    each_store.wait_for_consumer("account", "greeter", seconds=0)


def test_both_homes_are_looked_at(store: Store) -> None:
    write(store, 1)
    catch_up(store, "account", "greeter", transactional=True)
    catch_up(store, "account", "mailer")
    assert [each.data for each in store.read("account:position-mailer")] == [{"position": 1}]
    assert [(each.metadata or {}).get("recordedIn") for each in store.read("account:position-greeter")] == [
        "message_store.consumer_positions"
    ]
    for identifier in ("greeter", "mailer"):
        store.wait_for_consumer("account", identifier, seconds=0)


@pytest.mark.parametrize("until", [None, "account", "account-1", "$all"])
def test_without_messages_there_is_nothing_to_wait_for(each_store: Store, until: str | None) -> None:
    write(each_store, 3, "order")
    each_store.wait_for_consumer("account", "greeter", until, seconds=0)


def test_each_consumer_is_waited_for_by_its_own_positions(store: Store) -> None:
    write(store, 3)
    catch_up(store, "account", "greeter")
    assert behind(store, "account", "mailer") == behind(store, "account") == (None, 3)
    catch_up(store, "account")
    store.wait_for_consumer("account", seconds=0)
    assert behind(store, "account", "mailer") == (None, 3)


def test_a_stream_is_handled_before_what_comes_after_it_in_others(store: Store) -> None:
    write(store, 2)
    catch_up(store, "account", "greeter")
    store.write("account-0", "Even", {"n": 2})
    store.write("account-1", "Odd", {"n": 3})
    after = last(store, "account-1")
    store.wait_for_consumer("account", "greeter", "account-2", seconds=0)
    assert behind(store, "account", "greeter", "account-0") == (2, after - 1)
    assert behind(store, "account", "greeter", "account-1") == (2, after)
    assert behind(store, "account", "greeter", "$all") == (2, after)


def test_only_the_member_of_the_stream_is_waited_for(store: Store) -> None:
    first, second = stream_of_member(0, 2), stream_of_member(1, 2)
    for stream in (first, second):
        store.write(stream, "Even", {"n": 0})
    assert behind(store, "account", "greeter", first) == (None, 1)
    catch_up(store, "account", "greeter", group_member=0, group_size=2)
    store.wait_for_consumer("account", "greeter", first, seconds=0)
    assert behind(store, "account", "greeter", second) == (None, 2)
    assert behind(store, "account", "greeter") == (None, 2)
    catch_up(store, "account", "greeter", group_member=1, group_size=2)
    store.wait_for_consumer("account", "greeter", second, seconds=0)
    store.wait_for_consumer("account", "greeter", seconds=0)


def test_a_member_without_messages_is_not_waited_for(store: Store) -> None:
    store.write(stream_of_member(0, 2), "Even", {"n": 0})
    catch_up(store, "account", "greeter", group_member=0, group_size=2)
    store.wait_for_consumer("account", "greeter", seconds=0)


@pytest.mark.parametrize("transactional", HOMES)
def test_all_slots_are_waited_for(each_store: Store, transactional: bool) -> None:
    write(each_store, 20)
    catch_up(each_store, "account", "greeter", slots=4, transactional=transactional)
    each_store.wait_for_consumer("account", "greeter", seconds=0)
    for member in range(4):
        stream = stream_of_member(member, 4)
        each_store.write(stream, "Even", {"n": member})
        assert behind(each_store, "account", "greeter")[1] == last(each_store, stream)
        assert behind(each_store, "account", "greeter", stream)[1] == last(each_store, stream)
        catch_up(each_store, "account", "greeter", slots=4, transactional=transactional)
        each_store.wait_for_consumer("account", "greeter", seconds=0)


@pytest.mark.parametrize("transactional", HOMES)
def test_the_division_that_recorded_last_counts(store: Store, transactional: bool) -> None:
    write(store, 10)
    catch_up(store, "account", "greeter", transactional=transactional)
    for options in ({"slots": 2}, {"slots": 3}, {}):
        store.write("account-1", "Odd", {})
        wanted = last(store, "account-1")
        assert behind(store, "account", "greeter")[1] == wanted
        catch_up(store, "account", "greeter", transactional=transactional, position=wanted, **options)
        store.wait_for_consumer("account", "greeter", seconds=0)


def test_a_consumer_of_all_is_not_waited_for_because_of_what_it_skips(store: Store) -> None:
    def fail(_: Message) -> None:
        raise ValueError

    write(store, 2)
    write(store, 2, "order")
    Consumer(store, "order", fail, "parks", on_failure="park").run_until_caught_up(progress=False)
    assert len(store.read("order:dead-parks")) == 2
    assert behind(store, "$all", "sums") == (None, 4)
    catch_up(store, "$all", "sums")
    last_of_all = store.read("$all")[-1]
    assert last_of_all.stream_name == "$all:position-sums"
    assert last_of_all.global_position > 4
    for until in (None, "$all", "account", "order-1", "order:dead", "order:dead-parks", "order:position-parks"):
        store.wait_for_consumer("$all", "sums", until, seconds=0)
    store.write("order-1", "Odd", {})
    wanted = last(store, "order-1")
    store.write("account-1", "Odd", {})
    assert behind(store, "$all", "sums", "order")[1] == behind(store, "$all", "sums", "order-1")[1] == wanted
    assert behind(store, "$all", "sums")[1] == wanted + 1
    store.wait_for_consumer("$all", "sums", "account-0", seconds=0)


def test_positions_in_a_category_of_the_callers_own_are_skipped(store: Store) -> None:
    """The category of a portfolio's positions, where consumers of portfolio record theirs."""
    store.write("portfolio-1", "Opened", {})
    catch_up(store, "portfolio", "greeter")
    store.wait_for_consumer("portfolio:position", "sums", seconds=0)
    store.write("portfolio:position-1", "Bought", {})
    wanted = last(store, "portfolio:position-1")
    store.write("portfolio-1", "Closed", {})
    catch_up(store, "portfolio", "greeter")
    assert behind(store, "portfolio:position", "sums") == (None, wanted)
    catch_up(store, "portfolio:position", "sums")
    store.wait_for_consumer("portfolio:position", "sums", seconds=0)


def test_a_consumer_by_correlation_is_waited_for_by_the_same(store: Store) -> None:
    store.write("account-1", "Odd", {}, {"correlationStreamName": "transfer-1"})
    store.write("account-1", "Odd", {}, {"correlationStreamName": "refund-1"})
    store.write("account-1", "Odd", {})
    assert behind(store, "account", "greeter", correlation="transfer") == (None, 1)
    catch_up(store, "account", "greeter", correlation="transfer")
    store.wait_for_consumer("account", "greeter", correlation="transfer", seconds=0)
    assert behind(store, "account", "greeter") == (1, 3)


def test_a_consumer_that_was_forgotten_has_recorded_nothing(store: Store) -> None:
    write(store, 2)
    catch_up(store, "account", "greeter", slots=2)
    store.wait_for_consumer("account", "greeter", seconds=0)
    store.forget_consumer("account", "greeter")
    assert behind(store, "account", "greeter") == (None, 2)


# ---- how it waits


class Gate:
    """A handler that waits until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.handled: list[int] = []

    def __call__(self, message: Message, *_: Any) -> None:
        assert self.opened.wait(HANG)
        self.handled.append(message.data["n"])


@pytest.mark.parametrize("transactional", HOMES)
def test_it_waits_for_a_running_consumer(store: Store, messagedb_url: str, transactional: bool) -> None:
    write(store, 20)
    gate = Gate()
    waiting = Store(create_engine(messagedb_url))
    sent = statements_of(waiting.engine)
    consumer = consumer_on(store, "account", gate, "greeter", slots=2, transactional=transactional)
    with running(consumer), ThreadPoolExecutor() as threads:
        waits = threads.submit(waiting.wait_for_consumer, "account", "greeter", seconds=HANG)
        wait_until(lambda: len(sent) > 10)
        assert not waits.done()
        gate.opened.set()
        waits.result(HANG)
        assert sorted(gate.handled) == list(range(20))
    waiting.engine.dispose()


def test_what_is_written_later_is_not_waited_for(store: Store) -> None:
    """The handler writes one message for each that it handles: it never catches up."""

    def write_another(message: Message) -> None:
        store.write("account-1", "Odd", {"n": message.data["n"] + 1})

    store.write("account-1", "Odd", {"n": 0})
    with running(Consumer(store, "account", write_another, "greeter", record_every=1)):
        store.wait_for_consumer("account", "greeter", seconds=HANG)
        assert store.stream_version("account-1") > 0
        behind(store, "account", "greeter")


def test_a_consumer_that_begins_with_other_slots_meanwhile_is_found(store: Store) -> None:
    write(store, 5)
    catch_up(store, "account", "greeter")
    write(store, 5, first=5)
    with ThreadPoolExecutor() as threads:
        sent = statements_of(store.engine)
        waits = threads.submit(store.wait_for_consumer, "account", "greeter", seconds=HANG)
        wait_until(lambda: len(sent) > 5)
        catch_up(store, "account", "greeter", slots=3, position=6)
        waits.result(HANG)


def test_no_connection_is_held_while_it_waits(store: Store, messagedb_url: str) -> None:
    alone = Store(create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=HANG))
    sent = statements_of(alone.engine)
    write(store, 1)
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(alone.wait_for_consumer, "account", "greeter", seconds=HANG)
        wait_until(lambda: len(sent) > 5)
        with alone.engine.connect():
            count = len(sent)
        wait_until(lambda: len(sent) > count)
        catch_up(store, "account", "greeter")
        waits.result(HANG)
    alone.engine.dispose()


def test_a_look_is_one_statement(store: Store) -> None:
    write(store, 1)
    catch_up(store, "account", "greeter")
    write(store, 1, first=1)
    with ThreadPoolExecutor() as threads:
        sent = statements_of(store.engine)
        waits = threads.submit(store.wait_for_consumer, "account", "greeter", seconds=HANG)
        wait_until(lambda: len(sent) > 8)
        _, first_look, last_messages, *looks = sent[:8]
        assert looks == [first_look] * 5 != [last_messages] * 5
        catch_up(store, "account", "greeter")
        waits.result(HANG)


def test_time_that_is_out_is_an_error_that_says_how_far_the_consumer_is(each_store: Store) -> None:
    write(each_store, 2)
    with pytest.raises(TimeoutError, match=r"'account' 'greeter' has recorded no position yet, and 2 was waited for"):
        each_store.wait_for_consumer("account", "greeter", seconds=0.01)
    catch_up(each_store, "account")
    each_store.write("account-1", "Odd", {})
    with pytest.raises(NotCaughtUp, match=r"consumer .account. is at global position 2, and 4 was waited for"):
        each_store.wait_for_consumer("account", seconds=0.01)


def test_other_tasks_run_while_it_waits_and_it_can_be_cancelled(store: Store, messagedb_url: str) -> None:
    write(store, 5)

    async def body() -> None:
        engine = create_async_engine(messagedb_url.replace("psycopg2", "asyncpg"))
        async_store = AsyncStore(engine)
        handled: list[int] = []

        async def handle(message: Message) -> None:
            handled.append(message.data["n"])

        cancelled = asyncio.create_task(async_store.wait_for_consumer("account", "greeter", seconds=HANG))
        consumer = AsyncConsumer(async_store, "account", handle, "greeter", record_seconds=0.01)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        runs = asyncio.create_task(consumer.run(handle_signals=False))
        await async_store.wait_for_consumer("account", "greeter", seconds=HANG)
        assert handled == list(range(5))
        consumer.stop()
        await runs
        await engine.dispose()

    asyncio.run(body())


# ---- where it works


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_an_engine_may_have_any_isolation_level(store: Store, messagedb_url: str, level: Any) -> None:
    other = Store(create_engine(messagedb_url, isolation_level=level))
    write(store, 1)
    assert behind(other, "account", "greeter") == (None, 1)
    with running(Consumer(store, "account", ignore, "greeter", record_every=1)):
        other.wait_for_consumer("account", "greeter", seconds=HANG)
    other.engine.dispose()


def test_a_store_without_the_table_of_positions_is_enough(empty_database: Engine) -> None:
    install.upgrade(empty_database, "messagedb_0003")
    store = Store(empty_database)
    write(store, 2)
    assert behind(store, "account", "greeter") == (None, 2)
    catch_up(store, "account", "greeter", transactional=True)
    store.wait_for_consumer("account", "greeter", seconds=0)


def test_the_privileges_of_the_stores_role_are_enough(
    store: Store, messagedb_engine: Engine, login: Callable[..., str]
) -> None:
    role = login("waiter", "IN ROLE message_store")
    write(store, 2)
    catch_up(store, "account", "greeter", transactional=True)
    Store(as_role(messagedb_engine, role)).wait_for_consumer("account", "greeter", seconds=0)


@pytest.mark.parametrize("bind", ["connection", "session"])
def test_in_a_transaction_it_is_refused(messagedb_engine: Engine, store: Store, bind: str) -> None:
    with messagedb_engine.connect() as connection, Session(messagedb_engine) as session:
        joined = Store(connection if bind == "connection" else session)
        with pytest.raises(
            InvalidArgument, match=r"^bind=.*must be an Engine to wait for a consumer: .* not committed"
        ):
            joined.wait_for_consumer("account", "greeter")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda store: store.wait_for_consumer(""), "category_name"),
        (lambda store: store.wait_for_consumer("account-1"), "category_name"),
        (lambda store: store.wait_for_consumer(None), "category_name"),
        (lambda store: store.wait_for_consumer("account", ""), "identifier"),
        (lambda store: store.wait_for_consumer("account", 7), "identifier"),
        (lambda store: store.wait_for_consumer("account", "greeter-0-of-8"), "identifier"),
        (lambda store: store.wait_for_consumer("account", "greeter", "order"), "until"),
        (lambda store: store.wait_for_consumer("account", "greeter", "order-1"), "until"),
        (lambda store: store.wait_for_consumer("account", "greeter", ""), "until"),
        (lambda store: store.wait_for_consumer("account", "greeter", 7), "until"),
        (lambda store: store.wait_for_consumer("account", seconds=-1), "seconds"),
        (lambda store: store.wait_for_consumer("account", seconds=None), "seconds"),
        (lambda store: store.wait_for_consumer("account", seconds=float("inf")), "seconds"),
        (lambda store: store.wait_for_consumer("account", correlation="transfer-1"), "correlation"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(store: Store, call: Callable[[Store], None], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}="):
        call(store)
