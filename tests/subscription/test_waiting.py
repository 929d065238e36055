"""How a subscription waits: polling or woken, at which cost, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Connection, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, AsyncSubscription, Message, Store, Subscription, install
from messagedb_sa._drivers.notifications import listen
from messagedb_sa.consumer._options import POLL_SECONDS
from messagedb_sa.subscription import _sync
from messagedb_sa.subscription._listening import Listening

from ..consumer.support import names_awaited
from ..support import exit_code, fork, numbers
from ..waits import HANG, wait_in_task_until, wait_until
from .support import following, listening, write

# No poll comes before a hang.
NEVER = 3600.0
NOTIFIED_POLL = "messagedb_sa.subscription._follower.NOTIFIED_POLL_SECONDS"


def until_listening(store: Store) -> None:
    wait_until(lambda: listening(store.engine), "it listens")


def until_nobody_listens(store: Store) -> None:
    wait_until(lambda: not listening(store.engine), "nobody listens any more")


def write_when_it_listens(store: Store, number: int) -> None:
    until_listening(store)
    write(store, number)


# ---- notifications


def test_a_notification_about_another_stream_does_not_keep_the_next_one_waiting(
    notify: None, store: Store, messagedb_url: str, driver: str
) -> None:
    with following(driver, messagedb_url, "account-1", poll_seconds=NEVER) as followed:
        until_listening(store)
        write(store, 0)
        followed.wait_for(0)
        before = followed.reads
        store.write("account-2", "Deposited", {"n": 0})
        wait_until(lambda: followed.reads > before, "it has read in vain")
        write(store, 1)
        followed.wait_for(0, 1)


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_a_notification_wakes_it(notify: None, store: Store, messagedb_url: str, driver: str, name: str) -> None:
    with following(driver, messagedb_url, name, poll_seconds=NEVER) as followed:
        until_listening(store)
        write(store, 0)
        followed.wait_for(0)
        write(store, 1)
        followed.wait_for(0, 1)
    until_nobody_listens(store)


def test_what_is_written_before_it_listens_is_not_missed(
    notify: None, store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notifies it of that."""
    written = threading.Event()

    def write_and_listen(connection: Connection) -> None:
        if not written.is_set():
            written.set()
            write(store, 0)
        listen(connection)

    monkeypatch.setattr("messagedb_sa.consumer._session.listen", write_and_listen)
    with following(driver, messagedb_url, "account", poll_seconds=NEVER) as followed:
        followed.wait_for(0)


@pytest.fixture
def notified(monkeypatch: pytest.MonkeyPatch) -> list[set[str] | None]:
    """What the connections that listen have told to the subscriptions that had joined them."""
    told: list[set[str] | None] = []
    notify = Listening._notify

    def notify_and_tell(self: Listening, categories: set[str] | None) -> None:
        notify(self, categories)
        told.append(categories)

    monkeypatch.setattr(Listening, "_notify", notify_and_tell)
    return told


def test_what_is_written_while_the_connection_begins_to_listen_is_not_missed(
    notify: None,
    store: Store,
    messagedb_url: str,
    monkeypatch: pytest.MonkeyPatch,
    notified: list[set[str] | None],
) -> None:
    """Everything happens before the subscription's own thread goes on."""
    start = _sync._start

    def start_and_write(run: Callable[[], None]) -> threading.Thread:
        thread = start(run)
        wait_until(lambda: names_awaited(store.engine, "account"), "it awaits the category")
        write(store, 0)
        wait_until(lambda: {"account"} in notified, "it was notified")
        return thread

    monkeypatch.setattr(_sync, "_start", start_and_write)
    with following("psycopg2", messagedb_url, "account", poll_seconds=NEVER) as followed:
        followed.wait_for(0)


@pytest.mark.parametrize("stream_name", ["account-9", "other"])
def test_what_is_written_before_it_joins_others_that_listen_is_not_missed(
    notify: None, store: Store, messagedb_url: str, notified: list[set[str] | None], stream_name: str
) -> None:
    """Whether they were notified of it, or await another category, so that nobody was."""
    engine = create_engine(messagedb_url)

    def write_after_the_first_read(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "account" in parameters.values() and not writes:
            writes.append(statement)
            write(store, 0)
            if stream_name != "other":
                wait_until(lambda: {"account"} in notified, "the others were notified")

    writes: list[str] = []
    with Subscription(Store(engine), stream_name, poll_seconds=NEVER) as others:
        waiting = threading.Thread(target=lambda: list(others))
        waiting.start()
        wait_until(
            lambda: others._follower._listening and others._follower._listening.is_notified_of(others._follower),
            "they listen",
        )
        wait_until(lambda: None in notified, "they were told so")
        event.listen(engine, "after_cursor_execute", write_after_the_first_read)
        with Subscription(Store(engine), "account", poll_seconds=NEVER) as messages:
            assert numbers([next(messages)]) == [0]
    waiting.join(HANG)
    assert writes
    until_nobody_listens(store)
    engine.dispose()


def test_many_subscriptions_listen_with_one_connection_and_share_a_small_pool(
    notify: None, store: Store, messagedb_url: str
) -> None:
    async def main() -> None:
        url = make_url(messagedb_url).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=1, max_overflow=0)
        own = AsyncStore(engine)
        names = ["account", "account-1", "$all"] * 10
        subscriptions = [AsyncSubscription(own, name, poll_seconds=NEVER) for name in names]
        waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        await wait_in_task_until(lambda: len(listening(store.engine)) == 1)
        await own.write("account-1", "Counted", {"n": 7})
        assert numbers(await asyncio.gather(*waiting)) == [7] * 30
        await wait_in_task_until(lambda: len(listening(store.engine)) == 1)
        for each in subscriptions[1:]:
            await each.close()
        await wait_in_task_until(lambda: len(listening(store.engine)) == 1)
        await subscriptions[0].close()
        assert listening(store.engine) == []
        await engine.dispose()

    asyncio.run(main())


def test_while_it_waits_it_holds_no_connection_of_the_pool(store: Store, messagedb_url: str, driver: str) -> None:
    with following(driver, messagedb_url, "account", poll_seconds=NEVER) as followed:
        wait_until(lambda: followed.reads, "it has read")
        pool = followed.engine.pool
        assert isinstance(pool, QueuePool)
        wait_until(lambda: pool.checkedin() == 1 and pool.checkedout() == 0)


def test_without_notifications_nobody_listens(store: Store, messagedb_url: str, driver: str) -> None:
    with following(driver, messagedb_url, "account", poll_seconds=0.01) as followed:
        followed.wait_for_reads(5)
        until_nobody_listens(store)
        write(store, 0)
        followed.wait_for(0)


def test_notifications_about_other_streams_do_not_make_it_read_more_often_than_polling_would(
    notify: None, store: Store, messagedb_url: str, notified: list[set[str] | None]
) -> None:
    with following("psycopg2", messagedb_url, "account-1", poll_seconds=NEVER) as followed:
        wait_until(followed.trusts_in_notifications)
        before, began = followed.reads, time.monotonic()
        write(store, *range(50), stream_name="account-2")
        write(store, *range(50), stream_name="other-1")
        wait_until(lambda: followed.reads > before and {"account"} in notified)
        reads, seconds = followed.reads - before, time.monotonic() - began
        # It also reads when the connection begins to listen, to await the category, and when those have ended who wrote
        # at that moment; one of these may not be in the list yet. The first notification is answered at once.
        assert reads <= notified.count(None) + 2 + seconds / POLL_SECONDS


def test_once_a_notification_does_not_arrive_it_polls(
    notify: None,
    store: Store,
    messagedb_url: str,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
    notified: list[set[str] | None],
) -> None:
    monkeypatch.setattr(NOTIFIED_POLL, 0.2)
    with following(driver, messagedb_url, "account", poll_seconds=0.01) as followed:
        wait_until(followed.trusts_in_notifications, "it trusts in notifications")
        write(store, 0)
        followed.wait_for(0)
        # Later, it would make it trust in them again.
        wait_until(lambda: {"account"} in notified, "it was notified")
        install.upgrade(store.engine, notify=False)
        written = [0]
        # The notification of the first message may have come as late as the second one.
        while len(written) == 1 or followed.trusts_in_notifications():
            written.append(len(written))
            write(store, written[-1])
            followed.wait_for(*written)
        # From now on it would wait for ever if it still trusted in notifications.
        monkeypatch.setattr(NOTIFIED_POLL, NEVER)
        written.append(len(written))
        write(store, written[-1])
        followed.wait_for(*written)


# ---- whom writers notify


def names_awaited_by(store: Store, *names: str) -> Callable[[], bool]:
    return lambda: names_awaited(store.engine, "account", "order", "$all", "c0", "c39") == set(names)


def test_subscriptions_await_their_categories_as_long_as_they_are_open(notify: None, store: Store) -> None:
    open_ones = {}
    for name, awaited in (
        ("account-1", ["account"]),
        ("account", ["account"]),
        ("order", ["account", "order"]),
        ("$all", ["account", "order", "$all"]),
    ):
        messages = open_ones[name] = Subscription(store, name, "end", poll_seconds=NEVER)
        threading.Thread(target=list, args=(messages,)).start()
        wait_until(names_awaited_by(store, *awaited), f"they await {awaited}")
    wait_until(lambda: len(listening(store.engine)) == 1)
    for name, awaited in (
        ("$all", ["account", "order"]),
        ("account-1", ["account", "order"]),
        ("order", ["account"]),
        ("account", []),
    ):
        open_ones[name].close()
        wait_until(names_awaited_by(store, *awaited), f"they await {awaited}")
    until_nobody_listens(store)


def test_those_of_many_categories_await_all(notify: None, store: Store) -> None:
    number = 40
    with ExitStack() as stack:
        subscriptions = [
            stack.enter_context(Subscription(store, f"c{each}", poll_seconds=NEVER)) for each in range(number)
        ]
        found: list[list[Message]] = [[] for _ in subscriptions]
        threads = [
            threading.Thread(target=kept.extend, args=(each,)) for kept, each in zip(found, subscriptions, strict=True)
        ]
        for thread in threads:
            thread.start()
        wait_until(names_awaited_by(store, "$all"), "they await all")
        for each in range(number):
            store.write(f"c{each}-1", "Counted", {"n": each})
        wait_until(lambda: all(found), "each was woken")
        # Until few are left.
        for between in subscriptions[1:-1]:
            between.close()
        wait_until(names_awaited_by(store, "c0", "c39"), "the two await their own")
        store.write("c39-1", "Counted", {"n": 40})
        wait_until(lambda: numbers(found[-1]) == [39, 40])
    for thread in threads:
        thread.join(HANG)
    until_nobody_listens(store)


# ---- the end


def test_closing_it_ends_the_wait_at_once(store: Store, messagedb_url: str, driver: str) -> None:
    with following(driver, messagedb_url, "account", poll_seconds=NEVER) as followed:
        wait_until(lambda: followed.reads, "it has read")
        followed.close()
        assert followed.ended.wait(HANG)


def test_closing_it_in_the_loop_ends_the_loop(store: Store) -> None:
    write(store, 0, 1, 2)
    messages = Subscription(store, "account")
    seen = []
    for message in messages:
        seen.append(message.data["n"])
        messages.close()
    assert seen == [0]
    assert list(messages) == []


def test_closing_it_in_the_loop_ends_the_loop_of_a_task(store: Store, messagedb_url: str) -> None:
    write(store, 0, 1, 2)

    async def main() -> list[int]:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+psycopg"))
        messages = AsyncSubscription(AsyncStore(engine), "account")
        seen = []
        async for message in messages:
            seen.append(message.data["n"])
            await messages.close()
        await engine.dispose()
        return seen

    assert asyncio.run(main()) == [0]


def test_closing_it_twice_or_before_it_began_is_harmless(store: Store) -> None:
    messages = Subscription(store, "account")
    messages.close()
    messages.close()
    assert list(messages) == []


def test_one_that_is_dropped_listens_no_more(notify: None, store: Store) -> None:
    messages = Subscription(store, "account", poll_seconds=NEVER)
    thread = threading.Thread(target=write_when_it_listens, args=(store, 0))
    thread.start()
    assert next(messages).data == {"n": 0}
    thread.join()
    wait_until(lambda: len(listening(store.engine)) == 1)
    del messages
    gc.collect()
    until_nobody_listens(store)
    wait_until(lambda: "messagedb_sa.subscription" not in {each.name for each in threading.enumerate()})


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_task_gives_everything_back_and_loses_no_message(
    notify: None, store: Store, messagedb_url: str, driver: str
) -> None:
    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        async with AsyncSubscription(AsyncStore(engine), "account", poll_seconds=0.001) as messages:
            for number in range(20):
                # At whatever moment: while it connects, reads, listens or waits.
                task = asyncio.ensure_future(anext(messages))
                await asyncio.sleep(number / 2000)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            write(store, 0, 1)
            assert numbers([await anext(messages), await anext(messages)]) == [0, 1]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(messages), 0.05)
            write(store, 2)
            assert (await anext(messages)).data == {"n": 2}
        pool: Any = engine.sync_engine.pool
        # If it was cancelled while a connection went back, that goes on without it.
        await wait_in_task_until(lambda: pool.checkedout() == 0, "the pool has everything back")
        assert listening(store.engine) == []
        await wait_in_task_until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no other task is left")
        await engine.dispose()

    asyncio.run(main())


def test_two_threads_cannot_wait_with_one_subscription(store: Store) -> None:
    messages = Subscription(store, "account", poll_seconds=NEVER)
    thread = threading.Thread(target=list, args=(messages,))
    thread.start()
    wait_until(messages._follower._own.own.fetching.locked)
    with pytest.raises(RuntimeError, match="is waiting for a message already"):
        next(messages)
    messages.close()
    thread.join(HANG)
    assert not thread.is_alive()


def test_ctrl_c_ends_the_wait_at_once_and_is_raised_in_the_loop(notify: None, store: Store) -> None:
    def interrupt() -> None:
        until_listening(store)
        os.kill(os.getpid(), signal.SIGINT)

    with Subscription(store, "account", poll_seconds=NEVER) as messages:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(messages)
        thread.join()
        write(store, 0)
        assert next(messages).data == {"n": 0}
    assert listening(store.engine) == []


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="before Python 3.11, Ctrl-C raises within asyncpg's C code, which may crash"
)
def test_ctrl_c_ends_the_wait_of_a_task_at_once(notify: None, store: Store, messagedb_url: str) -> None:
    def interrupt() -> None:
        until_listening(store)
        os.kill(os.getpid(), signal.SIGINT)

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"))
        try:
            async with AsyncSubscription(AsyncStore(engine), "account", poll_seconds=NEVER) as messages:
                await anext(messages)
        finally:
            await engine.dispose()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    thread.join()
    until_nobody_listens(store)


def test_one_can_be_used_by_one_event_loop_after_another(notify: None, store: Store, messagedb_url: str) -> None:
    engine = create_async_engine(make_url(messagedb_url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    messages = AsyncSubscription(AsyncStore(engine), "account", poll_seconds=NEVER)
    for number in range(2):
        thread = threading.Thread(target=write_when_it_listens, args=(store, number))
        thread.start()
        assert asyncio.run(awaited(messages)).data == {"n": number}
        thread.join()
        until_nobody_listens(store)
    asyncio.run(messages.close())


def test_a_signal_handler_can_close_one_while_another_begins_to_listen(
    notify: None, store: Store, messagedb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, interrupted = _sync._start, threading.Event()

    def interrupted_start(run: Callable[[], None]) -> threading.Thread:
        signal.raise_signal(signal.SIGUSR1)
        interrupted.set()
        return start(run)

    one = Subscription(store, "account", poll_seconds=NEVER)
    thread = threading.Thread(target=write_when_it_listens, args=(store, 0))
    thread.start()
    assert next(one).data == {"n": 0}
    thread.join()
    monkeypatch.setattr(_sync, "_start", interrupted_start)
    before = signal.signal(signal.SIGUSR1, lambda *_: one.close())
    other_store = Store(create_engine(messagedb_url, poolclass=NullPool))

    def write_when_the_other_waits() -> None:
        interrupted.wait(HANG)
        write_when_it_listens(store, 1)

    thread = threading.Thread(target=write_when_the_other_waits)
    thread.start()
    try:
        with Subscription(other_store, "account", 2, poll_seconds=NEVER) as other:
            assert next(other).data == {"n": 1}
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()
    assert list(one) == []


async def awaited(messages: AsyncSubscription) -> Message:
    return await anext(messages)


def test_a_signal_handler_can_close_it(store: Store, notify: None) -> None:
    messages = Subscription(store, "account", poll_seconds=NEVER)

    def interrupt() -> None:
        until_listening(store)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: messages.close())
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert list(messages) == []
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()
    until_nobody_listens(store)


def test_a_forked_child_continues_by_itself_and_leaves_its_parent_alone(
    notify: None, store: Store, messagedb_url: str
) -> None:
    engine = create_engine(messagedb_url)
    messages = Subscription(Store(engine), "account", poll_seconds=0.01)
    write(store, 0)
    next(messages)

    def write_once(number_of_listeners: int, number: int) -> None:
        wait_until(lambda: len(listening(store.engine)) == number_of_listeners)
        write(store, number)

    threading.Thread(target=write_once, args=(1, 1)).start()
    assert next(messages).data == {"n": 1}
    (parents,) = listening(store.engine)

    def child() -> None:
        engine.dispose(close=False)
        store.engine.dispose(close=False)
        # It listens by itself.
        threading.Thread(target=write_once, args=(2, 2)).start()
        assert next(messages).data == {"n": 2}
        messages.close()
        wait_until(lambda: listening(store.engine) == [parents])

    assert exit_code(fork(child)) == 0
    assert listening(store.engine) == [parents]
    assert next(messages).data == {"n": 2}
    threading.Thread(target=write, args=(store, 3)).start()
    assert next(messages).data == {"n": 3}
    messages.close()
    engine.dispose()


LEFT_OPEN = """
import asyncio, sys
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncStore, AsyncSubscription, Message, Store, Subscription
{body}
"""
IN_A_THREAD = """
messages = Subscription(Store(create_engine(sys.argv[1])), "account", poll_seconds=0.01)
for message in messages:
    if message.data["n"] == 1:
        break
"""
IN_A_TASK = """
async def main():
    global messages
    engine = create_async_engine(sys.argv[1])
    messages = AsyncSubscription(AsyncStore(engine), "account", poll_seconds=0.01)
    async for message in messages:
        if message.data["n"] == 1:
            break
    await engine.dispose()
asyncio.run(main())
"""


@pytest.mark.parametrize(("name", "body"), [("psycopg2", IN_A_THREAD), ("asyncpg", IN_A_TASK), ("psycopg", IN_A_TASK)])
def test_a_program_that_leaves_one_open_ends_without_a_warning(
    notify: None, store: Store, messagedb_url: str, name: str, body: str
) -> None:
    write(store, 0)
    url = make_url(messagedb_url).set(drivername=f"postgresql+{name}").render_as_string(hide_password=False)
    command = [sys.executable, "-W", "error", "-c", LEFT_OPEN.format(body=body), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until(lambda: listening(store.engine) or process.poll() is not None)
        write(store, 1)
        printed, _ = process.communicate(timeout=HANG)
    assert (process.returncode, printed) == (0, "")
    # The server notices a moment later that the program has ended.
    until_nobody_listens(store)
