"""A viewer behind a real server, in a thread of this process, and a browser that looks at it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import uvicorn

from ..waits import HANG, wait_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def browser_program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def browser_options() -> dict[str, Any]:
    return {"executable_path": browser_program(), "args": ["--no-sandbox"] if os.geteuid() == 0 else []}


class Served:
    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"


@contextmanager
def served(app: Any, *, at: int = 0, **options: Any) -> Iterator[Served]:
    """At this port, or at a free one. ``options`` are those of uvicorn."""
    listening = socket.create_server(("127.0.0.1", at))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", **options))
    thread = Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server has started")
        yield Served(server, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


class Events:
    """A client of server-sent events, as a browser reads them."""

    def __init__(self, served: Served, path: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
        self._connection.request("GET", path, headers=headers)
        self.answer = self._connection.getresponse()

    def __iter__(self) -> Iterator[tuple[str, str, Any]]:
        """Each event's type, id and data; a comment has the type "comment"."""
        type_, id_, data = "message", "", None
        while line := self.answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if not line.strip():
                if data is not None:
                    yield type_, id_, data
                type_, data = "message", None
            elif name == "":
                yield "comment", id_, value
            elif name == "event":
                type_ = value
            elif name == "id":
                id_ = value
            elif name == "data":
                data = json.loads(value)

    def close(self) -> None:
        # Without this, the answer would keep it open.
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.answer.close()
        self._connection.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
