"""Parked messages: what failed and why; and, if that is switched on, replaying and discarding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import cast
from uuid import UUID

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from messagedb_sa.consumer import AsyncConsumer, Consumer
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store import DeadLetter, Store
from messagedb_sa.viewer._errors import NotFound
from messagedb_sa.viewer._forms import is_ours, key_of, set_key, token_for
from messagedb_sa.viewer._pages import (
    calls_of,
    link,
    number_parameter,
    page,
    required_parameter,
    text_parameter,
)
from messagedb_sa.viewer._statements import SHOWN

LISTED = 100
"""How many a page lists, and how many one action takes."""
LOOKED_AT = 1_000
"""How many of the messages that each category's consumers parked last a page looks at, unless asked for all."""
ACTIONS = ("replay", "discard")

AnyConsumer = Consumer | AsyncConsumer


def checked_consumers(consumers: object, *, actions: bool) -> dict[tuple[str, str | None], AnyConsumer]:
    """By category and identifier, as dead letters have them."""
    if isinstance(consumers, (str, bytes)) or not isinstance(consumers, Sequence):
        raise InvalidArgument("consumers", consumers, "must be a list of consumers")
    for number, each in enumerate(consumers):
        if not isinstance(each, (Consumer, AsyncConsumer)):
            raise InvalidArgument(f"consumers[{number}]", each, "must be a Consumer or an AsyncConsumer")
    if consumers and not actions:
        raise InvalidArgument("consumers", consumers, "is only for actions=True")
    return {(each.category, each.identifier): each for each in consumers}


async def parked(request: Request) -> Response:
    category = text_parameter(request, "category")
    looked_at = None if text_parameter(request, "all") else LOOKED_AT
    found = await calls_of(request).first(
        LISTED + 1, lambda store: store.iter_dead_letters(category, no_of_messages=looked_at)
    )
    done, handled = number_parameter(request, "done"), number_parameter(request, "of")
    action = text_parameter(request, "action")
    return page(
        request,
        "parked.html",
        category=category,
        letters=found[:LISTED],
        listed=LISTED,
        looked_at=looked_at,
        has_more=len(found) > LISTED,
        can_replay=[_consumer_of(request, letter) is not None for letter in found],
        action=action if action in ACTIONS else None,
        done=done,
        of=handled,
    )


async def parked_message(request: Request) -> Response:
    id = required_parameter(request, "id")
    letter = await calls_of(request).call(lambda store: store.read_dead_letter(id))
    if letter is None:
        raise NotFound(f"No message is parked under the id {id}. Perhaps it was handled or discarded meanwhile.")
    can_replay = _consumer_of(request, letter) is not None
    message = letter.message
    return page(
        request,
        "parked_message.html",
        letter=letter,
        can_replay=can_replay,
        data=_as_text(message.data),
        metadata=_as_text(message.metadata),
    )


def _as_text(value: object) -> str:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (ValueError, RecursionError) as error:
        return f"cannot be shown: {type(error).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}\n… and {len(text) - SHOWN:,} more characters"


async def confirm(request: Request) -> Response:
    action, ids = _asked(request.query_params)
    letters = await _letters(request, ids)
    missing = [each for each in letters if _consumer_of(request, each) is None] if action == "replay" else []
    key = key_of(request)
    response = page(
        request,
        "confirm.html",
        action=action,
        letters=letters,
        missing=missing,
        gone=len(ids) - len(letters),
        token=token_for(request, key, action, [each.id for each in letters]),
    )
    set_key(request, response, key)
    return response


async def resolve(request: Request) -> Response:
    async with request.form(max_files=0, max_fields=LISTED + 10) as form:
        action, ids = _asked(form)
        token = str(form.get("token", ""))
    if not is_ours(request, token, action, ids):
        text = (
            "This form is not from this browser, or older than its login. Load the page before it, and confirm again."
        )
        return page(request, "error.html", 403, title="Refused", text=text)
    letters = await _letters(request, ids)
    if action == "discard":
        done = await calls_of(request).call(lambda store: store.discard_dead_letters(letters))
    else:
        done = await _replay(request, letters)
    return RedirectResponse(link("parked", action=action, done=done, of=len(ids)), 303)


async def _replay(request: Request, letters: list[DeadLetter]) -> int:
    by_consumer: dict[AnyConsumer, list[DeadLetter]] = {}
    for letter in letters:
        consumer = _consumer_of(request, letter)
        if consumer is None:
            reason = "cannot be replayed here: the viewer was made without the consumer that parked it"
            raise InvalidArgument("id", letter.id, reason)
        by_consumer.setdefault(consumer, []).append(letter)
    handled = 0
    for consumer, its in by_consumer.items():
        if isinstance(consumer, AsyncConsumer):
            handled += await consumer.replay(its)
        else:
            handled += await run_in_threadpool(consumer.replay, its)
    return handled


async def _letters(request: Request, ids: list[str]) -> list[DeadLetter]:
    """Those of these that are still parked."""
    found = [await calls_of(request).call(partial(_read, id)) for id in ids]
    return [each for each in found if each is not None]


def _read(id: str, store: Store) -> DeadLetter | None:
    return store.read_dead_letter(id)


def _asked(given: QueryParams | FormData) -> tuple[str, list[str]]:
    action = str(given.get("action", ""))
    if action not in ACTIONS:
        raise InvalidArgument("action", action, 'must be "replay" or "discard"')
    ids = list(dict.fromkeys(str(each) for each in given.getlist("id")))
    if not 1 <= len(ids) <= LISTED:
        raise InvalidArgument("id", ids, f"must be given, and at most {LISTED} times")
    for id in ids:
        try:
            UUID(id)
        except ValueError:
            raise InvalidArgument("id", id, "must be a UUID") from None
    return action, ids


def _consumer_of(request: Request, letter: DeadLetter) -> AnyConsumer | None:
    consumers = cast("dict[tuple[str, str | None], AnyConsumer]", request.app.state.consumers)
    return consumers.get((letter.category, letter.identifier))


ROUTES = [Route("/parked", parked), Route("/parked-message", parked_message)]
ROUTES_OF_ACTIONS = [Route("/confirm", confirm), Route("/resolve", resolve, methods=["POST"])]
