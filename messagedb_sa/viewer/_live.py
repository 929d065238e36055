"""Messages as they are written, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast
from weakref import WeakSet

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import MessageNotDecodable
from messagedb_sa.message import Message
from messagedb_sa.store import AsyncStore, Store
from messagedb_sa.subscription import AsyncSubscription, Subscription
from messagedb_sa.viewer._errors import text_of
from messagedb_sa.viewer._pages import calls_of, link, number_parameter, page, text_parameter
from messagedb_sa.viewer._statements import PREVIEW

VIEWERS = 20
"""How many pages may follow at the same time, in one process."""
HEARTBEAT_SECONDS = 15.0
"""After so long without a message, a comment is sent, so that proxies keep the connection."""
_RETRY_MILLISECONDS = 2000
_BATCH_SIZE = 100
_ALL = "$all"
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


class Tail:
    """A subscription of a Store or of an AsyncStore, awaited."""

    def __init__(self, store: Store | AsyncStore, name: str, position: int, limiter: CapacityLimiter) -> None:
        self._limiter = limiter
        self._sync: Subscription | None = None
        self._async: AsyncSubscription | None = None
        if isinstance(store, Store):
            self._sync = Subscription(store, name, position, batch_size=_BATCH_SIZE, reconnect=True)
        else:
            self._async = AsyncSubscription(store, name, position, batch_size=_BATCH_SIZE, reconnect=True)
        self._next: asyncio.Future[Message | None] | None = None

    async def next(self, seconds: float) -> Message | None:
        """The next message. Raises TimeoutError after so long without one; the next call then waits for the same.

        None when it was closed.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._take())
        done, _ = await asyncio.wait({self._next}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        taken, self._next = self._next, None
        return taken.result()

    async def _take(self) -> Message | None:
        if self._async is not None:
            return await anext(self._async, None)
        assert self._sync is not None
        # In a thread of its own, so that pages never wait for those that follow.
        return await to_thread.run_sync(next, self._sync, None, limiter=self._limiter)

    async def close(self) -> None:
        if self._async is not None:
            await self._async.close()
        elif self._sync is not None:
            await to_thread.run_sync(self._sync.close)
        if (waiting := self._next) is not None:
            await asyncio.wait({waiting})
            # Nobody wants what it took any more, nor its error.
            _ = waiting.cancelled() or waiting.exception()


class Tails:
    """Those of an application that are open."""

    def __init__(self) -> None:
        self.open: set[Tail] = set()
        self.limiter: CapacityLimiter | None = None
        self.are_ending = False
        _all.add(self)

    async def close(self) -> None:
        self.are_ending = True
        await asyncio.gather(*(tail.close() for tail in list(self.open)))


_all: WeakSet[Tails] = WeakSet()


async def close_all() -> None:
    """End those of this process, for a server that stops: it would wait for them."""
    for tails in list(_all):
        await tails.close()


class EventStream(StreamingResponse):
    """Ends its tail however it ends: the browser is gone, the server stops, or the task is cancelled."""

    def __init__(self, tail: Tail, tails: Tails, begin: int, by: str) -> None:
        super().__init__(_events(tail, begin, by), media_type="text/event-stream")
        # nginx would buffer it.
        self.headers.update({"X-Accel-Buffering": "no", "Cache-Control": "no-store, no-transform"})
        self._tail = tail
        self._tails = tails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._tails.are_ending or len(self._tails.open) >= VIEWERS:
            full = PlainTextResponse(f"{VIEWERS} pages follow already: close one.", 503, {"Retry-After": "30"})
            return await full(scope, receive, send)
        self._tails.open.add(self._tail)
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                try:
                    await self._tail.close()
                finally:
                    self._tails.open.discard(self._tail)


async def _events(tail: Tail, begin: int, by: str) -> AsyncIterator[str]:
    # Ids are positions to continue at, so the browser has one also if it loses the connection before the first message.
    yield f"retry: {_RETRY_MILLISECONDS}\n" + _event("begin", begin, {"position": begin})
    while True:
        try:
            message = await tail.next(HEARTBEAT_SECONDS)
        except asyncio.TimeoutError:
            yield ": nothing new\n\n"
        except MessageNotDecodable as error:
            yield _event("message", getattr(error, by) + 1, _undecodable(error))
        except Exception as error:  # noqa: BLE001 - the page shows it, and the browser tries again
            yield f"event: problem\ndata: {json.dumps({'text': text_of(error)})}\n\n"
            return
        else:
            if message is None:
                return
            yield _event("message", getattr(message, by) + 1, _shown(message))


def _event(type: str, id: int, data: dict[str, Any]) -> str:
    # JSON has no line break that is not escaped.
    return f"event: {type}\nid: {id}\ndata: {json.dumps(data)}\n\n"


def _shown(message: Message) -> dict[str, Any]:
    return {
        **_links(message.stream_name),
        "type": message.type,
        "position": message.position,
        "global_position": message.global_position,
        "message": link("message", id=message.id),
        "time": message.time.isoformat(),
        "data": None if message.data is None else _preview(message.data),
    }


def _preview(data: Any) -> str:
    """The beginning; no more than that is encoded."""
    text = ""
    try:
        for part in _ENCODER.iterencode(data):
            text += part[:PREVIEW]
            if len(text) > PREVIEW:
                break
    except (ValueError, RecursionError) as error:
        return f"cannot be shown: {type(error).__name__}"
    return text[:PREVIEW]


def _undecodable(error: MessageNotDecodable) -> dict[str, Any]:
    return {
        **_links(error.stream_name),
        "type": error.type,
        "position": error.position,
        "global_position": error.global_position,
        "message": link("stream", name=error.stream_name, position=error.position),
        "time": None,
        "data": error.reason[:PREVIEW],
    }


def _links(stream_name: str) -> dict[str, str]:
    return {"stream_name": stream_name, "stream": link("stream", name=stream_name)}


async def live(request: Request) -> Response:
    name = _name(request)
    return page(request, "live.html", name=name, is_all=name == _ALL, is_category=_by(name) == "global_position")


async def events(request: Request) -> Response:
    name, tails, calls = _name(request), cast("Tails", request.app.state.tails), calls_of(request)
    begin = _continues_at(request)
    if begin is None:
        begin = 1 + await calls.call(lambda store: _end(store, name))
    tails.limiter = tails.limiter or CapacityLimiter(VIEWERS)
    return EventStream(Tail(calls.plain, name, begin, tails.limiter), tails, begin, _by(name))


def _continues_at(request: Request) -> int | None:
    """What the browser says when it connects again, or the page when it goes on after a pause."""
    last = request.headers.get("last-event-id", "")
    if last.isascii() and last.isdecimal() and len(last) < 19:
        return int(last)
    return number_parameter(request, "from")


def _end(store: Store, name: str) -> Any:
    """The position of the last message."""
    return store.last_global_position(name) if _by(name) == "global_position" else store.stream_version(name)


def _name(request: Request) -> str:
    return arguments.text("name", text_parameter(request, "name") or _ALL)


def _by(name: str) -> str:
    """The field that a position counts."""
    return "global_position" if name == _ALL or names.is_category(name) else "position"


ROUTES = [Route("/live", live), Route("/events", events)]
