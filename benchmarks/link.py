"""A network link with a delay in front of a PostgreSQL server: a proxy in a separate process.

Run as a program: ``link.py LISTEN_AT SERVER_AT SECONDS``. It prints a line when it listens on the Unix socket
LISTEN_AT, and ends when its standard input ends.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from threading import Thread

from database import cursor
from sqlalchemy import URL, make_url

CHUNK = 65536


@contextlib.contextmanager
def link(url: str, one_way: float) -> Iterator[str]:
    """The URL of the same database over a link with a delay of ``one_way`` seconds in each direction.

    The proxy runs on the same core as this process, which waits while the proxy works.
    """
    direct = make_url(url)
    name = f".s.PGSQL.{direct.query['port']}"
    with tempfile.TemporaryDirectory(prefix="link-") as folder:
        process = subprocess.Popen(
            [sys.executable, __file__, str(Path(folder, name)), str(Path(_host(direct), name)), str(one_way)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield direct.update_query_dict({"host": folder}).render_as_string(hide_password=False)
            finally:
                process.stdin.close()


def one_way_for(url: str, round_trip: float) -> float:
    """The delay in each direction with which a link adds ``round_trip`` seconds to a round trip.

    It is less than half of ``round_trip``, since waking up a thread takes time too. How much depends on the machine.
    """
    one_way = round_trip / 2
    for _ in range(5):
        with link(url, one_way) as delayed:
            excess = added_round_trip(url, delayed) - round_trip
        if abs(excess) < round_trip / 50:
            break
        one_way = max(0.0, one_way - excess / 2)
    return one_way


def added_round_trip(direct: str, delayed: str, calls: int = 300) -> float:
    """How many seconds longer a ``SELECT 1`` takes over the link than directly."""
    return _seconds_of_a_call(delayed, calls) - _seconds_of_a_call(direct, calls)


def _seconds_of_a_call(url: str, calls: int) -> float:
    taken = []
    with cursor(url) as open_cursor:
        for _ in range(calls):
            began = time.perf_counter()
            open_cursor.execute("SELECT 1")
            taken.append(time.perf_counter() - began)
    return median(taken)


def _host(url: URL) -> str:
    host = url.query["host"]
    assert isinstance(host, str)
    return host


def main(listen_at: str, server_at: str, seconds: float) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(listen_at)
    listener.listen(100)
    Thread(target=_accept, args=(listener, server_at, seconds), daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()


def _accept(listener: socket.socket, server_at: str, seconds: float) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(server_at)
        for source, target in ((client, server), (server, client)):
            # Data waits in the queue while more is read, so the delay does not reduce the bandwidth.
            arrived: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            Thread(target=_read, args=(source, arrived), daemon=True).start()
            Thread(target=_send, args=(arrived, target, seconds), daemon=True).start()


def _read(source: socket.socket, arrived: SimpleQueue[tuple[float, bytes]]) -> None:
    data = b"-"
    while data:
        try:
            data = source.recv(CHUNK)
        except ConnectionError:
            data = b""
        arrived.put((time.perf_counter(), data))


def _send(arrived: SimpleQueue[tuple[float, bytes]], target: socket.socket, seconds: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            at, data = arrived.get()
            # time.sleep is exact enough. The timers of epoll and asyncio round up to a whole millisecond.
            if (left := at + seconds - time.perf_counter()) > 0:
                time.sleep(left)
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
