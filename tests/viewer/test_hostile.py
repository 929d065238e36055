"""Messages of which nobody knows who wrote them: markup, odd names, too much data, and what Python cannot represent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from messagedb_sa import Store
from messagedb_sa.stream_name import category
from messagedb_sa.viewer import viewer
from messagedb_sa.viewer._statements import SHOWN

from ..support import NESTED, insert, nested_is_refused
from .support import Page, browser, crawl, get, rows_of

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></textarea></script><b>",
    "{{ 7 * 7 }}{% for %}",
    "javascript:alert(1)",
    "&lt;b&gt;&amp;",
    "<!--",
    "]]>",
]
IMPOSSIBLE = [("message", "id"), ("all", "position"), ("raw", "id")]
NAMES = [
    "a/b-c/d",
    "..-..",
    "../../etc-passwd",
    "%2F%2e-%00",
    "a?b=c-1&name=other",
    "a#b-c#d",
    "line\nbreak-1\r\nX-Header: y",
    "tab\t-\x01\x7f",
    "quote'\"`-\\",
    "unié☃-\U0001f600\u202e",
    "  spaces  -  ",
    "+plus+-+1",
    "$all-1",
    "a-",
    "-a",
    "-",
    "n:o+i-1+2-3",
    "x" * 500 + "-1",
]


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with browser(viewer(store)) as client:
        yield client


@pytest.mark.usefixtures("indexes")
def test_markup_in_messages_is_text_on_every_page(store: Store, client: TestClient) -> None:
    for number, each in enumerate(MARKUP):
        metadata = {each: each, "correlationStreamName": f"{each}-1"}
        if number:
            metadata |= {"causationMessageStreamName": f"{MARKUP[number - 1]}-1", "causationMessagePosition": "0"}
        store.write(f"{each}-1", each, {each: [each]}, metadata)
    pages = crawl(client, "/")
    shown = " ".join(page.text for page in pages.values())
    for each in MARKUP:
        assert each in shown
        for path, name in (
            ("search", "q"),
            ("stream", "name"),
            ("category", "name"),
            ("all", "type"),
            ("correlation", "name"),
        ):
            get(client, f"/{path}?{urlencode({name: each})}")
        get(client, f"/all?{urlencode({'metadata': json.dumps({each: each})})}")
        for path in (*(f"{page}?{urlencode({name: each})}" for page, name in IMPOSSIBLE), each.replace("?", "")):
            answer = client.get(f"/{path}")
            assert answer.status_code in (400, 404)
            Page(answer.text)


def test_every_name_leads_to_its_pages(store: Store, client: TestClient) -> None:
    for name in NAMES:
        store.write(name, "Opened", {"n": 1})
        store.write(name, "Closed", {"n": 2})
    pages = crawl(client, "/")
    assert sum(url.startswith("/message?id=") for url in pages) == 2 * len(NAMES)
    for name in NAMES:
        for parameters in (f"stream?{urlencode({'name': name})}", f"category?{urlencode({'name': category(name)})}"):
            assert "Opened" in pages[f"/{parameters}"].text
            assert "Closed" in pages[f"/{parameters}"].text


@pytest.mark.parametrize("value", ["%00", "-1", "1.5", "9" * 30, "%d9%a3", "1e3", "%20", "nan"])
@pytest.mark.parametrize("path", ["all?", "category?name=a&", "stream?name=a-1&", "message?stream=a-1&"])
def test_a_position_that_cannot_be_is_refused(client: TestClient, path: str, value: str) -> None:
    get(client, f"/{path}position={value}", 400)


@pytest.mark.parametrize(
    "path", ["stream?name=", "category?name=", "streams?category=", "search?q=", "correlation?name="]
)
@pytest.mark.parametrize("value", ["%00", "%ff%fe", "%ED%A0%80", "a" * 3000, "%F0%9F%98%80"])
@pytest.mark.usefixtures("indexes")
def test_a_name_that_cannot_be_is_no_error_of_ours(client: TestClient, path: str, value: str) -> None:
    answer = client.get(f"/{path}{value}")
    assert answer.status_code in (200, 400)
    Page(answer.text)


@pytest.mark.parametrize(
    "fields", ['{"a": "\\u0000"}', '{"a": NaN}', "[1]", "7", '{"a": "\\ud800"}', "[" * 5000, "nothing"]
)
def test_metadata_that_cannot_be_is_refused(client: TestClient, fields: str) -> None:
    get(client, "/all", 400, metadata=fields)


def test_of_a_large_message_a_page_shows_the_beginning_and_offers_all(store: Store, client: TestClient) -> None:
    data = {"rows": [{"n": number, "text": "lorem ipsum dolor sit amet " * 10} for number in range(35_000)]}
    store.write("large-1", "Huge", data)
    store.write("large-1", "Long", {"text": "x" * 10_000_000})
    for path in ("/all", "/"):
        answer = client.get(path)
        assert len(answer.content) < 40_000
        assert "large, " in Page(answer.text).text
    for position in (0, 1):
        answer = client.get("/message", params={"stream": "large-1", "position": position})
        assert SHOWN < len(answer.content) < 3 * SHOWN
        assert "these are the first 200" in Page(answer.text).text
    id = re.findall(r'raw\?id=([^&]*)&amp;part=data"', client.get("/message?stream=large-1&position=0").text)[0]
    raw = client.get("/raw", params={"id": id})
    assert len(raw.content) > 10_000_000
    assert raw.json() == data


def test_a_message_with_many_values_shows_some_of_them(store: Store, client: TestClient) -> None:
    store.write("wide-1", "Wide", {"list": [*range(20_000)]})
    store.write("wide-1", "Wide", {"lists": [[*range(100)] for _ in range(150)]})
    store.write("wide-1", "Deep", json.loads('{"a":' * 100 + "7" + "}" * 100))
    for position in range(3):
        answer = client.get("/message", params={"stream": "wide-1", "position": position})
        assert len(answer.content) < 400_000
        assert "more, in the raw JSON" in Page(answer.text).text


@nested_is_refused
@pytest.mark.usefixtures("indexes")
def test_what_python_cannot_represent_is_shown_as_it_is_stored(store: Store, client: TestClient) -> None:
    correlated = '{"correlationStreamName": "odd-1"}'
    caused = '{"causationMessageStreamName": "odd-1", "causationMessagePosition": 0, "correlationStreamName": "odd-1"}'
    insert(store, "odd-1", 0, "First", "{}", metadata=correlated)
    insert(store, "odd-1", 1, "Nested", NESTED, metadata=caused)
    insert(store, "odd-1", 2, "Late", '"text"', "'infinity'", metadata=caused)
    insert(store, "odd-1", 3, "Early", None, "'4000-01-01 BC'", metadata=caused)
    insert(store, "odd-1", 4, "Meta", "{}", metadata=NESTED)
    insert(store, "odd-1", 5, "Last", "{}", metadata=correlated)
    for path in ("/all", "/stream?name=odd-1", "/category?name=odd", "/all?type=Nested"):
        assert get(client, path).text.count("Nested") >= 1
    assert "after the year 9999" in get(client, "/all").text
    assert "Nested too deeply for a tree. [[[[" in get(client, "/message", stream="odd-1", position=1).text
    assert "Nested too deeply for a tree." in get(client, "/message", stream="odd-1", position=4).text
    assert "after the year 9999" in get(client, "/message", stream="odd-1", position=2).text
    assert "before the year 1" in get(client, "/message", stream="odd-1", position=3).text
    shown = get(client, "/message", stream="odd-1", position=0).text
    assert "cannot decode message 1 of stream 'odd-1'" in shown
    # The correlation goes on after each message that it cannot show.
    positions, links = rows_of(client, "/correlation?name=odd-1")
    assert positions == [1]
    assert "Python cannot represent the message at global position 2" in get(client, "/correlation", name="odd-1").text
    while "Newer" in links:
        more, links = rows_of(client, links["Newer"])
        positions += more
    assert positions == [1, 6]
    crawl(client, "/")
