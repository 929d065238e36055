"""The categories of the store, and the streams of one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from messagedb_sa import stream_name as names
from messagedb_sa._arguments import ALL
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.viewer._pages import calls_of, link, page, required_parameter, text_parameter

PER_PAGE = 50
RECENT = 1_000
"""Among how many of a category's last messages the streams are that were written lately."""


async def categories(request: Request) -> Response:
    return page(request, "categories.html", categories=await calls_of(request).call(lambda store: store.categories()))


async def streams(request: Request) -> Response:
    category = required_parameter(request, "category")
    if category == ALL:
        raise InvalidArgument("category", category, "must be a category, and this is the whole store")
    after, wanted = text_parameter(request, "after"), text_parameter(request, "find")
    if wanted is not None:
        name = wanted if names.category(wanted) == category else f"{category}-{wanted}"
        if await calls_of(request).call(lambda store: store.stream_version(name)) >= 0:
            return RedirectResponse(link("stream", name=name), 303)
        after = name
    by_name = after is not None or text_parameter(request, "order") == "name"
    if by_name:
        found = await calls_of(request).first(
            PER_PAGE + 1, lambda store: store.iter_streams(category, batch_size=PER_PAGE + 1, after=after)
        )
    else:
        found = await calls_of(request).call(lambda store: store.recent_streams(category, no_of_messages=RECENT))
    shown = found[:PER_PAGE]
    more = link("streams", category=category, after=shown[-1].stream_name) if by_name and found[PER_PAGE:] else None
    return page(
        request,
        "streams.html",
        category=category,
        streams=shown,
        by_name=by_name,
        after=after,
        missing=after if wanted is not None else None,
        more=more,
        recent=RECENT,
    )


ROUTES = [Route("/categories", categories), Route("/streams", streams)]
