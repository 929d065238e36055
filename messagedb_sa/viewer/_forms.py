"""Forms that change something: the token in them that only our own pages have, for this browser and this change."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from secrets import token_urlsafe

from starlette.requests import Request
from starlette.responses import Response

from messagedb_sa.viewer._access import COOKIE as LOGIN

COOKIE = "messagedb_viewer_form"


def key_of(request: Request) -> str:
    """What only this browser has: of its cookie, or a new one."""
    return request.cookies.get(COOKIE) or token_urlsafe(32)


def set_key(request: Request, response: Response, key: str) -> None:
    # Without a path, a browser takes the one that it sees, which only a proxy may know.
    is_secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, key, path=None, secure=is_secure, httponly=True, samesite="strict")


def token_for(request: Request, key: str, action: str, ids: Sequence[str]) -> str:
    """Good for this action on these, in this browser, during this login."""
    words = [request.cookies.get(LOGIN, ""), action, *sorted(ids)]
    return hmac.digest(key.encode(), "\n".join(words).encode(), "sha256").hex()


def is_ours(request: Request, token: str, action: str, ids: Sequence[str]) -> bool:
    key = request.cookies.get(COOKIE)
    return bool(key) and hmac.compare_digest(token_for(request, key or "", action, ids).encode(), token.encode())
