"""Pages of messages: those of a stream, of a category and of the whole store; and one message."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from messagedb_sa._metadata_fields import CAUSATION_POSITION, CAUSATION_STREAM, CORRELATION
from messagedb_sa.errors import InvalidArgument, MessageNotDecodable
from messagedb_sa.message import Message
from messagedb_sa.viewer import _statements as statements
from messagedb_sa.viewer._errors import NotFound
from messagedb_sa.viewer._graph import Graph, graph_of
from messagedb_sa.viewer._json_tree import Node, tree_of
from messagedb_sa.viewer._pages import calls_of, link, number_parameter, page, required_parameter, text_parameter
from messagedb_sa.viewer._statements import Source

PER_PAGE = 50
CAUSES = 10
EFFECTS = 50


class Listing(NamedTuple):
    """Messages in the order of the page, and the links to the pages before and after it."""

    messages: list[Message]
    before: str | None
    after: str | None
    oldest_first: bool
    type: str | None
    metadata: str | None
    looked_at: int | None
    """With a type or metadata: how many messages were looked at for them, if there are more."""


class Json(NamedTuple):
    """Data or metadata: as a tree if it is short enough, and as text."""

    text: str | None
    characters: int
    tree: Node | None

    @property
    def is_cut(self) -> bool:
        return self.text is not None and len(self.text) < self.characters


async def stream(request: Request) -> Response:
    name = required_parameter(request, "name")
    return await _list(request, "stream", name, statements.stream(name))


async def category(request: Request) -> Response:
    name = required_parameter(request, "name")
    return await _list(request, "category", name, statements.category(name))


async def all_messages(request: Request) -> Response:
    return await _list(request, "all", None, statements.ALL)


async def _list(request: Request, kind: str, name: str | None, source: Source) -> Response:
    listing = await _listing(request, kind, name, source)
    return page(request, "messages.html", kind=kind, name=name, listing=listing)


async def _listing(request: Request, kind: str, name: str | None, source: Source) -> Listing:
    position, type = number_parameter(request, "position"), text_parameter(request, "type")
    metadata = text_parameter(request, "metadata")
    fields = None if metadata is None else fields_of(metadata)
    if metadata is not None and fields is None:
        raise InvalidArgument("metadata", metadata, 'must be name=value, or a JSON object such as {"userId": "7"}')
    oldest_first = text_parameter(request, "order") == "oldest"
    # A page that leads back is read from its end.
    is_back = position is not None and text_parameter(request, "back") is not None
    forwards = oldest_first != is_back
    found = await calls_of(request).select(
        statements.listed(source, position, PER_PAGE + 1, forwards=forwards, type=type, fields=fields)
    )
    shown, rest, looked_at = found[:PER_PAGE], found[PER_PAGE:], None
    if (type or metadata) and found and found[-1].type == "":
        *shown, last = found
        rest, looked_at = [last], statements.LOOKED_AT

    def page_at(position: int, *, back: bool) -> str | None:
        if position < 0:
            return None
        order = "oldest" if oldest_first else None
        wanted = {"name": name, "type": type, "metadata": metadata, "order": order}
        return link(kind, **wanted, position=position, back=1 if back else None)

    def position_of(message: Message) -> int:
        return message.position if kind == "stream" else message.global_position

    onward = page_at(position_of(rest[0]), back=is_back) if rest else None
    came_from = None if position is None else page_at(position + (-1 if forwards else 1), back=not is_back)
    before, after = (onward, came_from) if is_back else (came_from, onward)
    messages = shown[::-1] if is_back else shown
    return Listing(messages, before, after, oldest_first, type, metadata, looked_at)


async def message(request: Request) -> Response:
    found = await _found(request)
    calls = calls_of(request)
    (data, characters, is_last), (metadata, metadata_characters, has_effects) = found.data, found.metadata
    fields = _object(metadata)
    one = found._replace(data=None, metadata=fields)
    undecodable: MessageNotDecodable | None = None
    causes: list[Message] = []
    effects: list[Message] = []
    try:
        if CAUSATION_STREAM in fields:
            causes = await calls.call(lambda store: store.read_causes(one, CAUSES))
        if has_effects:
            effects = await calls.call(lambda store: store.read_effects(one, EFFECTS))
    except MessageNotDecodable as error:
        undecodable = error
    graph: Graph | None = graph_of(one, causes, effects) if causes or effects else None
    return page(
        request,
        "message.html",
        message=one,
        data=Json(data, characters or 0, await _tree(data, characters)),
        metadata=Json(metadata, metadata_characters or 0, await _tree(metadata, metadata_characters)),
        is_last=is_last,
        graph=graph,
        is_whole=len(causes) < CAUSES and len(effects) < EFFECTS,
        has_effects_index=has_effects,
        undecodable=undecodable,
        correlation=_text(fields.get(CORRELATION)),
        cause=_cause(fields),
    )


async def raw(request: Request) -> Response:
    """The message's data, or its metadata, as it is stored."""
    id = _id(required_parameter(request, "id"))
    part = text_parameter(request, "part") or "data"
    if part not in ("data", "metadata"):
        raise InvalidArgument("part", part, "must be data or metadata")
    rows = await calls_of(request).select(statements.raw(id))
    if not rows:
        raise NotFound(f"There is no message with the id {id}.")
    text = rows[0].data if part == "data" else rows[0].metadata
    headers = {"Content-Disposition": f'attachment; filename="{id}-{part}.json"'}
    return Response("null" if text is None else text, media_type="application/json", headers=headers)


async def _found(request: Request) -> Message:
    id, number = text_parameter(request, "id"), number_parameter(request, "global_position")
    name, position = text_parameter(request, "stream"), number_parameter(request, "position")
    if id is not None:
        statement, called = statements.message(id=_id(id)), f"with the id {id}"
    elif number is not None:
        statement, called = statements.message(global_position=number), f"at global position {number}"
    elif name is not None and position is not None:
        statement = statements.message(stream_name=name, position=position)
        called = f"at position {position} of stream {name!r}"
    else:
        raise InvalidArgument("id", "", "must be given; or global_position; or stream and position")
    rows = await calls_of(request).select(statement)
    if not rows:
        raise NotFound(f"There is no message {called}.")
    return rows[0]


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidArgument("id", text, "must be a UUID") from None


async def _tree(text: str | None, characters: int | None) -> Node | None:
    if text is None or len(text) != characters:
        return None
    return await asyncio.to_thread(tree_of, text) if len(text) > 10_000 else tree_of(text)


def _object(text: str | None) -> dict[str, Any]:
    """The metadata's fields, for links; none if they cannot be read."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def fields_of(text: str) -> dict[str, Any] | None:
    """Of a JSON object, or name=value, as somebody types it. None if it is neither."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        name, equals, value = text.partition("=")
        fields = {name.strip(): value.strip()} if equals else None
    return fields if isinstance(fields, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _cause(fields: dict[str, Any]) -> str | None:
    """A link to the message that caused this one."""
    name, position = _text(fields.get(CAUSATION_STREAM)), fields.get(CAUSATION_POSITION)
    if name is None or not isinstance(position, int) or isinstance(position, bool) or position < 0:
        return None
    return link("message", stream=name, position=position)


ROUTES = [
    Route("/stream", stream),
    Route("/category", category),
    Route("/all", all_messages),
    Route("/message", message),
    Route("/raw", raw),
]
