"""What the tests of health share: handlers that can be held, and a client of ASGI applications."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from messagedb_sa import Message
from messagedb_sa.health import ASGIApplication, Finding

from ..waits import HANG


class Held:
    """A handler that does not return before it is released."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._may_go = threading.Event()

    def __call__(self, message: Message, *_: Any) -> None:
        self.messages.append(message)
        assert self._may_go.wait(HANG)

    def release(self) -> None:
        self._may_go.set()


def kinds(findings: Iterable[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def kinds(self) -> list[str]:
        return [finding["kind"] for finding in json.loads(self.content)["findings"]]


async def ask(app: ASGIApplication, path: str, method: str = "GET") -> Answer:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    start, body = sent
    return Answer(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body["body"])


def get(app: ASGIApplication, path: str, method: str = "GET") -> Answer:
    return asyncio.run(ask(app, path, method))
