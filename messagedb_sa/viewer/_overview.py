"""The first page: what is happening, and where to go from here."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta, timezone

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from messagedb_sa.viewer import _statements as statements
from messagedb_sa.viewer._charts import messages_a_minute
from messagedb_sa.viewer._pages import calls_of, page

COUNTED = 10_000
"""How many of the last messages the charts and the categories are made of."""
CATEGORIES = 12
LAST_MESSAGES = 12


async def overview(request: Request) -> Response:
    calls = calls_of(request)
    activity, messages = await asyncio.gather(
        calls.call(lambda store: store.activity(no_of_messages=COUNTED)),
        calls.select(statements.listed(statements.ALL, None, LAST_MESSAGES, forwards=False)),
    )
    # A client may write any time, and the charts end with the last one.
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    until_now = [each for each in activity if each.minute < soon]
    totals: Counter[str] = Counter()
    for each in activity:
        totals[each.category] += each.messages
    return page(
        request,
        "overview.html",
        by_category=messages_a_minute(until_now, "category", COUNTED),
        by_type=messages_a_minute(until_now, "type", COUNTED),
        categories=totals.most_common(CATEGORIES),
        more_categories=max(0, len(totals) - CATEGORIES),
        counted=totals.total(),
        messages=messages,
    )


ROUTES = [Route("/", overview)]
