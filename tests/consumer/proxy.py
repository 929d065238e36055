"""A proxy between a client and the server that misbehaves as networks and connection poolers do."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, make_url

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class Proxy:
    """Listens on TCP. After ``freeze`` it neither reads nor sends, and closes nothing; it accepts connections, but does
    not answer. With ``pooler`` it forwards notifications only along with the answer to a statement, as a pooler in
    transaction mode does, and has process ids of its own."""

    def __init__(self, url: str, *, swallows_notifications: bool = False, pooler: bool = False) -> None:
        self._at = make_url(url)
        self._swallows = swallows_notifications
        self._pooler = pooler
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listening]
        # Freezes when a client sends this.
        self.freeze_at: bytes | None = None
        # Freezes when a client connects.
        self.freezes_at_next = False
        self.accepted = 0
        self.swallowed = 0
        self.held = 0
        self._start(self._accept)

    def url(self, driver: str) -> URL:
        host, port = self._listening.getsockname()
        query = {"ssl": "disable"} if driver == "asyncpg" else {"sslmode": "disable", "gssencmode": "disable"}
        name = f"postgresql+{driver}"
        return URL.create(name, "postgres", host=host, port=port, database=self._at.database, query=query)

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """End the connections that there are, and freeze those to come."""
        self._flows.clear()
        for each in self._sockets[1:]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def sockets_to_it(self) -> list[socket.socket]:
        """Second handles of the sockets by which this process is connected to it."""
        found = []
        for number in [number for number in range(256) if _is_socket(number)]:
            try:
                handle = socket.socket(fileno=os.dup(number))
            except OSError:
                # Another thread has closed it since.
                continue
            with suppress(OSError):
                if handle.getpeername() == self._listening.getsockname():
                    found.append(handle)
                    continue
            handle.close()
        return found

    def close(self) -> None:
        self._closed = True
        self._flows.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=self._until_closed, args=(target, *arguments), daemon=True).start()

    def _until_closed(self, target: Callable[..., None], *arguments: Any) -> None:
        with suppress(OSError, EOFError):
            target(*arguments)

    def _forward(self, pump: Callable[..., None], source: socket.socket, sink: socket.socket, *others: Any) -> None:
        with suppress(OSError, EOFError):
            pump(source, sink, *others)
        # One side has ended the connection.
        self._hold()
        sink.shutdown(socket.SHUT_RDWR)

    def _keep(self, each: socket.socket) -> None:
        """To be closed with the others, unless they are closed already."""
        self._sockets.append(each)
        if self._closed:
            each.close()
            raise EOFError

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            self._keep(client)
            self.accepted += 1
            if self.freezes_at_next:
                self.freeze()
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", self._read(client, 4))
            start = self._read(client, length - 4)
            self._hold()
            if struct.unpack("!I", start[:4])[0] not in (_SSL_REQUEST, _GSS_REQUEST):
                break
            client.sendall(b"N")
        server = socket.socket(socket.AF_UNIX)
        self._keep(server)
        server.connect(f"{self._at.query['host']}/.s.PGSQL.{self._at.query['port']}")
        server.sendall(struct.pack("!I", length) + start)
        asked = threading.Event()
        asked.set()
        self._start(self._forward, self._forward_statements, client, server, asked)
        self._start(self._forward, self._forward_answers, server, client, asked)

    def _forward_statements(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        while data := client.recv(65536):
            if self.freeze_at is not None and self.freeze_at in data:
                self.freeze()
            self._hold()
            asked.set()
            server.sendall(data)

    def _forward_answers(self, server: socket.socket, client: socket.socket, asked: threading.Event) -> None:
        while True:
            kind, length = struct.unpack("!cI", self._read(server, 5))
            body = self._read(server, length - 4)
            self._hold()
            if kind == b"K" and self._pooler:
                body = struct.pack("!I", 1) + body[4:]
            if kind == b"A" and (self._swallows or (self._pooler and not asked.is_set())):
                self.swallowed += 1
                continue
            if kind == b"Z":
                asked.clear()
            client.sendall(kind + struct.pack("!I", length) + body)

    def _hold(self) -> None:
        if not self._flows.is_set():
            self.held += 1
            self._flows.wait()
            if self._closed:
                raise EOFError

    def _read(self, source: socket.socket, length: int) -> bytes:
        data = b""
        while len(data) < length:
            read = source.recv(length - len(data))
            if not read:
                raise EOFError
            data += read
        return data


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


@contextmanager
def proxied(url: str, **options: Any) -> Iterator[Proxy]:
    proxy = Proxy(url, **options)
    try:
        yield proxy
    finally:
        proxy.close()
