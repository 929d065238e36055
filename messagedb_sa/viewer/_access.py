"""Who may see the pages: the token, this machine's addresses, the Host header, and headers that browsers obey."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import cast
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from messagedb_sa.errors import InvalidArgument
from messagedb_sa.viewer._pages import link, page, path_of

COOKIE = "messagedb_viewer"
SESSION_SECONDS = 12 * 60 * 60
"""How long a login lasts."""

_HEADERS = {
    # Nothing is loaded from elsewhere, and no script or style that stands in a page runs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With "no-referrer", browsers would not name the origin of a form either.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
_FORWARDED = re.compile("forwarded|via|x-forwarded-.*|x-real-ip|.*client-ip|.*connecting-ip")
_HOST = r"[a-z0-9._-]+|\[[0-9a-f:.]+\]"
_PAGE = re.compile(r"[a-z-]*(\?.*)?")


@dataclass(frozen=True)
class Access:
    """Whether a request may be answered. The three options are those of ``viewer``."""

    token: str | None
    authenticated: bool
    allowed_hosts: frozenset[str] | None

    @property
    def is_local(self) -> bool:
        """Whether only requests from this machine are answered."""
        return self.token is None and not self.authenticated

    def knows_host(self, request: HTTPConnection) -> bool:
        """Browsers send the name in the address bar, which may be an attacker's that leads to this machine."""
        host = host_of(request)
        if self.allowed_hosts is not None:
            return host in self.allowed_hosts
        return not self.is_local or _is_loopback(host)

    def is_from_here(self, request: HTTPConnection) -> bool:
        """Whether it comes from this machine, and no proxy says that it passes it on."""
        is_forwarded = any(_FORWARDED.fullmatch(name) for name in request.headers)
        return request.client is not None and _is_loopback(request.client.host) and not is_forwarded

    def is_same(self, token: str) -> bool:
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def has_token(self, request: HTTPConnection) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_same(given.strip())

    def session(self, until: int) -> str:
        """What the cookie of a login holds. It does not hold the token, and ends with it."""
        assert self.token is not None
        return f"{until}.{hmac.digest(self.token.encode(), f'messagedb viewer {until}'.encode(), 'sha256').hex()}"

    def has_session(self, request: HTTPConnection) -> bool:
        given = request.cookies.get(COOKIE, "")
        until = given.partition(".")[0]
        if not re.fullmatch("[0-9]{1,12}", until):
            return False
        return hmac.compare_digest(given.encode(), self.session(int(until)).encode()) and time.time() < int(until)


def access_of(request: HTTPConnection) -> Access:
    return cast("Access", request.app.state.access)


def checked_access(token: object, authenticated: object, allowed_hosts: object) -> Access:
    if token is not None and not (isinstance(token, str) and re.fullmatch("[!-~]{16,}", token)):
        # Not the value, which is a secret.
        raise InvalidArgument("token", "***", "must have 16 or more letters, digits and punctuation marks of ASCII")
    if not isinstance(authenticated, bool):
        raise InvalidArgument("authenticated", authenticated, "must be True or False")
    if token is not None and authenticated:
        reason = "must not be True with a token, which would not be checked"
        raise InvalidArgument("authenticated", authenticated, reason)
    if allowed_hosts is None:
        return Access(token, authenticated, None)
    hosts = [] if isinstance(allowed_hosts, str) or not isinstance(allowed_hosts, Iterable) else [*allowed_hosts]
    if not hosts or not all(isinstance(each, str) and re.fullmatch(_HOST, each, re.IGNORECASE) for each in hosts):
        reason = 'must be a list of host names without ports, such as ["admin.example.com"]'
        raise InvalidArgument("allowed_hosts", allowed_hosts, reason)
    return Access(token, authenticated, frozenset(each.lower().strip("[]") for each in hosts))


class Shield:
    """Around the whole application: its headers on each answer, and no answer under a name that is not ours."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        scope = _with_whole_path(scope)
        request = HTTPConnection(scope)
        app: ASGIApp = self._app
        if not self._access.knows_host(request):
            text = f"The viewer is not served as {host_of(request)!r}: see its option allowed_hosts.\n"
            app = PlainTextResponse(text, 400)
        await app(scope, receive, send_with_headers)
        return None


class Guard:
    """Around the pages: lets those through who may see them. What changes something must come from a page of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        access = access_of(request)
        answer: ASGIApp = self._app
        if access.token is not None and not (access.has_token(request) or access.has_session(request)):
            answer = login_page(request, path_of(request).lstrip("/") + _query_of(request))
        elif access.is_local and not access.is_from_here(request):
            answer = page(request, "refused.html", 403)
        elif request.method not in ("GET", "HEAD") and not (access.has_token(request) or _is_from_our_page(request)):
            answer = _not_from_our_page(request)
        await answer(scope, receive, send)


def login_page(request: Request, to: str, *, failed: bool = False) -> Response:
    response = page(request, "login.html", 401, to=to, failed=failed)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def show_login(request: Request) -> Response:
    if access_of(request).token is None:
        return RedirectResponse("./", 303)
    return login_page(request, "")


async def log_in(request: Request) -> Response:
    access = access_of(request)
    form = dict(parse_qsl(await _beginning(request)))
    token, to = form.get("token", "").strip(), form.get("to", "")
    if not _PAGE.fullmatch(to):
        to = ""
    if not access.is_same(token):
        return login_page(request, to, failed=True)
    response = RedirectResponse(to or "./", 303)
    # Without a path, a browser takes the one that it sees, which only a proxy may know.
    response.set_cookie(
        COOKIE,
        access.session(int(time.time()) + SESSION_SECONDS),
        path=None,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


async def log_out(request: Request) -> Response:
    if not _is_from_our_page(request):
        return _not_from_our_page(request)
    response = RedirectResponse(link("login"), 303)
    response.set_cookie(COOKIE, "", max_age=0, path=None, httponly=True, samesite="strict")
    return response


def host_of(request: HTTPConnection) -> str:
    """The name in the Host header, without its port. Empty if it is not a name."""
    found = re.fullmatch(rf"({_HOST})(:[0-9]*)?", request.headers.get("host", ""), re.IGNORECASE)
    return found[1].lower().strip("[]") if found else ""


def _with_whole_path(scope: Scope) -> Scope:
    """``FastAPI(root_path=…)`` adds a proxy's prefix to the root path only; Starlette's routes need it in the path."""
    prefix = scope.get("app_root_path", "")
    if prefix and not scope["path"].startswith(scope["root_path"]):
        return {**scope, "path": prefix + scope["path"]}
    return scope


async def _beginning(request: Request) -> str:
    """Of the body: anybody may send one of any length."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 10_000:
            break
    return body.decode("latin-1")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_from_our_page(request: HTTPConnection) -> bool:
    headers: Headers = request.headers
    # Browsers send this one over HTTPS and to this machine, also if a proxy changes the Host header.
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    return urlsplit(headers.get("origin", "")).netloc.lower() == headers.get("host", "").lower() != ""


def _not_from_our_page(request: Request) -> Response:
    text = "This request does not come from a page of the viewer."
    return page(request, "error.html", 403, title="Refused", text=text)


def _query_of(request: HTTPConnection) -> str:
    query = request.scope.get("query_string", b"").decode("latin-1")
    return f"?{query}" if query else ""
