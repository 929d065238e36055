"""What a call costs on the wire: the requests that the server gets, counted between it and the client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, select, text

from messagedb_sa import AppendCondition, InvalidArgument, Query, Store, WrongExpectedVersion


class Wire:
    """A socket in front of the server's that notes each request before it passes it on."""

    def __init__(self, server: str, front: Path) -> None:
        self.requests: list[bytes] = []
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(front))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            for source, target, noted in ((client, server, self.requests), (server, client, None)):
                threading.Thread(target=self._pass_on, args=(source, target, noted), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, noted: list[bytes] | None) -> None:
        # The other direction's thread may be the first to see that one side has gone.
        with source, suppress(OSError):
            while data := source.recv(1 << 20):
                if noted is not None:
                    noted.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # Closing alone would leave the thread in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def wire(messagedb_url: str, store: Store) -> Iterator[tuple[Wire, Engine]]:
    url = make_url(messagedb_url)
    with TemporaryDirectory(prefix="wire-") as folder:
        name = f".s.PGSQL.{url.query['port']}"
        wire = Wire(f"{url.query['host']}/{name}", Path(folder) / name)
        engine = create_engine(url.update_query_dict({"host": folder}))
        # A batch, so that whether there is write_messages is known.
        Store(engine).write_batch("account-1", [("Opened", {})])
        yield wire, engine
        engine.dispose()
        wire.close()


CALLS: list[Callable[[Store], Any]] = [
    lambda store: store.write("account-1", "Deposited", {"n": 1}, {"by": "me"}),
    lambda store: store.write("account-1", "Deposited", {"n": 1}, expected_version=0),
    lambda store: store.write_batch("account-1", [("Deposited", {"n": n}) for n in range(100)]),
    lambda store: store.write_batch("account-1", [("Deposited", {}), ("Deposited", {})], expected_version=0),
    lambda store: store.write_streams([("account-1", [("Deposited", {})], 0), ("order-1", [("Placed", {})])]),
    lambda store: store.read("account-1"),
    lambda store: store.write_streams([("account-1", [], 0), ("order-1", [("Placed", {})])]),
    lambda store: store.write_batch("order-1", [("Placed", {})], condition=AppendCondition(Query("user"))),
    lambda store: store.write_streams(
        [("order-1", [("Placed", {})])], condition=AppendCondition([Query("user"), Query("order", tags=["a"])])
    ),
    lambda store: store.read_query([Query("account", ["Opened"]), Query("order", tags=["a"])]),
    lambda store: list(store.iter_query(Query("account"))),
    lambda store: store.read("account"),
    lambda store: store.read("$all"),
    lambda store: store.read("account", "SELECT * FROM message_store.messages"),
    lambda store: store.read_last_message("account-1"),
    lambda store: store.stream_version("account-1"),
    lambda store: store.stream_identifiers("account"),
    lambda store: list(store.iter_category("account")),
    lambda store: list(store.iter_all()),
    lambda store: store.version(),
]


@pytest.mark.parametrize("call", CALLS)
def test_each_call_is_one_round_trip(wire: tuple[Wire, Engine], call: Callable[[Store], Any]) -> None:
    counted, engine = wire
    store = Store(engine)
    counted.requests.clear()
    call(store)
    assert len(counted.requests) == 1, counted.requests


@pytest.mark.parametrize("call", CALLS)
def test_each_call_in_the_callers_transaction_is_one_round_trip_too(
    wire: tuple[Wire, Engine], call: Callable[[Store], Any]
) -> None:
    counted, engine = wire
    with engine.connect() as connection:
        connection.execute(select(1))
        counted.requests.clear()
        call(Store(connection))
        assert len(counted.requests) == 1, counted.requests


def test_of_all_the_first_number_that_is_missing_costs_two_more_and_the_others_nothing(
    wire: tuple[Wire, Engine],
) -> None:
    counted, engine = wire
    store = Store(engine)
    for _ in range(6):
        with engine.connect() as connection:
            Store(connection).write("order-1", "Placed", {})
        store.write_batch("account-1", [("Deposited", {})] * 2)
    counted.requests.clear()
    # One of the wire's own, and two after each gap: three pages, and a fourth that is short.
    assert len(list(store.iter_all(batch_size=4))) == 13
    assert len(counted.requests) == 4 + 2
    counted.requests.clear()
    assert len(list(store.iter_all(batch_size=4, allow_holes=True))) == 13
    assert len(counted.requests) == 4


def test_a_refusal_by_the_server_is_one_round_trip_too(wire: tuple[Wire, Engine]) -> None:
    counted, engine = wire
    counted.requests.clear()
    with pytest.raises(WrongExpectedVersion):
        Store(engine).write("account-1", "Deposited", {}, expected_version=7)
    assert len(counted.requests) == 1


def test_an_isolation_level_of_the_engines_costs_none(wire: tuple[Wire, Engine]) -> None:
    counted, engine = wire
    own = create_engine(engine.url, isolation_level="SERIALIZABLE")
    Store(own).write("account-1", "Deposited", {})
    counted.requests.clear()
    Store(own).write("account-1", "Deposited", {})
    assert len(counted.requests) == 1, counted.requests
    with own.connect() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "serializable"
    own.dispose()


def test_an_isolation_level_that_the_connection_had_once_costs_none(wire: tuple[Wire, Engine]) -> None:
    counted, engine = wire
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(select(1))
    counted.requests.clear()
    Store(engine).write("account-1", "Deposited", {})
    assert len(counted.requests) == 1, counted.requests


def test_bad_input_is_none(wire: tuple[Wire, Engine]) -> None:
    counted, engine = wire
    counted.requests.clear()
    with pytest.raises(InvalidArgument):
        Store(engine).write("account-1", "Deposited", {"n": float("nan")})
    assert counted.requests == []


def test_making_a_store_sends_nothing(wire: tuple[Wire, Engine]) -> None:
    counted, engine = wire
    counted.requests.clear()
    Store(engine)
    assert counted.requests == []
