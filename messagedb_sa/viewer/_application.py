"""The application: its options, its pages, and what is around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from messagedb_sa import _arguments as arguments
from messagedb_sa.consumer import AsyncConsumer, Consumer
from messagedb_sa.store import AsyncStore, Store
from messagedb_sa.viewer import _consumers, _live, _messages, _overview, _parked, _search, _streams
from messagedb_sa.viewer._access import Guard, Shield, checked_access, log_in, log_out, show_login
from messagedb_sa.viewer._calls import Calls
from messagedb_sa.viewer._errors import HANDLERS
from messagedb_sa.viewer._pages import Options


def viewer(
    store: Store | AsyncStore,
    *,
    token: str | None = None,
    authenticated: bool = False,
    allowed_hosts: Sequence[str] | None = None,
    actions: bool = False,
    consumers: Sequence[Consumer | AsyncConsumer] = (),
) -> ASGIApp:
    """An ASGI application with pages that show a store, to mount or to serve alone.

    ``store`` is on an engine. Its role only needs the right to read.

    With neither ``token`` nor ``authenticated``, only requests from this machine, to one of its loopback names, are
    answered. ``token``: requests from anywhere are answered if they have it, as ``Authorization: Bearer …`` or as the
    cookie of a login; at least 16 characters. ``authenticated=True``: your application has checked each request before
    it comes here, and the viewer answers all.

    ``allowed_hosts``: the names, without ports, that the Host header may have. By default those of this machine, and
    any with ``token`` or ``authenticated``.

    ``actions``: whoever sees the pages can discard parked messages, for which the role needs the right to write, and
    replay those of ``consumers``: made as you make them to run, but only ``replay`` is called. Their handlers then run
    in this process.

    Raises InvalidArgument.
    """
    access = checked_access(token, authenticated, allowed_hosts)
    actions = arguments.boolean("actions", actions)
    modules = _overview, _streams, _messages, _search, _consumers, _parked, _live
    pages = [route for module in modules for route in module.ROUTES]
    if actions:
        pages += _parked.ROUTES_OF_ACTIONS
    application = Starlette(
        routes=[
            Route("/login", show_login),
            Route("/login", log_in, methods=["POST"]),
            Route("/logout", log_out, methods=["POST"]),
            Mount("/static", _Files(packages=[("messagedb_sa.viewer", "static")])),
            Mount("", routes=pages, middleware=[Middleware(Guard)]),
        ],
        exception_handlers=HANDLERS,
    )
    application.state.access = access
    calls = Calls(store)
    application.state.options = Options(calls, actions, access.token is not None)
    application.state.history = _consumers.History(calls)
    application.state.consumers = _parked.checked_consumers(consumers, actions=actions)
    application.state.tails = _live.Tails()
    return Shield(application, access)


class _Files(StaticFiles):
    """Browsers keep them, and ask each time whether they are still the same."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["Cache-Control"] = "no-cache"
        return response
