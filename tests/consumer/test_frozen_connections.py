"""Connections whose other side does not answer, and does not end: a network that is cut, a machine that is frozen."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, NullPool

from messagedb_sa import Message, Store, install
from messagedb_sa._drivers.sockets import socket_of

from ..support import DRIVERS, consumer_on, on, store_on
from ..waits import HANG, wait_until
from .proxy import Proxy, proxied
from .support import last_position, running, write
from .test_stopping_and_signals import started

LIMITS = {
    name: value
    for name, value in {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}.items()
    if hasattr(socket, name)
}
UNANSWERED = "stops without a connection: its last position is not recorded"


@pytest.fixture
def proxy(messagedb_url: str) -> Iterator[Proxy]:
    with proxied(messagedb_url) as proxy:
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._watch.STOP_SECONDS", 0.2)
    monkeypatch.setattr("messagedb_sa.consumer._host.STOP_SECONDS", 0.2)


def limits_of(handle: socket.socket) -> dict[str, int]:
    found = {name: handle.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in LIMITS}
    return {**found, "SO_KEEPALIVE": handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}


def all_limits(proxy: Proxy) -> list[dict[str, int]]:
    """Those of this process's connections to the proxy."""
    handles = proxy.sockets_to_it()
    found = [limits_of(each) for each in handles]
    for each in handles:
        each.close()
    return found


# ---- the kernel's limits


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_kernel_gives_up_its_connections_within_half_a_minute(store: Store, proxy: Proxy, driver: str) -> None:
    """Both its own and that of a transaction, which is as it was before once it is back in the pool."""
    write(store, 1)
    during: list[dict[str, int]] = []
    with store_on(driver, proxy.url(driver)) as own:
        own.read("account")
        (before,) = all_limits(proxy)

        def handle(message: Message, *_: Any) -> None:
            during.extend(all_limits(proxy))

        consumer_on(own, "account", handle, "mailer", transactional=True).run_until_caught_up()
        (after,) = all_limits(proxy)
    assert during == [{**LIMITS, "SO_KEEPALIVE": 1}] * 2
    assert before == after
    assert before["TCP_KEEPIDLE"] != LIMITS["TCP_KEEPIDLE"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_limits_that_are_set_already_are_kept(store: Store, proxy: Proxy, driver: str) -> None:
    def body(connection: Connection) -> list[dict[str, int]]:
        handle = proxy.sockets_to_it()[-1]
        with handle:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7)
            found = [limits_of(handle)]
            for change in (socket_of(connection).limit, socket_of(connection).unlimit):
                change()
                found.append(limits_of(handle))
        return found

    url = proxy.url(driver).render_as_string(hide_password=False)
    before, limited, after = on(driver, url, body)
    assert limited == {**LIMITS, "SO_KEEPALIVE": 1, "TCP_KEEPINTVL": 7}
    assert after == before


def test_keepalive_probes_that_are_switched_off_stay_off(store: Store, proxy: Proxy) -> None:
    for driver in ("psycopg2", "psycopg"):
        url = proxy.url(driver).update_query_dict({"keepalives": "0"})
        with store_on(driver, url) as own:
            consumer = consumer_on(own, "account", print, "mailer", poll_seconds=3600)
            with running(consumer):
                wait_until(lambda: any(each == {**LIMITS, "SO_KEEPALIVE": 0} for each in all_limits(proxy)))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_unix_socket_has_no_limits_and_needs_none(store: Store, messagedb_url: str, driver: str) -> None:
    def body(connection: Connection) -> None:
        found = socket_of(connection)
        found.limit()
        found.unlimit()

    on(driver, messagedb_url, body)


# ---- stopping


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "at", ["reading", "recording", "committing", "sharing slots", "connecting", "connecting again"]
)
def test_it_can_be_stopped_though_nothing_answers(
    impatient: None,
    store: Store,
    proxy: Proxy,
    driver: str,
    at: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(store, 2)
    handled: list[Message] = []

    def handle(message: Message, *_: Any) -> None:
        handled.append(message)
        if at in ("recording", "committing"):
            proxy.freeze()

    options: dict[str, Any] = {"poll_seconds": 0.01, "record_every": 1}
    if at == "committing":
        options["transactional"] = True
    elif at == "sharing slots":
        options["slots"] = 2
    if at == "connecting":
        proxy.freeze()
    with store_on(driver, proxy.url(driver)) as own:
        with running(consumer_on(own, "account", handle, "mailer", **options)):
            if at == "connecting":
                wait_until(lambda: proxy.held)
            elif at == "connecting again":
                wait_until(lambda: handled)
                accepted = proxy.accepted
                proxy.cut()
                wait_until(lambda: proxy.accepted > accepted)
            else:
                wait_until(lambda: len(handled) == 2 or proxy.held)
                proxy.freeze()
                wait_until(lambda: proxy.held)
        assert UNANSWERED in caplog.text
        proxy.close()
    if at in ("recording", "committing"):
        assert last_position(store, "account:position-mailer") is None


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_can_be_stopped_though_the_pool_gets_no_connection(
    impatient: None, store: Store, proxy: Proxy, driver: str
) -> None:
    write(store, 1)
    handled: list[int] = []
    with store_on(driver, proxy.url(driver), poolclass=NullPool) as own:

        def handle(message: Message, *_: Any) -> None:
            handled.append(message.data["n"])
            proxy.freezes_at_next = True

        with running(consumer_on(own, "account", handle, "mailer", transactional=True, poll_seconds=0.01)):
            wait_until(lambda: handled)
            write(store, 1, first=1)
            wait_until(lambda: proxy.held)
        proxy.close()
    assert handled == [0]
    assert last_position(store, "account:position-mailer") == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_can_be_stopped_though_the_pool_asks_in_vain_whether_a_connection_is_alive(
    impatient: None, store: Store, proxy: Proxy, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._host._AT_HAND_SECONDS", 0)
    write(store, 1)
    handled: list[int] = []
    with store_on(driver, proxy.url(driver), pool_pre_ping=True) as own:
        ping = own.engine.dialect.do_ping

        def freeze(connection: Any) -> bool:
            if handled:
                proxy.freeze()
            return ping(connection)

        monkeypatch.setattr(own.engine.dialect, "do_ping", freeze)
        consumer = consumer_on(
            own, "account", lambda message, _: handled.append(0), "mailer", transactional=True, poll_seconds=0.01
        )
        with running(consumer):
            wait_until(lambda: handled)
            write(store, 1, first=1)
            wait_until(lambda: proxy.held)
        proxy.close()
    assert handled == [0]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("options", [{}, {"transactional": True}], ids=str)
def test_a_handler_is_waited_for_as_long_as_it_takes(
    store: Store,
    proxy: Proxy,
    driver: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._watch.STOP_SECONDS", 0.1)
    write(store, 1)
    begun = threading.Event()

    def handle(message: Message, *_: Any) -> None:
        begun.set()
        # Several looks long.
        time.sleep(1)
        # The server may take its time to record the position.
        monkeypatch.setattr("messagedb_sa.consumer._watch.STOP_SECONDS", HANG)

    with store_on(driver, proxy.url(driver)) as own:
        with running(consumer_on(own, "account", handle, "mailer", **options)):
            begun.wait()
        assert last_position(store, "account:position-mailer") == 1


def test_a_consumer_that_fails_while_nothing_answers_ends_too(
    impatient: None, store: Store, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 2)
    with store_on("asyncpg", proxy.url("asyncpg")) as own:

        def interrupt(message: Message) -> None:
            if message.data["n"] == 1:
                proxy.freeze()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            consumer_on(own, "account", interrupt, "mailer").run()
        assert "could not record its position" in caplog.text
        proxy.close()


# ---- signals

PROGRAM = """
import signal, sys
from sqlalchemy import create_engine, text
from messagedb_sa import Consumer, Store
from messagedb_sa.consumer import _host, _watch
_watch.STOP_SECONDS = _host.STOP_SECONDS = 0.5
url, how = sys.argv[1:]
engine = create_engine(url)
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))

look = _watch.Watch.look
told = []

def look_and_tell(watch):
    # psycopg2 keeps Python from calling the signal's handler, which sets the one before again.
    if not told and (engine.driver == "psycopg2" or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        told.append("asked to stop")
        print(*told, flush=True)
    look(watch)

def handle(message):
    print("handled", flush=True)
    sys.stdin.readline()
    if how == "in the handler":
        _watch.Watch.look = look_and_tell
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

Consumer(Store(engine), "account", handle, "mailer", poll_seconds=0.01).run()
print("returned", flush=True)
"""


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_though_nothing_answers(
    store: Store, proxy: Proxy, driver: str, number: signal.Signals
) -> None:
    """psycopg2 keeps Python from calling the signal's handler."""
    write(store, 1)
    with started(PROGRAM, proxy.url(driver).render_as_string(), "in a statement") as program:
        assert program.line() == "handled\n"
        proxy.freeze()
        program.end_handler()
        wait_until(lambda: proxy.held)
        program.send_signal(number)
        assert program.rest() == "returned\n"
        assert program.exit_code() == 0


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_second_signal_ends_the_program_though_a_handler_gets_no_answer(
    store: Store, proxy: Proxy, driver: str
) -> None:
    """On a connection of its own, which the consumer does not know."""
    write(store, 1)
    with started(PROGRAM, proxy.url(driver).render_as_string(), "in the handler") as program:
        assert program.line() == "handled\n"
        proxy.freeze()
        program.end_handler()
        wait_until(lambda: proxy.held)
        program.send_signal(signal.SIGTERM)
        # Two signals that come before the first is handled are one.
        assert program.line() == "asked to stop\n"
        program.send_signal(signal.SIGTERM)
        assert program.rest() == ""
        assert program.exit_code() in (-signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.fixture
def notify(store: Store) -> Iterator[None]:
    install.upgrade(store.engine, notify=True)
    yield
    install.upgrade(store.engine, notify=False)


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_can_be_stopped_while_it_begins_to_listen(
    impatient: None, notify: None, store: Store, proxy: Proxy, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    with store_on(driver, proxy.url(driver)) as own:
        own.read("account")
        proxy.freeze_at = b"LISTEN"
        with running(consumer_on(own, "account", print, "mailer")):
            wait_until(lambda: proxy.held)
        assert UNANSWERED in caplog.text
        proxy.close()
