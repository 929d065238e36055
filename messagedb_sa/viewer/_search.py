"""Finding messages: by an id, a position, a name, a correlation, or fields of the metadata."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from messagedb_sa import stream_name as names
from messagedb_sa.message import Message
from messagedb_sa.viewer import _statements as statements
from messagedb_sa.viewer._messages import PER_PAGE, fields_of
from messagedb_sa.viewer._pages import calls_of, link, number_parameter, page, required_parameter, text_parameter


class Hit(NamedTuple):
    """What was found under a name, and where it is."""

    kind: str
    name: str
    to: str
    last: Message


async def search(request: Request) -> Response:
    text = (text_parameter(request, "q") or "").strip()
    if not text:
        return page(request, "search.html", text="", hits=[], is_number=False)
    is_number = text.isascii() and text.isdecimal() and len(text) < 19
    by = {"global_position": int(text)} if is_number else {"id": _uuid(text)}
    if is_number or by["id"] is not None:
        by_name: Any = by
        if await calls_of(request).select(statements.message(**by_name)):
            return RedirectResponse(link("message", **by_name), 303)
    hits = await _hits(request, text)
    if not hits and fields_of(text) is not None:
        return RedirectResponse(link("all", metadata=text), 303)
    if len(hits) == 1:
        return RedirectResponse(hits[0].to, 303)
    return page(request, "search.html", search=text, text=text, hits=hits, is_number=is_number)


async def _hits(request: Request, text: str) -> list[Hit]:
    """The stream, the category and the correlation of this name."""
    calls = calls_of(request)
    hits = []
    if last := await calls.select(statements.listed(statements.stream(text), None, 1, forwards=False)):
        hits.append(Hit("Stream", text, link("stream", name=text), last[0]))
    if names.is_category(text):
        if last := await calls.select(statements.listed(statements.category(text), None, 1, forwards=False)):
            hits.append(Hit("Category", text, link("category", name=text), last[0]))
    elif await calls.scalar(statements.HAS_CORRELATION_INDEX):
        found = await calls.first_decodable(1, lambda store: store.iter_correlation(text, batch_size=1))
        if found.results:
            hits.append(Hit("Correlation", text, link("correlation", name=text), found.results[0]))
    return hits


async def correlation(request: Request) -> Response:
    name = required_parameter(request, "name")
    position = number_parameter(request, "position") or 0
    calls = calls_of(request)
    if not await calls.scalar(statements.HAS_CORRELATION_INDEX):
        return page(request, "correlation.html", name=name, has_index=False, messages=[], after=None, undecodable=None)
    found = await calls.first_decodable(
        PER_PAGE + 1, lambda store: store.iter_correlation(name, position, batch_size=PER_PAGE + 1)
    )
    shown, rest = found.results[:PER_PAGE], found.results[PER_PAGE:]
    on = rest[0].global_position if rest else None
    if on is None and found.undecodable is not None:
        on = found.undecodable.global_position + 1
    return page(
        request,
        "correlation.html",
        name=name,
        has_index=True,
        messages=[each._replace(data=_preview(each.data)) for each in shown],
        after=None if on is None else link("correlation", name=name, position=on),
        undecodable=None if rest else found.undecodable,
    )


def _preview(data: Any) -> str | None:
    """As the database makes it for the other lists."""
    if data is None:
        return None
    return json.dumps(data, ensure_ascii=False, default=str)[: statements.PREVIEW]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


ROUTES = [Route("/search", search), Route("/correlation", correlation)]
