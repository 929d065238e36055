"""A browser without a screen: it takes pages apart, and follows their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

from starlette.testclient import TestClient

VOID = {"meta", "link", "input", "use", "path", "rect", "circle", "polyline", "br"}
TAGS = {
    *("html", "head", "title", "script", "body", "header", "main", "nav", "section", "figure", "figcaption", "footer"),
    *(
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "span",
        "bdi",
        "strong",
        "code",
        "pre",
        "kbd",
        "time",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
    ),
    *("a", "form", "label", "button", "datalist", "option", "select", "fieldset", "legend", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "g", "text", "desc", "output", "noscript"),
} | VOID


class Page(HTMLParser):
    """What a browser makes of an answer. An element or an attribute that no template of ours has is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.texts: list[str] = []
        self.forms: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute twice: {attrs}"
        for name in given:
            assert not name.startswith("on"), attrs
            assert name != "style", attrs
        for name in ("href", "src", "action"):
            assert not re.match(r"\s*([a-z]+:|//)", given.get(name, ""), re.IGNORECASE), f"leads elsewhere: {attrs}"
        if tag == "script":
            assert given["src"].split("/")[-2] == "static"
        if tag == "a":
            self.links.append(given["href"])
        if tag == "form":
            self.forms.append(given["action"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            assert not data.strip()
        self.texts.append(data)


def browser(app: Any, *, address: str = "127.0.0.1", host: str = "localhost", **options: Any) -> TestClient:
    """A client on this machine. Enter it, so that all requests are on one event loop."""
    return TestClient(app, base_url=f"http://{host}", client=(address, 50_000), **options)


def get(client: TestClient, path: str, status_code: int = 200, **parameters: Any) -> Page:
    answer = client.get(path, params=parameters or None)
    assert answer.status_code == status_code, answer.text
    return Page(answer.text)


def crawl(client: TestClient, path: str, most: int = 300) -> dict[str, Page]:
    """All pages that the links of a page lead to, and theirs, each found."""
    found: dict[str, Page] = {}
    pending = [path]
    while pending and len(found) < most:
        url = pending.pop(0)
        if url in found:
            continue
        answer = client.get(url)
        assert answer.status_code == 200, f"{url}: {answer.text}"
        if "attachment" in answer.headers.get("content-disposition", ""):
            continue
        found[url] = page = Page(answer.text)
        pending += local(str(answer.url), page.links)
    return found


def local(url: str, links: list[str]) -> Iterator[str]:
    for each in links:
        to = urlsplit(urljoin(url, each))
        yield f"{to.path}?{to.query}" if to.query else to.path


def rows_of(client: TestClient, url: str) -> tuple[list[int], dict[str, str]]:
    """The positions that a list shows, and the links of its pager by their names."""
    html = client.get(url).text
    Page(html)
    positions = [int(re.sub(r"\D", "", each)) for each in re.findall(r'<td class="number">([^<]*)</td>', html)]
    pager = html.partition('<nav class="pager"')[2].partition("</nav>")[0]
    links = {}
    for to, name in re.findall(r'<a href="([^"]*)" rel="\w+">(.*?)</a>', pager, flags=re.DOTALL):
        (word,) = re.findall(r"Newer|Older", name)
        links[word] = next(local(url, [to.replace("&amp;", "&")]))
    return positions, links
