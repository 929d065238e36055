"""What all pages share: the templates and what they can call, the links, the parameters of a request."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, cast
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response

from messagedb_sa._arguments import ALL, integer, unstorable
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.stream_name import category
from messagedb_sa.viewer._calls import Calls
from messagedb_sa.viewer._charts import duration


class Options(NamedTuple):
    """What the application was made with, apart from what protects it."""

    calls: Calls
    actions: bool
    """Whether parked messages can be replayed and discarded."""
    has_login: bool


def options_of(request: Request) -> Options:
    return cast("Options", request.app.state.options)


def calls_of(request: Request) -> Calls:
    return options_of(request).calls


def page(request: Request, template: str, status_code: int = 200, **context: Any) -> Response:
    """The page made of a template; ``context`` are the names that this may use."""
    text = _templates.get_template(template).render(
        base=base_of(request),
        path=path_of(request),
        options=options_of(request),
        search=context.pop("search", ""),
        **context,
    )
    return HTMLResponse(text, status_code)


def path_of(request: HTTPConnection) -> str:
    """The path inside of the application."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "").rstrip("/"))


def base_of(request: HTTPConnection) -> str:
    """What leads from the page to the application's root. Links are relative, so that they work behind any proxy."""
    return "../" * (path_of(request).count("/") - 1)


def link(page: str, **parameters: object) -> str:
    """A link from one page to another; parameters that are None are left out.

    All pages are on the first level, and names of streams are never part of a path, which proxies may change.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"{page}?{urlencode(given)}" if given else page or "./"


def text_parameter(request: Request, name: str) -> str | None:
    """A parameter of the query string. None if it is missing or empty."""
    return _parameter(request, name) or None


def _parameter(request: Request, name: str) -> str | None:
    value: str | None = request.query_params.get(name)
    if value is not None and (reason := unstorable(value)):
        raise InvalidArgument(name, value, reason)
    return value


def number_parameter(request: Request, name: str) -> int | None:
    value = text_parameter(request, name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 20):
        raise InvalidArgument(name, value, "must be a whole number, 0 or more")
    return integer(name, int(value), minimum=0)


def required_parameter(request: Request, name: str) -> str:
    """It may be empty: the category of the stream ``-1`` is."""
    value = _parameter(request, name)
    if value is None:
        raise InvalidArgument(name, None, "must be given, as part of the address")
    return value


def _lists_streams(category: str) -> bool:
    """Streams can have no category, or one named as the whole store."""
    return category not in ("", ALL)


def _number(value: int) -> str:
    """With narrow spaces between thousands, as ISO 80000 has it."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _bytes(value: int) -> str:
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} bytes"


def _utc(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC"


def _clock(time: datetime) -> str:
    return f"{time:%H:%M}"


_templates = Environment(
    loader=PackageLoader("messagedb_sa.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals["link"] = link
_templates.filters.update(
    number=_number,
    bytes=_bytes,
    utc=_utc,
    clock=_clock,
    duration=duration,
    category=category,
    lists_streams=_lists_streams,
)
