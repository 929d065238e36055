"""Consumers: how far each is, and how that changes while somebody looks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime, timedelta, timezone
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from messagedb_sa._clock import monotonic
from messagedb_sa.store import ConsumerStatus
from messagedb_sa.viewer._calls import Calls
from messagedb_sa.viewer._charts import Sample, over_time, since
from messagedb_sa.viewer._pages import page

logger = logging.getLogger("messagedb_sa.viewer")

MAX_LAG = 1000
"""Further than this, messages after a position are not counted."""
SAMPLE_SECONDS = 10
KEPT = 360
"""How many samples are kept: an hour."""
_DRAWN = 50
"""Of how many consumers a sample keeps the values: those that are furthest behind."""
LISTED = 500


class History:
    """Samples of the consumers' lags and ages, in memory.

    A position in the table has no history in the database, and one in a stream does not tell what it was behind. So
    this process samples, from the first look at the page until nobody has looked for as long as the samples reach back.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.samples: deque[tuple[datetime, dict[str, tuple[int | None, float]]]] = deque(maxlen=KEPT)
        self._looked = 0.0
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> list[ConsumerStatus]:
        self._looked = monotonic()
        found = await self._sample()
        # One of an event loop that has ended does nothing any more.
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.create_task(self._sample_on(), name="messagedb_sa.viewer")
        return found

    async def _sample_on(self) -> None:
        while monotonic() - self._looked < KEPT * SAMPLE_SECONDS:
            await asyncio.sleep(SAMPLE_SECONDS)
            try:
                await self._sample()
            except Exception as error:  # noqa: BLE001 - the page shows a gap, and its next look the error
                logger.info("consumers were not sampled: %s", type(error).__name__)

    async def _sample(self) -> list[ConsumerStatus]:
        found = await self._calls.call(lambda store: store.consumers(max_lag=MAX_LAG))
        now = datetime.now(timezone.utc)
        values = {name_of(each): (each.lag, since(each.waiting_since, now)) for each in found}
        behind = sorted(values.items(), key=lambda item: item[1][1], reverse=True)
        self.samples.append((now, dict(behind[:_DRAWN])))
        return found


def name_of(status: ConsumerStatus) -> str:
    of_group = "" if status.group_size is None else f" {status.group_member} of {status.group_size}"
    return f"{status.category} {status.identifier or ''}{of_group}".strip()


async def consumers(request: Request) -> Response:
    history = cast("History", request.app.state.history)
    found = await history.look()
    pause = timedelta(seconds=3 * SAMPLE_SECONDS)
    ages = [Sample(time, {name: age for name, (_, age) in values.items()}) for time, values in history.samples]
    lags = [Sample(time, {name: lag for name, (lag, _) in values.items()}) for time, values in history.samples]
    now = datetime.now(timezone.utc)
    worst_first = sorted(found, key=lambda each: (-since(each.waiting_since, now), name_of(each)))
    return page(
        request,
        "consumers.html",
        consumers=worst_first[:LISTED],
        left_out=len(found) - len(worst_first[:LISTED]),
        now=now,
        since=since,
        ages=over_time(ages, pause, seconds=True),
        lags=over_time(lags, pause, most=MAX_LAG),
        begin=history.samples[0][0],
        max_lag=MAX_LAG,
        sample_seconds=SAMPLE_SECONDS,
    )


ROUTES = [Route("/consumers", consumers)]
